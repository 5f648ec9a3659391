"""Kafka's topics into the views, for as long as the gateway runs.

Without a group: nothing is committed and nobody is disturbed. The compacted topic of latest summaries is
read from its start, the others from ``gateway_history_h`` ago. Only committed records are seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import aiokafka
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from operators.errors import LongstreamError, SegmentError
from pipelines.config.fields import Settings
from pipelines.gateway.views import SOURCES, Cursor, Views
from pipelines.kafka import header_names
from pipelines.kafka.clients import client_options, disconnect
from pipelines.wire.codec import decode_event
from pipelines.wire.decoding import RecordDecoder, decoder_of, prepare, schemas_of
from pipelines.wire.questions import decode_question

log = logging.getLogger(__name__)

POLL_MS = 250
MAX_RECORDS = 500
CHECK_SECONDS = 5.0
RETRY_SECONDS = 2.0
header_names.install()


class _Changed(Exception):
    """A topic has other partitions than before: all is read again."""


class Feed:
    """Reads until cancelled. ``caught_up`` is set once all that was there at the start is read."""

    def __init__(self, settings: Settings, views: Views) -> None:
        self._settings, self._views = settings, views
        self._topics = topics_of(settings)
        self._schemas = schemas_of(settings)
        self._decoders: dict[int, RecordDecoder] = {}
        self._floors: dict[int, Cursor] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._checked = 0.0
        self.caught_up = asyncio.Event()
        self.away: str | None = "not connected yet"
        """Why Kafka cannot be read just now; None while it can."""
        self.listeners: list[Callable[[str, int, Any], None]] = []
        """Called with source, offset and value of each record that is read after the start."""

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except _Changed:
                log.warning("the partitions of a topic have changed: everything is read again")
            except (KafkaError, OSError) as error:
                self.away = str(error) or type(error).__name__
                log.warning("Kafka cannot be read: %s", self.away)
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            *self._topics,
            **client_options(self._settings),
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=POLL_MS,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
        )
        try:
            await consumer.start()
            await self._seek(consumer)
            self._views.clear()
            while True:
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
                for place, records in batches.items():
                    for record in records:
                        if self._topics[place.topic] == "segments":
                            await prepare(self._schemas, record.value)
                        self._take(place, record)
                await self._check(consumer)
        finally:
            await disconnect(consumer)

    async def _seek(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        """Put each partition where it is to be read from."""
        places = sorted(consumer.assignment())
        first = await consumer.beginning_offsets(places)
        self._ends = await consumer.end_offsets(places)
        then = int((time.time() - self._settings.gateway_history_h * 3600) * 1000)
        recent = {p: then for p in places if self._topics[p.topic] != "summaries"}
        found = await consumer.offsets_for_times(recent)
        self._floors, self._decoders = {}, {}
        for place in places:
            start = first[place]
            if place in recent:
                at = found.get(place)
                start = at.offset if at is not None else self._ends[place]
                self._note_floor(place, start - 1)
            consumer.seek(place, start)
        self.away = None
        self._checked = time.monotonic()

    def _note_floor(self, place: TopicPartition, offset: int) -> None:
        offsets = list(self._floors.get(place.partition, Cursor()))
        offsets[SOURCES.index(self._topics[place.topic])] = offset
        self._floors[place.partition] = Cursor(*offsets)

    async def _check(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        """Whether all that was there at the start is read; now and then, whether Kafka answers."""
        if not self.caught_up.is_set():
            for place, end in self._ends.items():
                if await consumer.position(place) < end:
                    return
            self.caught_up.set()
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        try:
            await asyncio.wait_for(consumer.end_offsets([*self._ends][:1]), CHECK_SECONDS)
            self.away = None
        except (KafkaError, TimeoutError):
            self.away = "no broker answers"
            return
        if consumer.assignment() != self._ends.keys():
            raise _Changed

    def _take(self, place: TopicPartition, record: Any) -> None:
        source = self._topics[place.topic]
        floor = self._floors.get(place.partition, Cursor())
        for value in self._decoded(source, place, record):
            self._views.take(source, record.offset, record.timestamp, value, floor)
            if self.caught_up.is_set():
                for listener in self.listeners:
                    listener(source, record.offset, value)

    def _decoded(self, source: str, place: TopicPartition, record: Any) -> list[Any]:
        """What the record holds; nothing where it cannot be read: the worker has said so."""
        try:
            if source == "segments":
                decoder = self._decoders.get(place.partition)
                if decoder is None:
                    decoder = self._decoders[place.partition] = decoder_of(
                        self._settings, self._schemas
                    )
                decoded = decoder.decode(
                    record.key,
                    record.value,
                    record.headers,
                    partition=place.partition,
                    offset=record.offset,
                )
                return list(decoded.segments)
            if record.value is None:
                if source == "summaries" and record.key:
                    self._views.remove(record.key.decode(errors="replace"))
                return []
            if source == "questions":
                return [
                    decode_question(
                        record.key,
                        record.value,
                        record.headers,
                        partition=place.partition,
                        offset=record.offset,
                    )
                ]
            return [decode_event(record.value)]
        except (SegmentError, LongstreamError):
            return []


def topics_of(settings: Settings) -> dict[str, str]:
    """Topic -> its name among :data:`~pipelines.gateway.views.SOURCES`."""
    return {
        settings.topic_segments: "segments",
        settings.topic_summaries_latest: "summaries",
        settings.topic_translations: "translations",
        settings.topic_questions: "questions",
        settings.topic_answers: "answers",
    }
