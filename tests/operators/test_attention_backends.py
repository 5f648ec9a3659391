"""Backends of attention against the reference: the Triton kernel in its interpreter, FlashInfer's calls
with a stand-in for that library, both on the CPU; on a GPU the real ones."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from operators.cache import attention_flashinfer, batch
from operators.cache.attention import TorchAttention, Watch
from operators.cache.attention_flashinfer import FlashInferAttention, load_flashinfer
from operators.cache.batch import ForwardBatch, Row
from operators.errors import ModelError
from pipelines.lab.conformance.reference import StreamReference
from tests import flashinfer_stand_in
from tests.attention_cases import difference
from tests.engine import SINKS, Driver, assert_same_logits, layout, random_tokens, toy_decoder
from tests.flashinfer_stand_in import BatchPrefillWithPagedKVCacheWrapper as StandIn
from tests.toy import toy_model

CLOSE = {"fp32": 1e-5, "bf16": 1 / 32, "fp16": 1 / 256}
"""How far a backend may be from the reference. Outputs go up to about 3, and both round twice (a part's
output, then the merged one): two units in the last place of numbers from 2 to 4."""
CPU = torch.device("cpu")


def flashinfer_stood_in() -> FlashInferAttention:
    return FlashInferAttention(flashinfer_stand_in, CPU)


def test_the_kernel_attends_as_the_reference_does() -> None:
    """In a process of its own: Triton decides at its import whether kernels are interpreted."""
    pytest.importorskip("triton", reason="NOT TESTED HERE: Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_attention"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [float(line) for line in done.stdout.split()]
    assert len(found) == 4
    assert max(found) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("triton", "fp32"), ("triton", "bf16"), ("flashinfer", "bf16"), ("flashinfer", "fp16")],
)
def test_on_a_gpu_a_backend_attends_as_the_reference_does(
    backend: str, dtype: str, wrapped: bool
) -> None:
    pytest.importorskip(backend, reason=f"NOT TESTED HERE: {backend} is not installed")
    model = toy_decoder(device="cuda", dtype=dtype, head_dim=64)
    model.attend_with(backend)
    used, model.attention = model.attention, TorchAttention()
    assert difference(used, model, wrapped=wrapped) <= CLOSE[dtype]


def test_a_model_runs_on_the_backend_it_is_given() -> None:
    class Counting(TorchAttention):
        groups = 0

        def attend_group(self, *args: object, **kwargs: object) -> torch.Tensor:
            self.groups += 1
            return super().attend_group(*args, **kwargs)  # type: ignore[arg-type]

    driver = Driver(toy_decoder(), layout())
    driver.model.attention = counting = Counting()
    driver.stream(SINKS)
    assert counting.groups == driver.model.shape.layers


@pytest.mark.parametrize("backend", ["triton", "flashinfer"])
def test_a_backend_that_does_not_run_here_is_refused(backend: str) -> None:
    model = toy_decoder()
    model.attend_with("torch")
    with pytest.raises(ModelError, match=f"attention={backend} needs a CUDA device"):
        model.attend_with(backend)


# --- FlashInfer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_calls_of_flashinfer_attend_as_the_reference_does(
    arch: str, dtype: str, wrapped: bool
) -> None:
    model = toy_decoder(arch, dtype=dtype)
    assert difference(flashinfer_stood_in(), model, wrapped=wrapped) <= CLOSE[dtype]


@pytest.mark.parametrize("slack", [8, 10])  # slots of 37 tokens have pages of one
def test_streams_and_branches_go_through_flashinfer_as_through_the_slow_reference(
    slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over wraps of the window, with rows long and short in one forward."""
    monkeypatch.setattr(batch, "GROUP_TOKENS", 4)
    driver, rng = Driver(toy_decoder(), layout(slack=slack)), random.Random(5)
    driver.model.attention = flashinfer_stood_in()
    references = [StreamReference(toy_model(), SINKS, window=24) for _ in range(3)]
    slots = [driver.stream(SINKS) for _ in references]
    for turn in range(8):
        rows, want = [], []
        for at, (slot, reference) in enumerate(zip(slots, references, strict=True)):
            block = random_tokens(rng.randint(1, slack), seed=10 * turn + at)
            rows.append(Row(slot, block))
            want.append(reference.ingest(block))
        for got, expected in zip(driver.run(rows), want, strict=True):
            assert_same_logits(got, expected)
        pairs = [(driver.cache.fork(s), r.fork()) for s, r in zip(slots, references, strict=True)]
        for length in (6, 2, 1):
            rows, want = [], []
            for branch, fork in pairs:
                block = random_tokens(length, seed=turn + length + branch.region)
                rows.append(Row(branch.stream, block, branch))
                want.append(fork.append(block))
            for got, expected in zip(driver.run(rows), want, strict=True):
                assert_same_logits(got, expected)
        for branch, _ in pairs:
            driver.cache.drop(branch)


@pytest.mark.parametrize("short", [128, 1], ids=["short rows", "long rows"])
def test_flashinfer_plans_once_for_all_layers_and_uses_its_wrappers_again(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "GROUP_TOKENS", short)
    driver = Driver(toy_decoder(), layout())
    driver.model.attention = backend = flashinfer_stood_in()
    slot = driver.stream(SINKS)
    driver.feed(slot, random_tokens(60, 1), random.Random(1))
    branch = driver.cache.fork(slot)
    assert driver.model.shape.layers > 1
    before = StandIn.plans
    for _ in range(3):
        driver.append(branch, [5, 6])
    assert StandIn.plans - before == 3 * 3  # sinks, the slot's rest, the region
    assert len(backend._free) == 3


def test_where_probabilities_are_watched_the_reference_attends() -> None:
    driver = Driver(toy_decoder(), layout())
    driver.model.attention = flashinfer_stood_in()
    branch = driver.cache.fork(driver.stream(SINKS))
    driver.append(branch, [5, 6, 7])
    before, watch = StandIn.plans, Watch({0: (0, 1)}, 0, 3)
    driver.run([Row(branch.stream, [8, 9], branch, watch=watch)])
    assert StandIn.plans == before
    assert watch.found[0].shape == (2, 2, 3)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 96), (4, 37), (2, 4240)])
def test_pages_are_the_slots_where_they_lie(rows: int, tokens: int) -> None:
    pool = torch.arange(rows * 2 * tokens * 3).view(rows, 2, tokens, 3)
    pages, page = attention_flashinfer.paged(pool), attention_flashinfer.page_tokens(tokens)
    assert pages.data_ptr() == pool.data_ptr()
    assert page <= attention_flashinfer.PAGE
    assert tokens % page == 0
    for row in range(rows):
        first = row * 2 * tokens // page
        own = pages[first : first + tokens // page]
        assert own.transpose(0, 1).reshape(2, tokens, 3).equal(pool[row])
    assert pages[-1, -1, -1, -1] <= pool.max()  # nothing beyond the pool


def test_what_we_call_is_what_flashinfer_has() -> None:
    """The stand-in's signatures are the first parameters of the real ones: names, order, defaults."""
    try:
        real: Any = importlib.import_module("flashinfer")
    except ImportError as error:
        pytest.skip(f"NOT TESTED HERE: FlashInfer cannot be imported ({error})")

    def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
        each = inspect.signature(function).parameters.values()
        return [(one.name, one.kind, one.default) for one in each]

    wrapper = real.BatchPrefillWithPagedKVCacheWrapper
    for ours, theirs in (
        (StandIn.__init__, wrapper.__init__),
        (StandIn.plan, wrapper.plan),
        (StandIn.run, wrapper.run),
        (flashinfer_stand_in.merge_state, real.merge_state),
    ):
        expected = parameters(ours)
        assert parameters(theirs)[: len(expected)] == expected


def test_flashinfer_is_tried_out_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails only when it compiles fails at the start, and says what to do."""
    shape = toy_decoder().shape
    before = StandIn.plans
    flashinfer_stood_in().try_out(shape, torch.bfloat16, 4)
    assert StandIn.plans > before
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_stand_in)
    cuda = torch.device("cuda")
    with pytest.raises(ModelError, match="bf16 or fp16, with heads of"):
        load_flashinfer(cuda, torch.float32, 4, shape)

    def fails(*_: object) -> None:
        raise RuntimeError("Ninja build failed\nnvcc: not found")

    monkeypatch.setattr(attention_flashinfer, "HEAD_DIMS", (shape.head_dim,))
    monkeypatch.setattr(FlashInferAttention, "__init__", lambda *_: None)
    monkeypatch.setattr(FlashInferAttention, "try_out", fails)
    with pytest.raises(ModelError, match=r"install the CUDA toolkit.*Ninja build failed"):
        load_flashinfer(cuda, torch.bfloat16, 4, shape)
    monkeypatch.setattr(FlashInferAttention, "try_out", lambda *_: None)
    assert load_flashinfer(cuda, torch.bfloat16, 4, shape).name == "flashinfer"


def test_rows_scattered_over_slots_are_one_group_for_flashinfer() -> None:
    driver = Driver(toy_decoder(), layout(), slots=4)
    slots = [driver.stream(SINKS) for _ in range(4)]
    rows = [Row(slots[at], [5, 6]) for at in (3, 0, 2)]
    laid_out = ForwardBatch(driver.cache, rows, driver.model.rope, flashinfer_stood_in())
    assert len(laid_out._groups) == 1
