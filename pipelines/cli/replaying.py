"""A transcript file sent to Kafka at the pace of speech: timeline, pacing, sending.

Pace: a segment with ``start_ms`` is due then; one without is due when the one before it has been
said, at :data:`WORDS_PER_MINUTE`. Several files are merged by due time, so they run in parallel.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from operators.errors import ConfigError, LongstreamError
from operators.events import Segment
from pipelines.kafka.tools import KafkaError, KafkaProducer, partition_for
from pipelines.wire.codec import SEGMENT_SCHEMA, encode_segment

WORDS_PER_MINUTE = 150.0
MAX_UNACKED = 1000
SEND_SECONDS = 60.0
HEADERS = [("content-type", b"application/json"), ("schema", SEGMENT_SCHEMA.encode())]


class Due(NamedTuple):
    """A segment and when it is due, in seconds after the start of the replay at speed 1x."""

    seconds: float
    segment: Segment


class Sent(NamedTuple):
    """A segment the broker has acknowledged, and where it lies."""

    segment: Segment
    partition: int
    offset: int


def parse_speed(text: str) -> float:
    """ "20x" or "20" -> 20.0, "max" -> infinity. Raises ``ConfigError``."""
    if text.strip().lower() == "max":
        return math.inf
    try:
        speed = float(text.strip().lower().removesuffix("x"))
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ConfigError(f"--speed {text!r}: a factor above 0 such as 20x or 0.5x, or max")
    return speed


def spoken_seconds(segment: Segment) -> float:
    """How long the segment takes to say: its own times, else estimated from its words."""
    if segment.start_ms is not None and segment.end_ms is not None:
        return max(0.0, (segment.end_ms - segment.start_ms) / 1000)
    return len(segment.text.split()) * 60.0 / WORDS_PER_MINUTE


def timeline(segments: Iterable[Segment], end: bool = True) -> Iterator[Due]:
    """``segments`` with due times that never go back; lazily, so it serves endless input.

    With ``end`` every stream that did not end itself gets a ``session_end`` behind its last segment.
    """
    due = said = 0.0
    origin_ms: float | None = None
    open_streams: dict[str, int] = {}
    for segment in segments:
        if segment.start_ms is None:
            due = max(due, said)
        else:
            if origin_ms is None:
                origin_ms = segment.start_ms - said * 1000
            due = max(due, (segment.start_ms - origin_ms) / 1000)
        said = due + spoken_seconds(segment)
        if segment.type == "session_end":
            open_streams.pop(segment.stream_id, None)
        else:
            open_streams[segment.stream_id] = max(
                open_streams.get(segment.stream_id, -1), -1 if segment.seq is None else segment.seq
            )
        yield Due(due, segment)
    if end:
        for stream_id, last_seq in open_streams.items():
            seq = last_seq + 1 if last_seq >= 0 else None
            yield Due(said, Segment(stream_id=stream_id, type="session_end", seq=seq))


def merged(timelines: Iterable[Iterator[Due]]) -> Iterator[Due]:
    """Several timelines as one, by due time; equal times keep the order of the files."""
    return heapq.merge(*timelines, key=lambda due: due.seconds)


class Pacer:
    """Sleeps until a segment is due. ``clock`` and ``sleep`` are seconds; tests bring their own."""

    def __init__(
        self,
        speed: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._speed = speed
        self._clock = clock
        self._sleep = sleep
        self._start: float | None = None

    def wait_until(self, seconds: float) -> None:
        """Return ``seconds / speed`` after the first call; at once if that is past.

        Waiting is measured from the start, so small delays do not add up.
        """
        if math.isinf(self._speed):
            return
        if self._start is None:
            self._start = self._clock()
        left = self._start + seconds / self._speed - self._clock()
        if left > 0:
            self._sleep(left)


class Replay:
    """Sends segments to one topic, each to its stream's partition, waiting for every answer.

    ``acked`` counts segments the broker has (marks such as session_end apart, in ``marks``);
    ``on_sent`` is told each record as soon as it is known to be stored, in order.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        topic: str,
        partitions: int,
        on_sent: Callable[[Sent], None] = lambda sent: None,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._on_sent = on_sent
        self._waiting: deque[tuple[Segment, Any]] = deque()
        self.acked = 0
        self.marks = 0
        self.streams: set[str] = set()

    def run(self, dues: Iterable[Due], pacer: Pacer) -> None:
        """Send all; returns when the broker has acknowledged everything.

        On an interruption what was handed over is still waited for, so the counts stay true.
        """
        try:
            for due in dues:
                self._settle(wait=False)
                pacer.wait_until(due.seconds)
                self.send(due.segment)
        finally:
            self._settle(wait=True)

    def send(self, segment: Segment) -> None:
        """Hand one record to the producer. Blocks while too many are unanswered."""
        while len(self._waiting) >= MAX_UNACKED:
            self._settle_one()
        try:
            future = self._producer.send(
                self._topic,
                key=segment.stream_id.encode(),
                value=encode_segment(segment),
                headers=HEADERS,
                partition=partition_for(segment.stream_id, self._partitions),
            )
        except KafkaError as error:
            raise _not_sent(segment, error) from error
        self._waiting.append((segment, future))

    def _settle(self, wait: bool) -> None:
        while self._waiting and (wait or self._waiting[0][1].is_done):
            self._settle_one()

    def _settle_one(self) -> None:
        segment, future = self._waiting.popleft()
        try:
            stored = future.get(timeout=SEND_SECONDS)
        except KafkaError as error:
            self._waiting.clear()
            raise _not_sent(segment, error) from error
        self.streams.add(segment.stream_id)
        if segment.type == "segment":
            self.acked += 1
        else:
            self.marks += 1
        self._on_sent(Sent(segment, stored.partition, stored.offset))


def _not_sent(segment: Segment, error: Exception) -> LongstreamError:
    where = segment.segment_id or f"a segment of {segment.stream_id}"
    reason = str(error) or type(error).__name__
    return LongstreamError(f"the broker did not take {where}: {reason}; nothing after it was sent")
