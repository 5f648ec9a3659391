"""What a stream keeps of partial hypotheses: the newest of each unit, its runs, what was shown of it.

None of this is part of the stream's state. A unit is dropped with its final; the number of units is
bounded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from operators.cache.kv_cache import KvCache
from operators.commit import Held
from operators.decoding.generation import Generation
from operators.engine.task_run import TaskRun
from operators.events import Segment

MAX_UNITS = 8
"""Units (segments) of a stream of which partials are kept; beyond, the oldest is dropped."""


MAX_PARTED = 1024
"""Of further units only the committed text is kept, of so many."""


@dataclass(eq=False)
class Hypothesis:
    """A partial that is to be translated. ``coalesced``: others before it were left out. ``done``:
    languages whose translation is out."""

    segment: Segment
    ticket: int
    coalesced: bool = False
    accepted_at: float = 0.0
    done: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Unit:
    """At most one hypothesis in progress and one that waits. ``todo``: languages still to be started;
    ``held``: by language, what was published."""

    newest: Segment
    waiting: Hypothesis | None = None
    working: Hypothesis | None = None
    todo: deque[str] = field(default_factory=deque)
    runs: list[TaskRun] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)

    def stop(self, cache: KvCache) -> None:
        """Cancel the hypothesis in progress and drop its branches. Only between steps."""
        for run in self.runs:
            run.close(cache)
        self.runs.clear()
        self.todo.clear()
        self.working = None


@dataclass(eq=False)
class PartialHypotheses:
    """The units of one stream, least recently submitted first. ``parted``: what is committed of units
    that gave way to others; at most MAX_PARTED."""

    units: dict[str, Unit] = field(default_factory=dict)
    parted: dict[str, dict[str, Held]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether a hypothesis waits or is in progress."""
        return any(unit.waiting or unit.working for unit in self.units.values())

    @property
    def running(self) -> list[Generation]:
        return [g for unit in self.units.values() for run in unit.runs for g in run.open]

    def submit(
        self, segment: Segment, ticket: int, cache: KvCache, accepted_at: float = 0.0
    ) -> None:
        """Queue the hypothesis in place of an older one of its unit, unless it has no new text: an
        older revision, or the same words. A blank one withdraws those before it."""
        unit = self.units.pop(segment.segment_id, None)
        if unit is None and not segment.text.strip():
            return
        if unit is None:
            held = self.parted.pop(segment.segment_id, {})
            unit = Unit(newest=Segment(stream_id=segment.stream_id), held=held)
        self.units[segment.segment_id] = unit
        old = unit.newest
        if segment.revision < old.revision or segment.text.split() == old.text.split():
            return
        unit.newest = segment
        if not segment.text.strip():
            unit.waiting = None
            unit.stop(cache)
            return
        unit.waiting = Hypothesis(
            segment, ticket, coalesced=unit.waiting is not None, accepted_at=accepted_at
        )
        while len(self.units) > MAX_UNITS:
            oldest = next(iter(self.units))
            held = self.drop(oldest, cache)
            if any(h.clauses or h.opening for h in held.values()):
                self.parted[oldest] = held
        while len(self.parted) > MAX_PARTED:
            del self.parted[next(iter(self.parted))]

    def drop(self, segment_id: str, cache: KvCache) -> dict[str, Held]:
        """Drop a unit whose final has arrived. Returns what was published of it, by language."""
        unit = self.units.pop(segment_id, None)
        if unit is None:
            return self.parted.pop(segment_id, {})
        unit.stop(cache)
        return unit.held

    def preempt(self, cache: KvCache) -> None:
        """Release the branches; the hypothesis in progress waits again, unless a newer one does."""
        for unit in self.units.values():
            again = unit.working
            unit.stop(cache)
            if unit.waiting is not None:
                unit.waiting.coalesced |= again is not None
            else:
                unit.waiting = again

    def clear(self, cache: KvCache) -> None:
        self.parted.clear()
        for segment_id in list(self.units):
            self.drop(segment_id, cache)
