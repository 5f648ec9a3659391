"""Bytes on Kafka topics to typed values and back. Pure functions; nothing here talks to a broker.

Input is judged, never trusted: whatever the bytes, :func:`decode_segment` either returns a
:class:`~operators.events.Segment` the engine can take or raises ``SegmentError`` with one of
:data:`REASONS`. No such message repeats input text, so it may go to logs, metrics
and dead-letter headers as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, get_args, overload

import msgspec
from msgspec import Meta

from operators.errors import LongstreamError, SegmentError
from operators.events import Event, Segment, SegmentType, Speaker
from operators.state import SessionState
from pipelines.wire.dead_letters import Header, Headers, dead_letter, header, original_headers

__all__ = [
    "REASONS",
    "SEGMENT_SCHEMA",
    "STATE_SCHEMA",
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

SEGMENT_SCHEMA = "transcript.segment.v1"
STATE_SCHEMA = "insight.session.v1"
STREAM_ID_BYTES = 256
TRACE_BYTES = 256

REASONS = (
    "null_value",
    "invalid_utf8",
    "malformed_json",
    "wrong_type",
    "unsupported_schema",
    "missing_stream_id",
    "stream_id_invalid",
    "key_mismatch",
    "missing_text",
    "text_too_large",
)
"""Why a segment is refused. Stable words: metric labels and dead-letter headers carry them."""

_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Millis = Annotated[int, Meta(ge=-(2**62), le=2**62)]
_Label = Annotated[str, Meta(max_length=256)]
_TRACE = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")


# --- segments --------------------------------------------------------------------------------


class _WireSpeaker(msgspec.Struct):
    id: _Label | None = None
    name: _Label | None = None


class _WireSegment(msgspec.Struct):
    """The JSON of a segment as producers write it. null means "not given"; unknown fields pass."""

    schema: str | None = None
    type: str | None = None
    stream_id: str | None = None
    text: str | None = None
    seq: _Count | None = None
    segment_id: _Label | None = None
    revision: _Count | None = None
    is_final: bool | None = None
    end_of_turn: bool | None = None
    speaker: _WireSpeaker | _Label | None = None
    start_ms: _Millis | None = None
    end_ms: _Millis | None = None
    language: _Label | None = None
    confidence: float | None = None
    tenant: _Label | None = None
    emitted_at_ms: _Count | None = None


_segment_decoder = msgspec.json.Decoder(_WireSegment)


def decode_segment(
    key: bytes | None,
    value: bytes | None,
    headers: Headers = None,
    *,
    partition: int,
    offset: int,
    max_text_bytes: int,
) -> Segment:
    """One input record as a segment: a JSON object, or plain text with the stream id as key.

    A value whose first non-space character is ``{`` is JSON unless the header ``content-type`` says
    ``text/plain``. Control characters in text and labels become spaces (a line break could pose as
    another speaker's line in a prompt); all else is kept verbatim. ``segment_id`` defaults to
    ``"partition-offset"``, which a replay reproduces; ``seq`` stays None for the engine to count.

    A record without key is accepted when its JSON names the stream; its producer then has to keep
    the stream on one partition by itself.

    Raises ``SegmentError`` (see :data:`REASONS`) and nothing else.
    """
    if value is None:
        raise SegmentError(
            "null_value", "the value is null; end a stream with type session_end, not a tombstone"
        )
    text = _utf8(value, "value")
    name = _utf8(key, "key") if key else None
    content_type = header(headers, "content-type") or b""
    if text.lstrip().startswith("{") and not content_type.startswith(b"text/plain"):
        wire = _parse(text)
    else:
        wire = _WireSegment(text=text)
    return _segment(wire, name, f"{partition}-{offset}", max_text_bytes)


def encode_segment(segment: Segment) -> bytes:
    """The JSON value of an input record; what is None is left out. Inverse of decode_segment."""
    fields = {k: v for k, v in msgspec.to_builtins(segment).items() if v is not None}
    return msgspec.json.encode({"schema": SEGMENT_SCHEMA, **fields})


def read_transcript(path: str | Path, stream_id: str | None = None) -> Iterator[Segment]:
    """The segments of a transcript file, or of standard input if ``path`` is "-".

    A file is JSON lines (one segment object each, in the schema of the input topic) if it is named
    ``.jsonl``, ``.ndjson`` or ``.json`` or its first line starts with ``{``; else plain text, one
    segment per line. Empty lines are skipped. ``stream_id`` wins over the one in the lines; where
    neither gives one it is the file's name without suffix. ``segment_id`` stays empty unless given:
    it follows from the offset the record gets.

    Raises ``SegmentError`` whose message starts with "FILE, line N:".
    """
    if str(path) == "-":
        yield from _read_lines(sys.stdin.buffer, "standard input", stream_id, "stdin", False)
        return
    path = Path(path)
    is_json = path.suffix in (".jsonl", ".ndjson", ".json")
    with path.open("rb") as lines:
        yield from _read_lines(lines, path.name, stream_id, path.stem, is_json)


def _read_lines(
    lines: Iterable[bytes], name: str, stream_id: str | None, fallback: str, is_json: bool
) -> Iterator[Segment]:
    first = True
    for number, line in enumerate(lines, start=1):
        try:
            text = _utf8(line, "line").strip()
            if not text:
                continue
            if first:
                is_json, first = is_json or text.startswith("{"), False
            wire = _parse(text) if is_json else _WireSegment(text=text)
            wire.stream_id = stream_id or wire.stream_id or fallback
            yield _segment(wire, None, "", max_text_bytes=1 << 62)
        except SegmentError as error:
            raise SegmentError(error.reason, f"{name}, line {number}: {error}") from None


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SegmentError(
            "invalid_utf8", f"the {what} is not UTF-8 (first bad byte at {error.start})"
        ) from None


def _parse(text: str) -> _WireSegment:
    try:
        return _segment_decoder.decode(text)
    except msgspec.ValidationError as error:
        raise SegmentError("wrong_type", _type_sentence(str(error))) from None
    except msgspec.DecodeError as error:
        raise SegmentError("malformed_json", str(error)) from None
    except RecursionError:
        raise SegmentError("malformed_json", "JSON is malformed: nested too deeply") from None


def _type_sentence(message: str) -> str:
    """msgspec's "Expected `str | null`, got `int` - at `$.text`" with the field in front.

    It names types and our own fields only, never a value: the wire struct has no enumerations,
    whose errors would quote the input.
    """
    expected, _, path = message.partition(" - at ")
    field = path.strip("`").removeprefix("$.") or "the value"
    return f"{field}: {expected}"


def _segment(wire: _WireSegment, key: str | None, default_id: str, max_text_bytes: int) -> Segment:
    """Apply defaults and the rules types cannot say."""
    if wire.schema not in (None, SEGMENT_SCHEMA):
        raise SegmentError("unsupported_schema", f"schema: only {SEGMENT_SCHEMA} is understood")
    if wire.type is not None and wire.type not in get_args(SegmentType):
        raise SegmentError(
            "wrong_type", f"type: Expected one of {', '.join(get_args(SegmentType))}"
        )
    stream_id = _stream_id(wire.stream_id, key)
    is_final = wire.is_final is not False
    kind: SegmentType = wire.type or "segment"  # type: ignore[assignment]
    _check_text(wire.text, kind, is_final, max_text_bytes)
    return Segment(
        stream_id=stream_id,
        type=kind,
        text=_clean(wire.text) or "",
        seq=wire.seq,
        segment_id=_clean(wire.segment_id) or default_id,
        revision=wire.revision or 0,
        is_final=is_final,
        end_of_turn=wire.end_of_turn is not False,
        speaker=_speaker(wire.speaker),
        start_ms=wire.start_ms,
        end_ms=wire.end_ms,
        language=_clean(wire.language),
        confidence=wire.confidence,
        tenant=_clean(wire.tenant),
        emitted_at_ms=wire.emitted_at_ms,
    )


def _stream_id(given: str | None, key: str | None) -> str:
    """The stream a record belongs to. The key decides the partition, so it must not disagree."""
    if given and key and given != key:
        raise SegmentError(
            "key_mismatch",
            "the Kafka key and stream_id differ; the key decides the partition, so send the same "
            "in both or leave stream_id out",
        )
    stream_id = given or key
    if not stream_id:
        raise SegmentError(
            "missing_stream_id", "no stream_id: set it in the JSON value or as the Kafka key"
        )
    if len(stream_id.encode()) > STREAM_ID_BYTES:
        raise SegmentError(
            "stream_id_invalid", f"stream_id is longer than {STREAM_ID_BYTES} bytes of UTF-8"
        )
    # Event ids join fields with a control character: without them in stream ids none can collide.
    if stream_id != _clean(stream_id) or stream_id.isspace():
        raise SegmentError("stream_id_invalid", "stream_id is blank or holds control characters")
    return stream_id


def _check_text(text: str | None, kind: str, is_final: bool, max_bytes: int) -> None:
    if text is not None and (size := len(text.encode())) > max_bytes:
        raise SegmentError(
            "text_too_large",
            f"text has {size} bytes, the limit is {max_bytes} (operator.max_text_bytes)",
        )
    if kind != "segment":
        return
    # A blank partial takes back an earlier one; a blank final says nothing.
    if text is None or (is_final and not _clean(text).strip()):
        raise SegmentError("missing_text", "a segment needs text")


@overload
def _clean(text: str) -> str: ...
@overload
def _clean(text: str | None) -> str | None: ...
def _clean(text: str | None) -> str | None:
    """Control characters (Unicode Cc) as spaces, one for one."""
    return text if text is None else text.translate(_CONTROL)


def _speaker(given: _WireSpeaker | str | None) -> Speaker | None:
    if isinstance(given, str):
        return Speaker(name=_clean(given)) if given else None
    return Speaker(id=_clean(given.id), name=_clean(given.name)) if given else None


# --- events and session state ------------------------------------------------------------------

_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_state_decoder = msgspec.json.Decoder(SessionState)


def encode_event(event: Event) -> bytes:
    """The JSON value of an output record; its first field is ``schema``."""
    return msgspec.json.encode(event)


def decode_event(value: bytes) -> Event:
    """Read an output record. Raises ``LongstreamError`` when it is no event of a known schema."""
    try:
        return _event_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LongstreamError(f"not an event this version can read: {error}") from None


def event_key(event: Event) -> bytes:
    return event.stream_id.encode()


def event_headers(
    event: Event,
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


def encode_state(state: SessionState) -> bytes:
    return msgspec.json.encode(state)


def decode_state(value: bytes | None) -> tuple[SessionState | None, str | None]:
    """A record of the session topic as ``(state, None)``, or ``(None, why it is not one)``.

    Never raises: recovery reads whatever is on the topic, also tombstones and records of other
    versions, and one bad record must not keep a partition's other streams from starting.
    """
    if value is None:
        return None, "tombstone"
    try:
        return _state_decoder.decode(value), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return None, f"not an {STATE_SCHEMA} record: {error}"
