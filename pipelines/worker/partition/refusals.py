"""Questions that a worker without transactions refused before it died.

The answer "nothing is known of this stream" is in no stream's state, so without transactions only the
topic of answers remembers it. Read again after a restart, such a question could get another answer,
since the stream may have begun meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiokafka
import msgspec

from operators.events import Source
from pipelines.config.load import Settings
from pipelines.wire.messages import UNKNOWN_STREAM

POLL_MS = 500
CLOCKS_MS = 60_000
"""How far the clocks of askers and workers may differ."""


class _Head(msgspec.Struct):
    """The fields read of every answer."""

    source: Source = Source()
    degraded: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(_Head)


async def refused_questions(
    consumer: aiokafka.AIOKafkaConsumer, settings: Settings, partition: int, committed: int | None
) -> frozenset[int]:
    """Offsets from ``committed`` on of questions whose refusal stands in the topic of answers; none with
    transactions, which commit both together. Assigns the consumer to other partitions.

    Raises KafkaError."""
    if settings.delivery == "exactly_once":
        return frozenset()
    asked = aiokafka.TopicPartition(settings.topic_questions, partition)
    end = (await consumer.end_offsets([asked]))[asked]
    begin = (await consumer.beginning_offsets([asked]))[asked]
    first = max(committed or 0, begin)
    if first >= end:
        return frozenset()
    asked_ms = 0
    async for record in _records(consumer, asked, first, end):
        asked_ms = record.timestamp
        break
    answers = aiokafka.TopicPartition(settings.topic_answers, partition)
    found = await consumer.offsets_for_times({answers: max(0, asked_ms - CLOCKS_MS)})
    if (since := found[answers]) is None:
        return frozenset()
    end = (await consumer.end_offsets([answers]))[answers]
    refused = set()
    async for record in _records(consumer, answers, since.offset, end):
        source = _refused(record.value)
        if source is not None and source.topic == asked.topic and source.partition == partition:
            refused.add(source.first_offset)
    return frozenset(offset for offset in refused if offset >= first)


async def _records(
    consumer: aiokafka.AIOKafkaConsumer, place: aiokafka.TopicPartition, begin: int, end: int
) -> AsyncIterator[Any]:
    """The partition's records from offset ``begin`` to before ``end``."""
    consumer.assign([place])
    consumer.seek(place, begin)
    while await consumer.position(place) < end:
        batches = await consumer.getmany(place, timeout_ms=POLL_MS)
        for record in batches.get(place, ()):
            yield record


def _refused(value: bytes | None) -> Source | None:
    """The question's place, if this is the refusal of one about an unknown stream."""
    try:
        head = _decoder.decode(value or b"")
    except msgspec.DecodeError:
        return None
    return head.source if UNKNOWN_STREAM in head.degraded else None
