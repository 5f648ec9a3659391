"""When results came, from a reader that listens all the time; and how long each partition stood still.

A partition stands still from the moment it has something to do (its last result, or the next segment
stored, whichever is later) to its next result. Such a pause is put down to what happened in it.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from operators.errors import LongstreamError
from pipelines.config.fields import Settings
from pipelines.kafka.tools import KafkaError, Reader, TopicPartition
from pipelines.lab.chaos.check import Place

REBALANCE_SECONDS = 3.0
"""Assignments of different workers this close together belong to one rebalance."""


class Assignment(NamedTuple):
    """When a worker was told which partitions are its own (seconds of ``time.time()``)."""

    at: float
    worker: str
    partitions: frozenset[int]


class Result(NamedTuple):
    """A result became visible to readers: the input it reflects, and when."""

    at: float
    place: Place


class Pause(NamedTuple):
    """A partition had something to do and no result appeared. Times in seconds."""

    partition: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Incidents:
    """What was done to whom and when (``time.time()``)."""

    killed: list[tuple[float, str]] = field(default_factory=list)
    """Workers ended by SIGKILL."""
    had_standby: set[str] = field(default_factory=set)
    """Those of them that another worker could stand in for at once."""
    device_killed: list[tuple[float, str]] = field(default_factory=list)
    frozen: list[tuple[float, str]] = field(default_factory=list)
    broker_down: list[tuple[float, float]] = field(default_factory=list)
    """From the restart of the broker to the time it listened again."""


class Watcher(threading.Thread):
    """Reads results as they are committed, through every restart of the broker. ``before``: one that was
    stopped; this one goes on where it stood, with the partitions there are now."""

    def __init__(self, settings: Settings, before: Watcher | None = None) -> None:
        super().__init__(daemon=True, name="watcher")
        self._settings = settings
        self._topics = [settings.topic_summaries, settings.topic_translations]
        self._stopped = threading.Event()
        self.results: list[Result] = []
        self.covered: dict[str, str] = {}
        self.ended: set[str] = set()
        """Streams whose last summary was a final one."""
        """By stream: the last segment that a summary covers."""
        self._reader = Reader(settings, self._topics, from_start=self._topics)
        self._positions: dict[TopicPartition, int] = {}
        if before is not None:
            self.results, self.covered, self.ended = before.results, before.covered, before.ended
            for place, offset in before._positions.items():
                self._reader.seek(place, offset)

    def run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(KafkaError, LongstreamError, OSError):
                for record in self._reader.poll(0.2):
                    event = json.loads(record.value)
                    place = Place(record.partition, event["source"]["last_offset"])
                    self.results.append(Result(time.time(), place))
                    if record.topic == self._settings.topic_summaries:
                        name = event["stream_id"]
                        self.covered[name] = event["covers"]["to_segment_id"]
                        self.ended.discard(name)
                        if event["status"] == "final":
                            self.ended.add(name)
        self._positions = self._reader.positions()
        self._reader.close()

    def stop(self) -> None:
        self._stopped.set()
        self.join(10)


def pauses(results: Iterable[Result], stored: Iterable[tuple[float, Place]]) -> list[Pause]:
    """All pauses of all partitions. Results that reflect nothing new end none."""
    waiting: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for at, place in stored:
        waiting[place.partition].append((place.offset, at))
    by_partition: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for at, place in results:
        by_partition[place.partition].append((at, place.offset))
    found = []
    for partition, seen in by_partition.items():
        queue = sorted(waiting[partition])
        offsets = [offset for offset, _ in queue]
        last_at, done = 0.0, -1
        for at, offset in seen:
            if offset <= done:
                continue
            following = bisect.bisect_right(offsets, done)
            since = max(last_at, queue[following][1]) if following < len(queue) else at
            found.append(Pause(partition, min(since, at), at))
            last_at, done = at, offset
    return found


def delays(results: Iterable[Result], stored: Iterable[tuple[float, Place]]) -> list[float]:
    """For every segment with a result: seconds from being stored to its first result."""
    seen: dict[Place, float] = {}
    for at, place in results:
        seen.setdefault(place, at)
    return [max(0.0, seen[place] - at) for at, place in stored if place in seen]


def owner(assignments: Sequence[Assignment], partition: int, at: float) -> str | None:
    """The worker that was the last, up to ``at``, to be told that the partition is its own."""
    owned = [a.worker for a in assignments if a.at <= at and partition in a.partitions]
    return owned[-1] if owned else None


def stays(pause: Pause, assignments: Sequence[Assignment], incidents: Incidents) -> bool:
    """Whether the partition stayed with one healthy worker, and the broker ran, through the pause."""
    holder = owner(assignments, pause.partition, pause.start)
    if holder is None or owner(assignments, pause.partition, pause.end) != holder:
        return False
    hurt = any(
        pause.start <= at <= pause.end and name == holder
        for at, name in incidents.killed + incidents.device_killed + incidents.frozen
    )
    return not hurt and not _down(incidents, pause.start, pause.end)


def _down(incidents: Incidents, start: float, end: float) -> bool:
    return any(went < end and start < came for went, came in incidents.broker_down)


def longest(pauses: Iterable[Pause]) -> Pause | None:
    return max(pauses, key=lambda pause: pause.seconds, default=None)


def too_long(worst: Pause | None, limit_s: float) -> Iterator[str]:
    """Whether the longest pause of a partition that stayed breaks what is promised, in words."""
    if worst is not None and worst.seconds > limit_s:
        yield f"max_stall_seconds = {worst.seconds:.1f} (partition {worst.partition}), above {limit_s:g}"


def takeovers(
    results: Sequence[Result], assignments: Sequence[Assignment], incidents: Incidents
) -> list[float]:
    """For every partition of a worker killed while another was at work: seconds from the kill to the
    first result of its next owner. Those that met a restart of the broker are left out."""
    found = []
    for at, name in incidents.killed:
        owned = [a.partitions for a in assignments if a.worker == name and a.at <= at]
        if name not in incidents.had_standby or not owned:
            continue
        for partition in owned[-1]:
            next_at = [a.at for a in assignments if a.at > at and partition in a.partitions]
            firsts = [
                result.at
                for result in results
                if next_at and result.place.partition == partition and result.at > next_at[0]
            ]
            if firsts and not _down(incidents, at, firsts[0]):
                found.append(firsts[0] - at)
    return found


def rebalances(assignments: Iterable[Assignment]) -> int:
    """How often the group shared its partitions out: one round per worker, close together."""
    rounds = 0
    started = float("-inf")
    named: set[str] = set()
    for assignment in assignments:
        if assignment.worker in named or assignment.at - started > REBALANCE_SECONDS:
            rounds, started, named = rounds + 1, assignment.at, set()
        named.add(assignment.worker)
    return rounds
