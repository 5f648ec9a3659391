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

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from operators.cache.attention import TORCH, AttentionBackend, Group, Long, Part, Watch, Writes
from operators.cache.kv_cache import Branch, KvCache, StreamSlot, branch_sees, sees
from operators.cache.rope import Rope, has_float64, rotate

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


class _RowView(NamedTuple):
    """Where one row reads and writes; the same in every layer. Numbers only: what tensors follow from
    them is made for all rows of a group at once."""

    begin: int
    end: int
    slot: int
    start: int  # absolute position of the first token
    length: int  # of the stream: what its slot holds (behind this row, for a stream's own)
    origin: int
    rotate_sinks: bool
    fork: int = -1  # of a branch
    region: int = -1
    own: int = 0  # tokens in the region before this row
    watch: Watch | None = None

    @property
    def alone(self) -> bool:
        """Whether it is on a branch that sees nothing of its stream (:meth:`KvCache.fork`)."""
        return self.fork == 0


@dataclass
class ForwardBatch:
    """The rows of one forward, laid out; passed to every attention layer."""

    cache: KvCache
    rows: Sequence[Row]
    rope: Rope
    backend: AttentionBackend = TORCH
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
        views: list[_RowView] = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            wanted.extend(range(begin + n - row.num_logits, begin + n))
            views.append(self._view(row, begin, n))
        self._stream_writes = self._collect([v for v in views if v.region < 0])
        self._branch_writes = self._collect([v for v in views if v.region >= 0])
        runs = _runs(views, scattered=self.backend.scattered)
        self._long = [self._in_parts(run[0]) for run in runs if _is_long(run[0])]
        self._groups = [self._group(run) for run in runs if not _is_long(run[0])]
        self.tokens = self._moved(torch.tensor(ids))
        self.wanted = self._moved(torch.tensor(wanted, dtype=torch.long))
        self._lay_out_positions(views)

    def _lay_out_positions(self, views: Sequence[_RowView]) -> None:
        """Rotations of every token at its absolute position, and as a query of the sinks."""
        layout, shape = self.cache.layout, self.cache.shape
        each = _per_token(views)
        positions = torch.arange(len(self.tokens)) + each([v.start - v.begin for v in views])
        # How far the query is moved for the sinks: 0 until the window has filled.
        forks = each([v.fork for v in views])
        base = torch.where(forks < 0, positions, forks)
        shift = torch.clamp(layout.sinks + layout.window - base, max=0)
        moved = bool((shift < 0).any())

        def cos_sin(at: Tensor) -> tuple[Tensor, Tensor]:
            if has_float64(self.cache.device):
                return self.rope.cos_sin(self._moved(at), shape.head_dim, self.cache.dtype)
            cos, sin = self.rope.cos_sin(at, shape.head_dim, self.cache.dtype)
            return self._moved(cos), self._moved(sin)

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
        layout, stream, branch = self.cache.layout, row.stream, row.branch
        full = layout.sinks + layout.window
        if branch is None:
            end = stream.length + n
            at = stream.length
            return _RowView(begin, begin + n, stream.index, at, end, stream.origin, end > full)
        return _RowView(
            begin,
            begin + n,
            stream.index,
            branch.fork + branch.length,
            stream.length,
            stream.origin,
            branch.fork > full,
            branch.fork,
            branch.region,
            branch.length,
            row.watch,
        )

    def _sees(self, views: Sequence[_RowView], n: int, *, whole: bool) -> tuple[Tensor, int, int]:
        """What every token of rows of one kind sees, padded to ``n`` tokens by repeating a row's last:
        bool ``[r, n, used + scratch]``, and the numbers of keys of the slot and of the region.
        ``whole``: all keys of a slot where that is not much more than are needed, for products would
        copy parts of several."""
        layout, branches = self.cache.layout, views[0].region >= 0
        used = max(0 if v.alone else min(v.length, layout.slot_tokens) for v in views)
        used = min(-(-used // PAD) * PAD, layout.slot_tokens)
        if whole and 2 * used > layout.slot_tokens:
            used = layout.slot_tokens

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values)[:, None]

        last = column([v.length - 1 for v in views])
        index = torch.arange(used)[None, :]
        position = torch.where(
            index < layout.sinks, index, last - torch.remainder(last - index, layout.ring)
        )
        there = index <= last  # and not beyond what has been written
        at = torch.arange(n)[None, :].clamp(max=column([v.end - v.begin - 1 for v in views]))
        origin = column([v.origin for v in views])
        if not branches:
            query = at + column([v.start for v in views])
            seen = sees(position[:, None], query[:, :, None], layout, origin[:, :, None])
            return seen & there[:, None], used, 0
        fork = column([v.fork for v in views])
        seen = (branch_sees(position, fork, layout, origin) & there)[:, None]
        scratch = max(v.own + v.end - v.begin for v in views)
        scratch = min(-(-scratch // PAD) * PAD, layout.branch_tokens)
        mine = torch.arange(scratch) <= (at + column([v.own for v in views]))[:, :, None]
        return torch.cat((seen.expand(-1, n, -1), mine), dim=-1), used, scratch

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
            return self.backend.attend_group(self.cache, layer, self._groups[0], q, sink_q, scaling)
        out = q.new_empty(len(q), heads * q.shape[2])
        for group in self._groups:
            attended = self.backend.attend_group(self.cache, layer, group, q, sink_q, scaling)
            if group.real is None:
                out[group.picked] = attended
            else:
                queries, tokens = group.real
                out[tokens] = attended[queries]
        for row in self._long:
            span = row.span
            out[span] = self.backend.attend_long(
                self.cache, layer, row, q[span], sink_q[span], scaling
            )
        return out

    def _covers_all(self, group: Group) -> bool:
        """Whether the group's tokens are all there are, in their order."""
        picked = group.picked
        return isinstance(picked, slice) and picked == slice(0, len(self.tokens))

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the new keys and values ``[T, kv_heads, dim]`` of all rows in their places."""
        cache = self.cache
        if self._stream_writes is not None:
            self.backend.write(cache.keys, cache.values, layer, self._stream_writes, k, v)
        if self._branch_writes is not None:
            self.backend.write(
                cache.branch_keys, cache.branch_values, layer, self._branch_writes, k, v
            )

    def _collect(self, views: Sequence[_RowView]) -> Writes | None:
        """Where the new keys of rows of one kind go."""
        if not views:
            return None
        layout, branches = self.cache.layout, views[0].region >= 0
        each, lengths = _per_token(views), [v.end - v.begin for v in views]
        first = [0, *itertools.accumulate(lengths[:-1])]
        within = torch.arange(sum(lengths)) - each(first)
        tokens = within + each([v.begin for v in views])
        if branches:
            places = within + each([v.own for v in views])
        else:
            position, s = within + each([v.start for v in views]), layout.sinks
            places = torch.where(position < s, position, s + (position - s) % layout.ring)
        rows = each([v.region if branches else v.slot for v in views])
        return Writes(self._moved(tokens), self._moved(rows), self._moved(places))

    def _group(self, views: Sequence[_RowView]) -> Group:
        """Pad the rows' masks and queries to common sizes. What is padded is masked out."""
        lengths = [v.end - v.begin for v in views]
        r, n = len(views), max(lengths)
        seen, used, scratch = self._sees(views, n, whole=True)
        picked = [min(view.begin + i, view.end - 1) for view in views for i in range(n)]
        real = None
        if min(lengths) < n:
            queries = [at * n + i for at, length in enumerate(lengths) for i in range(length)]
            tokens = [picked[query] for query in queries]
            real = (self._moved(torch.tensor(queries)), self._moved(torch.tensor(tokens)))
        return Group(
            slots=self._picked([v.slot for v in views]),
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
        sinks = self.cache.layout.sinks if view.rotate_sinks else 0
        seen, used, scratch = self._sees([view], view.end - view.begin, whole=False)
        mask = seen[0]
        parts = [
            self._part(mask[:, :sinks], slice(0, sinks), rotate_sinks=True),
            self._part(mask[:, sinks:used], slice(sinks, used)),
            self._part(mask[:, used:], slice(0, scratch), own=True),
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
        """From the host to the device, without waiting for it: only pinned memory is copied so."""
        if self.cache.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.cache.device, non_blocking=True)


def _per_token(views: Sequence[_RowView]) -> Callable[[list[int]], Tensor]:
    """Spreads a number of every row over its tokens: long ``[tokens of the rows]``."""
    counts = torch.tensor([v.end - v.begin for v in views])
    return lambda values: torch.repeat_interleave(torch.tensor(values), counts)


def _is_long(view: _RowView) -> bool:
    return view.end - view.begin > GROUP_TOKENS


def _runs(views: list[_RowView], *, scattered: bool) -> list[list[_RowView]]:
    """Rows to be attended together: short ones of about equal length and one kind (stream, branch, or
    branch that sees no stream), on consecutive slots, each slot once, unless they may be
    ``scattered``; every other row is a run of its own."""
    runs: list[list[_RowView]] = []
    kinds: dict[tuple[bool, bool, int], list[list[_RowView]]] = {}
    for view in sorted(views, key=lambda v: v.slot):
        if _is_long(view):
            runs.append([view])
            continue
        size = (view.end - view.begin - 1).bit_length()
        open_runs = kinds.setdefault((view.region >= 0, view.alone, size), [])
        beside = (run for run in reversed(open_runs) if scattered or run[-1].slot == view.slot - 1)
        run = next(beside, None)
        if run is not None and not scattered and (len(run) + 1) << size > GROUP_TOKENS:
            run = None
        if run is not None:
            run.append(view)
        else:
            open_runs.append([view])
    return runs + [run for found in kinds.values() for run in found]
