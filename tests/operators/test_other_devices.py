"""The engine on a device that is not the CPU, as far as that can be checked without one.

Torch's ``meta`` device has shapes and no memory: it refuses to be asked for a value, as a layer must
not do on a GPU (it would wait for it), and shows which tensor was made where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from operators.cache import attention, batch
from operators.cache.batch import ForwardBatch, Row
from operators.cache.kv_cache import KvLayout
from operators.model.loader import DTYPES, has_bf16
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import SINKS, Driver, assert_same_logits, layout, random_tokens, toy_decoder
from tests.toy import ARCHITECTURES, toy_model

LONG = 32
"""Rows beyond this are attended part by part."""


@pytest.fixture(autouse=True)
def long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "GROUP_TOKENS", LONG)


class OnlyOn(TorchDispatchMode):
    """Fails at the first operation that reads or makes a tensor anywhere else."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                assert leaf.device.type == self.device, f"{func} with a tensor on {leaf.device}"
        self.seen += 1
        return out


def stream_and_branch_rows(driver: Driver) -> list[Row]:
    """Short ones together and apart, unequal ones, long ones; windows that have wrapped and not."""
    long, slots = driver.layout.slack, [driver.stream(SINKS) for _ in range(5)]
    for slot in (slots[0], slots[3]):
        for seed in range(4):
            driver.run([Row(slot, random_tokens(long, seed))])
    driver.cache.fork(slots[0])  # has the region beside its neighbour's
    branches = [driver.cache.fork(slots[at]) for at in (1, 0, 2, 3, 4)]
    driver.append(branches[3], [1, 2])
    sizes = (4, 3, 1, long, 2)
    rows = [
        Row(b.stream, random_tokens(n, n), b, num_logits=n)
        for b, n in zip(branches, sizes, strict=True)
    ]
    return [
        *rows,
        Row(slots[1], [5, 6], num_logits=1),
        Row(slots[4], random_tokens(long, 9), num_logits=2),
    ]


def roomy(device: str = "cpu", arch: str = "llama") -> Driver:
    """With room for rows that are attended by themselves."""
    shape = layout(window=30, slack=LONG + 8, branch=64)
    return Driver(toy_decoder(arch, device=device), shape, slots=6, branches=6)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_from_the_first_layer_to_the_logits_all_stays_on_the_device(arch: str) -> None:
    driver = roomy("meta", arch)
    rows = stream_and_branch_rows(driver)
    with torch.inference_mode():
        laid_out = ForwardBatch(driver.cache, rows, driver.model.rope)
        assert laid_out._long
        assert any(group.real is not None for group in laid_out._groups)
        assert {type(group.regions) for group in laid_out._groups} == {Tensor, slice, type(None)}
        with OnlyOn("meta") as watch:
            logits = driver.model._networks["decode"].forward(laid_out)
    assert watch.seen > 100
    assert logits.shape == (sum(row.num_logits for row in rows), driver.model.vocab_size)


@pytest.mark.parametrize(
    "leak",
    [
        lambda x: x + torch.ones(3),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x[x > 0],
        lambda x: bool(x.any()),
    ],
    ids=["host tensor", "host indices", "boolean indices", "value asked for"],
)
def test_the_check_notices(leak: Callable[[Tensor], object]) -> None:
    with (
        pytest.raises((AssertionError, NotImplementedError, RuntimeError)),
        OnlyOn("meta"),
    ):
        leak(torch.ones(3, device="meta"))


@pytest.mark.parametrize(
    "shape",
    [
        KvLayout(sinks=5, window=30, slack=40, branch_tokens=64),
        KvLayout(sinks=5, window=3, slack=48, branch_tokens=64),
    ],
    ids=["window", "block beyond the window"],
)
def test_attention_without_the_cpus_kernel_equals_the_reference(
    shape: KvLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gave NaN for a block whose first tokens see none of a stretch of keys."""
    monkeypatch.setattr(attention, "_attend_part", attention._attend_explicitly)
    driver, rng = Driver(toy_decoder(), shape), random.Random(2)
    slot = driver.cache.allocate()
    prefix = [*SINKS, *random_tokens(shape.slack - len(SINKS), seed=1)]  # sinks and more, at once
    reference = StreamReference(toy_model(), SINKS, window=shape.window)
    got = driver.run([Row(slot, prefix)])[0]
    assert_same_logits(got[len(SINKS) :], reference.ingest(prefix[len(SINKS) :]))
    for seed in range(4):
        block = random_tokens(rng.randint(LONG + 1, shape.slack), seed)
        assert_same_logits(driver.run([Row(slot, block)])[0], reference.ingest(block))
    branch, fork = driver.cache.fork(slot), reference.fork()
    block = random_tokens(LONG + 5, seed=7)
    assert_same_logits(driver.append(branch, block), fork.append(block))


def test_a_device_without_float64_is_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles are computed on the host then, and moved in the cache's type: equal to the last bit."""
    driver = roomy()
    rows = stream_and_branch_rows(driver)
    want = ForwardBatch(driver.cache, rows, driver.model.rope)
    moved: list[Tensor] = []

    def note(self: ForwardBatch, tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor

    monkeypatch.setattr(batch, "has_float64", lambda device: False)
    monkeypatch.setattr(ForwardBatch, "_moved", note)
    got = ForwardBatch(driver.cache, rows, driver.model.rope)
    assert all(tensor.dtype != torch.float64 for tensor in moved)
    assert len(got._cos_sin[0]) == 2  # of the positions, and as queries of the sinks
    for mine, theirs in zip(got._cos_sin, want._cos_sin, strict=True):
        assert torch.equal(mine, theirs)
        assert any(torch.equal(tensor, mine[0]) for tensor in moved)


def test_copies_that_do_not_wait_come_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = roomy()
    laid_out = ForwardBatch(driver.cache, [Row(driver.stream(SINKS), [1])], driver.model.rope)
    done: list[str] = []
    host = torch.ones(3)
    monkeypatch.setattr(driver.cache, "device", torch.device("cuda"))
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: done.append("pin") or self)
    monkeypatch.setattr(
        Tensor, "to", lambda self, device, non_blocking: done.append(f"{device} {non_blocking}")
    )
    laid_out._moved(host)
    assert done == ["pin", "cuda True"]


def test_half_precision_is_bf16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_bf16(torch.device("cpu"))
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)  # noqa: B023
        assert has_bf16(torch.device("cuda")) is supported


def test_in_fp16_a_stream_is_what_it_is_in_fp32_but_for_rounding() -> None:
    tokens = random_tokens(60, seed=8)
    logits = []
    for dtype in ("fp32", "fp16"):
        driver = Driver(toy_decoder(dtype=dtype), layout())
        assert driver.cache.dtype == DTYPES[dtype]
        slot = driver.stream(SINKS)
        logits.append(driver.feed(slot, tokens, random.Random(2)).float())
    assert (logits[0] - logits[1]).abs().max() < 0.05


def test_laying_out_a_step_costs_by_its_groups_and_not_by_its_rows() -> None:
    driver = Driver(toy_decoder(), layout(), slots=16, branches=16)
    slots = [driver.stream(SINKS) for _ in range(16)]
    rows = [Row(slot, [5, 6], driver.cache.fork(slot), num_logits=2) for slot in slots]
    seen = {}
    for count in (8, 16):
        with OnlyOn("cpu") as watch:
            laid_out = ForwardBatch(driver.cache, rows[:count], driver.model.rope)
        assert len(laid_out._groups) == 1
        seen[count] = watch.seen
    assert seen[16] <= seen[8] + 2
