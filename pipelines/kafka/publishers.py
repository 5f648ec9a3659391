"""Writing one group of results to Kafka: in a transaction, or with the state as an outbox.

A group is what a partition finished since the last one. Both publishers raise :class:`Fenced` when
another worker has taken the partition, :class:`Retriable` when nothing of the group counts and the
same group may be published again, and let every other error through: then it is unknown what counts,
and only a restart, which reads it back, can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka
import msgspec
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from operators.errors import LongstreamError
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.kafka.clients import client_options, compression, disconnect
from pipelines.kafka.errors import TOO_LARGE, explain
from pipelines.wire.codec import encode_state
from pipelines.wire.messages import Message, MessageLimit, state_message

TRANSACTION_TIMEOUT_MS = 20_000
"""How long readers wait for a transaction whose worker vanished and that nobody takes over."""
REQUEST_ROOM = 1 << 20
BATCH_BYTES = 256 << 10


class Fenced(LongstreamError):
    """Another worker owns this partition now. Nothing of the group counts."""


class Retriable(LongstreamError):
    """The group was not published; publishing the same group again is safe."""


class TooLarge(LongstreamError):
    """A topic does not take a message of ``size`` bytes (None: a batch of several). The publisher is of
    no more use: the numbers by which the broker knows its batches have a gap. Another one may publish
    less, after it has read what counts."""

    def __init__(self, text: str, size: int | None) -> None:
        super().__init__(text)
        self.size = size


@dataclass
class Group:
    """What is committed together, for one input partition."""

    messages: list[Message] = field(default_factory=list)
    """Results and dead letters, in order."""
    states: dict[str, SessionState | None] = field(default_factory=dict)
    """The newest state of every stream in the group; None = forgotten, a tombstone."""
    outbox: dict[str, list[Message]] = field(default_factory=dict)
    """The results by stream (the same objects as in ``messages``)."""
    offset: int | None = None
    """Where a restart goes on reading; None = unchanged."""
    question_offset: int | None = None
    """The same of the topic of questions."""

    @property
    def moves(self) -> bool:
        """Whether an input offset is committed."""
        return self.offset is not None or self.question_offset is not None


class Publisher(Protocol):
    async def open(self) -> None:
        """Connect, and lock out any other writer of this partition where that is possible."""

    def fits(self, group: Group) -> bool:
        """Whether the group can be written as it is promised; a smaller one may be."""

    async def publish(self, group: Group) -> None:
        """Write a group; returns when all of it counts."""

    async def close(self) -> None:
        """Disconnect. A transaction under way is abandoned."""


class TransactionalPublisher:
    """Results, states and the input offset in one transaction; all of it is seen, or none.

    The transactional id belongs to the input partition: opening fences whoever wrote it before, so
    a worker that was presumed dead cannot write any more.
    """

    def __init__(
        self, settings: Settings, partition: int, limit: MessageLimit | None = None
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._in_transaction = False
        self._limit = limit or MessageLimit(settings.max_message_bytes)

    async def open(self) -> None:
        settings = self._settings
        self._producer = aiokafka.AIOKafkaProducer(
            **client_options(settings),
            transactional_id=f"{settings.app_id}-{settings.topic_segments}-{self._partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_request_size=settings.max_message_bytes + REQUEST_ROOM,
            max_batch_size=BATCH_BYTES,
            compression_type=compression(settings),
        )
        await self._producer.start()  # returns when the producer id is ours: others are fenced

    def fits(self, group: Group) -> bool:
        return True

    async def publish(self, group: Group) -> None:
        assert self._producer is not None
        # 1. Everything below counts only if step 5 succeeds.
        try:
            await self._producer.begin_transaction()
            self._in_transaction = True
            # 2. Results and dead letters, 3. states: written and acknowledged by the broker. 4. The
            # input offsets, as part of the transaction, meanwhile: neither waits for the other.
            await _both(self._write(group), self._move(group))
        except ProducerFenced as error:
            raise Fenced(f"partition {self._partition} has a new owner") from error
        except (KafkaError, Retriable) as error:
            await self._abort()
            raise Retriable(explain(error)) from error
        # 5. From here on an error means "unknown", except that a fenced commit never counts.
        try:
            await self._producer.commit_transaction()
        except ProducerFenced as error:
            raise Fenced(f"partition {self._partition} has a new owner") from error
        self._in_transaction = False

    async def close(self) -> None:
        if self._producer is None:
            return
        if self._in_transaction:
            # Else readers of committed records wait for the transaction's timeout.
            with contextlib.suppress(KafkaError, IllegalOperation, AssertionError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._producer.abort_transaction()
        await disconnect(self._producer)
        self._producer = None

    async def _move(self, group: Group) -> None:
        assert self._producer is not None
        if group.moves:
            await self._producer.send_offsets_to_transaction(
                self._offsets(group), self._settings.app_id
            )

    def _offsets(self, group: Group) -> dict[aiokafka.TopicPartition, int]:
        topics = {
            self._settings.topic_segments: group.offset,
            self._settings.topic_questions: group.question_offset,
        }
        return {
            aiokafka.TopicPartition(topic, self._partition): offset
            for topic, offset in topics.items()
            if offset is not None
        }

    async def _write(self, group: Group) -> None:
        assert self._producer is not None
        records = [
            *group.messages,
            *(state_message(self._settings, name, s) for name, s in group.states.items()),
        ]
        await _send(self._producer, records, self._partition, self._limit)

    async def _abort(self) -> None:
        assert self._producer is not None
        try:
            await self._producer.abort_transaction()
        except ProducerFenced as error:
            raise Fenced(f"partition {self._partition} has a new owner") from error
        self._in_transaction = False


class OutboxPublisher:
    """For brokers without transactions: at least once, and what was emitted is emitted again.

    1. The states are written first, each with the results of its stream in the group (the outbox).
    2. Then the results. 3. Then the caller acknowledges the input, which is committed later.
    A crash after 1 leaves the results in the state: recovery publishes them again, word for word
    (:func:`~pipelines.wire.messages.pending_results`), and skips the input they came from.

    A state and its outbox are one message. Where even one emission's results do not fit into it they are
    written before it, without an outbox: a crash in between loses nothing either, but the next owner
    makes them anew, perhaps in other words.

    Nobody fences a worker that was presumed dead. One that wakes up after standing still for longer
    than its session notices that by its own clock and writes no more; what it had handed to the
    network before may still arrive, so this is not claimed.
    """

    def __init__(
        self, settings: Settings, partition: int, limit: MessageLimit | None = None
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._limit = limit or MessageLimit(settings.max_message_bytes)
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._pulse = Pulse(settings.session_timeout_s)

    async def open(self) -> None:
        self._pulse.start()
        self._producer = aiokafka.AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            max_request_size=self._settings.max_message_bytes + REQUEST_ROOM,
            max_batch_size=BATCH_BYTES,
            compression_type=compression(self._settings),
        )
        await self._producer.start()

    def fits(self, group: Group) -> bool:
        limit = self._limit.content
        for name, state in group.states.items():
            outbox = group.outbox.get(name)
            if state is None or not outbox:
                continue
            size = (
                len(encode_state(state, self._settings.app_id))
                + len(msgspec.json.encode(outbox))
                + len(name.encode())
            )
            if size > limit:
                return False
        return True

    async def publish(self, group: Group) -> None:
        assert self._producer is not None
        if self._pulse.missed():
            raise Fenced(
                f"partition {self._partition} may have a new owner: this worker stood still"
            )
        whole = self.fits(group)
        states = [
            state_message(self._settings, name, state, group.outbox.get(name) if whole else None)
            for name, state in group.states.items()
        ]
        first, second = (states, group.messages) if whole else (group.messages, states)
        try:
            await _send(self._producer, first, self._partition, self._limit)  # 1.
            await _send(self._producer, second, self._partition, self._limit)  # 2.
        except KafkaError as error:
            raise Retriable(explain(error)) from error

    async def close(self) -> None:
        self._pulse.stop()
        if self._producer is not None:
            await disconnect(self._producer)
            self._producer = None


class Pulse:
    """Notices, afterwards, that this process did not run for more than ``limit_s`` seconds."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._last = clock()
        self._missed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Beat from now on, in the running event loop."""
        self._last = self._clock()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def missed(self) -> bool:
        """Whether it ever stood still since the start."""
        now = self._clock()
        self._missed |= now - self._last > self._limit_s
        self._last = now
        return self._missed

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._limit_s / 8)
            self.missed()


def make_publisher(settings: Settings, partition: int, limit: MessageLimit) -> Publisher:
    kind = TransactionalPublisher if settings.delivery == "exactly_once" else OutboxPublisher
    return kind(settings, partition, limit)


async def _both(*parts: Awaitable[None]) -> None:
    """Run them side by side; when all have ended, raise the first one's error."""
    for ended in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


async def _send(
    producer: aiokafka.AIOKafkaProducer,
    messages: list[Message],
    partition: int,
    limit: MessageLimit,
) -> None:
    """In batches, or each message alone where a topic refused a batch before. Raises as
    :func:`_send_all`; TooLarge for a message or batch larger than its topic takes."""
    for part in [[message] for message in messages] if limit.singly else [messages]:
        try:
            await _send_all(producer, part, partition)
        except Retriable as error:
            if isinstance(error.__cause__, TOO_LARGE):
                size = part[0].size if len(part) == 1 else None
                raise TooLarge(str(error), size) from None
            raise


async def _send_all(
    producer: aiokafka.AIOKafkaProducer, messages: list[Message], partition: int
) -> None:
    """Send each topic's messages in order and wait until the broker has acknowledged all.

    Raises ProducerFenced, or Retriable with the topic that refused.
    """
    acks: list[tuple[str, asyncio.Future[object]]] = []
    failed: tuple[str, BaseException] | None = None
    for topic, batch in _batches(producer, messages):
        try:
            acks.append((topic, await producer.send_batch(batch, topic, partition=partition)))
        except (KafkaError, IllegalOperation) as error:
            # IllegalOperation only says that the transaction is over: an earlier batch knows why.
            failed = topic, error
            break
    results = await asyncio.gather(*(ack for _, ack in acks), return_exceptions=True)
    for (topic, _), result in zip(acks, results, strict=True):
        if isinstance(result, BaseException):
            failed = topic, result
            break
    if failed is None:
        return
    topic, reason = failed
    if not isinstance(reason, KafkaError) or isinstance(reason, ProducerFenced):
        raise reason
    raise Retriable(f"{topic}: {explain(reason)}") from reason


def _batches(
    producer: aiokafka.AIOKafkaProducer, messages: list[Message]
) -> Iterator[tuple[str, Any]]:
    """(topic, batch), each as full as it gets. One acknowledgement of a batch costs a fraction of one
    for each of its messages."""
    topics: dict[str, list[Message]] = {}
    for message in messages:
        topics.setdefault(message.topic, []).append(message)
    for topic, waiting in topics.items():
        batch = producer.create_batch()
        for message in waiting:
            if not _append(batch, message):
                yield topic, batch
                batch = producer.create_batch()
                _append(batch, message)  # a batch takes its first message, whatever its size
        yield topic, batch


def _append(batch: Any, message: Message) -> bool:
    """False where the batch is full."""
    added = batch.append(
        timestamp=None, key=message.key, value=message.value, headers=message.headers
    )
    return added is not None
