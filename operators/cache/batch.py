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
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
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
    ``num_logits`` of them. ``watch``: filled with attention, of a short row on a branch. ``features``
    ``[n, hidden]``: filled with what the output matrix reads, at the last ``num_features`` or more."""

    stream: StreamSlot
    tokens: Sequence[int]
    branch: Branch | None = None
    num_logits: int = 0
    watch: Watch | None = None
    num_features: int = 0
    features: Tensor | None = None

    @property
    def num_wanted(self) -> int:
        """Of how many of its last tokens something is asked for."""
        return max(self.num_logits, self.num_features)

    @property
    def start(self) -> int:
        """Absolute position of the first token."""
        if self.branch is not None:
            return self.branch.fork + self.branch.length
        return self.stream.length


class _RowView(NamedTuple):
    """Where one row reads and writes; the same in every layer. Numbers only: what tensors follow from
    them is made for all rows of a group at once, from the columns of one table."""

    at: int  # its number among the rows
    begin: int
    end: int
    slot: int
    start: int  # absolute position of the first token
    length: int  # of the stream: what its slot holds (behind this row, for a stream's own)
    origin: int
    fork: int = -1  # of a branch
    region: int = -1
    own: int = 0  # tokens in the region before this row

    @property
    def alone(self) -> bool:
        """Whether it is on a branch that sees nothing of its stream (:meth:`KvCache.fork`)."""
        return self.fork == 0


class _Columns:
    """The numbers of some rows' views, by name: long ``[rows]`` each."""

    def __init__(self, table: Tensor) -> None:
        columns = table.unbind(1)
        _, self.begin, self.end, self.slot, self.start, self.length, self.origin = columns[:7]
        self.fork, self.region, self.own = columns[7:]


@dataclass
class ForwardBatch:
    """The rows of one forward, laid out; passed to every attention layer."""

    cache: KvCache
    rows: Sequence[Row]
    rope: Rope
    backend: AttentionBackend = TORCH
    tokens: Tensor = field(init=False)  # [T] long
    wanted: Tensor = field(init=False)  # [m] long, indices into T: logits or features are asked for
    of_logits: Tensor | None = field(init=False)
    """Long, those of the m whose logits are asked for; None for all."""
    features: Tensor | None = field(init=False, default=None)  # [m, hidden], set by the network
    _table: Tensor = field(init=False)  # long [rows, numbers of a _RowView], on the host
    _frozen: Tensor = field(init=False)  # [rows, used]
    _long: list[Long] = field(init=False)
    _groups: list[Group] = field(init=False)
    _stream_writes: Writes | None = field(init=False)
    _branch_writes: Writes | None = field(init=False)
    _cos_sin: tuple[Tensor, Tensor] = field(init=False)
    """``[1 or 2, T, 1, dim]``: of the positions, and where they differ of the positions as a query of
    the sinks."""

    def __post_init__(self) -> None:
        ids: list[int] = []
        wanted: list[int] = []
        of_logits: list[int] = []
        views: list[_RowView] = []
        for row in self.rows:
            n = len(row.tokens)
            self._check(row, n)
            begin = len(ids)
            ids.extend(row.tokens)
            wanted.extend(range(begin + n - row.num_wanted, begin + n))
            of_logits.extend(range(len(wanted) - row.num_logits, len(wanted)))
            views.append(self._view(row, len(views), begin, n))
        self.tokens = self._moved(_long(ids))
        self.wanted = self._moved(_long(wanted))
        every = len(of_logits) == len(wanted)
        self.of_logits = None if every else self._moved(_long(of_logits))
        self._table = _long(itertools.chain.from_iterable(views)).view(len(views), -1)
        lengths = self._table[:, 2] - self._table[:, 1]
        each = _Columns(self._table.repeat_interleave(lengths, dim=0))
        self._lay_out_positions(each)
        on_branch = each.region >= 0
        self._stream_writes = self._collect(each, ~on_branch, branches=False)
        self._branch_writes = self._collect(each, on_branch, branches=True)
        # The masks of all branches on their slots' keys are made at once: a dozen small operators for
        # every group would take most of the planning.
        if branches := [v for v in views if v.region >= 0 and not _is_long(v)]:
            rows, used = _Columns(self._table[:, :, None]), self._used(branches, whole=True)
            self._frozen = self._additive(self._branches_see(rows, used))
        runs = _runs(views, scattered=self.backend.scattered)
        self._long = [self._in_parts(run[0]) for run in runs if _is_long(run[0])]
        self._groups = [self._group(run) for run in runs if not _is_long(run[0])]

    def _lay_out_positions(self, each: _Columns) -> None:
        """Rotations of every token at its absolute position, and as a query of the sinks. ``each``: the
        numbers of every token's row."""
        layout, shape = self.cache.layout, self.cache.shape
        positions = torch.arange(len(self.tokens)) + (each.start - each.begin)
        # How far the query is moved for the sinks: 0 until the window has filled.
        base = torch.where(each.fork < 0, positions, each.fork)
        shift = torch.clamp(layout.sinks + layout.window - base, max=0)
        moved = bool((shift < 0).any())

        def cos_sin(at: Tensor) -> tuple[Tensor, Tensor]:
            if has_float64(self.cache.device):
                return self.rope.cos_sin(self._moved(at), shape.head_dim, self.cache.dtype)
            cos, sin = self.rope.cos_sin(at, shape.head_dim, self.cache.dtype)
            return self._moved(cos), self._moved(sin)

        found = [cos_sin(positions), *([cos_sin(positions + shift)] if moved else [])]
        cos, sin = (torch.stack(tables) for tables in zip(*found, strict=True))
        self._cos_sin = cos, sin

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

    def _view(self, row: Row, at: int, begin: int, n: int) -> _RowView:
        stream, branch = row.stream, row.branch
        end, length, origin = begin + n, stream.length, stream.origin
        if branch is None:
            return _RowView(at, begin, end, stream.index, length, length + n, origin)
        start, own = branch.fork + branch.length, branch.length
        return _RowView(
            at, begin, end, stream.index, start, length, origin, branch.fork, branch.region, own
        )

    def _rotates_sinks(self, view: _RowView) -> bool:
        """Whether a query of the row stands beyond the window, seen from the sinks."""
        layout = self.cache.layout
        last = view.fork if view.region >= 0 else view.length
        return last > layout.sinks + layout.window

    def _used(self, views: Sequence[_RowView], *, whole: bool) -> int:
        """How many keys of a slot rows read. ``whole``: all of them where that is not much more than are
        needed, for products would copy parts of several."""
        layout = self.cache.layout
        used = max(0 if v.alone else min(v.length, layout.slot_tokens) for v in views)
        used = min(-(-used // PAD) * PAD, layout.slot_tokens)
        return layout.slot_tokens if whole and 2 * used > layout.slot_tokens else used

    def _scratch(self, views: Sequence[_RowView]) -> int:
        """How many keys of their regions rows on branches read."""
        scratch = max(v.own + v.end - v.begin for v in views)
        return min(-(-scratch // PAD) * PAD, self.cache.layout.branch_tokens)

    def _written(self, rows: _Columns, used: int) -> tuple[Tensor, Tensor]:
        """The positions of the keys in the slots of some rows, and whether they were written: long and
        bool ``[r, used]``."""
        layout, last, index = self.cache.layout, rows.length - 1, torch.arange(used)[None, :]
        # How far behind the newest: remainders of two rows of numbers, not of all their differences.
        behind = last % layout.ring - index % layout.ring
        behind = torch.where(behind < 0, behind + layout.ring, behind)
        position = torch.where(index < layout.sinks, index, last - behind)
        return position, index <= last

    def _branches_see(self, rows: _Columns, used: int) -> Tensor:
        """What the tokens of branches see in their slots, all of a branch the same: ``[r, used]``."""
        position, there = self._written(rows, used)
        return branch_sees(position, rows.fork, self.cache.layout, rows.origin) & there

    def _own(self, rows: _Columns, n: int, scratch: int) -> Tensor:
        """What they see in their regions: ``[r, n, scratch]``."""
        return torch.arange(scratch) <= (_places(rows, n) + rows.own)[:, :, None]

    def _streams_see(self, rows: _Columns, n: int, used: int) -> Tensor:
        """What the tokens of streams see in their slots: ``[r, n, used]``."""
        position, there = self._written(rows, used)
        query = (_places(rows, n) + rows.start)[:, :, None]
        seen = sees(position[:, None], query, self.cache.layout, rows.origin[:, :, None])
        return seen & there[:, None]

    def _rows_of(self, views: Sequence[_RowView]) -> _Columns:
        return _Columns(self._table[_indices([v.at for v in views])][:, :, None])

    def attend(self, layer: int, qk: Tensor, v: Tensor, scaling: float) -> Tensor:
        """One layer: rotate, write the new keys and values, attend.

        ``qk`` ``[T, heads + kv_heads, dim]`` queries and keys, not rotated, ``v``
        ``[T, kv_heads, dim]`` → ``[T, heads * dim]``. Mutates the cache in the places of the rows'
        new tokens.
        """
        heads = qk.shape[1] - self.cache.shape.kv_heads
        turned = rotate(qk, *self._cos_sin, self.rope.rotated)
        self._write(layer, turned[0, :, heads:], v)
        q, sink_q = turned[0, :, :heads], turned[-1, :, :heads]
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

    def _collect(self, each: _Columns, kind: Tensor, *, branches: bool) -> Writes | None:
        """Where the new keys of the tokens of one ``kind`` go."""
        tokens = kind.nonzero()[:, 0]
        if not len(tokens):
            return None
        within = tokens - each.begin[tokens]
        if branches:
            rows, places = each.region[tokens], within + each.own[tokens]
        else:
            layout = self.cache.layout
            position, s = within + each.start[tokens], layout.sinks
            places = torch.where(position < s, position, s + (position - s) % layout.ring)
            rows = each.slot[tokens]
        return Writes(self._moved(tokens), self._moved(rows), self._moved(places))

    def _group(self, views: Sequence[_RowView]) -> Group:
        """Pad the rows' masks and queries to common sizes. What is padded is masked out."""
        lengths = [v.end - v.begin for v in views]
        r, n = len(views), max(lengths)
        used, rows = self._used(views, whole=True), self._rows_of(views)
        branches, scratch = views[0].region >= 0, 0
        if branches:
            scratch = self._scratch(views)
            mask = self._frozen[_indices([v.at for v in views]), None, :used].expand(-1, n, -1)
            mask = torch.cat((mask, self._additive(self._own(rows, n, scratch))), dim=-1)
        else:
            mask = self._additive(self._streams_see(rows, n, used))
        picked = [min(view.begin + i, view.end - 1) for view in views for i in range(n)]
        real = None
        if min(lengths) < n:
            queries = [at * n + i for at, length in enumerate(lengths) for i in range(length)]
            tokens = [picked[query] for query in queries]
            real = (self._moved(_long(queries)), self._moved(_long(tokens)))
        return Group(
            slots=self._picked([v.slot for v in views]),
            used=used,
            picked=self._picked(picked),
            real=real,
            shape=(r, n),
            mask=self._moved(mask)[:, None, None],
            rotate_sinks=any(map(self._rotates_sinks, views)),
            regions=self._picked([v.region for v in views]) if branches else None,
            scratch=scratch,
            watched=[
                (at, length, watch)
                for at, (view, length) in enumerate(zip(views, lengths, strict=True))
                if branches and (watch := self.rows[view.at].watch) is not None
            ],
        )

    def _in_parts(self, view: _RowView) -> Long:
        sinks = self.cache.layout.sinks if self._rotates_sinks(view) else 0
        n, used, rows = (
            view.end - view.begin,
            self._used([view], whole=False),
            self._rows_of([view]),
        )
        branch = view.region >= 0
        if branch:
            seen = self._branches_see(rows, used).expand(n, -1)
        else:
            seen = self._streams_see(rows, n, used)[0]
        parts = [
            self._part(seen[:, :sinks], slice(0, sinks), rotate_sinks=True),
            self._part(seen[:, sinks:], slice(sinks, used)),
        ]
        if branch:
            scratch = self._scratch([view])
            parts.append(self._part(self._own(rows, n, scratch)[0], slice(0, scratch), own=True))
        span = slice(view.begin, view.end)
        return Long(span, view.slot, view.region, [part for part in parts if part is not None])

    def _part(
        self, seen: Tensor, keys: slice, *, rotate_sinks: bool = False, own: bool = False
    ) -> Part | None:
        if not bool(seen.any()):
            return None
        mask = None if bool(seen.all()) else self._moved(self._additive(seen))[None, None]
        blind = ~seen.any(dim=1)
        unseeing = self._moved(blind) if bool(blind.any()) else None
        return Part(keys, rotate_sinks, own, mask, unseeing)

    def commit(self) -> None:
        """Advance the frontiers by what the forward has written, and hand out features. Call once, after
        it succeeded."""
        at = 0
        for row in self.rows:
            target = row.branch if row.branch is not None else row.stream
            target.length += len(row.tokens)
            if row.num_features and self.features is not None:
                row.features = self.features[at : at + row.num_wanted]
            at += row.num_wanted

    def _additive(self, seen: Tensor) -> Tensor:
        """Bool mask → mask to add to scores (0 where seen, -inf where not)."""
        zero = torch.zeros(seen.shape, dtype=self.cache.dtype)
        return zero.masked_fill_(~seen, -torch.inf)

    def _picked(self, indices: list[int]) -> Tensor | slice:
        """Indices as a slice (a view, no copy) where they are consecutive, else as a tensor."""
        found = _indices(indices)
        return found if isinstance(found, slice) else self._moved(found)

    def _moved(self, tensor: Tensor) -> Tensor:
        """From the host to the device, without waiting for it: only pinned memory is copied so."""
        if self.cache.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.cache.device, non_blocking=True)


def _places(rows: _Columns, n: int) -> Tensor:
    """0 to ``n`` - 1 for every row, its last one repeated where it is shorter: ``[r, n]``."""
    return torch.arange(n)[None, :].clamp(max=rows.end - rows.begin - 1)


def _indices(indices: list[int]) -> Tensor | slice:
    first, last = indices[0], indices[-1]
    if last - first == len(indices) - 1 and indices == list(range(first, last + 1)):
        return slice(first, last + 1)
    return _long(indices)


def _long(numbers: Iterable[int]) -> Tensor:
    """A long tensor of these numbers, in a tenth of the time that torch.tensor takes for a list."""
    found = array("q", numbers)
    return torch.frombuffer(found, dtype=torch.long) if found else torch.empty(0, dtype=torch.long)


def _is_long(view: _RowView) -> bool:
    return view.end - view.begin > GROUP_TOKENS


def _runs(views: list[_RowView], *, scattered: bool) -> list[list[_RowView]]:
    """Rows to be attended together: short ones of about equal length and one kind (stream, branch, or
    branch that sees no stream), on consecutive slots, each slot once, unless they may be
    ``scattered``; every other row is a run of its own."""
    runs: list[list[_RowView]] = []
    waiting: dict[tuple[bool, bool, int, int], list[list[_RowView]]] = {}
    """By kind, length, and the slot of the row that they take next."""
    for view in sorted(views, key=attrgetter("slot")):
        if _is_long(view):
            runs.append([view])
            continue
        size = (view.end - view.begin - 1).bit_length()
        kind = view.region >= 0, view.alone, size
        before = waiting.get((*kind, 0 if scattered else view.slot))
        run = before.pop() if before else None
        if run is None or (not scattered and (len(run) + 1) << size > GROUP_TOKENS):
            run = []
            runs.append(run)
        run.append(view)
        then = 0 if scattered else view.slot + 1
        waiting.setdefault((*kind, then), []).append(run)
    return runs
