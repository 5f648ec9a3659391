"""The state of one stream: its queue, the content of its window, its coverage, its ledger.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from msgspec.structs import replace

from operators.cache.kv_cache import KvCache, KvLayout, StreamSlot
from operators.commit import Held
from operators.decoding.acceptance import DraftControl
from operators.decoding.drafters import TextIndex
from operators.decoding.generation import Generation
from operators.engine.known_segments import KnownSegments
from operators.engine.partial_hypotheses import PartialHypotheses
from operators.engine.task_run import TaskRun
from operators.events import (
    NO_SETTINGS,
    AnswerEvent,
    AnyEvent,
    Covers,
    Event,
    Evidence,
    ItemChange,
    KvInfo,
    LedgerItem,
    Question,
    Restored,
    Segment,
    Source,
    StreamSettings,
    SummaryEvent,
    Trigger,
    event_id,
    task_of,
)
from operators.state import Emission, Failure, SessionState, WindowSegment
from operators.tasks import corrections
from operators.tasks.base import Ledger, Outcome, SeenSegment
from operators.tasks.ledger import changes_of
from operators.text import similarity

E = TypeVar("E", bound=AnyEvent)
KEPT_ANSWERS, KNOWN_QUESTIONS = 16, 256
"""Answers that are kept in case their question comes again; ids of questions that are known."""


@dataclass(eq=False)
class Work:
    """A segment in progress: done when all its parts are ingested and all its runs have an outcome."""

    ticket: int
    segment: Segment
    seq: int | None = None  # its number in the stream, if its text was taken
    parts_left: int = 0
    runs: list[TaskRun] = field(default_factory=list)
    """Those its parts have started, in order of the parts."""
    final: Sequence[Event] = ()
    """The last events of the stream, for an end mark."""
    corrects: bool = False
    """A late revision of a segment, of its text or its speaker."""
    edits: bool = False
    """A person's edit of a note."""
    closing: bool = False
    """An end mark whose final event is not out yet."""
    asks: StreamSettings | None = None
    """Settings that hold from here on, until they are the stream's."""
    settings: StreamSettings | None = None
    """The stream's settings behind this mark."""
    held: dict[str, Held] = field(default_factory=dict)  # by language, of its partials
    published: dict[str, int] = field(default_factory=dict)
    """By task: how many of its runs are in events already, though others are not done."""
    failure: Failure | None = None
    accepted_at: float = 0.0
    waited: float = 0.0  # seconds before it was accepted

    @property
    def done(self) -> bool:
        owed = (
            self.closing or self.asks is not None or any(run.outcome is None for run in self.runs)
        )
        return self.failure is not None or (self.parts_left == 0 and not owed)


@dataclass(eq=False)
class Asked:
    """A question on its way. ``ticket``: None for one that is on no topic. ``repeat``: its id was asked
    before; it gets the same answer."""

    question: Question
    ticket: int | None = None
    answer: AnswerEvent | None = None
    repeat: bool = False

    @property
    def done(self) -> bool:
        return self.repeat or self.answer is not None


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


@dataclass(eq=False)
class Session:
    """One stream's state in the engine. ``slot`` is None while its KV is offloaded or not made yet:
    ``offloaded_length`` is then its frontier (see operators.engine.residency). ``last_used`` and
    ``last_fed``: number of the step."""

    stream_id: str
    layout: KvLayout
    index: TextIndex
    epoch: int = 0
    weights: str = ""
    """Those of the operator, which its state names."""
    ended: bool = False
    slot: StreamSlot | None = None
    offloaded_length: int = 0
    last_used: int = 0
    last_fed: int = 0
    yielding: bool = False
    """It begins no further part, so that its slot can go to a stream that has waited longer."""

    queue: deque[Part | Work] = field(default_factory=deque)
    """Transcript, and marks (a bare Work): new settings, the end."""
    works: deque[Work] = field(default_factory=deque)
    current: Part | None = None
    current_done: int = 0
    window: deque[Part] = field(default_factory=deque)
    requests: deque[TaskRun] = field(default_factory=deque)
    """Asked for by callers; they start at the next place where a fork may happen."""
    due: deque[TaskRun] = field(default_factory=deque)
    """Started, and waiting for their first branch: ingest waits with them."""
    runs: list[TaskRun] = field(default_factory=list)
    """With at least one branch, or just concluded."""
    partials: PartialHypotheses = field(default_factory=PartialHypotheses)
    ending: Work | None = None

    covered: int = 0  # absolute position: all transcript before it was visible to a good update
    last_fork: int = 0  # frontier of the last update's fork, successful or not
    last_fork_at: float = 0.0
    last_part_at: float = 0.0
    """When text last began to enter the window."""
    shift: float = 0.0
    """How little the newest turns share with those before them (``topic_shift``)."""
    update_factor: int = 1
    """See ``update_adaptive``; begins anew with every process."""
    update_changed: bool = True
    """Whether the last update changed a note."""
    forks: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Frontier and time of the last fork of every other task with a rhythm of its own."""
    covers: Covers = field(default_factory=Covers)
    update_failures: int = 0
    requested: Trigger | None = None

    known: KnownSegments = field(default_factory=KnownSegments)
    closing: bool = False
    """An end mark has been fed and its final summary is not out yet."""
    later: deque[tuple[Segment, int]] = field(default_factory=deque)
    """What was fed behind that end mark, with its tickets: it belongs to the next epoch."""
    cursor: int = -1
    next_seq: int = 0
    settled_seq: int = 0  # next_seq as of cursor
    revisions: dict[str, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    changes: tuple[ItemChange, ...] = ()
    """Of the notes since the last summary event."""
    tokens_total: int = 0
    last_output: dict[str, str] = field(default_factory=dict)
    draft_controls: dict[str, DraftControl] = field(default_factory=dict)
    restored: Restored = "none"
    degraded: tuple[str, ...] = ()
    settings: StreamSettings = NO_SETTINGS
    """As of the frontier."""
    settled_settings: StreamSettings = NO_SETTINGS
    """As of cursor."""
    questions: deque[Asked] = field(default_factory=deque)
    """In the order they were asked, which is the order they are answered in."""
    question_cursor: int = -1
    known_questions: dict[str, AnswerEvent | None] = field(default_factory=dict)
    """By id, oldest first; None where the answer itself is no longer kept."""

    events: list[Event] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    answers: list[AnswerEvent] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    @property
    def waiting_since(self) -> float:
        """Clock time since when the oldest of its segments that are not done has waited, also with
        the caller. -inf (first) without such a segment: a question, an update by time. +inf (last) for
        text that is only prefilled again after a restart."""
        if not self.works:
            only_again = (self.queue or self.current) and not (self.requests or self.requested)
            return math.inf if only_again else -math.inf
        return self.works[0].accepted_at - self.works[0].waited

    # --- frontier and coverage ---------------------------------------------------------------

    @property
    def frontier(self) -> int:
        return self.slot.length if self.slot is not None else self.offloaded_length

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
        return [(seen.evidence, seen.text) for seen in self.seen_segments(since)]

    def seen_segments(self, since: int = 0) -> list[SeenSegment]:
        """The parts in the window that end behind position ``since``."""
        return [
            SeenSegment(evidence(part.info), part.said, part.end > self.covered)
            for part in self.window
            if part.end > since and part is not self.current
        ]

    # --- branches: opened and closed here only -------------------------------------------------

    @property
    def running(self) -> list[Generation]:
        """Answers in progress, oldest run first."""
        return [generation for run in self.runs for generation in run.open]

    @property
    def wants_branch(self) -> bool:
        return bool(self.due) or any(run.can_open for run in self.runs)

    def open_branch(self, cache: KvCache) -> None:
        """Fork for the oldest run without a branch, else for a run with asks that still wait.
        A region must be free."""
        assert self.slot is not None
        if self.due:
            run = self.due.popleft()
            self.runs.append(run)
        else:
            run = next(run for run in self.runs if run.can_open)
        run.open_next(self.slot, cache)

    def conclude_runs(self, cache: KvCache) -> list[TaskRun]:
        """Take out the runs that have an outcome; their branches are gone."""
        for run in self.runs:
            run.advance(cache)
        concluded = [run for run in self.runs if run.outcome is not None]
        self.runs = [run for run in self.runs if run.outcome is None]
        return concluded

    def close_branches(self, cache: KvCache) -> None:
        """Cancel every run and partial hypothesis; the stream's memory is as before the forks."""
        self.partials.clear(cache)
        for run in self.runs:
            run.close(cache)
        self.runs.clear()
        self.due.clear()
        self.requests.clear()

    def topic_shift(self, tokens: int) -> float:
        """How little the newest turns, ``tokens`` of them, share with as many before them: 1 is nothing.
        0 while there are not enough that no update has covered. Changes nothing."""
        blocks: list[list[str]] = [[], []]
        room = [tokens, tokens]
        for part in reversed(self.window):
            at = 0 if room[0] > 0 else 1
            if part.end <= self.covered or room[at] <= 0:
                break
            blocks[at].append(part.said)
            room[at] -= len(part.tokens)
        if max(room) > 0:
            return 0.0
        newest, before = (" ".join(block) for block in blocks)
        return 1.0 - similarity(newest, before)

    def correct(self, segment: Segment) -> None:
        """Put a later revision (text, speaker) where the segment is cited, now or from now on. The
        cache keeps the first version. Mutates the ledger's evidence and the window's records."""
        text = segment.text.strip()[: corrections.CHARS] if segment.type == "segment" else None
        given = segment.speaker
        name = (given.name or given.id) if given else None
        for part in self.window:
            if part.info.segment_id == segment.segment_id:
                part.info = replace(
                    part.info,
                    correction=text or part.info.correction,
                    speaker=name or part.info.speaker,
                    revision=max(segment.revision, part.info.revision),
                )
        self._cite(segment.segment_id, text, name, segment.revision)

    def cite_corrections(self) -> None:
        """Corrections that came while an update was running, for what it cites."""
        for part in self.window:
            info = part.info
            if info.correction is not None:
                self._cite(info.segment_id, info.correction, info.speaker, info.revision)

    def _cite(self, segment_id: str, text: str | None, speaker: str | None, revision: int) -> None:
        notes, correction = self.ledger, (segment_id, text, speaker, revision)
        notes.items = corrections.corrected(notes.items, *correction)
        notes.archived = corrections.corrected(notes.archived, *correction)

    def apply(self, outcome: Outcome, fork: int | None = None) -> None:
        """Put a run's outcome into the stream's state. ``fork``: the frontier up to which it covers
        the transcript, for a run that may say so."""
        if fork is not None and outcome.covers:
            self.cover(max(fork, self.covered))
        if outcome.archived is not None:
            self.ledger.archived = outcome.archived
        if outcome.items is not None:
            self.set_items(outcome.items, outcome.next_item or self.ledger.next_item)
            self.cite_corrections()
        self.last_output.update(outcome.remember)

    def set_items(self, items: tuple[LedgerItem, ...], next_item: int) -> None:
        """Replace the notes; the next summary event says what was done to them."""
        self.changes = (*self.changes, *changes_of(self.ledger.items, items))
        self.ledger.items, self.ledger.next_item = items, next_item

    def add_degraded(self, flag: str) -> None:
        if flag not in self.degraded:
            self.degraded = (*self.degraded, flag)

    def with_degraded(self, event: SummaryEvent) -> SummaryEvent:
        """The event with the current ledger, and with the flags and changes since the last one, which
        are cleared."""
        flags, self.degraded = self.degraded, ()
        changes, self.changes = self.changes, ()
        found = (*flags, *event.degraded)
        return replace(event, items=self.ledger.items, changes=changes, degraded=found)

    def kv_info(self) -> KvInfo:
        return KvInfo(self.layout.sinks, self.layout.window, self.evicted_total, self.restored)

    def restore_covers(self, state: SessionState) -> None:
        self.covers = Covers(state.covered_seq, state.covered_segment_id, state.covered_ms)

    # --- revisions, emission, state ------------------------------------------------------------

    def next_revision(self, task: str) -> int:
        self.revisions[task] = self.revisions.get(task, 0) + 1
        return self.revisions[task]

    def stamp(self, event: E, ticket: int | None = None) -> E:
        """The event with its number, its id and what the ledger covers; ``ticket``: the segment it
        came from. Counts its task's revisions up."""
        task = task_of(event)
        revision = self.next_revision(task)
        changes: dict[str, Any] = {
            "stream_id": self.stream_id,
            "epoch": self.epoch,
            "revision": revision,
            "event_id": event_id(self.stream_id, task, self.epoch, revision),
            "covers": self.covers_with_lag(),
        }
        if ticket is not None:
            changes["source"] = Source(first_offset=ticket, last_offset=ticket)
        return replace(event, **changes)

    def covers_with_lag(self) -> Covers:
        """What is covered, and how far (in stream time) that lags behind the window's newest segment."""
        ends = [p.info.end_ms for p in self.window if p.info.end_ms is not None]
        if not ends or self.covers.to_ms is None:
            return self.covers
        lag = max(0, max(ends) - self.covers.to_ms)
        return Covers(self.covers.to_seq, self.covers.to_segment_id, self.covers.to_ms, lag)

    def next_done(self) -> Work | None:
        """Take out the oldest segment if it is done; segments are done in feed order."""
        if not self.works or not self.works[0].done:
            return None
        work = self.works.popleft()
        self.cursor = max(self.cursor, work.ticket)
        if work.seq is not None:
            self.settled_seq = work.seq + 1
        if work.settings is not None:
            self.settled_settings = work.settings
        return work

    def answer_questions(self) -> None:
        """Move answers whose turn it is to what is published; each is kept under its question's id."""
        while self.questions and self.questions[0].done:
            asked = self.questions.popleft()
            name = asked.question.question_id
            made = asked.answer
            answer = (
                self.known_questions.get(name) if made is None else self.stamp(made, asked.ticket)
            )
            if answer is not None:
                self.answers.append(answer)
            if name and not asked.repeat:
                self.keep_answer(name, answer)
            if asked.ticket is not None:
                self.answered.append(asked.ticket)
                self.question_cursor = max(self.question_cursor, asked.ticket)

    def keep_answer(self, name: str, answer: AnswerEvent | None) -> None:
        """Know the question as answered; of all but the newest only the ids are kept."""
        self.known_questions[name] = answer
        kept = [known for known, a in self.known_questions.items() if a is not None]
        for old in kept[:-KEPT_ANSWERS]:
            self.known_questions[old] = None
        while len(self.known_questions) > KNOWN_QUESTIONS:
            del self.known_questions[next(iter(self.known_questions))]

    def take_emission(self) -> Emission | None:
        """What there is to publish now, with the state that belongs to it; empties the outbox."""
        if not (self.events or self.finished or self.failed or self.answers or self.answered):
            return None
        emission = Emission(
            stream_id=self.stream_id,
            state=self.state(),
            events=self.events,
            done=self.finished,
            failed=self.failed,
            answers=self.answers,
            answered=self.answered,
        )
        self.events, self.finished, self.failed = [], [], []
        self.answers, self.answered = [], []
        return emission

    def read_again(self) -> list[Part]:
        """Text of done segments that is still to be prefilled, after a restart or when memory was lost;
        the part under way is the first of it."""
        begun = (self.current,) if self.current is not None else ()
        again: list[Part] = []
        for part in chain(begun, self.queue):  # it comes before all that is new
            if not isinstance(part, Part) or part.info.offset > self.cursor:
                break
            again.append(part)
        return again

    def state(self) -> SessionState:
        """The stream as of ``cursor``: later segments are left out, they will be fed again. What is
        to be read again belongs to it."""
        whole = [p for p in self.window if p is not self.current]
        parts = [] if self.ended else [p for p in whole if p.info.offset <= self.cursor]
        ahead = sum(len(p.tokens) for p in whole if p.info.offset > self.cursor)
        begun = self.current_done if self.current is not None else 0
        uncovered = sum(len(p.tokens) for p in parts if p.end > self.covered)
        again = self.read_again()
        end = max(self.frontier, self.layout.sinks) - begun
        for part in again:
            end += len(part.tokens)
            uncovered += len(part.tokens) if end > self.covered else 0
        covers = self.covers_up_to(self.settled_seq - 1)
        return SessionState(
            stream_id=self.stream_id,
            epoch=self.epoch,
            ended=self.ended,
            cursor=self.cursor,
            next_seq=self.settled_seq,
            revisions=dict(self.revisions),
            items=self.ledger.items,
            next_item=self.ledger.next_item,
            archived=self.ledger.archived,
            window=tuple(p.info for p in (*parts, *again)),
            covered_seq=covers.to_seq,
            covered_segment_id=covers.to_segment_id,
            covered_ms=covers.to_ms,
            uncovered_tokens=uncovered,
            tokens_total=self.tokens_total - ahead - begun + sum(len(p.tokens) for p in again),
            last_output=dict(self.last_output),
            degraded=self.degraded,
            weights=self.weights,
            settings=self.settled_settings,
            question_cursor=self.question_cursor,
            answers=tuple(a for a in self.known_questions.values() if a is not None),
            answered=tuple(name for name, a in self.known_questions.items() if a is None),
        )

    @property
    def idle(self) -> bool:
        """Nothing queued, in progress or owed: the slot could be given to another stream. Partial
        hypotheses do not count: they can be preempted at any time."""
        return not self.queue and self.at_rest

    @property
    def at_rest(self) -> bool:
        """Nothing in progress or owed except what is queued: giving up the slot and taking one again
        does not change the output."""
        return not (
            self.current or self.requests or self.due or self.runs or self.ending or self.requested
        )


def evidence(info: WindowSegment) -> Evidence:
    """A segment of the window as the ledger cites it."""
    return Evidence(
        info.segment_id, info.start_ms, info.end_ms, info.speaker, info.correction, info.revision
    )
