"""What a partition tells Prometheus: delays, lag, the commit gap."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from operators.events import Event, SummaryEvent
from pipelines.wire.messages import status_of, task_of
from pipelines.worker.context import Host
from pipelines.worker.partition.in_flight import Record, Records
from pipelines.worker.partition.queues import Lane


MAX_INPUT_TIMES = 512
"""Input times kept per stream: more segments than one summary update waits for."""


class Measures:
    """Of one partition."""

    def __init__(self, number: int, host: Host, records: Records) -> None:
        self._number, self._records = number, records
        self._metrics, self._topic = host.metrics, host.settings.topic_segments

    def note_input(self, lane: Lane, offset: int, timestamp: float) -> None:
        """Keep when a segment was produced (Unix seconds; not above 0 = Kafka does not know, then it
        is the time of reading). Mutates the lane's ``input_times`` and ``newest_input``.

        An event may come long after its newest input was committed and let go: an update by time, or
        by the tokens of a later segment.
        """
        lane.newest_input = timestamp if timestamp > 0 else time.time()
        lane.input_times[offset] = lane.newest_input
        if len(lane.input_times) > MAX_INPUT_TIMES:
            del lane.input_times[next(iter(lane.input_times))]

    def published(self, events: Sequence[Event], lanes: Mapping[str, Lane]) -> None:
        """Count events the broker acknowledged, each with its end-to-end latency. Mutates
        ``input_times`` of their lanes: what a summary covers is not needed any more."""
        now = time.time()
        for event in events:
            task, last = task_of(event), event.source.last_offset
            self._metrics.output_published(status_of(event), task)
            if (at := self._input_time(lanes.get(event.stream_id), last)) is not None:
                self._metrics.end_to_end(task, now - at)
            if isinstance(event, SummaryEvent) and (lane := lanes.get(event.stream_id)):
                for offset in [o for o in lane.input_times if o < last]:
                    del lane.input_times[offset]

    def _input_time(self, lane: Lane | None, offset: int) -> float | None:
        """When the input at ``offset`` was produced; if that is not known (an update without new
        text, or over text an earlier owner read), the stream's newest known input."""
        if lane is not None:
            return lane.input_times.get(offset, lane.newest_input)
        record = self._records.get(offset)
        return record.message.timestamp if record and record.message.timestamp > 0 else None

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
        age = _age(oldest) if oldest else 0.0 if behind <= 0 else None
        self._metrics.consumer_lag(self._topic, self._number, behind, age)


def _age(record: Record) -> float:
    """Seconds since it was produced; since it was read where Kafka does not know."""
    at = record.message.timestamp
    return time.time() - at if at > 0 else time.monotonic() - record.read_at
