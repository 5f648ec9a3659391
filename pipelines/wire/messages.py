"""Events and refused records as the messages that go to Kafka."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from operators.errors import LongstreamError
from operators.events import Event, SummaryEvent, TranslationEvent, event_id, task_of
from pipelines.config.load import Settings
from pipelines.kafka.publishers import Message
from pipelines.wire import codec
from pipelines.wire.dead_letters import Headers, dead_letter

DEAD_LETTER_ROOM = 16 << 10
"""Bytes kept free for the headers a dead letter adds."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def status_of(event: Event) -> str:
    """Whether more is to come of the same: "partial" or "final", as metrics name it."""
    if isinstance(event, SummaryEvent):
        return event.status
    return "final" if not isinstance(event, TranslationEvent) or event.is_final else "partial"


def complete(event: Event, topic: str, partition: int) -> Event:
    """The event with what the engine cannot know: where its input lay, its id, and the time."""
    source = msgspec.structs.replace(event.source, topic=topic, partition=partition)
    return msgspec.structs.replace(
        event,
        source=source,
        event_id=event_id(event.stream_id, task_of(event), event.epoch, event.revision),
        emitted_at_ms=now_ms(),
    )


def messages_of(
    events: list[Event], settings: Settings, traceparent: bytes | None
) -> list[Message]:
    """The records for completed events, in order; the last summary also as the stream's latest."""
    messages = []
    latest: Message | None = None
    for event in events:
        is_summary = isinstance(event, SummaryEvent)
        message = Message(
            topic=settings.topic_summaries if is_summary else settings.topic_translations,
            key=codec.event_key(event),
            value=codec.encode_event(event),
            headers=list(codec.event_headers(event, traceparent)),
        )
        messages.append(message)
        if is_summary:
            latest = msgspec.structs.replace(message, topic=settings.topic_summaries_latest)
    if latest is not None:
        messages.append(latest)
    return messages


def dead_letter_of(
    message: Any,
    settings: Settings,
    *,
    stage: str,
    reason: str,
    text: str,
    attempts: int = 1,
    retryable: bool = False,
) -> Message:
    """The dead letter for one Faust/aiokafka input message."""
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
        max_bytes=settings.max_message_bytes - DEAD_LETTER_ROOM,
    )
    if key is None and value is None:
        # A record of neither key nor value cannot be written; an empty value says the same.
        value = b""
    return Message(settings.topic_dlq, key, value, all_headers)


def reason_of(error: LongstreamError) -> str:
    return str(getattr(error, "reason", type(error).__name__))
