"""Attention over sinks, ring and branch scratch, for many rows in one packed forward.

A *row* appends n tokens to a stream or to a branch: prefill, decode and verify are the same thing.
All rows of a forward are packed into one sequence ``[1, T]``; :class:`AttentionPlan` knows which
stretch belongs to whom. transformers calls :func:`streaming_attention` once per layer with queries
and keys already rotated at their absolute positions.

Why the query is used twice: positions must count *inside the cache* (StreamingLLM, section 3.2).
Window keys keep their absolute rotation and RoPE is relative, so for them the query at t is right
as it is. Sinks sit at 0…S-1 while the query, once the window is full, sits at S+W: against the sinks
it is rotated on by ``min(t, S + W) - t``. One softmax over both.
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
    write: Tensor | slice
    rotate_sinks: bool
    region: int = -1
    scratch: int = 0  # scratch tokens visible to the row's last query


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
    _views: list[_RowView] = field(init=False)
    _sink_cos: Tensor | None = field(init=False)
    _sink_sin: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        device, layout = self.cache.device, self.cache.layout
        ids: list[int] = []
        starts: list[Tensor] = []
        wanted: list[int] = []
        self._views = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            starts.append(torch.arange(row.start, row.start + n))
            wanted.extend(range(begin + n - row.want, begin + n))
            self._views.append(self._view(row, begin, n))
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
            slice(branch.length, scratch),
            branch.fork > layout.sinks + layout.window,
            branch.region,
            scratch,
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """One layer: write the new keys and values, then attend row by row.

        ``q`` ``[1, heads, T, dim]``, ``k``/``v`` ``[1, kv_heads, T, dim]``, rotated at absolute
        positions → ``[1, T, heads, dim]``. Mutates the cache in the places of the rows' new tokens.
        """
        for view in self._views:
            self._write(layer, view, k[0, :, view.begin : view.end], v[0, :, view.begin : view.end])
        sink_q = q[0]
        if self._sink_cos is not None and self._sink_sin is not None:
            sink_q = rotate(q[0], self._sink_cos, self._sink_sin)
        out = torch.empty_like(q[0])
        for view in self._views:
            span = slice(view.begin, view.end)
            out[:, span] = self._attend_row(layer, view, q[0, :, span], sink_q[:, span], scaling)
        return out.transpose(0, 1)[None]

    def _write(self, layer: int, view: _RowView, k: Tensor, v: Tensor) -> None:
        if view.region < 0:
            self.cache.keys[layer][view.slot, :, view.write] = k
            self.cache.values[layer][view.slot, :, view.write] = v
        else:
            self.cache.branch_keys[layer][view.region, :, view.write] = k
            self.cache.branch_values[layer][view.region, :, view.write] = v

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
