"""Many rows in one packed forward: where each reads and writes the cache, and which go together.

A *row* appends n tokens to a stream or to a branch: prefill, decode and verify are the same thing.
All rows of a forward are packed into one sequence ``[1, T]``; :class:`ForwardBatch` knows which
stretch belongs to which row. operators.model.network calls :meth:`ForwardBatch.attend` once per
layer; the arithmetic is in operators.cache.attention.

A plan is made on the host and its tensors are copied to the device before the first layer. From
there to the logits nothing is copied, and no layer waits for a size or a value from the device.
Sizes that grow by the token are padded: a library that compiles kernels by shape would compile new
ones at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from operators.cache.attention import (
    Group,
    Long,
    Part,
    Watch,
    Writes,
    attend_group,
    attend_long,
    write,
)
from operators.cache.kv_cache import Branch, KvCache, StreamSlot, visible, visible_to_branch
from operators.cache.rope import Rope, rotate

GROUP_TOKENS = 128
"""Tokens of the rows attended together, at most; a longer row is attended part by part. Beyond it
the scores of a layer leave the processor's cache."""
PAD = 32
"""Numbers of keys are rounded up to a multiple of this; what is added is masked out."""


@dataclass
class Row:
    """Append ``tokens`` to ``stream`` (or to ``branch`` of it); return logits at the last
    ``num_logits`` of them. ``watch``: filled with attention, of a short row on a branch."""

    stream: StreamSlot
    tokens: Sequence[int]
    branch: Branch | None = None
    num_logits: int = 0
    watch: Watch | None = None

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
    watch: Watch | None = None


@dataclass
class ForwardBatch:
    """The rows of one forward, laid out; passed to every attention layer."""

    cache: KvCache
    rows: Sequence[Row]
    rope: Rope
    tokens: Tensor = field(init=False)  # [T] long
    wanted: Tensor = field(init=False)  # [m] long, indices into T whose logits are asked for
    _long: list[Long] = field(init=False)
    _groups: list[Group] = field(init=False)
    _stream_writes: Writes | None = field(init=False)
    _branch_writes: Writes | None = field(init=False)
    _cos_sin: tuple[Tensor, Tensor] = field(init=False)
    _sink_cos_sin: tuple[Tensor, Tensor] | None = field(init=False)

    def __post_init__(self) -> None:
        ids: list[int] = []
        wanted: list[int] = []
        views = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            wanted.extend(range(begin + n - row.num_logits, begin + n))
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

        def cos_sin(at: Tensor) -> tuple[Tensor, Tensor]:
            return self.rope.cos_sin(self._moved(at), shape.head_dim, self.cache.dtype)

        self._cos_sin = cos_sin(positions)
        self._sink_cos_sin = cos_sin(positions + shift) if moved else None

    def _check(self, row: Row, n: int) -> None:
        """Refuse the two writes that would overwrite tokens which a query still sees."""
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
            row.watch,
        )

    def attend(self, layer: int, qk: Tensor, v: Tensor, scaling: float) -> Tensor:
        """One layer: rotate, write the new keys and values, attend.

        ``qk`` ``[T, heads + kv_heads, dim]`` queries and keys, not rotated, ``v``
        ``[T, kv_heads, dim]`` → ``[T, heads * dim]``. Mutates the cache in the places of the rows'
        new tokens.
        """
        rotated, heads = self.rope.rotated, qk.shape[1] - self.cache.shape.kv_heads
        turned = rotate(qk, *self._cos_sin, rotated)
        q = turned[:, :heads]
        self._write(layer, turned[:, heads:], v)
        sink_q = q
        if self._sink_cos_sin is not None:
            sink_q = rotate(qk[:, :heads], *self._sink_cos_sin, rotated)
        if len(self._groups) == 1 and not self._long and self._covers_all(self._groups[0]):
            return attend_group(self.cache, layer, self._groups[0], q, sink_q, scaling)
        out = q.new_empty(len(q), heads * q.shape[2])
        for group in self._groups:
            attended = attend_group(self.cache, layer, group, q, sink_q, scaling)
            if group.real is None:
                out[group.picked] = attended
            else:
                queries, tokens = group.real
                out[tokens] = attended[queries]
        for row in self._long:
            span = row.span
            out[span] = attend_long(self.cache, layer, row, q[span], sink_q[span], scaling)
        return out

    def _covers_all(self, group: Group) -> bool:
        """Whether the group's tokens are all there are, in their order."""
        picked = group.picked
        return isinstance(picked, slice) and picked == slice(0, len(self.tokens))

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the new keys and values ``[T, kv_heads, dim]`` of all rows in their places."""
        cache = self.cache
        if self._stream_writes is not None:
            write(cache.keys, cache.values, layer, self._stream_writes, k, v)
        if self._branch_writes is not None:
            write(cache.branch_keys, cache.branch_values, layer, self._branch_writes, k, v)

    def _collect(self, views: list[_RowView]) -> Writes | None:
        if not views:
            return None
        rows = [v.slot if v.region < 0 else v.region for v in views]
        counts = torch.tensor([v.end - v.begin for v in views])
        return Writes(
            self._moved(torch.cat([torch.arange(v.begin, v.end) for v in views])),
            self._moved(torch.repeat_interleave(torch.tensor(rows), counts)),
            self._moved(torch.cat([v.write for v in views])),
        )

    def _group(self, views: list[_RowView]) -> Group:
        """Pad the rows' masks and queries to common sizes. What is padded is masked out."""
        r = len(views)
        lengths = [v.end - v.begin for v in views]
        n = max(lengths)
        used, scratch = max(v.used for v in views), max(v.scratch for v in views)
        if 2 * used > self.cache.layout.slot_tokens:
            used = self.cache.layout.slot_tokens  # whole slots: products would copy parts of them
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
        return Group(
            slots=slice(views[0].slot, views[-1].slot + 1),
            used=used,
            picked=self._picked(picked),
            real=real,
            shape=(r, n),
            mask=self._additive(seen)[:, None, None],
            rotate_sinks=any(v.rotate_sinks for v in views),
            regions=self._picked([v.region for v in views]) if views[0].region >= 0 else None,
            scratch=scratch,
            watched=[
                (at, length, view.watch)
                for at, (view, length) in enumerate(zip(views, lengths, strict=True))
                if view.watch is not None
            ],
        )

    def _in_parts(self, view: _RowView) -> Long:
        s = self.cache.layout.sinks
        sinks = s if view.rotate_sinks else 0
        parts = [
            self._part(view.mask[:, :sinks], slice(0, sinks), rotate_sinks=True),
            self._part(view.mask[:, sinks : view.used], slice(sinks, view.used)),
            self._part(view.mask[:, view.used :], slice(0, view.scratch), own=True),
        ]
        span = slice(view.begin, view.end)
        return Long(span, view.slot, view.region, [part for part in parts if part is not None])

    def _part(
        self, seen: Tensor, keys: slice, *, rotate_sinks: bool = False, own: bool = False
    ) -> Part | None:
        if not bool(seen.any()):
            return None
        mask = None if bool(seen.all()) else self._additive(seen)[None, None]
        blind = ~seen.any(dim=1)
        unseeing = self._moved(blind) if bool(blind.any()) else None
        return Part(keys, rotate_sinks, own, mask, unseeing)

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


def _is_long(view: _RowView) -> bool:
    return view.end - view.begin > GROUP_TOKENS


def _padded(seen: Tensor, most: int) -> Tensor:
    """Add masked columns, up to a multiple of PAD and at most ``most``."""
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
        size = (view.end - view.begin - 1).bit_length()
        open_runs = kinds.setdefault((view.region >= 0, size), [])
        run = next((run for run in open_runs if run[-1].slot == view.slot - 1), None)
        if run is not None and (len(run) + 1) << size > GROUP_TOKENS:
            run = None
        if run is not None:
            run.append(view)
        else:
            open_runs.append([view])
    return runs + [run for found in kinds.values() for run in found]
