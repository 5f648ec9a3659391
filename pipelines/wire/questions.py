"""Records of the topic of questions, and questions as written on a command line.

As with segments, what cannot be used is coerced or left out, except what decides which stream is asked,
what is asked, and under which name. Nothing here talks to a broker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec

from operators.errors import SegmentError
from operators.events import Question, QuestionKind
from pipelines.wire.dead_letters import Headers
from pipelines.wire.framing import unpack, utf8
from pipelines.wire.partitioning import check_partition
from pipelines.wire.schema_registry import Schemas
from pipelines.wire.segments import Fields, as_count, as_millis, clean, stream_of

QUESTION_SCHEMA = "insight.question.v1"
KINDS: tuple[str, ...] = get_args(QuestionKind)
NO_SCHEMAS = Schemas()


def decode_question(
    key: bytes | None,
    value: bytes | None,
    headers: Headers = None,
    *,
    partition: int,
    offset: int,
    partitions: int | None = None,
) -> Question:
    """A JSON object, or plain text with the stream as the key. ``question_id`` defaults to
    ``"partition-offset"``, which a replay reproduces. Raises SegmentError."""
    if value is None:
        raise SegmentError("null_value", "the value is null")
    name = utf8(key, "key") if key else None
    given = unpack(value, headers, "auto", NO_SCHEMAS)
    if isinstance(given, str):
        given = {"text": given}
    question = read_question(given, name, f"{partition}-{offset}")
    if not key and partitions is not None:
        check_partition(question.stream_id, partition, partitions)
    return question


def read_question(given: Mapping[str, Any], key: str | None, default_id: str) -> Question:
    """The fields of ``insight.question.v1`` as a question. Raises SegmentError."""
    fields = Fields(given)
    if given.get("schema") not in (None, QUESTION_SCHEMA):
        raise SegmentError("unsupported_schema", f"schema: only {QUESTION_SCHEMA} is understood")
    kind: QuestionKind = given.get("kind") or "free"
    if kind not in KINDS:
        raise SegmentError("wrong_type", f"kind: Expected one of {', '.join(KINDS)}")
    text = fields.text("text")
    if kind == "free" and not (text or "").strip():
        raise SegmentError("missing_text", "a question of the kind free needs text")
    return Question(
        stream_id=stream_of(fields, key),
        question_id=clean(fields.label("question_id") or "") or default_id,
        kind=kind,
        text=clean(text or ""),
        since_revision=fields.read("since_revision", as_count),
        since_ms=fields.read("since_ms", as_millis),
        about=clean(fields.label("for") or "") or None,
        language=clean(fields.label("language") or "") or None,
        asked_at_ms=fields.read("asked_at_ms", as_count),
    )


def encode_question(question: Question) -> bytes:
    """The JSON value of a record; what is None is left out."""
    fields = {k: v for k, v in msgspec.to_builtins(question).items() if v is not None}
    return msgspec.json.encode({"schema": QUESTION_SCHEMA, **fields})


def question_fields(words: str) -> dict[str, Any]:
    """A question as a person writes it on a command line: ``decisions``, ``catch_up since_ms=60000``,
    ``open_items for=Ana``, or else free text. Fields of Question."""
    kind, *options = words.split()
    pairs = [option.partition("=") for option in options]
    known: dict[str, Callable[[Any], Any]] = {
        "since_revision": as_count,
        "since_ms": as_millis,
        "for": str,
    }
    if kind not in KINDS or kind == "free" or any(name not in known for name, _, _ in pairs):
        return {"text": words}
    fields = Fields({name: value for name, _, value in pairs})
    found = {name: fields.read(name, known[name]) for name in fields.given}
    if fields.dropped:
        return {"text": words}
    about = found.pop("for", None)
    return {"kind": kind, **found, **({"about": about} if about else {})}
