"""What the gateway holds of each stream: the newest transcript, notes, translations, and what came last.

Everything here is read from Kafka and can be read again, so any number of gateways show the same. All of
it is bounded: per stream by counts, over all streams by bytes, and streams that had no news for longest
go first.

**Cursor.** A stream's records lie on one partition of each topic, so the offsets of the newest record of
each topic say exactly what has been seen, on any gateway: ``"12-3-5-0-0"``, as :data:`SOURCES` has them.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from operators.events import (
    NO_SETTINGS,
    AnswerEvent,
    Evidence,
    LedgerItem,
    Question,
    Segment,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
)
from operators.stream_settings import merged
from pipelines.config.fields import Settings

SOURCES = ("segments", "summaries", "translations", "answers", "questions")
MAX_DRAFTS = 16
MAX_ANSWERS = 100
MAX_LOG = 2000
LOG_BYTES = 4 << 20
MAX_POINTS = 60
BUCKET_MS = 10_000
OVERHEAD = 400
"""Bytes that an object costs besides its text, about."""


class Cursor(NamedTuple):
    """Offsets of the newest records seen, by :data:`SOURCES`; -1 for none."""

    segments: int = -1
    summaries: int = -1
    translations: int = -1
    answers: int = -1
    questions: int = -1

    def past(self, source: int, offset: int) -> Cursor:
        """The cursor once the record at ``offset`` is seen too."""
        offsets = list(self)
        offsets[source] = max(offsets[source], offset)
        return Cursor(*offsets)

    def __str__(self) -> str:
        return "-".join(str(offset + 1) for offset in self)

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Inverse of str(); None if it is no cursor."""
        parts = text.split("-")
        if len(parts) != len(SOURCES) or not all(p.isdecimal() and len(p) < 20 for p in parts):
            return None
        return cls(*(int(part) - 1 for part in parts))


NOTHING = Cursor()


class Entry(NamedTuple):
    """One thing that happened to a stream, as it is sent to readers. ``frame`` is shared by all."""

    number: int
    source: int
    offset: int
    frame: bytes


class Line(msgspec.Struct, kw_only=True):
    """A segment as it is shown. ``offset``: of its record, the transcript's revision."""

    segment_id: str
    text: str
    revision: int
    is_final: bool
    speaker: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    language: str | None = None
    corrected: bool = False
    offset: int
    at_ms: int


class Asked(msgspec.Struct, kw_only=True):
    """A question, and its answer when it has come."""

    question_id: str
    kind: str
    question: str
    asked_at_ms: int | None = None
    answered: bool = False
    answer: AnswerEvent | None = None


class Point(msgspec.Struct, kw_only=True):
    """Tokens of results published in ten seconds, and which share of the drafts was accepted."""

    at_ms: int
    tokens_per_s: float
    acceptance: float | None


class EventLog:
    """The newest entries of a stream, from which readers catch up. Bounded by count and bytes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.bytes = 0
        self.next_number = 0
        self.lost = Cursor()
        """The newest offset of each topic of which an entry is no longer here."""

    @property
    def first_number(self) -> int:
        return self._entries[0].number if self._entries else self.next_number

    def append(self, source: int, offset: int, frame: bytes) -> None:
        self._entries.append(Entry(self.next_number, source, offset, frame))
        self.next_number += 1
        self.bytes += len(frame)
        while len(self._entries) > MAX_LOG or self.bytes > LOG_BYTES:
            self._drop()

    def clear(self) -> None:
        while self._entries:
            self._drop()

    def _drop(self) -> None:
        gone = self._entries.popleft()
        self.bytes -= len(gone.frame)
        self.lost = self.lost.past(gone.source, gone.offset)

    def since(self, number: int) -> Iterator[Entry]:
        """Entries from ``number`` on; the caller has checked that they are here."""
        skip = max(0, number - self.first_number)
        for at in range(skip, len(self._entries)):
            yield self._entries[at]

    def after(self, cursor: Cursor) -> list[Entry] | None:
        """Entries that a reader at ``cursor`` has not seen; None if some of them are gone."""
        if any(lost > seen for lost, seen in zip(self.lost, cursor, strict=True)):
            return None
        return [entry for entry in self._entries if entry.offset > cursor[entry.source]]


@dataclass
class StreamView:
    """One stream. ``lines`` and each language's units are in order of arrival."""

    stream_id: str
    limit: int
    tenant: str | None = None
    settings: StreamSettings = NO_SETTINGS
    ended: bool = False
    lines: OrderedDict[str, Line] = field(default_factory=OrderedDict)
    drafts: OrderedDict[str, Line] = field(default_factory=OrderedDict)
    truncated: bool = False
    summary: SummaryEvent | None = None
    translations: dict[str, OrderedDict[str, TranslationEvent]] = field(default_factory=dict)
    answers: OrderedDict[str, Asked] = field(default_factory=OrderedDict)
    points: deque[list[float]] = field(default_factory=lambda: deque(maxlen=MAX_POINTS))
    log: EventLog = field(default_factory=EventLog)
    cursor: Cursor = NOTHING
    last_segment_ms: int | None = None
    last_event_ms: int | None = None
    bytes: int = 0

    # --- segments ------------------------------------------------------------------------------

    def take_segment(self, segment: Segment, offset: int, at_ms: int) -> Line | None:
        """Note a segment or a mark; the line as it is shown now, None if nothing of it is."""
        self.tenant = segment.tenant or self.tenant
        match segment.type:
            case "session_end":
                self.ended = True
                self.drafts.clear()
            case "session_start" | "session_update":
                if segment.type == "session_start":
                    self._begin(offset)
                if segment.settings is not None:
                    self.settings = merged(self.settings, segment.settings)
            case "segment":
                return self._say(segment, offset, at_ms)
            case "speaker_revision":
                return self._rename(segment, offset)
        return None

    def _begin(self, offset: int) -> None:
        """A new life of the stream: its transcript begins again at ``offset``. Topics are read side by
        side, so translations of the new life may be here already."""
        if not self.ended:
            return
        self.ended = False
        self.settings = NO_SETTINGS
        self.bytes -= sum(len(line.text) + OVERHEAD for line in self.lines.values())
        self.lines.clear()
        self.drafts.clear()
        for language, units in list(self.translations.items()):
            for name in [n for n, unit in units.items() if unit.source.last_offset < offset]:
                self.bytes -= len(units.pop(name).committed) + OVERHEAD
            if not units:
                del self.translations[language]

    def _say(self, segment: Segment, offset: int, at_ms: int) -> Line | None:
        known = self.lines.get(segment.segment_id)
        if not segment.is_final:
            if known is not None or self.ended:
                return None
            return self._draft(segment, offset, at_ms)
        self.drafts.pop(segment.segment_id, None)
        if not segment.text.strip():
            return None
        if known is not None and (known.text == segment.text or known.revision > segment.revision):
            return None
        if known is None:
            self._begin(offset)
        line = _line(segment, offset, at_ms)
        line.corrected = known is not None
        self.last_segment_ms = at_ms
        self.lines[segment.segment_id] = line
        self.bytes += len(line.text) + OVERHEAD
        if known is not None:
            self.bytes -= len(known.text) + OVERHEAD
        while len(self.lines) > self.limit:
            _, gone = self.lines.popitem(last=False)
            self.bytes -= len(gone.text) + OVERHEAD
            self.truncated = True
        return line

    def _draft(self, segment: Segment, offset: int, at_ms: int) -> Line | None:
        known = self.drafts.get(segment.segment_id)
        if known is not None and known.revision > segment.revision:
            return None
        line = _line(segment, offset, at_ms)
        if segment.text.strip():
            self.drafts[segment.segment_id] = line
        else:
            self.drafts.pop(segment.segment_id, None)
        while len(self.drafts) > MAX_DRAFTS:
            self.drafts.popitem(last=False)
        return line

    def _rename(self, segment: Segment, offset: int) -> Line | None:
        line = self.lines.get(segment.segment_id)
        if line is None or segment.speaker is None:
            return None
        line.speaker = segment.speaker.name or segment.speaker.id
        line.offset = offset
        return line

    # --- results -------------------------------------------------------------------------------

    def take_summary(self, event: SummaryEvent) -> bool:
        """Keep the newest; False for one that is not newer."""
        old = self.summary
        if old is not None and (event.epoch, event.revision) <= (old.epoch, old.revision):
            return False
        self.bytes += _size(event) - (_size(old) if old else 0)
        self.summary = event
        self._note(event)
        return True

    def take_translation(self, event: TranslationEvent) -> bool:
        """Keep the newest of each unit."""
        units = self.translations.setdefault(event.target_lang, OrderedDict())
        old = units.get(event.unit_id)
        if old is not None and (event.epoch, event.revision) <= (old.epoch, old.revision):
            return False
        units[event.unit_id] = event
        self.bytes += len(event.committed) + OVERHEAD
        if old is not None:
            self.bytes -= len(old.committed) + OVERHEAD
        while len(units) > self.limit:
            _, gone = units.popitem(last=False)
            self.bytes -= len(gone.committed) + OVERHEAD
        self._note(event)
        return True

    def take_question(self, question: Question) -> Asked | None:
        """Note a question; None if it is known."""
        if question.question_id in self.answers:
            return None
        asked = Asked(
            question_id=question.question_id,
            kind=question.kind,
            question=question.text,
            asked_at_ms=question.asked_at_ms,
        )
        self._keep(asked)
        return asked

    def take_answer(self, event: AnswerEvent) -> Asked | None:
        """Note an answer; None for a repetition."""
        asked = self.answers.get(event.question_id)
        if asked is not None and asked.answered:
            return None
        if asked is None:
            asked = Asked(question_id=event.question_id, kind=event.kind, question=event.question)
            self._keep(asked)
        asked.answered, asked.answer = True, event
        self.bytes += len(event.text)
        self._note(event)
        return asked

    def _keep(self, asked: Asked) -> None:
        self.answers[asked.question_id] = asked
        self.bytes += len(asked.question) + OVERHEAD
        while len(self.answers) > MAX_ANSWERS:
            _, gone = self.answers.popitem(last=False)
            self.bytes -= len(gone.question) + OVERHEAD
            self.bytes -= len(gone.answer.text) if gone.answer else 0

    def _note(self, event: Any) -> None:
        """Count the tokens of a result in its ten seconds."""
        self.last_event_ms = max(self.last_event_ms or 0, event.emitted_at_ms)
        bucket = event.emitted_at_ms // BUCKET_MS
        if self.points and self.points[-1][0] > bucket:
            return  # older than what is shown last: a replay
        if not self.points or self.points[-1][0] != bucket:
            self.points.append([bucket, 0, 0, 0])
        point = self.points[-1]
        point[1] += event.usage.output_tokens
        point[2] += event.usage.drafted
        point[3] += event.usage.accepted

    # --- what is shown -------------------------------------------------------------------------

    def uncovered(self) -> list[Line]:
        """Final lines that the notes do not cover yet."""
        to = self.summary.covers.to_segment_id if self.summary else ""
        if not to:
            return list(self.lines.values())
        if to not in self.lines:
            return []  # what it covers is older than what is held, or newer
        found = []
        for line in reversed(self.lines.values()):
            if line.segment_id == to:
                break
            found.append(line)
        return found[::-1]

    def activity(self) -> list[Point]:
        return [
            Point(
                at_ms=int(bucket) * BUCKET_MS,
                tokens_per_s=round(tokens * 1000 / BUCKET_MS, 2),
                acceptance=round(accepted / drafted, 3) if drafted else None,
            )
            for bucket, tokens, drafted, accepted in self.points
        ]

    @property
    def revision(self) -> str:
        """Of the notes: epoch and revision."""
        return f"{self.summary.epoch}.{self.summary.revision}" if self.summary else "0.0"

    @property
    def cost(self) -> int:
        return self.bytes + self.log.bytes + OVERHEAD


class Views:
    """All streams. ``on_change`` is called with the stream's id after each entry of its log."""

    def __init__(
        self, settings: Settings, on_change: Callable[[str], None] = lambda stream: None
    ) -> None:
        self._max_streams = settings.gateway_max_streams
        self._max_segments = settings.gateway_max_segments
        self._max_bytes = settings.gateway_max_mib << 20
        self._views: OrderedDict[str, StreamView] = OrderedDict()  # longest without news first
        self._bytes = 0
        self._on_change = on_change
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[StreamView]:
        """Newest first."""
        return reversed(self._views.values())

    def get(self, stream_id: str) -> StreamView | None:
        return self._views.get(stream_id)

    @property
    def bytes(self) -> int:
        return self._bytes

    def clear(self) -> None:
        """Forget all, to read them again."""
        for stream_id in list(self._views):
            self.remove(stream_id)

    def take(
        self, source: str, offset: int, at_ms: int, value: Any, floor: Cursor = NOTHING
    ) -> None:
        """A record of a topic, decoded: a Segment or an event. ``floor``: the newest offsets of its
        partition that were not read, because history begins behind them."""
        if isinstance(value, Segment) and value.type == "forget":
            self._forget(value.stream_id, offset, at_ms, floor)
            return
        if isinstance(value, Question | AnswerEvent) and value.stream_id not in self._views:
            return  # anybody can ask about a stream that nobody knows
        view = self._view(value.stream_id, floor)
        before = view.cost
        place = SOURCES.index(source)
        view.cursor = view.cursor.past(place, offset)
        shown = self._apply(view, offset, at_ms, value)
        if shown is not None:
            kind, data = shown
            view.log.append(place, offset, frame(kind, data))
        self._bytes += view.cost - before
        self._bound()
        if shown is not None:
            self._on_change(value.stream_id)

    def _apply(
        self, view: StreamView, offset: int, at_ms: int, value: Any
    ) -> tuple[str, Any] | None:
        """Change the view; what readers are told of it."""
        if isinstance(value, Segment):
            line = view.take_segment(value, offset, at_ms)
            if line is not None:
                return "segment", line
            return ("session", {"type": value.type}) if value.type.startswith("session") else None
        if isinstance(value, SummaryEvent):
            return ("summary", value) if view.take_summary(value) else None
        if isinstance(value, TranslationEvent):
            return ("translation", value) if view.take_translation(value) else None
        if isinstance(value, Question):
            asked = view.take_question(value)
            return ("question", asked) if asked else None
        if isinstance(value, AnswerEvent):
            asked = view.take_answer(value)
            return ("answer", asked) if asked else None
        return None

    def _forget(self, stream_id: str, offset: int, at_ms: int, floor: Cursor) -> None:
        """Topics are read side by side: the notes of the stream's next life may be here already."""
        view = self._views.get(stream_id)
        self.remove(stream_id)
        if view is not None and view.summary and view.summary.source.last_offset > offset:
            place = view.cursor.summaries
            self.take("summaries", place, at_ms, view.summary, floor)

    def remove(self, stream_id: str) -> None:
        """A forgotten stream. Its readers are told by the view being gone."""
        view = self._views.pop(stream_id, None)
        if view is not None:
            self._bytes -= view.cost
            self._on_change(stream_id)

    def _view(self, stream_id: str, floor: Cursor) -> StreamView:
        view = self._views.get(stream_id)
        if view is None:
            view = StreamView(stream_id, self._max_segments, cursor=floor)
            view.log.lost = floor
            self._views[stream_id] = view
            self._bytes += view.cost
        self._views.move_to_end(stream_id)
        return view

    def _bound(self) -> None:
        while len(self._views) > 1 and (
            len(self._views) > self._max_streams or self._bytes > self._max_bytes
        ):
            self.remove(next(iter(self._views)))
            self.dropped += 1


def frame(kind: str, data: Any) -> bytes:
    """One server-sent event without its id. JSON has no line breaks, so the data is one line."""
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def changed_items(event: SummaryEvent, since: tuple[int, int]) -> tuple[LedgerItem, ...]:
    """Items that changed after revision ``since`` (epoch, revision); all of a later epoch's."""
    if event.epoch != since[0]:
        return event.items
    return tuple(item for item in event.items if item.last_changed_revision > since[1])


def parse_revision(text: str) -> tuple[int, int] | None:
    """``"0.17"`` or ``"17"`` as (epoch, revision); None if it is neither."""
    parts = text.split(".")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 20 for part in parts):
        return None
    return (0, int(parts[0])) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _line(segment: Segment, offset: int, at_ms: int) -> Line:
    speaker = segment.speaker
    return Line(
        segment_id=segment.segment_id,
        text=segment.text,
        revision=segment.revision,
        is_final=segment.is_final,
        speaker=(speaker.name or speaker.id) if speaker else None,
        start_ms=segment.start_ms,
        end_ms=segment.end_ms,
        language=segment.language,
        offset=offset,
        at_ms=at_ms,
    )


def _size(event: SummaryEvent) -> int:
    evidence: list[Evidence] = [e for item in event.items for e in item.evidence]
    return (
        len(event.text)
        + sum(len(item.text) for item in event.items)
        + 200 * (len(event.items) + len(evidence))
    )
