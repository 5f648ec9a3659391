"""More partitions for all topics, and what is kept of each stream moved to where its input goes then.

A key's partition depends on how many there are, and a stream's state lies on the partition of its input.
So partitions cannot grow under a running worker: its streams would begin anew, with revisions that
consumers have already seen. :func:`grow` does it in this order, and may be called again after a crash:

1. Nobody may be in the workers' group, and no record or question may wait whose stream moves: what is
   behind it on the new partition would be processed before it. Otherwise it refuses, and nothing has
   changed.
2. Every stream's state must lie where its key belongs; producers with a partitioner of their own decide
   by themselves where streams go, and nobody else can move their states.
3. The topics get their partitions.
4. In one transaction states and latest summaries are written on their new partition and deleted on the
   old one. A moved state has no offsets, which are those of the old partition; its stream goes on from
   its window's text (``restored: replay``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import aiokafka
import msgspec
from aiokafka.errors import KafkaError as ClientError

from operators.errors import ConfigError
from pipelines.config.fields import Settings
from pipelines.kafka.clients import client_options, compression, disconnect
from pipelines.kafka.errors import TopicError
from pipelines.kafka.tools import KafkaConsumer, KafkaError, TopicPartition, connection
from pipelines.kafka.topics import admin_client
from pipelines.wire.messages import is_forgotten_key
from pipelines.wire.partitioning import partition_of

TRANSACTION_TIMEOUT_MS = 600_000
POLL_MS = 1000


class Kept(NamedTuple):
    """The newest record of a key on a compacted topic."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes | None]]


class Move(NamedTuple):
    """A record to be written; ``value`` None deletes the key there."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def grow(settings: Settings, partitions: int) -> tuple[int, int]:
    """See the module's docstring. Returns how many partitions there were, and how many streams moved.

    Raises ConfigError when it refuses, TopicError when Kafka does.
    """
    login = connection(settings, "longstream-topics")
    try:
        with admin_client(settings.bootstrap, login=login) as admin:
            counts = {
                topic["name"]: len(topic["partitions"])
                for topic in admin.describe_topics(list(settings.topics))
            }
            if missing := [name for name in settings.topics if not counts.get(name)]:
                raise TopicError(f"no topic {', '.join(missing)} at {settings.bootstrap}")
            before = min(counts.values())
            if max(counts.values()) > partitions:
                raise ConfigError(
                    f"there are {max(counts.values())} partitions, and Kafka cannot take any away"
                )
            _check_group(admin, settings)
            inputs = (settings.topic_segments, settings.topic_questions)
            committed = {topic: _committed(admin, settings, topic) for topic in inputs}
            with _reader(login) as reader:
                processed = range(before) if any(committed.values()) else range(0)
                for topic, offsets in committed.items():
                    _check_waiting(reader, topic, offsets, processed, partitions)
                kept = list(_kept(reader, settings, counts))
            if before < partitions:
                check_places(kept, before)
            _add_partitions(admin, counts, partitions)
        moves = list(plan(kept, settings, partitions))
        asyncio.run(_write(settings, moves))
    except KafkaError as error:
        raise TopicError(f"topics at {settings.bootstrap}: {error}") from error
    return before, len({m.key for m in moves if m.value is None})


# --- what is checked -----------------------------------------------------------------------------


def _check_group(admin: Any, settings: Settings) -> None:
    group = admin.describe_groups([settings.app_id]).get(settings.app_id, {})
    members = group.get("members") or []
    if members:
        raise ConfigError(
            f"{len(members)} workers of app_id {settings.app_id!r} run: stop the producers, let the "
            "workers finish what waits (`longstream lag`), and stop them; one that was killed counts "
            "until its session times out"
        )


def _committed(admin: Any, settings: Settings, topic: str) -> dict[int, int]:
    """Partition -> next offset of the workers' group on an input topic."""
    offsets = admin.list_group_offsets([settings.app_id]).get(settings.app_id, {})
    return {
        tp.partition: found.offset
        for tp, found in offsets.items()
        if tp.topic == topic and found.offset >= 0
    }


def _check_waiting(
    reader: KafkaConsumer,
    topic: str,
    committed: dict[int, int],
    processed: Iterable[int],
    partitions: int,
) -> None:
    waiting = 0
    for number in processed:
        place = TopicPartition(topic, number)
        for record in _records(reader, place, committed.get(number)):
            key = (record.key or b"").decode(errors="replace")
            waiting += not key or partition_of(key, partitions) != number
    if waiting:
        raise ConfigError(
            f"{waiting} records of {topic} are not processed yet, and their streams "
            "would move: what is written from then on would be processed before them. Stop the "
            "producers and let the workers finish first"
        )


def check_places(kept: Iterable[Kept], partitions: int) -> None:
    """Raises ConfigError for a stream that is not where its key belongs."""
    for record in kept:
        name = record.key.decode(errors="replace")
        if is_forgotten_key(name) or partition_of(name, partitions) == record.partition:
            continue
        raise ConfigError(
            f"{record.topic}[{record.partition}] holds a stream whose key belongs on partition "
            f"{partition_of(name, partitions)} of {partitions}: its producer chooses partitions by "
            "itself, and only it knows where the stream goes with more of them. End its streams, "
            "then make new topics with more partitions"
        )


# --- what is kept, and where it goes ---------------------------------------------------------------


def _reader(login: dict[str, Any]) -> KafkaConsumer:
    return KafkaConsumer(
        **login,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
    )


def _records(reader: KafkaConsumer, place: TopicPartition, start: int | None) -> Iterator[Any]:
    reader.assign([place])
    if start is None:
        reader.seek_to_beginning(place)
    else:
        reader.seek(place, start)
    end = reader.end_offsets([place])[place]
    while reader.position(place) < end:
        for records in reader.poll(timeout_ms=POLL_MS).values():
            yield from records


def _kept(reader: KafkaConsumer, settings: Settings, counts: dict[str, int]) -> Iterator[Kept]:
    """The newest record of every key on the compacted topics."""
    for topic in (settings.topic_sessions, settings.topic_summaries_latest):
        for number in range(counts[topic]):
            newest: dict[bytes, Kept] = {}
            for record in _records(reader, TopicPartition(topic, number), None):
                if record.key is None:
                    continue
                newest.pop(record.key, None)
                if record.value is not None:
                    headers = list(record.headers)
                    newest[record.key] = Kept(topic, number, record.key, record.value, headers)
            yield from newest.values()


def plan(kept: Iterable[Kept], settings: Settings, partitions: int) -> Iterator[Move]:
    """What is to be written so that each record lies where its key belongs among ``partitions``. A
    forgotten stream's record, whose key is a hash, is put on all of them."""
    for record in kept:
        topic, number, key, value, headers = record
        name = key.decode(errors="replace")
        if is_forgotten_key(name):
            others = (p for p in range(partitions) if p != number)
            yield from (Move(topic, other, key, value, headers) for other in others)
            continue
        right = partition_of(name, partitions)
        if right == number:
            continue
        moved = without_offsets(value) if topic == settings.topic_sessions else value
        yield Move(topic, right, key, moved, headers)
        yield Move(topic, number, key, None, [])


def without_offsets(state: bytes) -> bytes:
    """A state for another partition. Raises ConfigError for one that cannot be read."""
    try:
        fields = msgspec.json.decode(state)
        for part in fields.get("window", ()):
            part["offset"] = -1
        nowhere = {"cursor": -1, "question_cursor": -1, "snapshot": None}
        return msgspec.json.encode({**fields, **nowhere})
    except (msgspec.DecodeError, AttributeError, TypeError) as error:
        raise ConfigError(f"a state cannot be read, and is not moved: {error}") from None


def _add_partitions(admin: Any, counts: dict[str, int], partitions: int) -> None:
    fewer = {name: partitions for name, count in counts.items() if count < partitions}
    if fewer:
        admin.create_partitions(fewer)
        admin.wait_for_topics(list(fewer))


async def _write(settings: Settings, moves: list[Move]) -> None:
    """All moves in one transaction; without them (at_least_once) copies first, then deletions."""
    if not moves:
        return
    whole = settings.delivery == "exactly_once"
    options: dict[str, Any] = {"enable_idempotence": True}
    if whole:
        options["transactional_id"] = f"{settings.app_id}-grow"
        options["transaction_timeout_ms"] = TRANSACTION_TIMEOUT_MS
    client = aiokafka.AIOKafkaProducer(
        **client_options(settings),
        **options,
        max_request_size=settings.max_message_bytes + (1 << 20),
        compression_type=compression(settings),
    )
    try:
        await client.start()
        if whole:
            await client.begin_transaction()
        for move in sorted(moves, key=lambda move: move.value is None):
            await client.send_and_wait(
                move.topic,
                key=move.key,
                value=move.value,
                headers=move.headers,
                partition=move.partition,
            )
        if whole:
            await client.commit_transaction()
    except ClientError as error:
        raise TopicError(
            f"the topics have their partitions, but the streams were not moved: {error}. Call it again "
            "before a worker starts"
        ) from error
    finally:
        await disconnect(client)
