"""The arithmetic of attention over sinks, ring and branch scratch; operators.cache.batch says over what.

Why the query is used twice: positions must count *inside the cache* (StreamingLLM, section 3.2).
Window keys keep their absolute rotation and RoPE is relative, so for them the query at t is right
as it is. Sinks sit at 0…S-1 while the query, once the window is full, sits at S+W: against the sinks
it is rotated on by ``min(t, S + W) - t``. One softmax over both.

Short rows on neighbouring slots (decode and verify of many streams) are attended together, as one
batch over a view of their slots. On a CPU, and of a long row everywhere, sinks, ring and scratch are
attended one after the other without ever holding scores, and weighed by the sums of their exponentials.
Elsewhere, and where somebody wants to see the probabilities, short rows have explicit scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from operators.cache.kv_cache import KvCache

_HIDDEN = -1e30
"""Stands for -inf where a query may see no key at all: a softmax of nothing but -inf is NaN."""


Heads = Mapping[int, tuple[int, ...]]
"""Query heads by layer."""


@dataclass
class Watch:
    """Collects what some heads give to a stretch of a branch (``begin`` to ``end``, tokens of its
    region) in one forward. ``found``: by layer ``[heads, n, end - begin]``, probabilities."""

    heads: Heads
    begin: int
    end: int
    found: dict[int, Tensor] = field(default_factory=dict)

    def places(self) -> list[int]:
        """By token of the row: which place of the stretch the heads together attend to most."""
        if not self.found:
            return []
        each = torch.cat([weights.float() for weights in self.found.values()])
        places: list[int] = each.mean(dim=0).argmax(dim=-1).tolist()
        return places


@dataclass
class Group:
    """Short rows attended as one batch: ``r`` rows on consecutive slots, padded to ``n`` tokens."""

    slots: Tensor | slice
    used: int  # keys of each slot; all of them where that is not much more than are needed
    picked: (
        Tensor | slice
    )  # [r * n]: which packed token each query is; short rows repeat their last
    real: tuple[Tensor, Tensor] | None
    """Long, equally many: which queries are not repeats, and their packed tokens; None for all."""
    shape: tuple[int, int]  # r, n
    mask: Tensor  # additive [r, 1, 1, n, used (+ scratch)]
    rotate_sinks: bool
    regions: Tensor | slice | None  # of branches; None for rows of the streams themselves
    scratch: int
    watched: Sequence[tuple[int, int, Watch]] = ()  # row, its tokens, what to collect
    tiled: Tensor | None = None
    """The mask ``[r, 1, heads of one KV head * n, used (+ scratch)]``, once it has been asked for; the
    heads stand one behind the other. -inf is a finite number there."""
    planned: Any = None
    """What a backend has worked out at the first layer for all of them."""

    def tile(self, heads: int) -> Tensor:
        """``tiled``; all layers have the same heads."""
        if self.tiled is None:
            least = max(_HIDDEN, torch.finfo(self.mask.dtype).min)
            self.tiled = self.mask[:, :, 0].clamp(min=least).repeat(1, 1, heads, 1)
        return self.tiled


@dataclass
class Part:
    """A stretch of keys that a long row attends to on its own."""

    keys: slice
    rotate_sinks: bool
    own: bool  # in the branch's region, not in the slot
    mask: Tensor | None  # additive [1, 1, n, keys]; None where all is seen
    blind: Tensor | None  # [n] bool: tokens that see none of it, if there are any


@dataclass
class Long:
    """A row attended by itself, part by part: packed tokens ``span`` on slot ``slot`` and, of a
    branch, on region ``region``."""

    span: slice
    slot: int
    region: int
    parts: list[Part]
    planned: Any = None  # as in Group


@dataclass
class Writes:
    """Where new keys and values go: packed token ``tokens[i]`` to ``[rows[i], :, places[i]]``."""

    tokens: Tensor
    rows: Tensor
    places: Tensor


def write(
    keys: list[Tensor], values: list[Tensor], layer: int, writes: Writes, k: Tensor, v: Tensor
) -> None:
    """Put new keys and values ``[T, kv_heads, dim]`` of one layer in their places of a pool."""
    at = (writes.rows, slice(None), writes.places)
    every = len(writes.rows) == len(k)
    keys[layer][at] = k if every else k[writes.tokens]
    values[layer][at] = v if every else v[writes.tokens]


def attend_group(
    cache: KvCache, layer: int, group: Group, q: Tensor, sink_q: Tensor, scaling: float
) -> Tensor:
    """Attention of all rows of a group. ``q``, ``sink_q`` ``[T, heads, dim]`` →
    ``[r * n, heads * dim]``."""
    kv_heads, dim = cache.shape.kv_heads, cache.shape.head_dim
    r, n = group.shape

    def grouped(x: Tensor) -> Tensor:  # → [r, kv_heads, query heads of one KV head * n, dim]
        split = x[group.picked].view(r, n, kv_heads, -1, dim)
        return split.permute(0, 2, 3, 1, 4).reshape(r, kv_heads, -1, dim)

    query = grouped(q)
    sink_query = grouped(sink_q) if group.rotate_sinks else query
    in_parts = q.device.type == "cpu" and not group.watched
    attend = _group_in_parts if in_parts else _group_explicitly
    out = attend(cache, layer, group, query, sink_query, scaling)
    return out.view(r, kv_heads, -1, n, dim).permute(0, 3, 1, 2, 4).reshape(r * n, -1)


def _group_in_parts(
    cache: KvCache, layer: int, group: Group, query: Tensor, sink_query: Tensor, scaling: float
) -> Tensor:
    """``query``, ``sink_query`` ``[r, kv_heads, rows, dim]`` → the same shape."""
    key, value = (pool[layer][group.slots] for pool in (cache.keys, cache.values))
    mask = group.tile(query.shape[2] // group.shape[1])
    sinks, used = cache.layout.sinks if group.rotate_sinks else 0, group.used
    found = []
    for asked, part in ((sink_query, slice(0, sinks)), (query, slice(sinks, used))):
        if part.start < part.stop:
            seen = mask[..., part]
            found.append(_attend_part(asked, key[:, :, part], value[:, :, part], seen, scaling))
    if group.regions is not None:
        own_key, own_value = (
            pool[layer][group.regions, :, : group.scratch]
            for pool in (cache.branch_keys, cache.branch_values)
        )
        found.append(_attend_part(query, own_key, own_value, mask[..., used:], scaling))
    return _merged(found)


def _merged(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Outputs over several stretches of keys, weighed by the logarithms of their sums."""
    if len(parts) == 1:
        return parts[0][0]
    outs, sums = zip(*parts, strict=True)
    weights = torch.softmax(torch.stack(sums), dim=0)[..., None]
    return (weights * torch.stack(outs)).sum(dim=0).to(outs[0].dtype)


def _group_explicitly(
    cache: KvCache, layer: int, group: Group, query: Tensor, sink_query: Tensor, scaling: float
) -> Tensor:
    """As :func:`_group_in_parts`, with all scores held."""
    s, kv_heads, (r, n) = cache.layout.sinks, cache.shape.kv_heads, group.shape
    query = query * scaling
    key = cache.keys[layer][group.slots, :, : group.used].transpose(2, 3)
    value = cache.values[layer][group.slots, :, : group.used]
    scores = query @ key
    if group.rotate_sinks:
        scores[..., :s] = (sink_query * scaling) @ key[..., :s]
    if group.regions is not None:
        own_key = cache.branch_keys[layer][group.regions, :, : group.scratch]
        scores = torch.cat((scores, query @ own_key.transpose(2, 3)), dim=-1)
    scores.view(r, kv_heads, -1, n, scores.shape[-1]).add_(group.mask)
    probs = torch.softmax(scores, dim=-1)
    for at, length, watch in group.watched:
        if heads := watch.heads.get(layer):
            each = probs.view(r, -1, n, probs.shape[-1])[at, list(heads), :length]
            keys = slice(group.used + watch.begin, group.used + watch.end)
            watch.found[layer] = each[..., keys].clone()
    if group.regions is None:
        return probs @ value
    own_value = cache.branch_values[layer][group.regions, :, : group.scratch]
    return probs[..., : group.used] @ value + probs[..., group.used :] @ own_value


def attend_long(
    cache: KvCache, layer: int, row: Long, q: Tensor, sink_q: Tensor, scaling: float
) -> Tensor:
    """Attention of one long row. ``q``, ``sink_q`` ``[n, heads, dim]`` → ``[n, heads * dim]``."""
    n, heads, dim = q.shape
    kv_heads = cache.shape.kv_heads
    group = heads // kv_heads
    found = []
    for part in row.parts:
        pools = (cache.keys, cache.values)
        at = row.slot
        if part.own:
            pools, at = (cache.branch_keys, cache.branch_values), row.region
        key, value = (pool[layer][None, at, :, part.keys] for pool in pools)
        # Query heads of one KV head stand one behind the other, as more queries of the same keys.
        query = (sink_q if part.rotate_sinks else q).view(n, kv_heads, group, dim)
        query = query.permute(1, 2, 0, 3).reshape(1, kv_heads, group * n, dim)
        mask = part.mask.repeat(1, 1, group, 1) if part.mask is not None else None
        out, total = _attend_part(query, key, value, mask, scaling)
        if part.blind is not None:
            total = total.masked_fill(part.blind.repeat(group), -torch.inf)
        found.append((out, total))
    # [1, kv_heads, group * n, dim] to the heads of one token side by side
    return _merged(found).view(kv_heads, group, n, dim).permute(2, 0, 1, 3).reshape(n, heads * dim)


def _attend_part(
    q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of its sum of exponentials (fp32): ``q``
    ``[batch, heads, n, dim]``, ``key``/``value`` ``[batch, heads, keys, dim]``."""
    if q.device.type == "cpu":
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return found[0], found[1]
    return _attend_explicitly(q, key, value, mask, scaling)


def _attend_explicitly(
    q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The same in plain operations, for devices without that kernel; holds the scores."""
    scores = (q * scaling @ key.transpose(2, 3)).float()
    if mask is not None:
        scores = scores + mask.clamp(min=_HIDDEN)
    total = torch.logsumexp(scores, dim=-1)
    probs = torch.softmax(scores, dim=-1).to(value.dtype)
    return probs @ value, total


class AttentionBackend(Protocol):
    """What a layer does with the cache: write new keys and values, attend rows. Every backend gives what
    :class:`TorchAttention` gives, up to the rounding of its number type."""

    name: str
    scattered: bool
    """Whether the rows of a group may lie on any slots and be any number: a layer then dispatches as
    many operators for many streams as for few. Else they lie side by side, so that nothing is copied,
    and are few enough for a processor's cache."""

    def write(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        layer: int,
        writes: Writes,
        k: Tensor,
        v: Tensor,
    ) -> None: ...
    def attend_group(
        self, cache: KvCache, layer: int, group: Group, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor: ...
    def attend_long(
        self, cache: KvCache, layer: int, row: Long, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor: ...


class TorchAttention:
    """torch's own operators, on any device: the reference for every other backend."""

    name = "torch"
    scattered = False
    write = staticmethod(write)
    attend_group = staticmethod(attend_group)
    attend_long = staticmethod(attend_long)


TORCH = TorchAttention()
