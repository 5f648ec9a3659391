"""Events, refused records and stream states as the messages that go to Kafka."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from operators.errors import ConfigError
from operators.events import (
    AnswerEvent,
    AnyEvent,
    ModelInfo,
    Question,
    Source,
    SummaryEvent,
    TranslationEvent,
    event_id,
    task_of,
)
from operators.state import STATE_FORMAT, SessionState
from pipelines.config.load import Settings
from pipelines.wire import codec
from pipelines.wire.dead_letters import Headers, dead_letter, size_of

log = logging.getLogger(__name__)

E = TypeVar("E", bound=AnyEvent)
QUESTION_CHARS = 280
DEAD_LETTER_ROOM = 16 << 10
"""Bytes kept free for the headers a dead letter adds."""
FORGOTTEN_SCHEMA = "insight.forgotten.v1"
MESSAGE_ROOM = 1 << 10
"""For what Kafka puts around a batch of one message (a topic's limit is one on batches), and for the
headers of a state."""


LEARNED = 0.9
"""Of the size of a message that was refused: what is tried next."""
LEAST_BYTES = 2 << 10


class MessageLimit:
    """The largest message the topics take, for all partitions of a worker. A broker that may not be
    asked for it tells it by what it refuses."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = max_bytes
        self.singly = False
        """Every message is sent as a batch of its own: a batch was refused."""

    @property
    def content(self) -> int:
        """Bytes a message itself may have (:attr:`Message.size`)."""
        return self.bytes - MESSAGE_ROOM

    def learn(self, refused: int | None) -> None:
        """A message of ``refused`` bytes was too large; None: a batch of several was. Raises ConfigError
        for a message that nobody can do without."""
        if refused is None:
            self.singly = True
            log.warning("a topic refuses a batch: each message is sent alone from now on")
            return
        self.bytes = min(self.bytes, int(refused * LEARNED) + MESSAGE_ROOM)
        if self.bytes < LEAST_BYTES:
            raise ConfigError(
                f"a topic refuses a message of {refused} bytes: raise its max.message.bytes"
            )
        log.warning(
            "a topic refuses a message of %d bytes: this worker writes none above %d from now on",
            refused,
            self.content,
        )


class Message(msgspec.Struct, frozen=True):
    """One record to write; its partition is that of the input."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] = []

    @property
    def size(self) -> int:
        """Bytes on the wire, at most; :data:`MESSAGE_ROOM` is left for what holds it there."""
        return size_of(self.key, self.value, self.headers)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def status_of(event: AnyEvent) -> str:
    """Whether more is to come of the same: "partial" or "final", as metrics name it."""
    if isinstance(event, SummaryEvent):
        return event.status
    return "final" if not isinstance(event, TranslationEvent) or event.is_final else "partial"


def complete(event: E, topic: str, partition: int) -> E:
    """The event with what the engine cannot know: where its input lay, its id, and the time."""
    task = task_of(event)
    if isinstance(event, AnswerEvent) and not event.revision:
        # A stream that is not known counts no revisions: the question tells such answers apart.
        task = f"{task}:{event.question_id}"
    return msgspec.structs.replace(
        event,
        source=msgspec.structs.replace(event.source, topic=topic, partition=partition),
        event_id=event_id(event.stream_id, task, event.epoch, event.revision),
        emitted_at_ms=now_ms(),
    )


def messages_of(
    events: Sequence[AnyEvent], settings: Settings, traceparent: bytes | None
) -> list[Message]:
    """The records for completed events, in order; the last summary also as the stream's latest."""
    messages = []
    latest: Message | None = None
    for event in events:
        is_summary = isinstance(event, SummaryEvent)
        message = Message(
            topic=_topic_of(event, settings),
            key=codec.event_key(event),
            value=codec.encode_event(event),
            headers=[
                *codec.event_headers(event, traceparent),
                *codec.cloud_event_headers(event, settings.cloudevents_source),
            ],
        )
        messages.append(message)
        if is_summary:
            latest = msgspec.structs.replace(message, topic=settings.topic_summaries_latest)
    if latest is not None:
        messages.append(latest)
    return messages


def _topic_of(event: AnyEvent, settings: Settings) -> str:
    match event:
        case SummaryEvent():
            return settings.topic_summaries
        case AnswerEvent():
            return settings.topic_answers
        case _:
            return settings.topic_translations


UNKNOWN_STREAM = "unknown_stream"
"""In ``degraded`` of an answer: nothing is known of the stream that was asked about."""


def unknown_stream(question: Question, offset: int) -> AnswerEvent:
    """The answer to a question about a stream of which nothing is known. It is not kept."""
    return AnswerEvent(
        stream_id=question.stream_id,
        epoch=0,
        revision=0,
        question_id=question.question_id,
        kind=question.kind,
        question=question.text[:QUESTION_CHARS],
        refused=True,
        source=Source(first_offset=offset, last_offset=offset),
        model=ModelInfo(),
        degraded=(UNKNOWN_STREAM,),
    )


def dead_letter_of(
    message: Any,
    settings: Settings,
    *,
    stage: str,
    reason: str,
    text: str,
    attempts: int = 1,
    retryable: bool = False,
    max_bytes: int | None = None,
) -> Message:
    """The dead letter for one Faust/aiokafka input message, of at most ``max_bytes`` (default: the
    setting)."""
    most = settings.max_message_bytes if max_bytes is None else max_bytes
    headers: Headers = message.headers
    key, value, all_headers = dead_letter(
        message.key,
        message.value,
        headers,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        stage=stage,
        reason=reason,
        message=text,
        attempts=attempts,
        retryable=retryable,
        failed_at_ms=now_ms(),
        max_bytes=max(most - DEAD_LETTER_ROOM, most // 4),
    )
    if key is None and value is None:
        # A record of neither key nor value cannot be written; an empty value says the same.
        value = b""
    return Message(settings.topic_dlq, key, value, all_headers)


def letter_of_result(message: Message, settings: Settings, limit: MessageLimit) -> Message:
    """The dead letter for a result that fits no topic and follows from no record: as much of the result
    as there is room for."""
    key, value, headers = dead_letter(
        message.key,
        message.value,
        message.headers,
        topic=message.topic,
        partition=-1,
        offset=-1,
        stage="publish",
        reason="result_too_large",
        message=f"a result of {message.size} bytes, and a message may have {limit.content}",
        attempts=1,
        retryable=False,
        failed_at_ms=now_ms(),
        max_bytes=max(limit.content - DEAD_LETTER_ROOM, limit.content // 4),
    )
    return Message(settings.topic_dlq, key, value, headers)


# --- the session topic -------------------------------------------------------------------------


def state_message(
    settings: Settings,
    stream_id: str,
    state: SessionState | None,
    outbox: list[Message] | None = None,
) -> Message:
    if state is None:
        return Message(settings.topic_sessions, stream_id.encode(), None)
    value = codec.encode_state(state, settings.app_id)
    if outbox:
        # The reader of a state skips fields it does not know, so the outbox can ride along.
        fields = msgspec.json.decode(value)
        value = msgspec.json.encode({**fields, "outbox": outbox})
    headers: list[tuple[str, bytes | None]] = [
        ("content-type", b"application/json"),
        ("schema", state.schema.encode()),
    ]
    return Message(settings.topic_sessions, stream_id.encode(), value, headers)


class _Outbox(msgspec.Struct):
    outbox: list[Message] = []


def pending_results(raw_state: bytes) -> list[Message]:
    """Results in a state record that may not have been published (empty without an outbox)."""
    return msgspec.json.decode(raw_state, type=_Outbox).outbox


class _Forgotten(msgspec.Struct):
    epoch: int
    schema: str = FORGOTTEN_SCHEMA
    format: int = STATE_FORMAT
    app_id: str = ""


def forgotten_key(stream_id: str) -> str:
    """The key under which the session topic keeps a forgotten stream's next epoch.

    Without this record a stream of the same name would start in epoch 0 again, and revisions that
    consumers may still hold would get a second content. The key is a hash, so the record does not
    reveal the name. The control character keeps it apart from every stream id.
    """
    return "\x00" + hashlib.sha256(stream_id.encode()).hexdigest()


def is_forgotten_key(key: str) -> bool:
    return key.startswith("\x00")


def forgotten_value(epoch: int, app_id: str = "") -> bytes:
    """The value of that record; ``epoch``: the one the stream starts in next time."""
    return msgspec.json.encode(_Forgotten(epoch, app_id=app_id))


def forgotten_epoch(value: bytes) -> int:
    """The epoch in that record. Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(value, type=_Forgotten).epoch


def deletion_messages(settings: Settings, stream_id: str, epoch: int) -> list[Message]:
    """The tombstone of a stream's latest summary, and the record of its next epoch. The tombstone of
    its state is written with the states (:class:`~pipelines.kafka.publishers.Group`)."""
    key = forgotten_key(stream_id).encode()
    return [
        Message(settings.topic_summaries_latest, stream_id.encode(), None),
        Message(settings.topic_sessions, key, forgotten_value(epoch, settings.app_id)),
    ]
