"""Removing what is known of a stream: from topics, state and snapshots. See :func:`forget_stream`.

Blocking: talks to Kafka by kafka-python, so call it from a thread where an event loop runs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from operators.errors import LongstreamError
from operators.events import Segment
from pipelines.config.fields import Settings
from pipelines.kafka.tools import (
    CONNECT_SECONDS,
    CoordinatorNotAvailableError,
    KafkaError,
    Reader,
    connection,
    no_broker,
    partition_for,
    producer,
)
from pipelines.kafka.topics import admin_client
from pipelines.storage.snapshots import SnapshotStore
from pipelines.wire.codec import decode_state, encode_segment
from pipelines.wire.dead_letters import header

POLL_SECONDS = 0.3
_ENDLESS = 1 << 62


@dataclass
class Place:
    """What one partition of a topic holds of the stream. ``first_other``: offset of the first record
    that is to stay; ``last``: offset of the last record; ``alive``: not deleted by a tombstone."""

    records: int = 0
    first_other: int | None = None
    last: int = -1
    alive: bool = False

    @property
    def deletable_to(self) -> int:
        """Kafka deletes from the start only: up to here all is the stream's; -1 for nothing."""
        if not self.records:
            return -1
        return self.last + 1 if self.first_other is None else self.first_other


@dataclass
class Found:
    """Where the stream is: topic and partition -> Place."""

    places: dict[tuple[str, int], Place] = field(default_factory=lambda: defaultdict(Place))

    def records(self, topic: str) -> int:
        return sum(place.records for (name, _), place in self.places.items() if name == topic)

    def alive(self, topic: str) -> bool:
        return any(place.alive for (name, _), place in self.places.items() if name == topic)

    def partitions(self, topics: Iterable[str]) -> set[int]:
        return {p for (name, p), place in self.places.items() if place.records and name in topics}


class NoWorker(LongstreamError):
    """The mark is sent, but no worker has obeyed it yet."""


def forget_stream(
    settings: Settings, stream: str, timeout: float, found: Found | None = None
) -> dict[str, str]:
    """Remove all that can be removed of a stream. Topic -> what is left, and for how long, in words.

    A mark joins the end of the stream's input; the worker that owns the stream removes its memory when
    it comes to it. ``timeout``: seconds to wait for that. ``found``: what :func:`look` saw, if it was
    called. Raises :class:`NoWorker` when none came to the mark, else LongstreamError, OSError.
    """
    marks = send_marks(settings, stream, found or look(settings, stream))
    if not wait_for_worker(settings, marks, timeout):
        raise NoWorker(
            f"no worker of app_id {settings.app_id!r} has come to the mark in {timeout:.0f} s. It "
            "stays on the topic and is obeyed when one does; then forget the stream again to "
            "delete its records"
        )
    for url in filter(None, {settings.own_snapshot_url, settings.offload_url}):
        SnapshotStore(url).erase(stream)
    return _finish(settings, stream, marks)


def look(settings: Settings, stream: str, marks: dict[int, int] | None = None) -> Found:
    """Read all topics to their end. What came of input behind a mark belongs to the stream's next
    life and is not counted. Raises LongstreamError."""
    found, key = Found(), stream.encode()
    reader = Reader(settings, settings.topics, settings.topics)
    try:
        for record in reader.read_to_end():
            place = found.places[record.topic, record.partition]
            place.last = record.offset
            mark = (marks or {}).get(record.partition, _ENDLESS)
            if record.key == key and _input_offset(record, settings) <= mark:
                place.records += 1
                place.alive = record.value is not None
            elif place.first_other is None:
                place.first_other = record.offset
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        reader.close()
    return found


def _input_offset(record: Any, settings: Settings) -> int:
    """Offset of the input that a record is, or came of; -1 if it does not say."""
    if record.topic == settings.topic_segments:
        return int(record.offset)
    if record.topic == settings.topic_sessions:
        state, _ = decode_state(record.value)
        return state.cursor if state else -1
    said = header(record.headers, "source-offset")
    said = said or header(record.headers, "__streams.errors.offset")
    return int(said) if said and said.isdigit() else -1


def send_marks(settings: Settings, stream: str, found: Found) -> dict[int, int]:
    """Ask for the stream to be forgotten on every partition it was seen on; partition -> offset."""
    value = encode_segment(Segment(stream_id=stream, type="forget"))
    sources = (settings.topic_segments, settings.topic_sessions, settings.topic_summaries_latest)
    client = producer(settings)
    try:
        count = len(client.partitions_for(settings.topic_segments))
        wanted = found.partitions(sources) | {partition_for(stream, count)}
        marks = {}
        for number in sorted(wanted):
            sent = client.send(
                settings.topic_segments, key=stream.encode(), value=value, partition=number
            )
            marks[number] = int(sent.get(timeout=CONNECT_SECONDS).offset)
        return marks
    except KafkaError as error:
        raise LongstreamError(f"the mark could not be sent: {error}; try again") from error
    finally:
        client.close()


def wait_for_worker(settings: Settings, marks: dict[int, int], timeout: float) -> bool:
    """Wait until the workers' group has committed past every mark; False after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    with _admin(settings) as admin:
        while True:
            groups = {}
            with suppress(CoordinatorNotAvailableError):  # a broker that never had a group
                groups = admin.list_group_offsets([settings.app_id])
            done = {tp.partition: at for tp, at in _offsets(groups, settings)}
            if all(done.get(number, -1) > mark for number, mark in marks.items()):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)


def _offsets(groups: Any, settings: Settings) -> Iterator[tuple[Any, int]]:
    for tp, committed in groups.get(settings.app_id, {}).items():
        if tp.topic == settings.topic_segments:
            yield tp, committed.offset


def _finish(settings: Settings, stream: str, marks: dict[int, int]) -> dict[str, str]:
    """Delete what stands at the start of a partition and look again. Topic -> what is left, in words."""
    found = look(settings, stream, marks)
    compacted = (settings.topic_sessions, settings.topic_summaries_latest)
    with _admin(settings) as admin:
        delete(admin, found, [name for name in settings.topics if name not in compacted])
        found = look(settings, stream, marks)
        longest = retentions(admin, settings.topics)
    if alive := [name for name in compacted if found.alive(name)]:
        raise LongstreamError(f"{alive[0]} still has the stream; try again")
    said = dict.fromkeys(compacted, "removed")
    for name in settings.topics:
        if name not in compacted:
            left = found.records(name)
            said[name] = (
                f"{left} records left, gone within {longest[name]}" if left else "nothing left"
            )
    return said


def delete(admin: Any, found: Found, topics: list[str]) -> None:
    """Delete the stream's records where nothing of another stream stands before them."""
    from kafka import TopicPartition

    wanted = {
        TopicPartition(name, number): place.deletable_to
        for (name, number), place in found.places.items()
        if name in topics and place.deletable_to > 0
    }
    if wanted:
        admin.delete_records(wanted)


def retentions(admin: Any, topics: Iterable[str]) -> dict[str, str]:
    """How long a record can stay on each topic, in words: its retention, and the time Kafka goes on
    writing to one file, as files are deleted whole."""
    from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType

    names = ("retention.ms", "segment.ms")
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name, list(names)) for name in topics]
    answer = admin.describe_configs(wanted, config_filter=ConfigFilterType.ALL)["topic"]
    said = {}
    for topic, configs in answer.items():
        retention, file = (int(configs[name]["value"]) for name in names)
        days = (retention + file) / 86_400_000
        said[topic] = f"{days:.1f} days" if retention >= 0 else "no time: retention.ms is -1"
    return said


@contextmanager
def _admin(settings: Settings) -> Iterator[Any]:
    try:
        login = connection(settings, "longstream-forget")
        with admin_client(settings.bootstrap, CONNECT_SECONDS, login) as admin:
            yield admin
    except KafkaError as error:
        raise no_broker(settings, error) from error
