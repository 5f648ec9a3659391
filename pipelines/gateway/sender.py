"""What callers write, onto Kafka: answered when the broker has it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import aiokafka
from aiokafka.errors import KafkaError

from operators.errors import LongstreamError
from pipelines.config.fields import Settings
from pipelines.kafka.clients import client_options, disconnect
from pipelines.wire.dead_letters import Header
from pipelines.wire.partitioning import partition_of

SECONDS = 15.0


class Unavailable(LongstreamError):
    """Kafka has not said that it has the record; whether it has is unknown, so send it again."""


class Stored(NamedTuple):
    """Where a record lies."""

    partition: int
    offset: int


class Sender:
    """An idempotent producer that waits for all replicas. A stream's records keep their order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def send(
        self, topic: str, stream_id: str, values: list[tuple[bytes, list[Header]]]
    ) -> list[Stored]:
        """Write records of one stream in order. Raises Unavailable."""
        try:
            async with asyncio.timeout(SECONDS):
                producer = await self._connected()
                count = len(await producer.partitions_for(topic))
                partition = partition_of(stream_id, count)
                key = stream_id.encode()
                sent = [
                    await producer.send(topic, value, key=key, partition=partition, headers=headers)
                    for value, headers in values
                ]
                found = await asyncio.gather(*sent)
        except (KafkaError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"Kafka has not taken it ({reason}); send it again") from error
        return [Stored(meta.partition, meta.offset) for meta in found]

    async def _connected(self) -> aiokafka.AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = aiokafka.AIOKafkaProducer(
                    **client_options(self._settings),
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=2,
                    max_request_size=self._settings.max_message_bytes,
                )
                try:
                    await producer.start()
                except BaseException:
                    await disconnect(producer)
                    raise
                self._producer = producer
            return self._producer

    async def close(self) -> None:
        if self._producer is not None:
            await disconnect(self._producer)
            self._producer = None
