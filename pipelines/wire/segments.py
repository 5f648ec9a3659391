"""The fields of an input segment, whoever wrote them, as a :class:`~operators.events.Segment`.

What is said is worth more than what is said about it: an optional field that cannot be used is first
coerced (a number as a label, "12.5" as milliseconds), else left out and named in ``dropped``; it never
costs the words. Only what decides *whose* words these are, or whether they are words at all, refuses a
record: ``type``, ``schema``, the stream, the text. No message repeats input text, so it may go to logs,
metrics and dead-letter headers as it is.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec

from operators.errors import SegmentError
from operators.events import (
    EditOp,
    ItemEdit,
    ItemKind,
    Segment,
    SegmentType,
    Speaker,
    StreamSettings,
)

SEGMENT_SCHEMA = "transcript.segment.v1"
STREAM_ID_BYTES = 256
LABEL_CHARS = 256
MAX_COUNT = 2**62
LARGEST = 10**200
"""A number above it is nobody's label."""

REASONS = (
    "null_value",
    "invalid_utf8",
    "malformed_json",
    "malformed_avro",
    "unknown_format",
    "unknown_event",
    "several_segments",
    "schema_unavailable",
    "wrong_type",
    "unsupported_schema",
    "missing_stream_id",
    "stream_id_invalid",
    "key_mismatch",
    "wrong_partition",
    "missing_text",
    "text_too_large",
)
"""Why a record is refused. Stable words: metric labels and dead-letter headers carry them."""

FIELDS = tuple(name for name in Segment.__struct_fields__ if name not in ("settings", "edit"))
"""The fields that can be dropped: the bounded labels of the metric that counts them."""

OWN_FIELDS = frozenset(FIELDS) | frozenset(StreamSettings.__struct_fields__) | {"schema", "edit"}
"""The names that the input schema gives its fields."""
OWN_TYPES = get_args(SegmentType)

FINAL_FLAGS = ("final", "isfinal", "completed", "iscompleted", "finalized")
DRAFT_FLAGS = ("partial", "ispartial", "interim", "isinterim", "draft", "isdraft")
STATUS_FIELDS = ("status", "state", "resulttype", "transcripttype")
DRAFT_WORDS = ("partial", "interim", "draft")
_TRUE = ("true", "1", "yes", "y", "t", "on", "final")
_FALSE = ("false", "0", "no", "n", "f", "off", *DRAFT_WORDS)
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")
_T = TypeVar("_T")


class Reading(NamedTuple):
    """A segment, and the fields of which something had to be left out."""

    segment: Segment
    dropped: tuple[str, ...] = ()


class _Unusable(Exception):
    """The value cannot be what the field means."""


class Fields:
    """One record's fields, read by name; notes those that could not be used."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.dropped: list[str] = []

    def read(self, name: str, as_type: Callable[[Any], _T]) -> _T | None:
        """The field by ``as_type``; None if it is not given (null is "not given"), or not usable."""
        value = self.given.get(name)
        if value is None:
            return None
        try:
            return as_type(value)
        except _Unusable:
            self.drop(name)
            return None

    def drop(self, name: str) -> None:
        if name not in self.dropped:
            self.dropped.append(name)

    def label(self, name: str) -> str | None:
        return self.mended(name, self.read(name, _label))

    def text(self, name: str) -> str | None:
        return self.mended(name, self.read(name, as_text))

    def mended(self, name: str, text: str | None) -> str | None:
        """``text`` without unpaired surrogates, which are no characters: U+FFFD stands for them."""
        if text is None or text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            self.drop(name)
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text


def read_segment(
    given: Mapping[str, Any],
    *,
    key: str | None = None,
    default_id: str,
    max_text_bytes: int,
) -> Reading:
    """The fields of the input schema as a segment. ``key``: the Kafka key, which names the stream too.

    Raises SegmentError (:data:`REASONS`) for what cannot be used at all.
    """
    fields = Fields(given)
    kind, draft = _type(given)
    stream_id = stream_of(fields, key)
    text = fields.mended("text", _text(given.get("text")))
    is_final = not draft and _is_final(fields)
    _check_text(text, kind, max_text_bytes)
    segment = Segment(
        stream_id=stream_id,
        type=kind,
        text=clean(text or ""),
        seq=fields.read("seq", as_count),
        segment_id=clean(fields.label("segment_id") or "") or default_id,
        revision=fields.read("revision", as_count) or 0,
        is_final=is_final,
        end_of_turn=fields.read("end_of_turn", _flag) is not False,
        speaker=_speaker(fields),
        start_ms=fields.read("start_ms", as_millis),
        end_ms=fields.read("end_ms", as_millis),
        language=_cleaned(fields.label("language")),
        confidence=fields.read("confidence", _number),
        tenant=_cleaned(fields.label("tenant")),
        emitted_at_ms=fields.read("emitted_at_ms", as_count),
        settings=_settings(given) if kind in ("session_start", "session_update") else None,
        edit=_edit(given) if kind == "edit" else None,
    )
    return Reading(segment, tuple(fields.dropped))


def clean(text: str) -> str:
    """Control characters (Unicode Cc) as spaces, one for one: a line break could pose as another
    speaker's line in a prompt."""
    return text if text.isprintable() else text.translate(_CONTROL)


# --- what refuses a record -----------------------------------------------------------------------


def _type(given: Mapping[str, Any]) -> tuple[SegmentType, bool]:
    """The record's type, and whether that says it is a draft."""
    if given.get("schema") not in (None, SEGMENT_SCHEMA):
        raise SegmentError("unsupported_schema", f"schema: only {SEGMENT_SCHEMA} is understood")
    kind = given.get("type")
    if kind is None or kind == "final":
        return "segment", False
    if isinstance(kind, str) and kind in DRAFT_WORDS:
        return "segment", True
    if not isinstance(kind, str) or kind not in OWN_TYPES:
        known = ", ".join(OWN_TYPES)
        raise SegmentError("wrong_type", f"type: Expected one of {known}")
    return kind, False  # type: ignore[return-value]


def stream_of(fields: Fields, key: str | None) -> str:
    """The stream a record belongs to. Raises SegmentError."""
    return _stream_id(_given_stream(fields, key), key)


def _given_stream(fields: Fields, key: str | None) -> str | None:
    """The record's own stream_id. One that is no label is left out where the key names the stream."""
    value = fields.given.get("stream_id")
    try:
        name = None if value is None else as_text(value)
    except _Unusable:
        if not key:
            raise SegmentError("wrong_type", "stream_id: Expected a string or a number") from None
        fields.drop("stream_id")
        return None
    return fields.mended("stream_id", name)


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
    if stream_id != clean(stream_id) or stream_id.isspace():
        raise SegmentError("stream_id_invalid", "stream_id is blank or holds control characters")
    return stream_id


def _text(value: Any) -> str | None:
    try:
        return None if value is None else as_text(value)
    except _Unusable:
        raise SegmentError("wrong_type", "text: Expected a string") from None


def _check_text(text: str | None, kind: str, max_bytes: int) -> None:
    if text is not None and (size := _bytes(text)) > max_bytes:
        raise SegmentError(
            "text_too_large",
            f"text has {size} bytes, the limit is {max_bytes} (operator.max_text_bytes)",
        )
    if kind == "segment" and text is None:
        raise SegmentError("missing_text", "a segment needs text")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# --- what is coerced, or left out ------------------------------------------------------------------


def _is_final(fields: Fields) -> bool:
    """Whether the text is final: by ``is_final``, else by a field that says the same in other words.

    A usable ``is_final`` decides. Without it, one flag that says "draft" is enough: a draft taken as
    final text would stay in the stream's memory, a final taken as a draft is followed by another.
    """
    own = fields.read("is_final", _flag)
    if own is not None:
        return own
    if fields.given.keys() <= OWN_FIELDS:
        return True
    said = {_plain(name): value for name, value in fields.given.items()}
    finals = [_flag_or_none(said.get(name)) for name in FINAL_FLAGS]
    drafts = [_flag_or_none(said.get(name)) for name in DRAFT_FLAGS]
    words = [said.get(name) for name in STATUS_FIELDS]
    is_draft = any(isinstance(word, str) and word.lower() in DRAFT_WORDS for word in words)
    return not (False in finals or True in drafts or is_draft)


def _plain(name: str) -> str:
    """isFinal, is_final and IsFinal are one name."""
    return name.replace("_", "").replace("-", "").lower()


def _flag_or_none(value: Any) -> bool | None:
    try:
        return None if value is None else _flag(value)
    except _Unusable:
        return None


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (word := value.strip().lower()) in (*_TRUE, *_FALSE):
        return word in _TRUE
    raise _Unusable


def _speaker(fields: Fields) -> Speaker | None:
    """An object, a name, or a diarizer's number, which is an id."""
    given = fields.given.get("speaker")
    if given is None or given == "":
        return None
    if isinstance(given, Mapping):
        parts = Fields(given)
        found = Speaker(id=_cleaned(parts.label("id")), name=_cleaned(parts.label("name")))
        if parts.dropped:
            fields.drop("speaker")
        return found if found != Speaker() or not parts.dropped else None
    label = _cleaned(fields.label("speaker"))
    if label is None:
        return None
    return Speaker(name=label) if isinstance(given, str) else Speaker(id=label)


def _edit(given: Mapping[str, Any]) -> ItemEdit:
    """A person's edit. Raises SegmentError: one that is not understood must not change another note."""
    asked = given.get("edit")
    if not isinstance(asked, Mapping) or asked.get("op") not in get_args(EditOp):
        raise SegmentError(
            "wrong_type", f"edit: Expected op as one of {', '.join(get_args(EditOp))}"
        )
    fields = Fields(asked)
    kind = asked.get("kind")
    if kind not in (None, *get_args(ItemKind)):
        raise SegmentError("wrong_type", f"edit.kind: one of {', '.join(get_args(ItemKind))}")
    found = ItemEdit(
        op=asked["op"],
        item=_cleaned(fields.text("item")) or "",
        kind=kind,
        text=_cleaned(fields.text("text")),
        owner=_cleaned(fields.text("owner")),
        due=_cleaned(fields.text("due")),
    )
    if fields.dropped:
        raise SegmentError("wrong_type", f"edit.{fields.dropped[0]}: Expected a string")
    return found


def _settings(given: Mapping[str, Any]) -> StreamSettings | None:
    """What the stream asks for; None if the record says nothing of it. The engine sets the limits."""
    fields = Fields(given)

    def line(name: str) -> str | None:
        return _cleaned(fields.text(name))

    found = StreamSettings(
        title=line("title"),
        targets=fields.read("targets", lambda value: _lines(value, fields, "targets")),
        summary_language=line("summary_language"),
        style=line("style"),
        template=fields.text("template"),
        glossary=fields.read("glossary", lambda value: _glossary(value, fields)),
        participants=fields.read(
            "participants", lambda value: _lines(value, fields, "participants")
        ),
        instructions=line("instructions"),
    )
    found = msgspec.structs.replace(found, dropped=tuple(fields.dropped))
    return None if found == StreamSettings() else found


def _lines(value: Any, fields: Fields, name: str) -> tuple[str, ...]:
    """A list of names, each a text or an object with a ``name``; or one text, with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise _Unusable
    found = []
    for entry in value:
        try:
            text = as_text(entry.get("name") if isinstance(entry, Mapping) else entry)
        except _Unusable:
            fields.drop(name)
            continue
        found.append(clean(fields.mended(name, text) or "").strip())
    return tuple(found)


def _glossary(value: Any, fields: Fields) -> dict[str, dict[str, str]]:
    """A list of terms that stand as they are; or an object of terms, each with one rendering for all
    languages, an object of renderings by language code, or null."""
    if isinstance(value, list | tuple):
        value = dict.fromkeys(_lines(value, fields, "glossary"))
    if not isinstance(value, Mapping):
        raise _Unusable
    found: dict[str, dict[str, str]] = {}
    for term, given in value.items():
        given = {"*": given} if isinstance(given, str) else given or {}
        if not isinstance(given, Mapping):
            fields.drop("glossary")
            continue
        texts = {code: text for code, text in given.items() if isinstance(text, str)}
        if len(texts) < len(given):
            fields.drop("glossary")

        def tidy(text: str) -> str:
            return clean(fields.mended("glossary", text) or "").strip()

        found[tidy(term)] = {tidy(code): tidy(text) for code, text in texts.items()}
    return found


def _label(value: Any) -> str:
    text = as_text(value)
    if len(text) > LABEL_CHARS:
        raise _Unusable
    return text


def as_text(value: Any) -> str:
    """A string as it is, a number in decimal digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _Unusable
    if not isinstance(value, int):
        _number(value)  # finite
    if value > LARGEST or value < -LARGEST:
        raise _Unusable
    return str(int(value)) if value == int(value) else str(value)


def _number(value: Any) -> float:
    """A finite number, also one written as a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise _Unusable
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Unusable from None
    if not math.isfinite(number):
        raise _Unusable
    return number


def _whole(value: Any) -> int:
    if isinstance(value, datetime.datetime):
        return round(value.timestamp() * 1000)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) < 30:
        try:
            return int(value)
        except ValueError:
            pass
    return round(_number(value))


def as_millis(value: Any) -> int:
    number = _whole(value)
    if abs(number) > MAX_COUNT:
        raise _Unusable
    return number


def as_count(value: Any) -> int:
    number = _whole(value)
    if not 0 <= number <= MAX_COUNT:
        raise _Unusable
    return number


def _cleaned(text: str | None) -> str | None:
    return None if text is None else clean(text)
