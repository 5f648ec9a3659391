"""The metrics of one partition: latency, coverage lag, consumer lag, commit gap."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from operators.events import AnswerEvent, AnyEvent, SummaryEvent, task_of
from pipelines.wire.messages import status_of
from pipelines.worker.context import Queue, Record, Records, WorkerContext

MAX_INPUT_TIMES = 512
"""Input times kept per stream: more segments than one summary update waits for."""


class PartitionMetrics:
    """Exports to the worker's :class:`~pipelines.observability.metrics.Metrics`."""

    def __init__(
        self, number: int, context: WorkerContext, records: Records, questions: Records
    ) -> None:
        self._number, self._records, self._questions = number, records, questions
        self._metrics, self._settings = context.metrics, context.settings

    def note_input(self, queue: Queue, offset: int, timestamp: float) -> None:
        """Keep when a segment was produced (Unix seconds; not above 0 = Kafka does not know, then it
        is the time of reading). Mutates the queue's ``input_times`` and ``newest_input``.

        An event may come long after its newest input was committed and let go: an update by time, or
        by the tokens of a later segment.
        """
        queue.newest_input = timestamp if timestamp > 0 else time.time()
        queue.input_times[offset] = queue.newest_input
        if len(queue.input_times) > MAX_INPUT_TIMES:
            del queue.input_times[next(iter(queue.input_times))]

    def published(self, events: Sequence[AnyEvent], queues: Mapping[str, Queue]) -> None:
        """Count events the broker acknowledged, each with its end-to-end latency. Mutates
        ``input_times`` of their queues: what a summary covers is not needed any more."""
        now = time.time()
        for event in events:
            task, last = task_of(event), event.source.last_offset
            self._metrics.output_published(status_of(event), task)
            if isinstance(event, AnswerEvent):
                at = _produced(self._questions.get(last))
            else:
                at = self._input_time(queues.get(event.stream_id), last)
            if at is not None:
                self._metrics.end_to_end(task, now - at)
            if isinstance(event, SummaryEvent) and (queue := queues.get(event.stream_id)):
                for offset in [o for o in queue.input_times if o < last]:
                    del queue.input_times[offset]

    def _input_time(self, queue: Queue | None, offset: int) -> float | None:
        """When the input at ``offset`` was produced; if that is not known (an update without new
        text, or over text an earlier owner read), the stream's newest known input."""
        if queue is not None:
            return queue.input_times.get(offset, queue.newest_input)
        return _produced(self._records.get(offset))

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

    def lag(self, highwater: int | None, floor: int, *, questions: bool = False) -> None:
        """Export consumer lag and commit gap of the partition of one of the two input topics.
        ``highwater``: the offset after its last record; ``floor``: the committed offset where nothing
        was read yet."""
        records = self._questions if questions else self._records
        topics = self._settings.topic_segments, self._settings.topic_questions
        topic, offsets = topics[questions], records.offsets
        self._metrics.commit_gap(topic, self._number, offsets.gap)
        if highwater is None:
            return
        behind = highwater - (floor if offsets.committable is None else offsets.committable)
        oldest = records.oldest
        age = _age(oldest) if oldest else 0.0 if behind <= 0 else None
        self._metrics.consumer_lag(topic, self._number, behind, age)


def _produced(record: Record | None) -> float | None:
    """When it was produced (Unix seconds); None if that is not known."""
    return record.message.timestamp if record and record.message.timestamp > 0 else None


def _age(record: Record) -> float:
    """Seconds since it was produced; since it was read where Kafka does not know."""
    at = record.message.timestamp
    return time.time() - at if at > 0 else time.monotonic() - record.read_at
