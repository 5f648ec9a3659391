"""The metrics of one partition: latency, coverage lag, consumer lag, commit gap."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from operators.events import Event, task_of
from pipelines.wire.messages import status_of
from pipelines.worker.context import Queue, Records, WorkerContext


class PartitionMetrics:
    """Exports to the worker's :class:`~pipelines.observability.metrics.Metrics`."""

    def __init__(self, number: int, context: WorkerContext, records: Records) -> None:
        self._number, self._records = number, records
        self._metrics, self._topic = context.metrics, context.settings.topic_segments

    def published(self, events: Sequence[Event]) -> None:
        """After a commit: counts its events, and observes the latency from their newest input."""
        for event in events:
            task = task_of(event)
            self._metrics.output_published(status_of(event), task)
            if record := self._records.get(event.source.last_offset):
                self._metrics.end_to_end(task, time.time() - record.message.timestamp)

    def note_coverage(self, queue: Queue, finished: list[int]) -> None:
        """After an emission that finished these offsets. Mutates the queue's ``uncovered_since``."""
        state = queue.state
        if state is None or state.covered_seq >= state.next_seq - 1:
            queue.uncovered_since = None
        elif queue.uncovered_since is None and finished:
            queue.uncovered_since = self._records[finished[-1]].read_at

    def coverage_lag(self, queues: Iterable[Queue], now: float) -> float:
        """Seconds since the oldest uncovered segment of any queue was read (monotonic ``now``)."""
        since = [queue.uncovered_since for queue in queues if queue.uncovered_since]
        return now - min(since) if since else 0.0

    def lag(self, highwater: int | None, floor: int) -> None:
        """Export consumer lag and commit gap. ``highwater``: the offset after the partition's last
        record; ``floor``: the committed offset where nothing was read yet."""
        offsets = self._records.offsets
        self._metrics.commit_gap(self._topic, self._number, offsets.gap)
        if highwater is None:
            return
        behind = highwater - (floor if offsets.committable is None else offsets.committable)
        oldest = self._records.oldest
        age = time.time() - oldest.message.timestamp if oldest else 0.0 if behind <= 0 else None
        self._metrics.consumer_lag(self._topic, self._number, behind, age)
