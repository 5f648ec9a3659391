"""What a stream keeps of partial hypotheses: the newest of each unit, its work, what was shown of it.

None of this is part of the stream's state. A unit is forgotten with its final; the number of units is
bounded, whatever comes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from operators.cache.kv_cache import KvCache
from operators.decoding.generation import Generation
from operators.events import Segment

MAX_UNITS = 8
"""Units (segments) of a stream of which partials are known; beyond, the oldest is forgotten."""


@dataclass(eq=False)
class Hypothesis:
    """A partial that is to be translated. ``coalesced``: others before it were left out. ``told``:
    languages whose translation is out."""

    segment: Segment
    ticket: int
    coalesced: bool = False
    told: set[str] = field(default_factory=set)


class Piece(NamedTuple):
    """A branch that is still to be opened for the hypothesis in work."""

    language: str
    number: int
    text: str


@dataclass(eq=False)
class Unit:
    """At most one hypothesis in work and one that waits. ``pieces``: how many each language has;
    ``made``: its finished ones; ``shown``: by language, the tail published last."""

    newest: Segment
    waiting: Hypothesis | None = None
    working: Hypothesis | None = None
    todo: deque[Piece] = field(default_factory=deque)
    running: list[Generation] = field(default_factory=list)
    pieces: int = 0
    made: dict[str, list[Generation]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def stop(self, cache: KvCache) -> None:
        """Give up the hypothesis in work and its branches. Only between steps, or when none is left."""
        for generation in self.running:
            assert generation.branch is not None
            cache.drop(generation.branch)
        self.running.clear()
        self.todo.clear()
        self.made.clear()
        self.working = None


@dataclass(eq=False)
class Hypotheses:
    """The units of one stream, least recently heard first."""

    units: dict[str, Unit] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything waits or is in work."""
        return any(unit.waiting or unit.working for unit in self.units.values())

    @property
    def running(self) -> list[Generation]:
        return [generation for unit in self.units.values() for generation in unit.running]

    def hear(self, segment: Segment, ticket: int, cache: KvCache) -> None:
        """Let the hypothesis wait, in the place of an older one of its unit, unless it says nothing
        new: an older revision, or the same words again. A blank one takes those before it back."""
        unit = self.units.pop(segment.segment_id, None)
        if unit is None and not segment.text.strip():
            return
        unit = unit or Unit(newest=Segment(stream_id=segment.stream_id))
        self.units[segment.segment_id] = unit
        old = unit.newest
        if segment.revision < old.revision or segment.text.split() == old.text.split():
            return
        unit.newest = segment
        if not segment.text.strip():
            unit.waiting = None
            unit.stop(cache)
            return
        unit.waiting = Hypothesis(segment, ticket, coalesced=unit.waiting is not None)
        while len(self.units) > MAX_UNITS:
            self.forget(next(iter(self.units)), cache)

    def forget(self, segment_id: str, cache: KvCache) -> dict[str, str]:
        """Its final has come: nothing more is published. Returns what was shown, by language."""
        unit = self.units.pop(segment_id, None)
        if unit is None:
            return {}
        unit.stop(cache)
        return unit.shown

    def recall(self, cache: KvCache) -> None:
        """Give the branches back; what was in work waits again, unless something newer does."""
        for unit in self.units.values():
            again = unit.working
            unit.stop(cache)
            if unit.waiting is not None:
                unit.waiting.coalesced |= again is not None
            else:
                unit.waiting = again

    def clear(self, cache: KvCache) -> None:
        for segment_id in list(self.units):
            self.forget(segment_id, cache)
