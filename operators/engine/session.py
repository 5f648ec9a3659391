"""What is known of one stream: its queue, what lies in its window, its coverage, its ledger.

Bookkeeping only, no tensors computed here. The rules that keep the promise "covered means seen":

* forks happen only between parts (a segment, or a piece of a long one), at a frontier that depends
  on the stream alone, never on load: ingest stops at a due fork until it has been opened;
* a part starts only if everything uncovered would still be visible to a branch forked behind it;
  otherwise an update is forced first;
* coverage moves to the fork of an update only when that update succeeded.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace
from torch import Tensor

from operators.cache.kv_cache import KvCache, KvLayout, StreamSlot
from operators.decoding.acceptance import DraftControl
from operators.decoding.draft_model import DraftMemory
from operators.decoding.drafters import NgramIndex
from operators.decoding.generation import Generation
from operators.engine.hypotheses import Hypotheses
from operators.events import (
    AnswerEvent,
    Covers,
    Event,
    Evidence,
    LedgerItem,
    Restored,
    Segment,
    Trigger,
)
from operators.state import Emission, Failure, SessionState, WindowSegment

RECENT_IDS = 1024
"""Segment ids of a stream that are known as already taken."""
CORRECTION_CHARS = 280


class Known(NamedTuple):
    """A segment that was taken. ``text``: a hash of its text, None if that is not known any more."""

    revision: int
    text: int | None


@dataclass(eq=False)
class Work:
    """A segment on its way: done when all its parts are in and every answer it owes is out."""

    ticket: int
    segment: Segment
    seq: int | None = None  # its number in the stream, if its text was taken
    parts_left: int = 0
    owed: int = 0
    answers: dict[str, list[Generation]] = field(default_factory=dict)  # by language, in order
    shown: dict[str, str] = field(default_factory=dict)  # by language, of its partials
    build: Callable[[Work], list[Event]] | None = None
    failure: Failure | None = None
    accepted_at: float = 0.0
    waited: float = 0.0  # seconds before it was accepted

    @property
    def done(self) -> bool:
        return self.failure is not None or (self.parts_left == 0 and self.owed == 0)


@dataclass(eq=False)
class Part:
    """A piece of transcript that enters the window as a whole. ``start``/``end``: absolute positions
    once ingest has begun; ``said`` is its text without the speaker."""

    text: str
    said: str
    tokens: Sequence[int]
    info: WindowSegment
    work: Work | None = None
    start: int = -1

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Spilled:
    """A session's KV lies in the store: sha256 of the file, and the draft twin's ``origin``."""

    digest: str
    draft_origin: int


@dataclass(eq=False)
class Session:
    """One stream's state in the engine. ``slot`` is None while parked or not yet admitted:
    ``parked_length`` is then its frontier, ``parked`` its KV in host memory, ``spilled`` says that
    it lies in the store (see operators.engine.residency). ``last_used`` and
    ``last_fed``: number of the step."""

    stream_id: str
    layout: KvLayout
    index: NgramIndex
    epoch: int = 0
    ended: bool = False
    slot: StreamSlot | None = None
    parked: Tensor | None = None
    parked_length: int = 0
    parked_draft: DraftMemory | None = None
    spilled: Spilled | None = None
    last_used: int = 0
    last_fed: int = 0
    yielding: bool = False
    """It begins no further part, so that its slot can go to a stream that has waited longer."""

    queue: deque[Part | Work] = field(default_factory=deque)  # a bare Work is a session_end mark
    works: deque[Work] = field(default_factory=deque)
    current: Part | None = None
    current_done: int = 0
    window: deque[Part] = field(default_factory=deque)
    asked: deque[Callable[[], Generation]] = field(default_factory=deque)
    """Questions that wait for the next place where a fork may happen."""
    due: deque[Generation] = field(default_factory=deque)
    running: list[Generation] = field(default_factory=list)
    summary_running: bool = False
    hypotheses: Hypotheses = field(default_factory=Hypotheses)
    ending: Work | None = None

    covered: int = 0  # absolute position: all transcript before it was visible to a good update
    last_fork: int = 0  # frontier of the last update's fork, successful or not
    last_fork_at: float = 0.0
    covers: Covers = field(default_factory=Covers)
    update_failures: int = 0
    requested: Trigger | None = None

    recent: dict[str, Known] = field(default_factory=dict)
    """Segments taken lately by their id, oldest first."""
    closing: bool = False
    """An end mark has been fed and its final summary is not out yet."""
    later: deque[tuple[Segment, int]] = field(default_factory=deque)
    """What was fed behind that end mark, with its tickets: it belongs to the next epoch."""
    cursor: int = -1
    next_seq: int = 0
    settled_seq: int = 0  # next_seq as of cursor
    revisions: dict[str, int] = field(default_factory=dict)
    items: tuple[LedgerItem, ...] = ()
    next_item: int = 1
    tokens_total: int = 0
    last_output: dict[str, str] = field(default_factory=dict)
    draft_controls: dict[str, DraftControl] = field(default_factory=dict)
    restored: Restored = "none"
    degraded: tuple[str, ...] = ()

    events: list[Event] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    answers: list[AnswerEvent] = field(default_factory=list)

    @property
    def waiting_since(self) -> float:
        """Clock time since when the oldest of its segments that are not done has waited, also with
        the caller. What has none (a question, an update by time) waits for nobody's segments; text
        that is only run again, after a restart, is awaited by nobody."""
        if not self.works:
            only_again = (self.queue or self.current) and not (self.asked or self.requested)
            return math.inf if only_again else -math.inf
        return self.works[0].accepted_at - self.works[0].waited

    # --- frontier and coverage ---------------------------------------------------------------

    @property
    def frontier(self) -> int:
        return self.slot.length if self.slot is not None else self.parked_length

    @property
    def between_parts(self) -> bool:
        """True where a fork may happen: prefix in, no part half ingested."""
        return self.current is None and self.frontier >= self.layout.sinks

    @property
    def uncovered_tokens(self) -> int:
        return max(0, self.frontier - max(self.covered, self.layout.sinks))

    @property
    def evicted_total(self) -> int:
        return max(0, self.tokens_total - self.layout.window)

    def fits(self, part: Part) -> bool:
        """Whether all uncovered tokens stay visible to a branch forked behind ``part``."""
        covered = max(self.covered, self.layout.sinks)
        return self.frontier + len(part.tokens) <= covered + self.layout.window

    def cover(self, fork: int) -> None:
        """Everything before ``fork`` has been seen by a successful update."""
        self.covered = fork
        self.covers = self.covers_up_to(self.next_seq)

    def covers_up_to(self, seq: int) -> Covers:
        """The newest segment up to ``seq`` of which all parts lie before ``covered``."""
        best = self.covers if self.covers.to_seq <= seq else Covers()
        for part in self.window:
            info = part.info
            inside = part is not self.current and part.end <= self.covered
            if inside and info.last_part and best.to_seq < info.seq <= seq:
                to_ms = best.to_ms if info.end_ms is None else info.end_ms
                best = Covers(info.seq, info.segment_id, to_ms)
        return best

    def begin(self, part: Part) -> None:
        self.current, self.current_done, part.start = part, 0, self.frontier
        self.window.append(part)

    def advance(self, tokens: Sequence[int]) -> Part | None:
        """Note that ``tokens`` of the current part are in the cache; returns it when complete."""
        part = self.current
        assert part is not None
        self.index.extend(tokens)
        self.current_done += len(tokens)
        self.tokens_total += len(tokens)
        while self.window and self.window[0].end <= self.frontier - self.layout.window:
            self.window.popleft()
        if self.current_done < len(part.tokens):
            return None
        self.current = None
        return part

    def visible_parts(self, since: int) -> list[tuple[Evidence, str]]:
        """Evidence and text of the parts in the window that end behind position ``since``."""
        found = []
        for part in self.window:
            if part.end > since and part is not self.current:
                info = part.info
                found.append((evidence(info), part.said))
        return found

    def close(self, generation: Generation, cache: KvCache) -> None:
        """Throw a finished answer's branch away; the stream's memory is as before the fork."""
        assert generation.branch is not None
        cache.drop(generation.branch)
        self.running.remove(generation)

    def remember(self, segment_id: str, revision: int = 0, text: str | None = None) -> None:
        """Know this segment as taken, should it come again."""
        self.recent[segment_id] = Known(revision, None if text is None else hash(text))
        while len(self.recent) > RECENT_IDS:
            del self.recent[next(iter(self.recent))]

    def correct(self, segment: Segment) -> None:
        """Put a later revision (text, speaker) where the segment is cited, now or from now on. The
        cache keeps what was heard first. Mutates the ledger's evidence and the window's records."""
        text = segment.text.strip()[:CORRECTION_CHARS] if segment.type == "segment" else None
        given = segment.speaker
        name = (given.name or given.id) if given else None
        for part in self.window:
            if part.info.segment_id == segment.segment_id:
                part.info = replace(
                    part.info,
                    correction=text or part.info.correction,
                    speaker=name or part.info.speaker,
                )
        self.items = corrected(self.items, segment.segment_id, text, name)

    def cite_corrections(self) -> None:
        """Corrections that came while an update was running, for what it cites."""
        for part in self.window:
            info = part.info
            if info.correction is not None:
                self.items = corrected(self.items, info.segment_id, info.correction, info.speaker)

    def restore_covers(self, state: SessionState) -> None:
        self.covers = Covers(state.covered_seq, state.covered_segment_id, state.covered_ms)

    # --- revisions, emission, state ------------------------------------------------------------

    def next_revision(self, task: str) -> int:
        self.revisions[task] = self.revisions.get(task, 0) + 1
        return self.revisions[task]

    def settle(self) -> None:
        """Move finished work from the head of the line to the outbox, in feed order."""
        while self.works and self.works[0].done:
            work = self.works.popleft()
            if work.failure is not None:
                self.failed.append(work.failure)
            else:
                if work.build is not None:  # here, so that revisions follow feed order
                    self.events.extend(work.build(work))
                self.finished.append(work.ticket)
            self.cursor = max(self.cursor, work.ticket)
            if work.seq is not None:
                self.settled_seq = work.seq + 1

    def take_emission(self) -> Emission | None:
        """What there is to publish now, with the state that belongs to it; empties the outbox."""
        if not (self.events or self.finished or self.failed or self.answers):
            return None
        emission = Emission(
            stream_id=self.stream_id,
            state=self.state(),
            events=self.events,
            done=self.finished,
            failed=self.failed,
            answers=self.answers,
        )
        self.events, self.finished, self.failed, self.answers = [], [], [], []
        return emission

    def state(self) -> SessionState:
        """The stream as of ``cursor``: segments behind it are left out, they will be fed again."""
        whole = [p for p in self.window if p is not self.current]
        parts = [] if self.ended else [p for p in whole if p.info.offset <= self.cursor]
        ahead = sum(len(p.tokens) for p in whole if p.info.offset > self.cursor)
        ahead += self.current_done if self.current is not None else 0
        uncovered = sum(len(p.tokens) for p in parts if p.end > self.covered)
        covers = self.covers_up_to(self.settled_seq - 1)
        return SessionState(
            stream_id=self.stream_id,
            epoch=self.epoch,
            ended=self.ended,
            cursor=self.cursor,
            next_seq=self.settled_seq,
            revisions=dict(self.revisions),
            items=self.items,
            next_item=self.next_item,
            window=tuple(p.info for p in parts),
            covered_seq=covers.to_seq,
            covered_segment_id=covers.to_segment_id,
            covered_ms=covers.to_ms,
            uncovered_tokens=uncovered,
            tokens_total=self.tokens_total - ahead,
            last_output=dict(self.last_output),
            degraded=self.degraded,
        )

    @property
    def idle(self) -> bool:
        """Nothing queued, half done or owed: the slot could be given to another stream. Hypotheses
        do not count: their work can be given up at any time."""
        return not self.queue and self.at_rest

    @property
    def at_rest(self) -> bool:
        """Nothing half done or owed but what is queued: the slot may be left and taken again without
        a trace."""
        return not (
            self.current or self.asked or self.due or self.running or self.ending or self.requested
        )


def evidence(info: WindowSegment) -> Evidence:
    """A segment of the window as the ledger cites it."""
    return Evidence(info.segment_id, info.start_ms, info.end_ms, info.speaker, info.correction)


def corrected(
    items: tuple[LedgerItem, ...], segment_id: str, text: str | None, speaker: str | None
) -> tuple[LedgerItem, ...]:
    """The items with a correction wherever they cite the segment; the others are the same objects."""

    def cite(cited: Evidence) -> Evidence:
        if cited.segment_id != segment_id:
            return cited
        return replace(cited, correction=text or cited.correction, speaker=speaker or cited.speaker)

    return tuple(
        replace(item, evidence=tuple(map(cite, item.evidence)))
        if any(cited.segment_id == segment_id for cited in item.evidence)
        else item
        for item in items
    )
