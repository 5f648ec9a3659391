"""Attention over sinks, ring and branch scratch, for many rows in one packed forward.

A *row* appends n tokens to a stream or to a branch: prefill, decode and verify are the same thing.
All rows of a forward are packed into one sequence ``[1, T]``; :class:`AttentionPlan` knows which
stretch belongs to whom. transformers calls :func:`streaming_attention` once per layer with queries
and keys already rotated at their absolute positions.

Why the query is used twice: positions must count *inside the cache* (StreamingLLM, section 3.2).
Window keys keep their absolute rotation and RoPE is relative, so for them the query at t is right
as it is. Sinks sit at 0…S-1 while the query, once the window is full, sits at S+W: against the sinks
it is rotated on by ``min(t, S + W) - t``. One softmax over both.

Short rows on neighbouring slots (decode and verify of many streams) are attended together, as one
batched product over a view of their slots; a row alone, or a long one, is attended by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from operators.kv_cache import Branch, KvCache, StreamSlot, visible, visible_to_branch

ATTENTION_NAME = "longstream"


@dataclass
class Row:
    """Append ``tokens`` to ``stream`` (or to ``branch`` of it); want logits at the last ``want``."""

    stream: StreamSlot
    tokens: Sequence[int]
    branch: Branch | None = None
    want: int = 0

    @property
    def start(self) -> int:
        """Absolute position of the first token."""
        if self.branch is not None:
            return self.branch.fork + self.branch.length
        return self.stream.length


@dataclass
class _RowView:
    """What one row needs in every layer; computed once per forward."""

    begin: int
    end: int
    slot: int
    used: int
    mask: Tensor  # additive fp32 [n, used (+ own scratch)]
    write: Tensor  # [n] long: where in the slot or region the new keys go
    rotate_sinks: bool
    region: int = -1
    scratch: int = 0  # scratch tokens visible to the row's last query


GROUP_TOKENS = 32
"""Rows longer than this are attended one by one: they keep a core busy by themselves."""


@dataclass
class _Group:
    """Rows attended as one batch: ``r`` rows on consecutive slots, padded to equal sizes."""

    slots: slice
    used: int
    tokens: Tensor  # [r, n] long: which packed token each query is; short rows repeat their last
    real: Tensor  # [r, n] bool: False where repeated
    mask: Tensor  # additive fp32 [r, 1, 1, n, used (+ scratch)]
    rotate_sinks: bool
    regions: Tensor | slice | None  # of branches; None for rows of the streams themselves
    scratch: int


@dataclass
class _Writes:
    """Where new keys and values go: packed token ``tokens[i]`` to ``[rows[i], :, places[i]]``."""

    tokens: Tensor
    rows: Tensor
    places: Tensor


class Rope(nn.Module):
    """Rotary angles in float64, cast at the end; drop-in for a model's ``rotary_emb``.

    In fp32 the angle of position 4,000,000 is off by up to 0.14 rad; in fp64 the error is flat.
    ``inv_freq`` ``[rot/2]`` is the model's own, frozen at load (length-dependent variants at cache
    size); ``scaling`` is the variant's attention factor, applied to cos and sin as the model does.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling
        self._inv_freq64 = inv_freq.to(torch.float64)  # not a buffer: must never be cast down

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``positions`` long ``[...]`` → unscaled cos, sin fp64 ``[..., rot]``."""
        inv = self._inv_freq64.to(positions.device)
        phase = torch.remainder(positions.to(torch.float64)[..., None] * inv, 2 * math.pi)
        both = torch.cat((phase, phase), dim=-1)
        return both.cos(), both.sin()

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.angles(position_ids)
        return (cos * self.scaling).to(x.dtype), (sin * self.scaling).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` ``[heads, n, dim]`` by per-token ``cos``/``sin`` ``[n, rot]`` (half-split layout).

    Dimensions beyond ``rot`` pass through (partial rotary models).
    """
    rot = cos.shape[-1]
    head, rest = x[..., :rot], x[..., rot:]
    half = rot // 2
    turned = torch.cat((-head[..., half:], head[..., :half]), dim=-1)
    out = head * cos + turned * sin
    return torch.cat((out, rest), dim=-1) if rest.shape[-1] else out


@dataclass
class AttentionPlan:
    """The rows of one forward, laid out; passed through the model to every attention layer."""

    cache: KvCache
    rows: Sequence[Row]
    rope: Rope
    tokens: Tensor = field(init=False)  # [1, T] long
    positions: Tensor = field(init=False)  # [1, T] long, absolute
    wanted: Tensor = field(init=False)  # [m] long, indices into T whose logits are asked for
    _views: list[_RowView] = field(init=False)  # rows attended one by one
    _groups: list[_Group] = field(init=False)
    _stream_writes: _Writes | None = field(init=False)
    _branch_writes: _Writes | None = field(init=False)
    _sink_cos: Tensor | None = field(init=False)
    _sink_sin: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        device, layout = self.cache.device, self.cache.layout
        ids: list[int] = []
        starts: list[Tensor] = []
        wanted: list[int] = []
        views = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            starts.append(torch.arange(row.start, row.start + n))
            wanted.extend(range(begin + n - row.want, begin + n))
            views.append(self._view(row, begin, n))
        self._stream_writes = self._collect([v for v in views if v.region < 0])
        self._branch_writes = self._collect([v for v in views if v.region >= 0])
        runs = _runs(views)
        self._views = [run[0] for run in runs if len(run) == 1]
        self._groups = [self._group(run) for run in runs if len(run) > 1]
        self.tokens = torch.tensor([ids], device=device)
        pos = torch.cat(starts)
        self.positions = pos[None].to(device)
        self.wanted = torch.tensor(wanted, dtype=torch.long, device=device)
        base = torch.cat(
            [
                torch.full((len(r.tokens),), r.branch.fork) if r.branch is not None else p
                for r, p in zip(self.rows, starts, strict=True)
            ]
        )
        # How far the query is moved for the sinks: 0 until the window has filled.
        shift = torch.clamp(layout.sinks + layout.window - base, max=0)
        if bool((shift < 0).any()):
            cos, sin = self.rope.angles(shift.to(device))
            self._sink_cos, self._sink_sin = cos.to(self.cache.dtype), sin.to(self.cache.dtype)
        else:
            self._sink_cos = self._sink_sin = None

    def _check(self, row: Row, n: int) -> None:
        """The two writes that would silently corrupt what somebody still sees are refused."""
        room = (
            self.cache.branch_room(row.branch)
            if row.branch is not None
            else self.cache.ingest_room(row.stream)
        )
        if not 0 < n <= room:
            what = "branch" if row.branch is not None else "stream"
            raise ValueError(f"row of {n} tokens on a {what} with room for {room}")

    def _view(self, row: Row, begin: int, n: int) -> _RowView:
        cache, layout = self.cache, self.cache.layout
        device = cache.device
        saturated = row.start + n > layout.sinks + layout.window
        if row.branch is None:
            end = row.start + n
            pos = cache.positions(end)
            query = torch.arange(row.start, end, device=device)
            mask = _additive(visible(pos, query, layout, row.stream.origin))
            write = cache.ring_index(row.start, n)
            return _RowView(begin, begin + n, row.stream.index, len(pos), mask, write, saturated)
        branch = row.branch
        pos = cache.positions(row.stream.length)
        scratch = branch.length + n
        own = torch.arange(scratch, device=device)[None, :]
        query = torch.arange(branch.length, scratch, device=device)[:, None]
        seen = visible_to_branch(pos, branch.fork, layout, row.stream.origin)[None, :].expand(n, -1)
        return _RowView(
            begin,
            begin + n,
            row.stream.index,
            len(pos),
            _additive(torch.cat((seen, own <= query), dim=1)),
            torch.arange(branch.length, scratch, device=device),
            branch.fork > layout.sinks + layout.window,
            branch.region,
            scratch,
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """One layer: write the new keys and values, then attend row by row.

        ``q`` ``[1, heads, T, dim]``, ``k``/``v`` ``[1, kv_heads, T, dim]``, rotated at absolute
        positions → ``[1, T, heads, dim]``. Mutates the cache in the places of the rows' new tokens.
        """
        self._write(layer, k[0], v[0])
        sink_q = q[0]
        if self._sink_cos is not None and self._sink_sin is not None:
            sink_q = rotate(q[0], self._sink_cos, self._sink_sin)
        out = torch.empty_like(q[0])
        for view in self._views:
            span = slice(view.begin, view.end)
            out[:, span] = self._attend_row(layer, view, q[0, :, span], sink_q[:, span], scaling)
        for group in self._groups:
            attended = self._attend_group(layer, group, q[0], sink_q, scaling)
            out[:, group.tokens[group.real]] = attended
        return out.transpose(0, 1)[None]

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the new keys and values ``[kv_heads, T, dim]`` of all rows in their places."""
        cache = self.cache
        for writes, keys, values in (
            (self._stream_writes, cache.keys, cache.values),
            (self._branch_writes, cache.branch_keys, cache.branch_values),
        ):
            if writes is not None:
                at = (writes.rows, slice(None), writes.places)
                keys[layer][at] = k[:, writes.tokens].transpose(0, 1)
                values[layer][at] = v[:, writes.tokens].transpose(0, 1)

    def _collect(self, views: list[_RowView]) -> _Writes | None:
        if not views:
            return None
        device = self.cache.device
        rows = [v.slot if v.region < 0 else v.region for v in views]
        counts = torch.tensor([v.end - v.begin for v in views], device=device)
        return _Writes(
            torch.cat([torch.arange(v.begin, v.end, device=device) for v in views]),
            torch.repeat_interleave(torch.tensor(rows, device=device), counts),
            torch.cat([v.write for v in views]),
        )

    def _group(self, views: list[_RowView]) -> _Group:
        """Pad the rows' masks and queries to common sizes. What is padded is masked out."""
        device, r = self.cache.device, len(views)
        n = max(v.end - v.begin for v in views)
        used, scratch = max(v.used for v in views), max(v.scratch for v in views)
        place = torch.arange(n, device=device)
        counts = torch.tensor([v.end - v.begin for v in views], device=device)[:, None]
        begins = torch.tensor([v.begin for v in views], device=device)[:, None]
        mask = torch.full((r, n, used + scratch), -torch.inf, device=device)
        for at, view in enumerate(views):
            own = mask[at, : view.end - view.begin]
            own[:, : view.used] = view.mask[:, : view.used]
            own[:, used : used + view.scratch] = view.mask[:, view.used :]
            mask[at, view.end - view.begin :] = mask[at, view.end - view.begin - 1]
        return _Group(
            slots=slice(views[0].slot, views[-1].slot + 1),
            used=used,
            tokens=begins + torch.minimum(place[None], counts - 1),
            real=place[None] < counts,
            mask=mask[:, None, None],
            rotate_sinks=any(v.rotate_sinks for v in views),
            regions=_picked([v.region for v in views], device) if views[0].region >= 0 else None,
            scratch=scratch,
        )

    def _attend_group(
        self, layer: int, group: _Group, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        """Attention of all rows of a group. ``q``, ``sink_q`` ``[heads, T, dim]`` →
        ``[heads, tokens of the group, dim]`` in the order of ``group.tokens[group.real]``."""
        cache, s = self.cache, self.cache.layout.sinks
        heads, _, dim = q.shape
        kv_heads = cache.shape.kv_heads
        r, n = group.tokens.shape

        def grouped(x: Tensor) -> Tensor:  # → [r, kv_heads, query heads of one KV head * n, dim]
            picked = x[:, group.tokens] * scaling
            return picked.transpose(0, 1).reshape(r, kv_heads, -1, dim)

        query = grouped(q)
        key = cache.keys[layer][group.slots, :, : group.used].transpose(2, 3)
        value = cache.values[layer][group.slots, :, : group.used]
        if group.rotate_sinks:
            parts = [grouped(sink_q) @ key[..., :s], query @ key[..., s:]]
        else:
            parts = [query @ key]
        if group.regions is not None:
            own_key = cache.branch_keys[layer][group.regions, :, : group.scratch]
            parts.append(query @ own_key.transpose(2, 3))
        scores = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        scores = scores.float().view(r, kv_heads, -1, n, scores.shape[-1])
        probs = torch.softmax(scores + group.mask, dim=-1).to(value.dtype)
        probs = probs.view(r, kv_heads, -1, probs.shape[-1])
        out = probs[..., : group.used] @ value
        if group.regions is not None:
            own_value = cache.branch_values[layer][group.regions, :, : group.scratch]
            out = out + probs[..., group.used :] @ own_value
        return out.view(r, heads, n, dim).transpose(0, 1)[:, group.real]

    def _attend_row(
        self, layer: int, view: _RowView, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        """Explicit attention of one row. ``q``, ``sink_q`` ``[heads, n, dim]`` → same shape."""
        cache, s = self.cache, self.cache.layout.sinks
        heads, n, dim = q.shape
        kv_heads = cache.shape.kv_heads
        grouped = (kv_heads, heads // kv_heads * n, dim)  # query heads of one KV head side by side
        q = (q * scaling).reshape(grouped)
        key = cache.keys[layer][view.slot, :, : view.used]
        value = cache.values[layer][view.slot, :, : view.used]
        if view.rotate_sinks:
            parts = [
                (sink_q * scaling).reshape(grouped) @ key[:, :s].transpose(1, 2),
                q @ key[:, s:].transpose(1, 2),
            ]
        else:
            parts = [q @ key.transpose(1, 2)]
        if view.region >= 0:
            own_key = cache.branch_keys[layer][view.region, :, : view.scratch]
            parts.append(q @ own_key.transpose(1, 2))
        scores = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        scores = scores.float().view(kv_heads, -1, n, scores.shape[-1])
        probs = torch.softmax(scores + view.mask, dim=-1).to(value.dtype)
        probs = probs.view(kv_heads, -1, probs.shape[-1])
        out = probs[..., : view.used] @ value
        if view.region >= 0:
            own_value = cache.branch_values[layer][view.region, :, : view.scratch]
            out = out + probs[..., view.used :] @ own_value
        return out.view(heads, n, dim)

    def commit(self) -> None:
        """Advance the frontiers by what the forward has written. Call once, after it succeeded."""
        for row in self.rows:
            target = row.branch if row.branch is not None else row.stream
            target.length += len(row.tokens)


def _runs(views: list[_RowView]) -> list[list[_RowView]]:
    """Rows to be attended together: short ones of about equal length and one kind (stream or
    branch) on consecutive slots, each slot once; every other row is a run of its own."""
    runs: list[list[_RowView]] = []
    kinds: dict[tuple[bool, int], list[list[_RowView]]] = {}
    for view in sorted(views, key=lambda v: v.slot):
        n = view.end - view.begin
        if n > GROUP_TOKENS:
            runs.append([view])
            continue
        open_runs = kinds.setdefault((view.region >= 0, (n - 1).bit_length()), [])
        run = next((run for run in open_runs if run[-1].slot == view.slot - 1), None)
        if run is not None:
            run.append(view)
        else:
            open_runs.append([view])
    return runs + [run for found in kinds.values() for run in found]


def _picked(indices: list[int], device: torch.device) -> Tensor | slice:
    """Indices as a slice (a view, no copy) where they are consecutive, else as a tensor."""
    first, last = indices[0], indices[-1]
    if indices == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(indices, device=device)


def _additive(seen: Tensor) -> Tensor:
    """Bool mask → fp32 mask to add to scores (0 where seen, -inf where not)."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)


def streaming_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    ctx: AttentionPlan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls for every layer (``AttentionInterface``); see the module doc."""
    if ctx is None:
        raise ValueError("this model only runs through operators.model.DecoderModel.forward")
    layer = module.layer_idx
    assert isinstance(layer, int)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return ctx.attend(layer, query, key, value, factor), None
