"""Settings for every test: one torch thread, so that parallel work on the machine stays possible.
And what tests of the engine are run over: devices, number types."""

import os
from collections.abc import Iterator

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# A loaded machine is slow to generate inputs; that says nothing about the code.
settings.register_profile("longstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("longstream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit of a test is for the quick ones."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_runtest_setup(item: pytest.Item) -> None:
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
