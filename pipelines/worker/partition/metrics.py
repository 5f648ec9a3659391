"""What a partition tells Prometheus: delays, lag, the commit gap."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from operators.events import Event, task_of
from pipelines.wire.messages import status_of
from pipelines.worker.context import Host
from pipelines.worker.partition.in_flight import Records
from pipelines.worker.partition.queues import Lane


class Measures:
    """Of one partition."""

    def __init__(self, number: int, host: Host, records: Records) -> None:
        self._number, self._records = number, records
        self._metrics, self._topic = host.metrics, host.settings.topic_segments

    def published(self, events: Sequence[Event]) -> None:
        for event in events:
            task = task_of(event)
            self._metrics.output_published(status_of(event), task)
            if record := self._records.get(event.source.last_offset):
                self._metrics.end_to_end(task, time.time() - record.message.timestamp)

    def note_coverage(self, lane: Lane, finished: list[int]) -> None:
        """Mutates the lane's ``uncovered_since``."""
        state = lane.state
        if state is None or state.covered_seq >= state.next_seq - 1:
            lane.uncovered_since = None
        elif lane.uncovered_since is None and finished:
            lane.uncovered_since = self._records[finished[-1]].read_at

    def coverage_lag(self, lanes: Iterable[Lane], now: float) -> float:
        """Seconds since the oldest uncovered segment of any lane was read (monotonic ``now``)."""
        since = [lane.uncovered_since for lane in lanes if lane.uncovered_since]
        return now - min(since) if since else 0.0

    def lag(self, highwater: int | None, floor: int) -> None:
        """Export the partition's lag and commit gap. ``floor``: where it is committed to if nothing
        was read."""
        watermark = self._records.watermark
        self._metrics.commit_gap(self._topic, self._number, watermark.gap)
        if highwater is None:
            return
        behind = highwater - (floor if watermark.value is None else watermark.value)
        oldest = self._records.oldest
        age = time.time() - oldest.message.timestamp if oldest else 0.0 if behind <= 0 else None
        self._metrics.consumer_lag(self._topic, self._number, behind, age)
