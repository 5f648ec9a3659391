"""Settings for every test: one torch thread, so that parallel work on the machine stays possible.
And what tests of the engine are run over: devices, number types."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# A loaded machine is slow to generate inputs; that says nothing about the code.
settings.register_profile("longstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("longstream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit of a test is for the quick ones. Files that wait for brokers come between files
    that compute, so that tests beside each other seldom all wait."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(str(item.path), []).append(item)
    waiting = [f for f in files if "kafka" in Path(f).parent.name]
    computing = [f for f in files if f not in waiting]
    places = {
        f: (at + 0.5) / len(group) for group in (waiting, computing) for at, f in enumerate(group)
    }
    items[:] = [item for f in sorted(files, key=places.__getitem__) for item in files[f]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A command that ran in this process may have set more, which makes all that follows slow.
    torch.set_num_threads(1)
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip(f"no CUDA device: torch {torch.__version__} finds none on this machine")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the toy decoders of a test are. Their blocks are short, so rows of more than eight tokens
    count as long: both ways of attending are tested."""
    from operators.cache import batch
    from tests.engine import toys

    with toys(device=request.param), pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "GROUP_TOKENS", 8)
        yield request.param


@pytest.fixture(params=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the toy decoders of a test compute in: for what must hold to the last bit in any type."""
    from tests.engine import toys

    with toys(dtype=request.param):
        yield request.param
