"""Attention by FlashInfer's paged kernels, where that library is installed (CUDA; unmeasured).

A pool of slots or regions is already what FlashInfer calls a paged cache (``HND``). A slot is cut into
pages, so that a long one can be shared out among processors: FlashInfer never divides a page. Nothing
is copied for it; the heads of a page only lie a slot's length apart.

Rows are attended in at most three calls: sinks by the queries rotated for them, the rest of the slots
with the sinks masked out, the branches' regions. Each gives the logarithm (base 2) of its sum of
exponentials, -inf where a query sees none of its keys, and by these they are merged. What FlashInfer
plans on the host for a call holds for all layers; it is done at the first one. Where somebody wants to
see probabilities, the reference attends.

Written for flashinfer-python 0.7.4. Checked against :class:`operators.cache.attention.TorchAttention`
with a stand-in for the library, on the CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from operators.cache.attention import Group, Long, TorchAttention
from operators.cache.kv_cache import KvCache, KvLayout, KvShape
from operators.errors import ModelError

PAGE = 64
"""Tokens of a page, at most: as many as divide a slot."""
WORKSPACE_BYTES = 128 << 20
"""Of a device, for what a call puts aside; the size that FlashInfer recommends."""
HEAD_DIMS = (64, 128, 256)
"""What its kernels for attention and for merging are both made for."""


@dataclass
class _Stretch:
    """The first ``keys`` keys of some slots or, if ``own``, of some branches' regions."""

    rows: Tensor | slice
    keys: int
    seen: Tensor | None  # bool [r, n, keys]; None where all is seen
    rotate_sinks: bool = False
    own: bool = False


class _Call:
    """One of FlashInfer's wrappers, which keeps what was last planned for it."""

    rotate_sinks = False
    own = False

    def __init__(self, wrapper: Any, device: torch.device) -> None:
        self.run = wrapper.run
        self._wrapper = wrapper
        cuda: Any = torch.cuda
        self._copied = cuda.Event() if device.type == "cuda" else None

    def plan(
        self, cache: KvCache, stretch: _Stretch, shape: tuple[int, int], heads: int, scaling: float
    ) -> None:
        """``shape``: r rows of n queries each."""
        (r, n), layout = shape, cache.layout
        self.rotate_sinks, self.own = stretch.rotate_sinks, stretch.own
        tokens = layout.branch_tokens if stretch.own else layout.slot_tokens
        page = page_tokens(tokens)
        pages = -(-stretch.keys // page)
        first = _numbers(stretch.rows, cache.device)[:, None] * (
            cache.shape.kv_heads * tokens // page
        )
        indices = (first + torch.arange(pages, device=cache.device)).flatten()
        upto = torch.arange(r + 1, dtype=torch.int32)
        if self._copied is not None:  # the wrapper's own host memory may not have been read yet
            self._copied.synchronize()
        self._wrapper.plan(
            upto * n,
            upto * pages,
            indices.int(),
            torch.full((r,), stretch.keys - (pages - 1) * page, dtype=torch.int32),
            heads,
            cache.shape.kv_heads,
            cache.shape.head_dim,
            page,
            # Not packed_custom_mask: with several rows 0.7.4 counts its offsets in bits, its kernel in
            # bytes. It packs this one itself and waits for the device once, to learn the size.
            custom_mask=None if stretch.seen is None else stretch.seen.flatten(),
            sm_scale=scaling,
            q_data_type=cache.dtype,
            kv_data_type=cache.dtype,
        )
        if self._copied is not None:
            self._copied.record()


class FlashInferAttention(TorchAttention):
    """Short and long rows by FlashInfer, writes by the reference."""

    name = "flashinfer"
    scattered = True

    def __init__(self, library: Any, device: torch.device) -> None:
        """``library``: the module ``flashinfer``."""
        self._library, self._device = library, device
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._free: list[_Call] = []

    def attend_group(
        self, cache: KvCache, layer: int, group: Group, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        if group.watched:  # the kernels keep no scores to look at
            return super().attend_group(cache, layer, group, q, sink_q, scaling)
        if group.planned is None:
            stretches = _of_group(group, cache.layout.sinks)
            self._plan(cache, group, stretches, group.shape, q.shape[1], scaling)
        return self._attend(cache, layer, group.planned, q[group.picked], sink_q[group.picked])

    def attend_long(
        self, cache: KvCache, layer: int, row: Long, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        if row.planned is None:
            shape = 1, len(q)
            self._plan(cache, row, _of_long(row, q), shape, q.shape[1], scaling)
        return self._attend(cache, layer, row.planned, q, sink_q)

    def _plan(
        self,
        cache: KvCache,
        planned: Group | Long,
        stretches: Sequence[_Stretch],
        shape: tuple[int, int],
        heads: int,
        scaling: float,
    ) -> None:
        """Plan a call for each stretch. The calls are free for others once ``planned`` is gone."""
        calls = [self._free.pop() if self._free else self._made() for _ in stretches]
        for call, stretch in zip(calls, stretches, strict=True):
            call.plan(cache, stretch, shape, heads, scaling)
        planned.planned = calls
        weakref.finalize(planned, self._free.extend, calls).atexit = False

    def _made(self) -> _Call:
        # Of its kernels this one takes masks; "auto" would choose it too, by what a call needs.
        wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, kv_layout="HND", backend="fa2"
        )
        return _Call(wrapper, self._device)

    def _attend(
        self, cache: KvCache, layer: int, calls: Sequence[_Call], q: Tensor, sink_q: Tensor
    ) -> Tensor:
        """``q``, ``sink_q`` ``[tokens, heads, dim]`` → ``[tokens, heads * dim]``."""
        found: tuple[Tensor, Tensor] | None = None
        for call in calls:
            pools = (cache.keys, cache.values)
            if call.own:
                pools = (cache.branch_keys, cache.branch_values)
            pages = tuple(paged(pool[layer]) for pool in pools)
            state = call.run(sink_q if call.rotate_sinks else q, pages, return_lse=True)
            found = state if found is None else self._library.merge_state(*found, *state)
        assert found is not None  # a query sees itself
        return found[0].flatten(1)

    def try_out(self, shape: KvShape, dtype: torch.dtype, heads: int) -> None:
        """Attend once: FlashInfer compiles a model's kernels when they are first used, or fails to."""
        cache = KvCache(
            replace(shape, layers=1),
            KvLayout(sinks=16, window=32, slack=16, branch_tokens=16),
            slots=1,
            branches=1,
            dtype=dtype,
            device=self._device,
        )
        seen = torch.ones(1, 1, 64, dtype=torch.bool, device=self._device)
        one = slice(0, 1)
        row = Long(one, 0, 0, [])
        stretches = [_Stretch(one, 64, seen), _Stretch(one, 16, None, own=True)]
        self._plan(cache, row, stretches, (1, 1), heads, 1.0)
        q = torch.ones(1, heads, shape.head_dim, dtype=dtype, device=self._device)
        self._attend(cache, 0, row.planned, q, q).tolist()  # waits for it


def load_flashinfer(
    device: torch.device, dtype: torch.dtype, heads: int, shape: KvShape
) -> FlashInferAttention:
    """The backend for a model with so many query heads, its kernels compiled. Raises ModelError with
    what to do where it does not run."""
    if device.type != "cuda" or importlib.util.find_spec("flashinfer") is None:
        raise ModelError(
            "attention=flashinfer needs a CUDA device and FlashInfer: pip install flashinfer-python, "
            "or use torch"
        )
    if dtype not in (torch.bfloat16, torch.float16) or shape.head_dim not in HEAD_DIMS:
        raise ModelError(
            f"attention=flashinfer computes in bf16 or fp16, with heads of {HEAD_DIMS} numbers; this "
            f"model has {str(dtype).removeprefix('torch.')} and {shape.head_dim}: use torch or triton"
        )
    try:
        backend = FlashInferAttention(importlib.import_module("flashinfer"), device)
        backend.try_out(shape, dtype, heads)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        what = str(error).strip() or type(error).__name__
        raise ModelError(
            "attention=flashinfer: FlashInfer is installed and does not run here. It compiles its "
            "kernels with nvcc: install the CUDA toolkit, or compiled ones by `flashinfer "
            f"install-jit-cache-wheel`, or use torch ({type(error).__name__}: {what.splitlines()[0]})"
        ) from error
    return backend


def page_tokens(tokens: int) -> int:
    """Into pages of how many tokens a slot or region of so many is cut."""
    return next(page for page in range(min(PAGE, tokens), 0, -1) if tokens % page == 0)


def paged(pool: Tensor) -> Tensor:
    """A layer's pool ``[rows, kv_heads, tokens, dim]`` as pages ``[pages, kv_heads, page, dim]``: page j
    of row i has the number ``i * kv_heads * tokens / page + j``; numbers between are of no use."""
    rows, kv_heads, tokens, dim = pool.shape
    page = page_tokens(tokens)
    pages = ((rows - 1) * kv_heads + 1) * (tokens // page)
    return pool.as_strided((pages, kv_heads, page, dim), (page * dim, tokens * dim, dim, 1))


def _of_group(group: Group, sinks: int) -> list[_Stretch]:
    seen = group.mask[:, 0, 0] == 0
    slot, own = seen[..., : group.used], seen[..., group.used :]
    found = []
    if group.rotate_sinks and sinks:
        turned = slot[..., :sinks]
        found.append(_Stretch(group.slots, sinks, turned, rotate_sinks=True))
        slot = functional.pad(slot[..., sinks:], (sinks, 0))
    if group.used:
        found.append(_Stretch(group.slots, group.used, slot))
    if group.regions is not None:
        found.append(_Stretch(group.regions, group.scratch, own, own=True))
    return found


def _of_long(row: Long, q: Tensor) -> list[_Stretch]:
    found = []
    for part in row.parts:
        start, end = part.keys.start, part.keys.stop
        seen = None if part.mask is None else part.mask[0] == 0
        if start:
            if seen is None:
                seen = torch.ones(1, len(q), end - start, dtype=torch.bool, device=q.device)
            seen = functional.pad(seen, (start, 0))
        at = row.region if part.own else row.slot
        found.append(_Stretch(slice(at, at + 1), end, seen, part.rotate_sinks, part.own))
    return found


def _numbers(rows: Tensor | slice, device: torch.device) -> Tensor:
    if isinstance(rows, Tensor):
        return rows
    return torch.arange(rows.start, rows.stop, device=device)
