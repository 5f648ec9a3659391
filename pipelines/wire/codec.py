"""Bytes on Kafka topics to typed values and back. Pure functions; nothing here talks to a broker.

Input records are read by :mod:`pipelines.wire.decoding`, transcript files by
:mod:`pipelines.wire.transcripts`; both are named here too.
"""

from __future__ import annotations

import datetime
import re

import msgspec

from operators.errors import LongstreamError, SegmentError
from operators.events import AnyEvent, Segment
from operators.state import STATE_FORMAT, SessionState
from pipelines.wire.dead_letters import Header, dead_letter, header, original_headers
from pipelines.wire.decoding import decode_segment
from pipelines.wire.segments import REASONS, SEGMENT_SCHEMA, STREAM_ID_BYTES
from pipelines.wire.transcripts import read_transcript

__all__ = [
    "REASONS",
    "SEGMENT_SCHEMA",
    "STATE_SCHEMA",
    "STREAM_ID_BYTES",
    "SegmentError",
    "cloud_event_headers",
    "dead_letter",
    "decode_event",
    "decode_segment",
    "decode_state",
    "encode_event",
    "encode_segment",
    "encode_state",
    "event_headers",
    "event_key",
    "header",
    "original_headers",
    "read_transcript",
]

STATE_SCHEMA = "insight.session.v1"
TRACE_BYTES = 256

_TRACE = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)


# --- segments --------------------------------------------------------------------------------


def encode_segment(segment: Segment) -> bytes:
    """The JSON value of an input record; what is None is left out. Inverse of decode_segment."""
    fields = msgspec.to_builtins(segment)
    settings = fields.pop("settings") or {}
    settings.pop("dropped", None)
    fields = {k: v for k, v in (fields | settings).items() if v is not None}
    return msgspec.json.encode({"schema": SEGMENT_SCHEMA, **fields})


# --- events and session state ------------------------------------------------------------------

_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_state_decoder = msgspec.json.Decoder(SessionState)


def encode_event(event: AnyEvent) -> bytes:
    """The JSON value of an output record; its first field is ``schema``."""
    return msgspec.json.encode(event)


def decode_event(value: bytes) -> AnyEvent:
    """Read an output record. Raises ``LongstreamError`` when it is no event of a known schema."""
    try:
        return _event_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LongstreamError(f"not an event this version can read: {error}") from None


def event_key(event: AnyEvent) -> bytes:
    return event.stream_id.encode()


def event_headers(
    event: AnyEvent,
    traceparent: bytes | str | None = None,
    source_offset: int | None = None,
) -> list[Header]:
    """Headers of an output record. ``source_offset`` defaults to the event's last input offset. A
    ``traceparent`` that is none (W3C Trace Context) is left out: it is a stranger's, and would be
    copied onto every result, however long."""
    if source_offset is None:
        source_offset = event.source.last_offset
    schema = str(type(event).__struct_config__.tag)
    headers = [("content-type", b"application/json"), ("schema", schema.encode())]
    if source_offset >= 0:
        headers.append(("source-offset", str(source_offset).encode()))
    trace = traceparent.encode() if isinstance(traceparent, str) else traceparent
    if trace and len(trace) <= TRACE_BYTES and _TRACE.fullmatch(trace):
        headers.append(("traceparent", trace))
    return headers


def cloud_event_headers(event: AnyEvent, source: str) -> list[Header]:
    """The event as a CloudEvent 1.0 in Kafka's binary mode: attributes in headers, the value unchanged.
    Nothing without a ``source``, the URI reference that says where the events come from."""
    if not source:
        return []
    schema = str(type(event).__struct_config__.tag)
    when = datetime.datetime.fromtimestamp(event.emitted_at_ms / 1000, datetime.UTC)
    attributes = {
        "specversion": "1.0",
        "id": event.event_id,
        "source": source,
        "type": schema,
        "subject": event.stream_id,
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return [(f"ce_{name}", value.encode()) for name, value in attributes.items()]


def encode_state(state: SessionState, app_id: str | None = None) -> bytes:
    """The JSON value of a state record. ``app_id``: of the application that writes it, if it does."""
    if app_id is not None:
        state = msgspec.structs.replace(state, format=STATE_FORMAT, app_id=app_id)
    return msgspec.json.encode(state)


def decode_state(value: bytes | None) -> tuple[SessionState | None, str | None]:
    """A record of the session topic as ``(state, None)``, or ``(None, why it is not one)``.

    Never raises: recovery reads whatever is on the topic, also tombstones and records of other
    versions, and one bad record must not keep a partition's other streams from starting.
    """
    if value is None:
        return None, "tombstone"
    try:
        state = _state_decoder.decode(value)
        if state.format > STATE_FORMAT:
            return None, f"of format {state.format}, and this version reads {STATE_FORMAT}"
        return state, None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return None, f"not an {STATE_SCHEMA} record: {error}"
