"""kafka-python clients for tools: which partition a stream belongs to, one producer, one reader.

The worker itself talks through Faust and aiokafka (``pipelines.kafka.clients``); these serve ``replay``,
``watch`` and ``demo``.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

with warnings.catch_warnings():
    # kafka-python loads its message schemas by functions Python 3.11 and 3.12 call deprecated.
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.errors import CoordinatorNotAvailableError, KafkaError, KafkaTimeoutError
    from kafka.partitioner.default import murmur2

from operators.errors import LongstreamError, SegmentError
from operators.events import AnyEvent, Segment
from pipelines.config.fields import Settings
from pipelines.kafka import header_names
from pipelines.kafka.clients import login, ssl_context, turned_away
from pipelines.kafka.errors import BrokerUnavailable
from pipelines.wire.codec import decode_event, decode_segment

__all__ = [
    "CONNECT_SECONDS",
    "CoordinatorNotAvailableError",
    "KafkaConsumer",
    "KafkaError",
    "KafkaProducer",
    "Reader",
    "TopicPartition",
    "connection",
    "no_broker",
    "partition_count",
    "partition_for",
    "producer",
    "read",
]

CONNECT_SECONDS = 10.0
MAX_TEXT = 1 << 62  # a viewer refuses nothing for its size

header_names.install_for_tools()


def partition_for(stream_id: str, partitions: int) -> int:
    """The partition of a stream: murmur2 of the key's UTF-8 bytes, as Kafka's own clients do.

    It equals the default partitioner of the Java client and of kafka-python, so a producer that
    only sets the key puts its records on the same partition as we do.
    """
    if partitions < 1:
        raise ValueError(f"partitions={partitions}: at least 1")
    return (int(murmur2(stream_id.encode())) & 0x7FFFFFFF) % partitions


def connection(settings: Settings, name: str) -> dict[str, Any]:
    """Where the brokers are and how to log in, as every kafka-python client takes it."""
    # Their log lines repeat each failed attempt; what it means is said once, by no_broker.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": name,
        "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
        "security_protocol": settings.security_protocol,
        "ssl_context": ssl_context(settings),
        **login(settings),
    }


def producer(settings: Settings, linger_ms: int = 5) -> KafkaProducer:
    """An idempotent producer that waits for all replicas. Raises ``LongstreamError`` if no broker."""
    try:
        return KafkaProducer(
            **connection(settings, "longstream-replay"),
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            max_block_ms=int(CONNECT_SECONDS * 1000),
            max_request_size=settings.max_message_bytes,
            allow_auto_create_topics=False,
        )
    except (KafkaError, OSError) as error:
        raise no_broker(settings, error) from error


def partition_count(client: KafkaProducer | KafkaConsumer, topic: str, settings: Settings) -> int:
    """How many partitions ``topic`` has. Raises ``LongstreamError`` if there is no such topic."""
    is_producer = isinstance(client, KafkaProducer)
    ask: Callable[[str], Any] = (
        client.partitions_for if is_producer else client.partitions_for_topic
    )
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            found = ask(topic)
        except KafkaTimeoutError:
            found = None
        except KafkaError as error:
            raise no_broker(settings, error) from error
        if found:
            return len(found)
        if time.monotonic() > deadline:
            raise LongstreamError(
                f"there is no topic {topic} at {settings.bootstrap}; "
                "make the topics with `longstream topics create`"
            )
        time.sleep(0.2)


class Reader:
    """All partitions of some topics without a group: nothing is committed, nobody is disturbed.

    ``from_start`` names the topics read from their first record; the others start at their end, as
    it is when the constructor returns. Only committed transactions are seen.
    """

    def __init__(
        self, settings: Settings, topics: Sequence[str], from_start: Iterable[str]
    ) -> None:
        try:
            self._consumer = KafkaConsumer(
                **connection(settings, "longstream-watch"),
                group_id=None,
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                fetch_max_wait_ms=200,
                allow_auto_create_topics=False,
            )
        except (KafkaError, OSError) as error:
            raise no_broker(settings, error) from error
        try:
            self._take_places(settings, topics, set(from_start))
        except KafkaError as error:
            self.close()
            raise no_broker(settings, error) from error
        except BaseException:
            self.close()
            raise

    def _take_places(self, settings: Settings, topics: Sequence[str], start: set[str]) -> None:
        places = [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(partition_count(self._consumer, topic, settings))
        ]
        self._consumer.assign(places)
        at_start = [place for place in places if place.topic in start]
        at_end = [place for place in places if place.topic not in start]
        if at_start:
            self._consumer.seek_to_beginning(*at_start)
        if at_end:
            self._consumer.seek_to_end(*at_end)
        for place in places:  # look the position up now: seeking alone waits for the first poll
            self._consumer.position(place)

    def poll(self, seconds: float) -> Iterator[Any]:
        """Records that arrived (kafka-python's ConsumerRecord), waiting up to ``seconds``."""
        batches = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=1000)
        for records in batches.values():
            yield from records

    def read_to_end(self) -> Iterator[Any]:
        """Records from where the reader stands to the end the topics have now."""
        ends = self._consumer.end_offsets(list(self._consumer.assignment()))
        while any(self._consumer.position(place) < end for place, end in ends.items()):
            yield from self.poll(1.0)

    def positions(self) -> dict[TopicPartition, int]:
        """The offset of the next record of each partition."""
        return {place: self._consumer.position(place) for place in self._consumer.assignment()}

    def beginnings(self) -> dict[TopicPartition, int]:
        """The offset of the first record each partition still has."""
        found = self._consumer.beginning_offsets(list(self._consumer.assignment()))
        return dict(found)

    def seek(self, place: TopicPartition, offset: int) -> None:
        """Go on reading ``place`` at ``offset``."""
        self._consumer.seek(place, offset)

    def close(self) -> None:
        self._consumer.close()


def no_broker(settings: Settings, error: BaseException) -> LongstreamError:
    """The sentence for "the broker does not answer", with what to do: a ConfigError if it is there
    but will not have us. Asks it, so not to be called in an event loop."""
    if (refusal := asyncio.run(turned_away(settings))) is not None:
        # Callers raise it from ``error``: what Kafka said must stay in that chain.
        error.__cause__ = refusal.__cause__
        return refusal
    reason = str(error) or type(error).__name__
    return BrokerUnavailable(
        f"no Kafka answers at {settings.bootstrap} ({reason}). Start one with `longstream kafka`, "
        "or give its address with --bootstrap or LONGSTREAM_BOOTSTRAP"
    )


def read(record: Any, settings: Settings) -> Segment | AnyEvent | None:
    """A record of one of our topics as its type; None if it is not readable, or a tombstone."""
    try:
        if record.topic == settings.topic_segments:
            return decode_segment(
                record.key,
                record.value,
                record.headers,
                partition=record.partition,
                offset=record.offset,
                max_text_bytes=MAX_TEXT,
            )
        return decode_event(record.value) if record.value is not None else None
    except (SegmentError, LongstreamError):
        return None  # the worker puts it on the dead-letter topic; a viewer skips it
