"""Attention over sinks, ring and branch scratch, for many rows in one packed forward.

A *row* appends n tokens to a stream or to a branch: prefill, decode and verify are the same thing.
All rows of a forward are packed into one sequence ``[1, T]``; :class:`AttentionPlan` knows which
stretch belongs to whom. operators.network calls :meth:`AttentionPlan.attend` once per layer.

Why the query is used twice: positions must count *inside the cache* (StreamingLLM, section 3.2).
Window keys keep their absolute rotation and RoPE is relative, so for them the query at t is right
as it is. Sinks sit at 0…S-1 while the query, once the window is full, sits at S+W: against the sinks
it is rotated on by ``min(t, S + W) - t``. One softmax over both.

Short rows on neighbouring slots (decode and verify of many streams) are attended together, as one
batched product over a view of their slots, with explicit scores. Of a long row, sinks, ring and
scratch are attended one after the other without ever holding its scores, and weighed by the sums of
their exponentials. Sizes that grow by the token are padded: a library that prepares its kernels by
shape would prepare new ones at every step.

A plan is made on the host and its tensors are copied to the device before the first layer. From
there to the logits nothing is copied, and no layer waits for the device to tell a size or a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from operators.kv_cache import Branch, KvCache, StreamSlot, visible, visible_to_branch


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
    """Where one row reads and writes; the same in every layer."""

    begin: int
    end: int
    slot: int
    used: int  # keys of the slot, padded
    mask: Tensor  # bool [n, used (+ scratch)]: what each token sees
    write: Tensor  # [n] long: where in the slot or region the new keys go
    rotate_sinks: bool
    region: int = -1
    scratch: int = 0  # keys of the region, padded


GROUP_TOKENS = 32
"""Rows longer than this are attended one by one: they keep a core busy by themselves."""
PAD = 32
"""Numbers of keys are rounded up to a multiple of this; what is added is masked out."""
_HIDDEN = -1e30
"""Stands for -inf where a query may see no key at all: a softmax of nothing but -inf is NaN."""


@dataclass
class _Group:
    """Short rows attended as one batch: ``r`` rows on consecutive slots, padded to ``n`` tokens."""

    slots: slice
    used: int
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


@dataclass
class _Part:
    """A stretch of keys that a long row attends to on its own."""

    keys: slice
    rotate_sinks: bool
    own: bool  # in the branch's region, not in the slot
    mask: Tensor | None  # additive [1, 1, n, keys]; None where all is seen
    blind: Tensor | None  # [n] bool: tokens that see none of it, if there are any


@dataclass
class _Long:
    """A row attended by itself, part by part."""

    view: _RowView
    parts: list[_Part]


@dataclass
class _Writes:
    """Where new keys and values go: packed token ``tokens[i]`` to ``[rows[i], :, places[i]]``."""

    tokens: Tensor
    rows: Tensor
    places: Tensor


class Rope:
    """Rotary angles in float64, cast at the end.

    In fp32 the angle of position 4,000,000 is off by up to 0.14 rad; in fp64 the error is flat.
    ``inv_freq`` ``[rot/2]`` is the model's own, frozen at load (length-dependent variants at cache
    size); ``scaling`` is the variant's attention factor, applied to cos and sin as the model does.
    """

    def __init__(self, inv_freq: Tensor, scaling: float) -> None:
        self.scaling = scaling
        self._inv_freq64 = inv_freq.to(torch.float64)
        self.rotated = 2 * len(inv_freq)

    def turns(self, positions: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What :func:`rotate` needs at ``positions`` long ``[T]``: cos and sin ``[T, 1, dim]``, the
        sine with the sign of its half. Dimensions beyond the rotated ones stay as they are."""
        inv = self._inv_freq64 = self._inv_freq64.to(positions.device)
        phase = torch.remainder(positions.to(torch.float64)[:, None] * inv, 2 * math.pi)
        cos, sin = phase.cos() * self.scaling, phase.sin() * self.scaling
        rest = torch.zeros(
            len(positions), dim - 2 * len(inv), dtype=torch.float64, device=positions.device
        )
        whole_cos = torch.cat((cos, cos, rest + 1), dim=-1)[:, None]
        return whole_cos.to(dtype), torch.cat((-sin, sin, rest), dim=-1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: int) -> Tensor:
    """Rotate ``x`` ``[T, heads, dim]`` by :meth:`Rope.turns`: channel c with c + rotated / 2 (both
    within the first ``rotated``). Any shape of x will do that cos and sin fit."""
    half = rotated // 2
    swapped = torch.cat((x[..., half:rotated], x[..., :half], x[..., rotated:]), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)


@dataclass
class AttentionPlan:
    """The rows of one forward, laid out; passed to every attention layer."""

    cache: KvCache
    rows: Sequence[Row]
    rope: Rope
    tokens: Tensor = field(init=False)  # [T] long
    wanted: Tensor = field(init=False)  # [m] long, indices into T whose logits are asked for
    _long: list[_Long] = field(init=False)
    _groups: list[_Group] = field(init=False)
    _stream_writes: _Writes | None = field(init=False)
    _branch_writes: _Writes | None = field(init=False)
    _turns: tuple[Tensor, Tensor] = field(init=False)
    _sink_turns: tuple[Tensor, Tensor] | None = field(init=False)

    def __post_init__(self) -> None:
        ids: list[int] = []
        wanted: list[int] = []
        views = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            wanted.extend(range(begin + n - row.want, begin + n))
            views.append(self._view(row, begin, n))
        self._stream_writes = self._collect([v for v in views if v.region < 0])
        self._branch_writes = self._collect([v for v in views if v.region >= 0])
        runs = _runs(views)
        self._long = [self._in_parts(run[0]) for run in runs if _is_long(run[0])]
        self._groups = [self._group(run) for run in runs if not _is_long(run[0])]
        self.tokens = self._moved(torch.tensor(ids))
        self.wanted = self._moved(torch.tensor(wanted, dtype=torch.long))
        self._lay_out_positions()

    def _lay_out_positions(self) -> None:
        """Rotations of every token at its absolute position, and as a query of the sinks."""
        layout, shape = self.cache.layout, self.cache.shape
        starts = [torch.arange(row.start, row.start + len(row.tokens)) for row in self.rows]
        # How far the query is moved for the sinks: 0 until the window has filled.
        bases = [
            torch.full_like(start, row.branch.fork) if row.branch is not None else start
            for row, start in zip(self.rows, starts, strict=True)
        ]
        positions, base = torch.cat(starts), torch.cat(bases)
        shift = torch.clamp(layout.sinks + layout.window - base, max=0)
        moved = bool((shift < 0).any())

        def turns(at: Tensor) -> tuple[Tensor, Tensor]:
            return self.rope.turns(self._moved(at), shape.head_dim, self.cache.dtype)

        self._turns = turns(positions)
        self._sink_turns = turns(positions + shift) if moved else None

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
        if row.branch is None:
            end = row.start + n
            saturated = end > layout.sinks + layout.window
            pos = cache.positions(end)
            query = torch.arange(row.start, end)
            seen = _padded(visible(pos, query, layout, row.stream.origin), layout.slot_tokens)
            write = cache.ring_index(row.start, n)
            slot, used = row.stream.index, seen.shape[1]
            return _RowView(begin, begin + n, slot, used, seen, write, saturated)
        branch = row.branch
        pos = cache.positions(row.stream.length)
        scratch = branch.length + n
        own = torch.arange(scratch)
        seen = visible_to_branch(pos, branch.fork, layout, row.stream.origin)[None, :]
        seen = _padded(seen, layout.slot_tokens).expand(n, -1)
        own_seen = _padded(own[None, :] <= own[branch.length :, None], layout.branch_tokens)
        return _RowView(
            begin,
            begin + n,
            row.stream.index,
            seen.shape[1],
            torch.cat((seen, own_seen), dim=1),
            own[branch.length :],
            branch.fork > layout.sinks + layout.window,
            branch.region,
            own_seen.shape[1],
        )

    def attend(self, layer: int, qk: Tensor, v: Tensor, scaling: float) -> Tensor:
        """One layer: rotate, write the new keys and values, attend.

        ``qk`` ``[T, heads + kv_heads, dim]`` queries and keys, not rotated, ``v``
        ``[T, kv_heads, dim]`` → ``[T, heads * dim]``. Mutates the cache in the places of the rows'
        new tokens.
        """
        rotated, heads = self.rope.rotated, qk.shape[1] - self.cache.shape.kv_heads
        turned = rotate(qk, *self._turns, rotated)
        q = turned[:, :heads]
        self._write(layer, turned[:, heads:], v)
        sink_q = q
        if self._sink_turns is not None:
            sink_q = rotate(qk[:, :heads], *self._sink_turns, rotated)
        if len(self._groups) == 1 and not self._long and self._covers_all(self._groups[0]):
            return self._attend_group(layer, self._groups[0], q, sink_q, scaling)
        out = q.new_empty(len(q), heads * q.shape[2])
        for group in self._groups:
            attended = self._attend_group(layer, group, q, sink_q, scaling)
            if group.real is None:
                out[group.picked] = attended
            else:
                queries, tokens = group.real
                out[tokens] = attended[queries]
        for row in self._long:
            span = slice(row.view.begin, row.view.end)
            out[span] = self._attend_long(layer, row, q[span], sink_q[span], scaling)
        return out

    def _covers_all(self, group: _Group) -> bool:
        """Whether the group's tokens are all there are, in their order."""
        picked = group.picked
        return isinstance(picked, slice) and picked == slice(0, len(self.tokens))

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the new keys and values ``[T, kv_heads, dim]`` of all rows in their places."""
        cache = self.cache
        for writes, keys, values in (
            (self._stream_writes, cache.keys, cache.values),
            (self._branch_writes, cache.branch_keys, cache.branch_values),
        ):
            if writes is not None:
                at = (writes.rows, slice(None), writes.places)
                every = len(writes.rows) == len(k)
                keys[layer][at] = k if every else k[writes.tokens]
                values[layer][at] = v if every else v[writes.tokens]

    def _collect(self, views: list[_RowView]) -> _Writes | None:
        if not views:
            return None
        rows = [v.slot if v.region < 0 else v.region for v in views]
        counts = torch.tensor([v.end - v.begin for v in views])
        return _Writes(
            self._moved(torch.cat([torch.arange(v.begin, v.end) for v in views])),
            self._moved(torch.repeat_interleave(torch.tensor(rows), counts)),
            self._moved(torch.cat([v.write for v in views])),
        )

    def _group(self, views: list[_RowView]) -> _Group:
        """Pad the rows' masks and queries to common sizes. What is padded is masked out."""
        r = len(views)
        lengths = [v.end - v.begin for v in views]
        n = max(lengths)
        used, scratch = max(v.used for v in views), max(v.scratch for v in views)
        seen = torch.zeros((r, n, used + scratch), dtype=torch.bool)
        picked: list[int] = []
        for at, (view, length) in enumerate(zip(views, lengths, strict=True)):
            own = seen[at, :length]
            own[:, : view.used] = view.mask[:, : view.used]
            own[:, used : used + view.scratch] = view.mask[:, view.used :]
            seen[at, length:] = seen[at, length - 1]
            picked += [min(view.begin + i, view.end - 1) for i in range(n)]
        real = None
        if min(lengths) < n:
            queries = [at * n + i for at, length in enumerate(lengths) for i in range(length)]
            tokens = [picked[query] for query in queries]
            real = (self._moved(torch.tensor(queries)), self._moved(torch.tensor(tokens)))
        return _Group(
            slots=slice(views[0].slot, views[-1].slot + 1),
            used=used,
            picked=self._picked(picked),
            real=real,
            shape=(r, n),
            mask=self._additive(seen)[:, None, None],
            rotate_sinks=any(v.rotate_sinks for v in views),
            regions=self._picked([v.region for v in views]) if views[0].region >= 0 else None,
            scratch=scratch,
        )

    def _attend_group(
        self, layer: int, group: _Group, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        """Attention of all rows of a group, explicitly. ``q``, ``sink_q`` ``[T, heads, dim]`` →
        ``[r * n, heads * dim]``."""
        cache, s = self.cache, self.cache.layout.sinks
        kv_heads, dim = cache.shape.kv_heads, cache.shape.head_dim
        r, n = group.shape

        def grouped(x: Tensor) -> Tensor:  # → [r, kv_heads, query heads of one KV head * n, dim]
            split = (x[group.picked] * scaling).view(r, n, kv_heads, -1, dim)
            return split.permute(0, 2, 3, 1, 4).reshape(r, kv_heads, -1, dim)

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
        masked = scores.view(r, kv_heads, -1, n, scores.shape[-1]) + group.mask
        probs = torch.softmax(masked, dim=-1, dtype=torch.float32).to(value.dtype)
        probs = probs.view(r, kv_heads, -1, probs.shape[-1])
        out = probs[..., : group.used] @ value
        if group.regions is not None:
            own_value = cache.branch_values[layer][group.regions, :, : group.scratch]
            out = out + probs[..., group.used :] @ own_value
        return out.view(r, kv_heads, -1, n, dim).permute(0, 3, 1, 2, 4).reshape(r * n, -1)

    def _in_parts(self, view: _RowView) -> _Long:
        s = self.cache.layout.sinks
        sinks = s if view.rotate_sinks else 0
        parts = [
            self._part(view.mask[:, :sinks], slice(0, sinks), rotate_sinks=True),
            self._part(view.mask[:, sinks : view.used], slice(sinks, view.used)),
            self._part(view.mask[:, view.used :], slice(0, view.scratch), own=True),
        ]
        return _Long(view, [part for part in parts if part is not None])

    def _part(
        self, seen: Tensor, keys: slice, *, rotate_sinks: bool = False, own: bool = False
    ) -> _Part | None:
        if not bool(seen.any()):
            return None
        mask = None if bool(seen.all()) else self._additive(seen)[None, None]
        blind = ~seen.any(dim=1)
        unseeing = self._moved(blind) if bool(blind.any()) else None
        return _Part(keys, rotate_sinks, own, mask, unseeing)

    def _attend_long(
        self, layer: int, row: _Long, q: Tensor, sink_q: Tensor, scaling: float
    ) -> Tensor:
        """Attention of one long row. ``q``, ``sink_q`` ``[n, heads, dim]`` → ``[n, heads * dim]``."""
        cache, view = self.cache, row.view
        n, heads, dim = q.shape
        kv_heads = cache.shape.kv_heads
        group = heads // kv_heads
        outs, sums = [], []
        for part in row.parts:
            pools = (cache.keys, cache.values)
            at = view.slot
            if part.own:
                pools, at = (cache.branch_keys, cache.branch_values), view.region
            # Query heads of one KV head are a batch that shares its keys without copying them.
            key, value = (pool[layer][at, :, part.keys].expand(group, -1, -1, -1) for pool in pools)
            query = (sink_q if part.rotate_sinks else q).view(n, kv_heads, group, dim)
            out, total = _attend_part(
                query.permute(2, 1, 0, 3), key, value, part.mask, scaling
            )  # [group, kv_heads, n, dim], [group, kv_heads, n]
            if part.blind is not None:
                total = total.masked_fill(part.blind, -torch.inf)
            outs.append(out)
            sums.append(total)
        merged = outs[0]
        if len(outs) > 1:
            weights = torch.softmax(torch.stack(sums), dim=0)[..., None]
            merged = sum(w * out for w, out in zip(weights, outs, strict=True)).to(q.dtype)
        return merged.permute(2, 1, 0, 3).reshape(n, heads * dim)

    def commit(self) -> None:
        """Advance the frontiers by what the forward has written. Call once, after it succeeded."""
        for row in self.rows:
            target = row.branch if row.branch is not None else row.stream
            target.length += len(row.tokens)

    def _additive(self, seen: Tensor) -> Tensor:
        """Bool mask → mask to add to scores (0 where seen, -inf where not), on the device."""
        zero = torch.zeros(seen.shape, dtype=self.cache.dtype)
        return self._moved(zero.masked_fill_(~seen, -torch.inf))

    def _picked(self, indices: list[int]) -> Tensor | slice:
        """Indices as a slice (a view, no copy) where they are consecutive, else as a tensor."""
        first, last = indices[0], indices[-1]
        if indices == list(range(first, last + 1)):
            return slice(first, last + 1)
        return self._moved(torch.tensor(indices))

    def _moved(self, tensor: Tensor) -> Tensor:
        """From the host to the device, without waiting for it."""
        return tensor.to(self.cache.device, non_blocking=True)


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


def _is_long(view: _RowView) -> bool:
    return view.end - view.begin > GROUP_TOKENS


def _padded(seen: Tensor, most: int) -> Tensor:
    """Add columns that nobody sees, up to a multiple of PAD and at most ``most``."""
    more = min(-(-seen.shape[1] // PAD) * PAD, most) - seen.shape[1]
    return nn.functional.pad(seen, (0, more)) if more else seen


def _runs(views: list[_RowView]) -> list[list[_RowView]]:
    """Rows to be attended together: short ones of about equal length and one kind (stream or
    branch) on consecutive slots, each slot once; every other row is a run of its own."""
    runs: list[list[_RowView]] = []
    kinds: dict[tuple[bool, int], list[list[_RowView]]] = {}
    for view in sorted(views, key=lambda v: v.slot):
        if _is_long(view):
            runs.append([view])
            continue
        kind = (view.region >= 0, (view.end - view.begin - 1).bit_length())
        open_runs = kinds.setdefault(kind, [])
        run = next((run for run in open_runs if run[-1].slot == view.slot - 1), None)
        if run is not None:
            run.append(view)
        else:
            open_runs.append([view])
    return runs + [run for found in kinds.values() for run in found]
