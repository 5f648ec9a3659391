"""Which weights the streams' states name, asked before the model is loaded.

Weights of another type write other texts and cannot read the fleet's snapshots. So a worker that is free
to choose a type takes the one that is in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import aiokafka
import msgspec
from aiokafka.errors import KafkaError

from pipelines.config.load import Settings
from pipelines.kafka.clients import client_options, disconnect

log = logging.getLogger(__name__)

NEWEST = 64
"""Records read from the end of each partition."""
PATIENCE_S = 10.0


class _Head(msgspec.Struct):
    weights: str = ""


_decoder = msgspec.json.Decoder(_Head)


def newest_weights(records: Iterable[tuple[int, bytes | None]]) -> tuple[str, ...]:
    """The different ``weights`` in state records of (time, value), newest first. What cannot be read
    is left out."""
    found: dict[str, int] = {}
    for at, value in records:
        try:
            weights = _decoder.decode(value or b"{}").weights
        except msgspec.DecodeError:
            continue
        if weights:
            found[weights] = max(at, found.get(weights, 0))
    return tuple(sorted(found, key=lambda name: -found[name]))


async def known_weights(settings: Settings) -> tuple[str, ...]:
    """Those of the session topic's newest records; none where it is new or cannot be read now. The
    worker's own checks, later, say why it cannot."""
    consumer = aiokafka.AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=settings.max_message_bytes,
    )
    records: list[tuple[int, bytes | None]] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            await consumer.start()
            await _read(consumer, settings.topic_sessions, records)
    except (KafkaError, TimeoutError, OSError) as error:
        log.info("the streams' states were not asked for their weights: %r", error)
    finally:
        await disconnect(consumer)
    return newest_weights(records)


async def _read(
    consumer: aiokafka.AIOKafkaConsumer, topic: str, records: list[tuple[int, bytes | None]]
) -> None:
    numbers = consumer.partitions_for_topic(topic) or await _partitions(consumer, topic)
    places = [aiokafka.TopicPartition(topic, number) for number in sorted(numbers)]
    if not places:
        return
    consumer.assign(places)
    ends = await consumer.end_offsets(places)
    begins = await consumer.beginning_offsets(places)
    for place in places:
        consumer.seek(place, max(begins[place], ends[place] - NEWEST))
    while any([await consumer.position(place) < ends[place] for place in places]):
        for batch in (await consumer.getmany(timeout_ms=200)).values():
            records += [(record.timestamp, record.value) for record in batch]


async def _partitions(consumer: aiokafka.AIOKafkaConsumer, topic: str) -> set[int]:
    """Asked of the brokers: a topic this client has not used is not in its metadata yet."""
    if topic not in await consumer.topics():
        return set()
    return consumer.partitions_for_topic(topic) or set()
