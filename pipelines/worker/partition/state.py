"""The states of a partition's streams, read from the compacted session topic.

They are read after the previous owner was fenced and before the first segment is decoded, up to the end
that the partition has at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from typing import NamedTuple

import aiokafka
import msgspec
from aiokafka.errors import KafkaError

from operators.errors import ConfigError, LongstreamError, SegmentError
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.kafka.clients import client_options, disconnect
from pipelines.kafka.errors import BrokerUnavailable
from pipelines.wire.codec import decode_state
from pipelines.wire.messages import (
    FORGOTTEN_SCHEMA,
    Message,
    forgotten_epoch,
    forgotten_key,
    pending_results,
)
from pipelines.worker.partition.refusals import refused_questions

log = logging.getLogger(__name__)

MAX_TABLE_BYTES = 512 << 20
POLL_MS = 500


class RecoveryError(LongstreamError):
    """The session topic cannot be read; the worker must not start this partition."""


class _Head(msgspec.Struct):
    """The fields read of every state record. ``outbox``: see :mod:`pipelines.kafka.publishers`."""

    ended: bool = False
    schema: str = ""
    app_id: str = ""
    uncovered_tokens: int = 0
    question_cursor: int = -1
    outbox: msgspec.Raw = msgspec.Raw()

    @property
    def over(self) -> bool:
        """Whether this is the state of an ended stream, or the record of a forgotten one."""
        return self.ended or self.schema == FORGOTTEN_SCHEMA


_head_decoder = msgspec.json.Decoder(_Head)


def _head_of(value: bytes) -> _Head:
    """Empty for a record that cannot be read: :meth:`SessionTable.take` raises for it."""
    try:
        return _head_decoder.decode(value)
    except msgspec.DecodeError:
        return _Head()


class SessionTable:
    """The latest state record of each closed stream, compressed; decoded when the stream is opened.

    ``put`` raises ConfigError when the records together exceed ``max_bytes``.
    """

    def __init__(self, max_bytes: int = MAX_TABLE_BYTES) -> None:
        self._records: dict[str, bytes] = {}
        self._cursors: dict[str, int] = {}
        self._ended_ms: dict[str, int] = {}
        self._live_ms: dict[str, int] = {}
        self._uncovered: dict[str, tuple[int, int]] = {}
        """Tokens that no summary covers, and when the record was written (Unix ms)."""
        self._outboxes: dict[str, None] = {}
        self.newest_question = -1
        """The highest question answered in any state; -1 for none."""
        self._bytes = 0
        self._max_bytes = max_bytes
        self.strangers: dict[str, int] = {}
        """Records of other applications, by their app_id; they are not kept."""

    def __len__(self) -> int:
        return len(self._records)

    @property
    def nbytes(self) -> int:
        """Bytes of the records in memory."""
        return self._bytes

    def put(
        self, stream_id: str, value: bytes | None, cursor: int | None = None, at_ms: int = 0
    ) -> None:
        """Store a stream's record, written at ``at_ms`` (Unix ms); None (a tombstone) removes it.

        With a ``cursor``, a record older than the stored one is ignored: without transactions a worker
        presumed dead can still write one late.
        """
        if cursor is not None:
            if cursor < self._cursors.get(stream_id, -1):
                return
            self._cursors[stream_id] = cursor
        elif value is None:
            self._cursors.pop(stream_id, None)
        self._bytes -= len(self._records.pop(stream_id, b""))
        self._ended_ms.pop(stream_id, None)
        self._live_ms.pop(stream_id, None)
        self._uncovered.pop(stream_id, None)
        self._outboxes.pop(stream_id, None)
        if value is None:
            return
        self._note(stream_id, _head_of(value), at_ms)
        packed = zlib.compress(value, level=1)
        self._records[stream_id] = packed
        self._bytes += len(packed)
        if self._bytes > self._max_bytes:
            raise ConfigError(
                f"the states of {len(self._records)} streams exceed {self._max_bytes} bytes; "
                "(states_max_bytes): forget streams that have ended, set state_retention_h, or spread "
                "them over more partitions"
            )

    def read(self, app_id: str, key: bytes, value: bytes | None, at_ms: int) -> None:
        """Take a record of the session topic, unless another application wrote it."""
        writer = _head_of(value).app_id if value is not None else ""
        if writer not in ("", app_id):
            self.strangers[writer] = self.strangers.get(writer, 0) + 1
            return
        self.put(key.decode(errors="replace"), value, cursor_of(value), at_ms)

    def _note(self, stream_id: str, head: _Head, at_ms: int) -> None:
        self.newest_question = max(self.newest_question, head.question_cursor)
        if head.over:
            self._ended_ms[stream_id] = at_ms
        else:
            self._live_ms[stream_id] = at_ms
        if not head.over and head.uncovered_tokens > 0:
            self._uncovered[stream_id] = head.uncovered_tokens, at_ms
        if bytes(head.outbox) not in (b"", b"[]"):
            self._outboxes[stream_id] = None

    def take(self, stream_id: str) -> tuple[SessionState | None, bytes | None]:
        """Remove and return a stream's state and its raw record: (None, None) for a new stream, a state
        with only an epoch for a forgotten one.

        Raises SegmentError("state_unreadable") for a record this version cannot read: starting over
        would publish existing revisions with other content.
        """
        packed = self._records.get(stream_id)
        if packed is None:
            return self._after_forgetting(stream_id), None
        raw = zlib.decompress(packed)
        state, problem = decode_state(raw)
        if state is None:
            raise SegmentError("state_unreadable", f"the stream's session record: {problem}")
        self.put(stream_id, None)
        return state, raw

    def knows(self, stream_id: str) -> bool:
        """Whether the table has a state of the stream, ended or not."""
        return stream_id in self._records

    def is_live(self, stream_id: str) -> bool:
        """Whether the table has a state of the stream that has not ended."""
        return stream_id in self._records and stream_id not in self._ended_ms

    def ended_before(self, at_ms: int) -> list[str]:
        """Keys of streams that ended, and of records of forgotten streams written, before ``at_ms``."""
        return [name for name, ended in self._ended_ms.items() if ended < at_ms]

    def live_before(self, at_ms: int) -> list[str]:
        """Streams that have not ended, and of which nothing was written since ``at_ms``."""
        return [name for name, written in self._live_ms.items() if written < at_ms]

    def uncovered(self, least: int) -> list[tuple[str, int]]:
        """Live streams with at least ``least`` tokens that no summary covers, and when their record was
        written (Unix ms)."""
        return [(name, at) for name, (tokens, at) in self._uncovered.items() if tokens >= least]

    def outboxes(self, most: int) -> list[tuple[SessionState, list[Message]]]:
        """Remove and return states whose results may not have been published, with these results; at
        most ``most`` of them."""
        found: list[tuple[SessionState, list[Message]]] = []
        while self._outboxes and len(found) < most:
            name, _ = self._outboxes.popitem()
            raw = zlib.decompress(self._records[name])
            state, _ = decode_state(raw)
            if state is not None:  # else of a later version, which knows what to do with it
                with contextlib.suppress(msgspec.DecodeError):
                    found.append((state, pending_results(raw)))
        return found

    @property
    def newest_cursor(self) -> int:
        """The highest finished input offset of any state; -1 for none."""
        return max(self._cursors.values(), default=-1)

    def _after_forgetting(self, stream_id: str) -> SessionState | None:
        packed = self._records.get(forgotten_key(stream_id))
        if packed is None:
            return None
        try:
            return SessionState(stream_id=stream_id, epoch=forgotten_epoch(zlib.decompress(packed)))
        except msgspec.DecodeError:
            return None


class _Cursor(msgspec.Struct):
    cursor: int = -1


def cursor_of(value: bytes | None) -> int | None:
    """The cursor in a state record; None for a tombstone or a record that cannot be read."""
    try:
        return None if value is None else msgspec.json.decode(value, type=_Cursor).cursor
    except msgspec.DecodeError:
        return None


class Recovered(NamedTuple):
    sessions: SessionTable
    committed: int
    """The partition's committed input offset (0 if never)."""
    committed_question: int = 0
    """The same of the topic of questions."""
    refused_questions: frozenset[int] = frozenset()
    """Offsets behind it of questions that were refused already."""


async def recover(settings: Settings, partition: int, timeout: float) -> Recovered:
    """Read the partition's states and its committed offset.

    Raises RecoveryError after ``timeout`` seconds or when the broker refuses; ConfigError when the
    states do not fit the input, or are too large.
    """
    topic = settings.topic_sessions
    consumer = aiokafka.AIOKafkaConsumer(
        **client_options(settings),
        group_id=settings.app_id,  # for `committed` only: an assigned consumer joins no group
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=settings.max_message_bytes,
    )
    try:
        async with asyncio.timeout(timeout):
            await consumer.start()
            return await _read(consumer, settings, partition)
    except TimeoutError:
        raise RecoveryError(
            f"{topic}[{partition}] was not read within {timeout:.0f} s: an unfinished transaction may "
            "block it, or the broker is slow or unavailable"
        ) from BrokerUnavailable()
    except KafkaError as error:
        raise RecoveryError(f"{topic}[{partition}] cannot be read: {error}") from error
    finally:
        await disconnect(consumer)


async def _read(
    consumer: aiokafka.AIOKafkaConsumer, settings: Settings, partition: int
) -> Recovered:
    source = aiokafka.TopicPartition(settings.topic_segments, partition)
    tp = aiokafka.TopicPartition(settings.topic_sessions, partition)
    committed = await consumer.committed(source)
    consumer.assign([tp])
    await consumer.seek_to_beginning(tp)
    end = (await consumer.end_offsets([tp]))[tp]
    table = SessionTable(settings.states_max_bytes)
    while await consumer.position(tp) < end:
        batches = await consumer.getmany(tp, timeout_ms=POLL_MS)
        for record in batches.get(tp, ()):
            if record.key is not None and record.offset < end:
                table.read(settings.app_id, record.key, record.value, record.timestamp)
    check_owner(settings, partition, table)
    # Queried last: an earlier end could be below states that a previous owner still wrote.
    start = (await consumer.beginning_offsets([source]))[source]
    end = (await consumer.end_offsets([source]))[source]
    compare_with_input(settings, partition, committed, table.newest_cursor, start=start, end=end)
    asked = aiokafka.TopicPartition(settings.topic_questions, partition)
    committed_question = await consumer.committed(asked)
    check_questions(
        settings,
        partition,
        max(table.newest_question + 1, committed_question or 0),
        (await consumer.end_offsets([asked]))[asked],
    )
    refused = await refused_questions(consumer, settings, partition, committed_question)
    return Recovered(table, committed or 0, committed_question or 0, refused)


def check_questions(settings: Settings, partition: int, done: int, end: int) -> None:
    """Raises ConfigError when the topic of questions ends below what was answered."""
    if done > end:
        topic = settings.topic_questions
        raise ConfigError(
            f"{topic}[{partition}] ends at offset {end}, but was answered to offset {done}: it was "
            "recreated or truncated, and its questions would be skipped. Use another topic_questions"
        )


def check_owner(settings: Settings, partition: int, table: SessionTable) -> None:
    """Raises ConfigError when the states are another application's: with them this one would skip all
    input, and its results would carry ids that the other's results have. Where both wrote, which only
    happens when neither was stopped in time, the others' are left out, and the log says so."""
    if not table.strangers:
        return
    names = ", ".join(f"{name!r}" for name in sorted(table.strangers))
    place = f"{settings.topic_sessions}[{partition}]"
    advice = (
        f"give app_id={settings.app_id!r} a topic_sessions and output topics of its own, or go on with "
        f"app_id {names}"
    )
    if not len(table):
        raise ConfigError(f"{place} holds the states of app_id {names}: {advice}")
    log.error(
        "%s: %d states of app_id %s are ignored. Two applications on one topic delete each other's "
        "states: %s",
        place,
        sum(table.strangers.values()),
        names,
        advice,
    )


def compare_with_input(
    settings: Settings,
    partition: int,
    committed: int | None,
    newest_cursor: int,
    *,
    start: int,
    end: int,
) -> None:
    """Compare the states with the input partition, which holds offsets ``start`` to before ``end``.

    Raises ConfigError when the input ends below the finished offset; logs a warning when input was
    deleted unread.
    """
    topic, sessions = settings.topic_segments, settings.topic_sessions
    done = max(newest_cursor + 1, committed or 0)
    if done > end:
        group = " and choose another app_id" if committed is not None and committed > end else ""
        raise ConfigError(
            f"{topic}[{partition}] ends at offset {end}, but was processed to offset {done}: it was "
            "recreated or truncated, and its records would be skipped as duplicates. To start all "
            f"streams anew delete {sessions}, make it with `longstream topics create`{group}"
        )
    if committed is not None and committed < start:
        log.warning(
            "%s[%d]: offsets %d to %d were deleted before they were read: the retention is shorter than "
            "the workers' lag",
            topic,
            partition,
            committed,
            start - 1,
        )
