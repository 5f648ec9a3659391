"""`longstream topics grow`, and limits that a broker tells by refusing, on a real broker."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from operators.errors import ConfigError
from operators.state import SessionState
from pipelines.kafka.growth import grow
from pipelines.kafka.publishers import Group, TooLarge, TransactionalPublisher
from pipelines.kafka.topics import TopicSpec, create_topics
from pipelines.wire.codec import encode_state
from pipelines.wire.messages import Message, MessageLimit
from pipelines.wire.partitioning import partition_of
from tests.kafka.test_lag_and_state import settings_of

NAMES = [f"meeting-{number}" for number in range(8)]


def newest(bootstrap: str, topic: str) -> dict[tuple[str, int], bytes | None]:
    found = {}
    with KafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", group_id=None
    ) as reader:
        for number in sorted(reader.partitions_for_topic(topic)):
            place = TopicPartition(topic, number)
            reader.assign([place])
            reader.seek_to_beginning(place)
            end = reader.end_offsets([place])[place]
            while reader.position(place) < end:
                for records in reader.poll(timeout_ms=500).values():
                    for record in records:
                        found[record.key.decode(), number] = record.value
    return found


def test_topics_grow_and_streams_move_with_them(topics: Any) -> None:
    topics.create(2)
    settings = settings_of(topics)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        for name in NAMES:
            place = partition_of(name, 2)
            value = encode_state(SessionState(stream_id=name, cursor=0), settings.app_id)
            made.send(topics.sessions, key=name.encode(), value=value, partition=place)
            made.send(topics.segments, key=name.encode(), value=b"x", partition=place)
        made.flush()
    member = KafkaConsumer(
        bootstrap_servers=topics.bootstrap, group_id=settings.app_id, enable_auto_commit=False
    )
    places = [TopicPartition(topics.segments, number) for number in range(2)]
    member.commit({place: OffsetAndMetadata(0, "", -1) for place in places})
    with pytest.raises(ConfigError, match="not processed yet"):
        grow(settings, 3)
    ends = member.end_offsets(places)
    member.commit({place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()})
    asked = [TopicPartition(settings.topic_questions, number) for number in range(2)]
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        for name in NAMES:
            place = partition_of(name, 2)
            made.send(asked[place].topic, key=name.encode(), value=b"{}", partition=place)
        made.flush()
    with pytest.raises(ConfigError, match=r"questions.* not processed yet"):
        grow(settings, 3)
    ends = member.end_offsets(asked)
    member.commit({place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()})
    member.close()
    movers = {name for name in NAMES if partition_of(name, 2) != partition_of(name, 3)}
    assert grow(settings, 3) == (2, len(movers))
    found = newest(topics.bootstrap, topics.sessions)
    live = {key for key, value in found.items() if value is not None}
    assert live == {(name, partition_of(name, 3)) for name in NAMES}
    for (name, number), value in found.items():
        if value is not None:
            cursor = -1 if name in movers else 0
            assert msgspec.json.decode(value)["cursor"] == cursor, number
    assert grow(settings, 3) == (3, 0)
    with pytest.raises(ConfigError, match="cannot take any away"):
        grow(settings, 2)


def test_a_broker_that_refuses_a_large_message_says_how_large_it_was(topics: Any) -> None:
    """Also where the batch was too large and no message in it; what is written is compressed."""
    small = [
        TopicSpec(spec.name, max_message_bytes=20_000 if spec.name == topics.summaries else None)
        for spec in topics.specs
    ]
    create_topics(topics.bootstrap, small, 1)
    settings = settings_of(topics)
    noise = [os.urandom(9_000) for _ in range(4)]

    limit = MessageLimit(settings.max_message_bytes)

    async def publish(*values: bytes) -> None:
        publisher = TransactionalPublisher(settings, 0, limit)
        await publisher.open()
        try:
            await publisher.publish(Group([Message(topics.summaries, b"a", v) for v in values]))
        finally:
            await publisher.close()

    with pytest.raises(TooLarge) as refused:
        asyncio.run(publish(*noise))
    assert refused.value.size is None, "no message of it is too large"
    limit.learn(None)
    asyncio.run(publish(*noise))
    with pytest.raises(TooLarge) as refused:
        asyncio.run(publish(*noise, os.urandom(30_000)))
    assert refused.value.size == 30_001
    spoken = b"We ship on Friday. " * 2_000
    asyncio.run(publish(spoken))
    found = newest(topics.bootstrap, topics.summaries)
    assert found["a", 0] == spoken, "38,000 bytes fit: they are compressed"
