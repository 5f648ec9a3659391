"""Attention of short rows as one Triton kernel over sinks, ring and scratch (CUDA; unmeasured).

Each program computes one query of one head. It reads the slot's keys in blocks, then the branch's own,
and keeps a running maximum and sum (online softmax), so no scores are held and nothing is joined or
copied: one launch where the reference takes a dozen operators. Against the sinks the query is the one
rotated for them. Checked against :class:`operators.cache.attention.TorchAttention` in Triton's
interpreter on the CPU; long rows are left to the reference.
"""

# Kernels are no Python: their arguments are pointers and scalars.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from operators.cache.attention import Group, TorchAttention
from operators.cache.kv_cache import KvCache

KEYS = 64
"""Keys that a program reads at a time."""


@triton.jit
def _stretch(
    query, sink_query, keys, values, mask, count, sinks, scale, best, total, acc,
    place, dims, stride_key, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Go over ``count`` keys; the first ``sinks`` of them are asked by ``sink_query``."""
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        here = at < count
        where = at[:, None] * stride_key + place[None, :]
        inside = here[:, None] & (place[None, :] < dims)
        key = tl.load(keys + where, mask=inside, other=0.0).to(tl.float32)
        score = tl.sum(key * query[None, :], axis=1)
        turned = tl.sum(key * sink_query[None, :], axis=1)
        score = tl.where(at < sinks, turned, score) * scale
        added = tl.load(mask + at, mask=here, other=float("-inf")).to(tl.float32)
        score = score + added
        newest = tl.maximum(best, tl.max(score, axis=0))
        safe = tl.where(newest == float("-inf"), 0.0, newest)
        weight = tl.exp(score - safe)
        shrink = tl.exp(best - safe)
        value = tl.load(values + where, mask=inside, other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(weight, axis=0)
        acc = acc * shrink + tl.sum(weight[:, None] * value, axis=0)
        best = newest
    return best, total, acc


@triton.jit
def _attend(
    out, q, sink_q, picked, keys, values, own_keys, own_values, slots, regions, mask,
    n, heads, shared, dims, used, scratch, sinks, scale,
    stride_slot, stride_head, stride_key, own_slot, own_head,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query_at, head = tl.program_id(0), tl.program_id(1)
    row, place = query_at // n, tl.arange(0, WIDE)
    token = tl.load(picked + query_at)
    source = (token * heads + head) * dims + place
    query = tl.load(q + source, mask=place < dims, other=0.0).to(tl.float32)
    sink_query = tl.load(sink_q + source, mask=place < dims, other=0.0).to(tl.float32)
    own_mask = mask + query_at * (used + scratch)
    base = tl.load(slots + row) * stride_slot + (head // shared) * stride_head
    best, total, acc = float("-inf"), 0.0, tl.zeros([WIDE], dtype=tl.float32)
    best, total, acc = _stretch(
        query, sink_query, keys + base, values + base, own_mask, used, sinks, scale,
        best, total, acc, place, dims, stride_key, WIDE, BLOCK,
    )  # fmt: skip
    if scratch > 0:
        base = tl.load(regions + row) * own_slot + (head // shared) * own_head
        best, total, acc = _stretch(
            query, query, own_keys + base, own_values + base, own_mask + used, scratch, 0, scale,
            best, total, acc, place, dims, stride_key, WIDE, BLOCK,
        )  # fmt: skip
    target = (query_at * heads + head) * dims + place
    tl.store(out + target, (acc / total).to(out.dtype.element_ty), mask=place < dims)


class TritonAttention(TorchAttention):
    """Short rows by the kernel, long rows and writes by the reference."""

    name = "triton"
    scattered = True

    def attend_group(
        self, cache: KvCache, layer: int, group: Group, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        if group.watched:  # the kernel keeps no scores to look at
            return super().attend_group(cache, layer, group, q, sink_q, scaling)
        r, n = group.shape
        heads, dims = q.shape[1], q.shape[2]
        device = q.device
        keys, values = cache.keys[layer], cache.values[layer]
        own_keys, own_values = cache.branch_keys[layer], cache.branch_values[layer]
        out = torch.empty((r * n, heads * dims), dtype=q.dtype, device=device)
        kernel: Any = _attend[(r * n, heads)]
        kernel(
            out, q.contiguous(), sink_q.contiguous(), _indices(group.picked, device), keys, values,
            own_keys, own_values, _indices(group.slots, device), _indices(group.regions, device),
            group.mask.contiguous(), n, heads, heads // cache.shape.kv_heads, dims, group.used,
            group.scratch, cache.layout.sinks if group.rotate_sinks else 0, scaling,
            keys.stride(0), keys.stride(1), keys.stride(2),
            own_keys.stride(0), own_keys.stride(1),
            WIDE=triton.next_power_of_2(dims), BLOCK=KEYS,
        )  # fmt: skip
        return out


def _indices(picked: Tensor | slice | None, device: torch.device) -> Tensor:
    if isinstance(picked, Tensor):
        return picked
    if picked is None:
        return torch.zeros(1, dtype=torch.long, device=device)
    return torch.arange(picked.start, picked.stop, device=device)
