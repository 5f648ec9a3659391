"""A long run watched: stretches of a long transcript through Kafka and a worker, then the balance.

The balance is read from the topics by a consumer of its own: each stream's last summary must be
final and cover its last segment, nothing may have become a dead letter, and the group's committed
offset must be the end of every partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from operators.errors import LongstreamError
from operators.events import Segment, SummaryEvent
from pipelines.cli.replaying import Pacer, Replay, merged, timeline
from pipelines.config.fields import Settings
from pipelines.kafka.tools import (
    Reader,
    TopicPartition,
    connection,
    partition_count,
    producer,
    read,
)
from pipelines.kafka.topics import admin_client
from pipelines.lab.chaos.check import Topics, check
from pipelines.lab.chaos.reading import read_topics
from pipelines.wire.dead_letters import header

LOOK_SECONDS = 1.0
LAG_SECONDS = 5.0
STALL_SECONDS = 300.0


@dataclass
class Balance:
    """What came out at the end."""

    segments: int
    streams: int
    dead_letters: dict[str, int] = field(default_factory=dict)
    """How many by reason."""
    summaries: int = 0
    uncovered: list[str] = field(default_factory=list)
    """Streams whose last summary is not final or does not cover their last segment."""
    lag: int = 0
    checked: dict[str, int] = field(default_factory=dict)
    """What the checker of ``longstream chaos`` found wrong, by kind."""


class Soak:
    """One run. ``watch`` is called at least every second; it samples, and raises when the worker
    has ended."""

    def __init__(
        self, settings: Settings, parts: Sequence[Sequence[Segment]], watch: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._watch = watch
        self.sent = 0

    def send(self, speed: float) -> None:
        """Replay all parts side by side at ``speed``; returns when the broker has everything."""
        with producer(self._settings) as client:
            count = partition_count(client, self._settings.topic_segments, self._settings)

            def on_sent(_: object) -> None:
                self.sent += 1
                self._watch()

            replay = Replay(client, self._settings.topic_segments, count, on_sent)
            replay.run(merged(map(timeline, self._parts)), Pacer(speed, sleep=self._sleep))

    def finish(self) -> None:
        """Wait until the group has committed everything. Raises LongstreamError if it stands still."""
        moved, before = time.monotonic(), self.lag()
        while before:
            self._sleep(LAG_SECONDS)
            now = self.lag()
            if now != before:
                moved, before = time.monotonic(), now
            if time.monotonic() - moved > STALL_SECONDS:
                raise LongstreamError(
                    f"{now} messages of lag, and no move in {STALL_SECONDS:.0f} s"
                )

    def lag(self) -> int:
        """Messages of the input the group has not committed, as the broker says."""
        settings, topic = self._settings, self._settings.topic_segments
        reader = Reader(settings, [topic], ())  # stands at the end
        ends = reader.positions()
        reader.close()
        login = connection(settings, "longstream-soak")
        with admin_client(settings.bootstrap, login=login) as admin:
            answer = admin.list_group_offsets(
                {settings.app_id: [TopicPartition(topic, place.partition) for place in ends]}
            )
        committed = answer[settings.app_id]
        return sum(end - max(0, committed[place].offset) for place, end in ends.items())

    def balance(self) -> Balance:
        """Read the results from their start."""
        settings = self._settings
        topics = [settings.topic_summaries, settings.topic_dlq]
        reader = Reader(settings, topics, from_start=topics)
        found = Balance(sum(map(len, self._parts)), len(self._parts), lag=self.lag())
        last: dict[str, SummaryEvent] = {}
        for record in reader.read_to_end():
            if record.topic == settings.topic_dlq:
                reason = (header(record.headers, "longstream.dlq.reason") or b"").decode()
                found.dead_letters[reason] = found.dead_letters.get(reason, 0) + 1
            elif isinstance(event := read(record, settings), SummaryEvent):
                found.summaries += 1
                last[event.stream_id] = event
        reader.close()
        for part in self._parts:
            summary = last.get(part[0].stream_id)
            seqs = [s.seq for s in part if s.type == "segment" and s.seq is not None]
            seq = max(seqs, default=sum(s.type == "segment" for s in part) - 1)
            if summary is None or summary.status != "final" or summary.covers.to_seq < seq:
                found.uncovered.append(part[0].stream_id)
        found.checked = self._checked()
        return found

    def _checked(self) -> dict[str, int]:
        settings = self._settings
        topics = Topics(
            settings.topic_segments,
            settings.topic_summaries,
            settings.topic_summaries_latest,
            settings.topic_translations,
            settings.topic_dlq,
        )
        found = check(read_topics(settings, topics[:5], "read_committed"), topics)
        kinds = ("lost", "reordered", "conflicting_revisions", "duplicates_after_dedupe")
        return {kind: getattr(found, kind) for kind in kinds}

    def _sleep(self, seconds: float) -> None:
        """Sleep, and watch meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._watch()
            time.sleep(min(left, LOOK_SECONDS))
