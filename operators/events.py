"""The data that crosses module borders: segments in, events out, session state in between.

All of it is plain ``msgspec`` structs, so the same definition serves the JSON on Kafka topics, the
msgpack frames between the event loop and the device process, and the engine. Times in names ending
``_ms`` are integer milliseconds. Wherever the operator has no knowledge of its own (topic names,
wall-clock time of emission) a field has a neutral default which ``pipelines`` fills in.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Literal

import msgspec

EVENT_NAMESPACE = uuid.UUID("6f1c0a52-6b1f-5d0e-9a53-2f0c2d1f7a10")

SegmentType = Literal[
    "segment",
    "session_start",
    "session_update",
    "session_end",
    "speaker_revision",
    "edit",
    "forget",
]
EditOp = Literal["add", "update", "done", "withdraw", "reopen"]
Trigger = Literal["tokens", "interval", "silence", "topic_shift", "request", "edit", "session_end"]
ItemKind = Literal["topic", "decision", "action_item", "open_question"]
ItemState = Literal["open", "done", "superseded", "withdrawn"]
QuestionKind = Literal["free", "catch_up", "decisions", "open_items"]
Restored = Literal["none", "snapshot", "replay"]


def event_id(stream_id: str, task: str, epoch: int, revision: int) -> str:
    """The id of an output event: the same four facts always give the same id (RFC 4122, v5: what
    ``uuid.uuid5`` gives, in a third of its time)."""
    name = f"{stream_id}\x1f{task}\x1f{epoch}\x1f{revision}".encode()
    digest = hashlib.sha1(EVENT_NAMESPACE.bytes + name, usedforsecurity=False).digest()
    bits = int.from_bytes(digest[:16]) & ~(0xF000 << 64 | 0xC000 << 48)
    text = f"{bits | 0x5000 << 64 | 0x8000 << 48:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Speaker(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str | None = None


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one stream asks for, with ``session_start`` or ``session_update``. None: not given."""

    title: str | None = None
    targets: tuple[str, ...] | None = None
    """Language codes to translate into, in place of the operator's; empty: into none."""
    summary_language: str | None = None
    """Language code that notes and answers are written in; None: the conversation's own."""
    style: str | None = None
    template: str | None = None
    """Jinja template of the stream's rendered notes (:mod:`operators.render`)."""
    glossary: dict[str, dict[str, str]] | None = None
    """Terms, each with its rendering by language code, ``*`` for every language; without one the term
    stands as it is."""
    participants: tuple[str, ...] | None = None
    instructions: str | None = None
    dropped: tuple[str, ...] = ()
    """Fields of which something could not be used and was left out. Not part of a stream's state."""


NO_SETTINGS = StreamSettings()


class ItemEdit(msgspec.Struct, frozen=True, kw_only=True):
    """What a person does to a note. ``add`` needs a text, the others an item's id. None: unchanged."""

    op: EditOp
    item: str = ""
    kind: ItemKind | None = None
    text: str | None = None
    owner: str | None = None
    due: str | None = None


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One utterance of a transcript, or a mark of the stream's life (``type``).

    ``seq`` and ``segment_id`` are filled by the codec when the producer gave none.
    Only ``is_final`` text enters the KV cache.
    """

    stream_id: str
    type: SegmentType = "segment"
    text: str = ""
    seq: int | None = None
    segment_id: str = ""
    revision: int = 0
    is_final: bool = True
    end_of_turn: bool = True
    speaker: Speaker | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    language: str | None = None
    confidence: float | None = None
    tenant: str | None = None
    emitted_at_ms: int | None = None
    settings: StreamSettings | None = None
    """Of a ``session_start`` or ``session_update``; in JSON its fields stand beside the others."""
    edit: ItemEdit | None = None
    """Of an ``edit``."""


class Evidence(msgspec.Struct, frozen=True):
    """Where in the transcript an item was seen."""

    segment_id: str
    start_ms: int | None = None
    end_ms: int | None = None
    speaker: str | None = None
    correction: str | None = None
    """What a later revision of the segment says, if one came after it was taken (cut if long)."""
    revision: int = 0
    """The segment's newest revision that was seen."""


class LedgerItem(msgspec.Struct, frozen=True, kw_only=True):
    """One durable fact about the stream. Frozen once written; replaced, never edited in place."""

    id: str
    kind: ItemKind
    text: str
    owner: str | None = None
    due: str | None = None
    state: ItemState = "open"
    """``done``: a task is done, or a question answered; the last place of evidence says so."""
    importance: float = 0.0
    """0 to 1: how sure the model was that the turn matters."""
    supersedes: str | None = None
    """Id of the item that this one replaces."""
    by: Literal["model", "person"] = "model"
    check: Literal["", "stands", "doubtful"] = ""
    """Whether the note still stands after its turn was corrected; empty: nothing was corrected."""
    last_changed_revision: int = 0
    evidence: tuple[Evidence, ...] = ()


class Covers(msgspec.Struct, frozen=True):
    """The newest segment of which all tokens were visible to a successful summary branch."""

    to_seq: int = -1
    to_segment_id: str = ""
    to_ms: int | None = None
    lag_ms: int | None = None


class Source(msgspec.Struct, frozen=True):
    """Which input records an event came from (offsets inclusive)."""

    topic: str = ""
    partition: int = -1
    first_offset: int = -1
    last_offset: int = -1


class ModelInfo(msgspec.Struct, frozen=True):
    name: str = ""
    draft: str = "none"


class Usage(msgspec.Struct, frozen=True):
    """Tokens spent on one output. ``drafted``/``accepted`` count speculative draft tokens."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    verifies: int = 0
    finish_reason: str = "stop"


class KvInfo(msgspec.Struct, frozen=True):
    """The stream's cache when the event was made. All numbers are tokens."""

    sink: int = 0
    window: int = 0
    evicted_total: int = 0
    restored: Restored = "none"


class Stability(msgspec.Struct, frozen=True):
    """How much of the text shown before was taken back (normalized erasure = deleted / length)."""

    deleted_tokens: int = 0
    normalized_erasure: float = 0.0


ChangeOp = Literal["add", "update", "done", "withdraw", "remove"]


class ItemChange(msgspec.Struct, frozen=True):
    """What a revision did to one item. ``update``: it is otherwise now, or takes the place of
    ``replaces``, which is superseded. ``remove``: it left the ledger, for the archive or merged."""

    op: ChangeOp
    id: str
    replaces: str | None = None


class SummaryEvent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="insight.summary.v1"
):
    stream_id: str
    epoch: int
    revision: int
    event_id: str = ""
    status: Literal["partial", "final"] = "partial"
    text: str = ""
    items: tuple[LedgerItem, ...] = ()
    covers: Covers = Covers()
    source: Source = Source()
    trigger: Trigger = "tokens"
    model: ModelInfo = ModelInfo()
    usage: Usage = Usage()
    kv: KvInfo = KvInfo()
    stability: Stability = Stability()
    changes: tuple[ItemChange, ...] = ()
    """What was done to the items since the revision before, item by item."""
    refused: dict[str, int] = {}
    """Notes that were not taken, by reason."""
    rule: dict[str, float] = {}
    """What the trigger was measured against: tokens due, seconds, topic shift."""
    degraded: tuple[str, ...] = ()
    emitted_at_ms: int = 0


class TranslationEvent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="insight.translation.v1"
):
    """A translation of one unit (segment). ``committed`` never changes; ``tail`` may. ``clauses``: how
    many pieces of the unit are in the text, in their order; with ``is_final`` all are."""

    stream_id: str
    epoch: int
    revision: int
    target_lang: str
    unit_id: str
    clauses: int = 0
    event_id: str = ""
    source_lang: str | None = None
    source_text: str = ""
    committed: str = ""
    tail: str = ""
    is_final: bool = True
    source_segment_ids: tuple[str, ...] = ()
    policy: str = "final"
    latency_ms: int = 0
    """From the engine's acceptance of the text that was translated to this event."""
    covers: Covers = Covers()
    source: Source = Source()
    model: ModelInfo = ModelInfo()
    usage: Usage = Usage()
    stability: Stability = Stability()
    degraded: tuple[str, ...] = ()
    emitted_at_ms: int = 0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question about a stream. ``free`` asks in its own ``text``; the others ask for notes: what is
    new since a revision or a time, the decisions, what is open; ``about`` one person, if given."""

    stream_id: str
    question_id: str = ""
    """The asker's name for it: the same one is answered once."""
    kind: QuestionKind = "free"
    text: str = ""
    since_revision: int | None = None
    since_ms: int | None = None
    about: str | None = msgspec.field(default=None, name="for")
    language: str | None = None
    asked_at_ms: int | None = None


class AnswerEvent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="insight.answer.v1"
):
    """An answer to a question about the stream. ``revision`` counts the stream's answers; ``covers``
    says how far its durable notes had got, besides which the answer saw the whole window."""

    stream_id: str
    epoch: int
    revision: int
    question_id: str
    event_id: str = ""
    kind: QuestionKind = "free"
    question: str = ""
    text: str = ""
    refused: bool = False
    """Neither notes nor window say it; the text is then empty."""
    items: tuple[str, ...] = ()
    """Ids of the notes it rests on."""
    evidence: tuple[Evidence, ...] = ()
    covers: Covers = Covers()
    source: Source = Source()
    model: ModelInfo = ModelInfo()
    usage: Usage = Usage()
    kv: KvInfo = KvInfo()
    degraded: tuple[str, ...] = ()
    emitted_at_ms: int = 0


class ResultEvent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="insight.result.v1"
):
    """What a task of the user's own wrote. ``data``: anything that JSON holds."""

    stream_id: str
    epoch: int
    revision: int
    task: str
    event_id: str = ""
    text: str = ""
    data: dict[str, Any] = {}
    evidence: tuple[Evidence, ...] = ()
    covers: Covers = Covers()
    source: Source = Source()
    model: ModelInfo = ModelInfo()
    usage: Usage = Usage()
    kv: KvInfo = KvInfo()
    degraded: tuple[str, ...] = ()
    emitted_at_ms: int = 0


Event = SummaryEvent | TranslationEvent | ResultEvent
AnyEvent = Event | AnswerEvent


def task_of(event: AnyEvent) -> str:
    """The name under which revisions of this event are counted."""
    match event:
        case SummaryEvent():
            return "summary"
        case TranslationEvent(target_lang=language):
            return f"translation:{language}"
        case AnswerEvent():
            return "answer"
        case ResultEvent(task=task):
            return task
