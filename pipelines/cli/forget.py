"""``longstream forget``: remove what is known of a stream, and say plainly what stays for how long."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from operators.errors import ConfigError, LongstreamError
from operators.events import Segment
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
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


def forget(
    stream: Annotated[str, typer.Argument(help="Stream id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is, no more.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker.")] = 60.0,
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Forget a stream: its memory, state, snapshots, latest summary, and records where Kafka can.

    A mark joins the end of the stream's input. The worker that owns the stream works off what was
    said before it, then removes everything; the stream may start anew at any time. Kafka cannot
    delete single records of the other topics: they go with the topics' retention, and how long that
    takes at most is said. The topics are read from start to end to find the stream's records.
    """
    with complaints("forget"):
        settings = load_settings(config, bootstrap=bootstrap)
        found = look(settings, stream)
        before = {topic: found.records(topic) for topic in settings.topics}
        for topic, records in before.items():
            typer.echo(f"{topic}: {records} records of the stream", err=as_json)
        if dry_run:
            if as_json:
                emit({"stream": stream, "forgotten": False, "records": before})
            return
        if not yes:
            _ask(stream)
        marks = send_marks(settings, stream, found)
        if not wait_for_worker(settings, marks, timeout):
            raise LongstreamError(
                f"no worker of app_id {settings.app_id!r} has come to the mark in {timeout:.0f} s. It "
                "stays on the topic and is obeyed when one does; then forget the stream again to "
                "delete its records"
            )
        for url in filter(None, {settings.snapshot_url, settings.offload_url}):
            SnapshotStore(url).erase(stream)
        left = _finish(settings, stream, marks)
    for topic, what in left.items():
        typer.echo(f"{topic}: {what}", err=as_json)
    if as_json:
        emit({"stream": stream, "forgotten": True, "records": before, "left": left})
    else:
        typer.echo(f"{stream}: forgotten")


def _ask(stream: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("this cannot be undone: say --yes (or --dry-run to only look)")
    if not typer.confirm(f"Forget the stream {stream!r} for good?"):
        raise typer.Exit(1)


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
