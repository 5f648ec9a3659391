"""The KV cache: fixed-size slots (sink tokens + ring) per stream, scratch regions for branches.

    slot of a stream, per layer                     region of a branch, per layer
    ┌────────────┬───────────────────────────┐      ┌──────────────────────┐
    │ S sinks    │ ring of R = W + slack     │      │ B scratch tokens     │
    │ pinned     │ transcript, wraps around  │      │ instruction + answer │
    └────────────┴───────────────────────────┘      └──────────────────────┘

Positions are absolute and never change: sinks sit at 0…S-1, transcript token k at S+k. Token at
position p lies in the ring at ``S + (p - S) mod R``. What a query may see is a rule on positions
(:func:`sees`), not on what happens to lie in memory, so evicting costs nothing and rolling back
is a subtraction. StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), section 3.2.

The cache holds tensors and arithmetic only; the scheduler decides what is written when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from operators.cache.prompts import Beginning, PromptCache
from operators.errors import CapacityError, ConfigError

PROMPT_TOKENS = 2048
"""How many tokens of prompts' beginnings are kept, besides slots and regions."""


@dataclass(frozen=True)
class KvShape:
    """What the model contributes to the size of the cache."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class KvLayout:
    """Sizes in tokens: S sinks, W window, slack, B branch scratch."""

    sinks: int
    window: int
    slack: int
    branch_tokens: int

    @property
    def ring(self) -> int:
        return self.window + self.slack

    @property
    def slot_tokens(self) -> int:
        return self.sinks + self.ring


def token_bytes(shape: KvShape, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values over all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize


def bytes_per_stream(
    shape: KvShape, layout: KvLayout, dtype: torch.dtype, *, slots: int, branches: int
) -> int:
    """KV bytes of one stream: its slot and its share of the branch regions (rounded up)."""
    scratch = -(-branches * layout.branch_tokens // slots)
    return token_bytes(shape, dtype) * (layout.slot_tokens + scratch)


@dataclass(eq=False)
class StreamSlot:
    """A stream's place in the cache. ``length`` counts all tokens ever appended (sinks included),
    so it is also the absolute position of the next token (the *frontier*). ``origin`` is the position
    of the first transcript token: S, or later for a stream that continues an older one, with
    nothing in its ring yet."""

    index: int
    length: int = 0
    origin: int = 0


@dataclass(eq=False)
class Branch:
    """A fork of a stream: sees the window as it was at ``fork``, writes to its own region."""

    stream: StreamSlot
    region: int
    fork: int
    length: int = 0


class KvCache:
    """Storage for all slots and branch regions of one model on one device.

    ``keys[layer]``/``values[layer]``: ``[slots, kv_heads, S + R, head_dim]``;
    ``branch_keys[layer]``/``branch_values[layer]``: ``[branches, kv_heads, B, head_dim]``.
    Allocated once, never grown. A slot or region is zeroed when it is taken: masked keys are multiplied
    by zero, which needs them finite.
    """

    def __init__(
        self,
        shape: KvShape,
        layout: KvLayout,
        *,
        slots: int,
        branches: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.layout, self.dtype, self.device = shape, layout, dtype, device
        self.slots, self.branches = slots, branches

        def pool(count: int, tokens: int) -> list[Tensor]:
            size = (count, shape.kv_heads, tokens, shape.head_dim)
            return [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

        self.keys = pool(slots, layout.slot_tokens)
        self.values = pool(slots, layout.slot_tokens)
        self.branch_keys = pool(branches, layout.branch_tokens)
        self.branch_values = pool(branches, layout.branch_tokens)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free_regions = list(range(branches - 1, -1, -1))
        self._open: dict[StreamSlot, list[Branch]] = {}
        self._prompts = PromptCache(PROMPT_TOKENS)

    # --- accounting --------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        pools = (self.keys, self.values, self.branch_keys, self.branch_values)
        return sum(t.nbytes for pool in pools for t in pool)

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def free_regions(self) -> int:
        return len(self._free_regions)

    def open_branches(self, stream: StreamSlot) -> list[Branch]:
        return self._open.get(stream, [])

    # --- slots and branches ------------------------------------------------------------------

    def allocate(self) -> StreamSlot:
        """Take a free slot; raises :class:`CapacityError` when none is left."""
        if not self._free_slots:
            raise CapacityError(f"all {self.slots} slots hold a stream; raise `slots` or wait")
        return self._taken(self._free_slots.pop())

    def claim(self, index: int) -> StreamSlot:
        """Take the slot of this number, also from its holder: for a cache that follows another."""
        held = next((s for s in self._open if s.index == index), None)
        if held is not None:
            self.release(held)
        self._free_slots.remove(index)
        return self._taken(index)

    def _taken(self, index: int) -> StreamSlot:
        self._wipe(index, self.keys, self.values)
        stream = StreamSlot(index)
        self._open[stream] = []
        return stream

    def release(self, stream: StreamSlot) -> None:
        """Give the slot back. Raises RuntimeError while a branch is open on it: the slot's next stream
        would overwrite what that branch reads."""
        if self._open[stream]:
            raise RuntimeError(f"slot {stream.index} has {len(self._open[stream])} open branches")
        del self._open[stream]
        self._free_slots.append(stream.index)

    def fork(
        self, stream: StreamSlot, beside: Branch | None = None, *, alone: bool = False
    ) -> Branch:
        """Open a branch at the stream's frontier, or at the fork of the open branch ``beside`` (what
        that one sees is still all there). ``alone``: it sees nothing but
        itself, not even the sinks, and its positions begin at 0.
        Raises :class:`CapacityError` when no region is free.

        The stream itself is not touched, now or by anything the branch does later. The region has the
        slot's number where that is free: branches of neighbouring streams then lie side by side and
        are read where they are, without a copy.
        """
        if not self._free_regions:
            raise CapacityError(f"all {self.branches} branch regions are in use; wait for one")
        own = stream.index
        region = own if own in self._free_regions else max(self._free_regions)
        self._free_regions.remove(region)
        fork = 0 if alone else beside.fork if beside else stream.length
        branch = Branch(stream, region, fork)
        self.wipe_region(branch.region)
        self._open[stream].append(branch)
        return branch

    def copy_branch(self, source: Branch, target: Branch, tokens: int) -> None:
        """Let an empty branch begin with the first ``tokens`` tokens of another one at the same fork.
        Mutates ``target`` and its region."""
        if source.fork != target.fork or target.length or not tokens <= source.length:
            raise ValueError("a branch begins with another one's tokens at the same fork only")
        for pool in (self.branch_keys, self.branch_values):
            for layer in pool:
                layer[target.region, :, :tokens] = layer[source.region, :, :tokens]
        target.length = tokens

    def begin(self, branch: Branch, prompt: Sequence[int]) -> int:
        """Let an empty branch that is ``alone`` begin with what is kept of its prompt; returns how many
        tokens that is. Mutates the branch and its region."""
        self._prompts.forget(branch)
        kept, count = self._prompts.find(branch, prompt)
        if kept is not None:
            for pool, own in ((self.branch_keys, kept.keys), (self.branch_values, kept.values)):
                for layer, known in zip(pool, own, strict=True):
                    layer[branch.region, :, :count] = known[:, :count]
            branch.length = count
        return count

    def keep_beginning(self, branch: Branch) -> None:
        """Keep what other prompts begin with too, once this branch has run it."""
        count = self._prompts.wanted(branch)
        if not count or branch.length < count:
            return
        pools = (self.branch_keys, self.branch_values)
        keys, values = (
            tuple(layer[branch.region, :, :count].clone() for layer in pool) for pool in pools
        )
        self._prompts.keep(branch, Beginning(keys, values))

    def drop(self, branch: Branch) -> None:
        """Free the branch's region. The stream is not affected."""
        self._prompts.forget(branch)
        self._open[branch.stream].remove(branch)
        self._free_regions.append(branch.region)

    def wipe_region(self, region: int) -> None:
        """Zero a region: what is masked out is multiplied by zero, so it must be finite."""
        self._wipe(region, self.branch_keys, self.branch_values)

    @staticmethod
    def _wipe(index: int, *pools: list[Tensor]) -> None:
        for pool in pools:
            for layer in pool:
                layer[index].zero_()

    # --- room --------------------------------------------------------------------------------

    def ingest_room(self, stream: StreamSlot) -> int:
        """How many tokens may be appended to the stream in one block right now.

        A block never exceeds ``slack``: it may only overwrite what its own first query cannot see.
        While branches are open the frontier may run at most ``slack`` past the oldest fork, for
        one token more would overwrite the oldest token that branch still sees.
        """
        slack = self.layout.slack
        # A branch that sees nothing of the stream has nothing that could be overwritten.
        forks = [b.fork for b in self._open[stream] if b.fork]
        return min([slack, *(fork + slack - stream.length for fork in forks)])

    def branch_room(self, branch: Branch) -> int:
        """How many tokens the branch's scratch region still takes."""
        return self.layout.branch_tokens - branch.length

    # --- positions and memory ----------------------------------------------------------------

    def positions(self, end: int) -> Tensor:
        """Which absolute position each used memory index holds once the frontier is ``end``.

        ``[used]`` long on the host, ``used = min(end, S + R)``.
        """
        s, r = self.layout.sinks, self.layout.ring
        index = torch.arange(min(end, s + r))
        last = end - 1
        return torch.where(index < s, index, last - (last - index) % r)

    # --- moving a slot between device and host ------------------------------------------------

    def export(self, stream: StreamSlot) -> Tensor:
        """Copy a slot to host memory: ``[2, layers, kv_heads, used, head_dim]``; the slot stays."""
        used = min(stream.length, self.layout.slot_tokens)
        stacked = [
            torch.stack([layer[stream.index, :, :used] for layer in pool])
            for pool in (self.keys, self.values)
        ]
        return torch.stack(stacked).to("cpu", copy=True)

    def restore(self, stream: StreamSlot, tensors: Tensor, length: int) -> None:
        """Fill a slot from :meth:`export`'s tensor. Mutates the slot; raises ConfigError on shape."""
        used = min(length, self.layout.slot_tokens)
        want = (2, self.shape.layers, self.shape.kv_heads, used, self.shape.head_dim)
        if tuple(tensors.shape) != want or tensors.dtype != self.dtype:
            raise ConfigError(
                f"KV snapshot is {tuple(tensors.shape)} {tensors.dtype}, this cache needs "
                f"{want} {self.dtype}: it was made with another model, layout or dtype"
            )
        moved = tensors.to(self.device)
        for layer in range(self.shape.layers):
            self.keys[layer][stream.index, :, :used] = moved[0, layer]
            self.values[layer][stream.index, :, :used] = moved[1, layer]
        stream.length = length

    def check_integrity(self) -> None:
        """Every slot and region is either free or held exactly once (asserted; for tests and idle)."""
        held = [s.index for s in self._open]
        assert sorted(held + self._free_slots) == list(range(self.slots))
        regions = [b.region for branches in self._open.values() for b in branches]
        assert sorted(regions + self._free_regions) == list(range(self.branches))


def sees(key: Tensor, query: Tensor, layout: KvLayout, origin: Tensor) -> Tensor:
    """StreamingLLM's rule: sinks, and the last W tokens before the query, and the query itself.

    Absolute positions of keys and queries, in shapes that broadcast → bool. Nothing between the sinks
    and ``origin`` was ever written.
    """
    oldest = torch.maximum(query - layout.window, origin)
    return (key <= query) & ((key < layout.sinks) | (key >= oldest))


def branch_sees(key: Tensor, fork: Tensor, layout: KvLayout, origin: Tensor) -> Tensor:
    """What every token of a branch forked at ``fork`` sees of its stream: shapes as in :func:`sees`."""
    oldest = torch.maximum(fork - layout.window, origin)
    return (key < fork) & ((key < layout.sinks) | (key >= oldest))
