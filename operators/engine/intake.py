"""The way of a segment into the cache: checked, cut into parts, queued, ingested; then its events."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from operators import languages
from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.engine.known_segments import Known
from operators.engine.partials import Partials
from operators.engine.session import Part, Session, Work
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import TaskRunner, view_of
from operators.errors import CapacityError, SegmentError
from operators.events import Event, Segment, Speaker, TranslationEvent, task_of
from operators.model.tokenizer import Tokenizer
from operators.observer import Observer
from operators.redaction import redact
from operators.state import Failure, WindowSegment
from operators.stream_settings import bounded
from operators.tasks.base import EMPTY, Spoken, Task
from operators.tasks.edits import edited
from operators.tasks.summary import SummaryTask

SHIFT_TOKENS = 16
"""Least tokens of the turns that are compared for a shift of topic."""
NO_TICKET = -1
"""Of an end mark that comes from no input."""
SETTING_DROPPED = "setting_dropped"
"""In ``degraded``, with a colon and the field: something the stream asked for was left out."""


class Intake:
    """Puts segments into sessions' queues, and finishes them in feed order. ``tasks``: all that may
    want a run of their own for a segment."""

    def __init__(
        self,
        config: OperatorConfig,
        tokenizer: Tokenizer,
        cache: KvCache,
        tasks: Sequence[Task],
        runner: TaskRunner,
        partials: Partials,
        observer: Observer,
        clock: Callable[[], float],
        *,
        summary: SummaryTask,
        translatable: bool = True,
    ) -> None:
        """``summary`` makes the revision that shows an edit; ``translatable``: a translation fits a
        branch, so streams may ask for languages."""
        self._config, self._tokenizer, self._cache = config, tokenizer, cache
        self._summary, self._translatable = summary, translatable
        self._tasks, self._runner, self._partials = tasks, runner, partials
        self._observer, self._clock = observer, clock

    # --- into the queue ----------------------------------------------------------------------

    def check(self, session: Session, segment: Segment) -> None:
        """Raises CapacityError or SegmentError when the segment cannot be taken; changes nothing."""
        if len(session.queue) + len(session.later) >= self._config.max_queue:
            raise CapacityError(
                f"stream {segment.stream_id}: {self._config.max_queue} in the queue"
            )
        size = len(segment.text.encode())
        if size > self._config.max_text_bytes:
            raise SegmentError(
                "text_too_large", f"{size} bytes of text, at most {self._config.max_text_bytes}"
            )

    def redacted(self, segment: Segment) -> Segment:
        """The segment without the personal data that ``redact`` names, in text and speaker."""
        kinds, who = self._config.redact, segment.speaker
        if not kinds:
            return segment
        if who is not None:
            name, number = (redact(label or "", kinds) or None for label in (who.name, who.id))
            who = Speaker(id=number, name=name)
        edit = segment.edit
        if edit is not None:
            words = (edit.text, edit.owner)  # None and empty say different things
            text, owner = (None if word is None else redact(word, kinds) for word in words)
            edit = replace(edit, text=text, owner=owner)
        text = redact(segment.text, kinds)
        return replace(segment, text=text, speaker=who, edit=edit)

    def submit(self, session: Session, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        """Queue a checked segment. Mutates the session."""
        given_id = segment.segment_id
        segment, relation = session.known.named(segment)
        work = Work(ticket, segment, accepted_at=self._clock(), waited=waited)
        session.works.append(work)
        if is_final_text(segment):
            work.held = session.partials.drop(segment.segment_id, self._cache)
        if segment.type == "session_end" and not session.ended:
            session.partials.clear(self._cache)
            work.closing, session.closing = True, True
            session.queue.append(work)
        elif segment.type == "session_end":
            self._observer.count("duplicate_inputs")
        elif segment.type in ("session_start", "session_update"):
            self._enqueue_settings(session, work)
        elif segment.type == "speaker_revision":
            self._correct(work)
        elif segment.type == "edit" and relation != "new":
            self._observer.count("duplicate_inputs")
        elif segment.type == "edit":
            work.edits = True
            if given_id:
                session.known.remember(Known(given_id, given_id, segment.revision))
        elif is_final_text(segment) and relation == "new":
            if given_id in session.known:
                self._observer.count("reused_ids")
            session.known.take(given_id, segment)
            self._enqueue(session, work)
        elif is_final_text(segment) and relation == "repeat":
            self._observer.count("duplicate_inputs")
        elif is_final_text(segment):
            # A corrected final is not ingested either: the cache keeps the first version.
            session.known.take(given_id, segment)
            self._correct(work)
        elif segment.type == "segment" and segment.is_final:
            session.partials.drop(segment.segment_id, self._cache)  # blank: withdraws its partials
        elif segment.type == "segment":
            self._partials.submit(session, segment, ticket, late=relation != "new")

    def end(self, session: Session) -> None:
        """Queue an end mark that nobody fed; without effect where one is queued, or the stream has
        ended. A stream that was restored from text of which all is covered needs no cache for it: its
        text is not prefilled again. Mutates the session."""
        if session.ended or session.closing:
            return
        again = [part for part in session.queue if isinstance(part, Part) and part.work is None]
        if len(again) == len(session.queue) and session.current is None and not session.works:
            tokens = sum(len(part.tokens) for part in again)
            if session.frontier + tokens <= session.covered:
                session.queue.clear()
                session.tokens_total += tokens
        end = Segment(stream_id=session.stream_id, type="session_end")
        self.submit(session, end, NO_TICKET)

    def _enqueue_settings(self, session: Session, work: Work) -> None:
        """Queue new settings of the stream: they hold for what is said behind them."""
        if work.segment.settings is None or session.ended:
            return
        work.asks = bounded(work.segment.settings, self._config, self._translatable)
        for name in work.asks.dropped:
            self._observer.count("dropped_settings", field=name)
            session.add_degraded(f"{SETTING_DROPPED}:{name}")
        session.queue.append(work)

    def _correct(self, work: Work) -> None:
        """Mark a correction; it takes effect in feed order."""
        self._observer.count("late_revisions")
        work.corrects = True

    def _enqueue(self, session: Session, work: Work) -> None:
        """Cut the segment into parts of at most W/2 tokens and queue them."""
        segment = work.segment
        # A number that does not grow (late, or counted anew) would make coverage claim too much.
        seq = max(session.next_seq, -1 if segment.seq is None else segment.seq)
        work.seq, session.next_seq = seq, seq + 1
        name = (segment.speaker.name or segment.speaker.id or "") if segment.speaker else ""
        label = f"{name[:80]}: " if name else ""
        if self._count(label) > self._config.window // 4:
            label = ""  # a name must not fill the window
        room = self._config.window // 2 - self._count(label) - 2
        tag = languages.known(segment.language) or "en"
        text = " ".join(segment.text.split())
        pieces = languages.split(text, max(4, room), self._count, tag)
        work.parts_left = len(pieces)
        for at, piece in enumerate(pieces):
            text = f"{label}{piece}\n"
            tokens = self._tokenizer.encode(text)
            info = WindowSegment(
                segment_id=segment.segment_id,
                revision=segment.revision,
                seq=seq,
                text=text,
                tokens=len(tokens),
                offset=work.ticket,
                last_part=at == len(pieces) - 1,
                speaker=name or None,
                start_ms=segment.start_ms,
                end_ms=segment.end_ms,
            )
            session.queue.append(Part(text, piece, tokens, info, work))

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    # --- in the cache, and done ----------------------------------------------------------------

    def note_ingested(self, session: Session, tokens: Sequence[int]) -> None:
        """Note that ``tokens`` are in the cache. With a part's last token its runs become due."""
        evicted = session.evicted_total
        part = session.advance(tokens)
        self._observer.count("kv_evicted_tokens", session.evicted_total - evicted)
        if part is not None and self._config.topic_shift:
            session.shift = session.topic_shift(max(SHIFT_TOKENS, self._config.update_tokens // 8))
        if part is None or part.work is None:
            return
        work = part.work
        work.parts_left -= 1
        if part.info.last_part:
            self._observer.observe("queue_wait_seconds", self._clock() - work.accepted_at)
        for task in self._tasks:
            if task.wants(work.segment, session.settings):
                begun = sum(run.task is task for run in work.runs)
                for index, piece in enumerate(task.cut(work.segment, part.said), start=begun):
                    occasion = Spoken(work.segment, piece, index, work.held)
                    work.runs.append(self._runner.start(session, task, occasion))

    def conclude(self, session: Session, run: TaskRun) -> None:
        """Record the outcome of a run that a segment waits for."""
        assert run.outcome is not None
        if not run.outcome.failed:
            session.apply(run.outcome)
            return
        self._observer.count("failed_runs", task=run.task.name, reason=run.outcome.failed)
        for work in session.works:
            if run in work.runs:
                why = run.outcome.failed, run.outcome.text
                work.failure = Failure(work.ticket, run.task.name, *why)

    def finish(self, session: Session) -> None:
        """Move finished segments from the head of the queue to what is published, in feed order: the
        revisions are numbered in that order. Mutates the session."""
        while (work := session.next_done()) is not None:
            if work.failure is not None:
                session.failed.append(work.failure)
                continue
            if work.corrects:
                session.correct(work.segment)
            if work.edits and not self._edit(session, work):
                continue
            session.events.extend(self._events(session, work))
            session.events.extend(work.final)
            if work.ticket != NO_TICKET:
                session.finished.append(work.ticket)
        if session.works and session.works[0].failure is None:
            session.events.extend(self._events(session, session.works[0], complete=False))

    def _edit(self, session: Session, work: Work) -> bool:
        """Do what a person asks, and publish the notes as they are then. False: it is refused."""
        edit, revision = work.segment.edit, session.revisions.get(self._summary.name, 0) + 1
        op = edit.op if edit is not None else "none"
        try:
            made = edited(session.ledger, work.segment, self._config.ledger_bytes, revision)
        except SegmentError as error:
            self._observer.count("edits", op=op, result=error.reason)
            session.failed.append(Failure(work.ticket, "edit", error.reason, str(error)))
            return False
        self._observer.count("edits", op=op, result="done")
        session.ledger.archived = made.archived
        session.set_items(made.items, made.next_item)
        event = self._summary.after_edit(view_of(session, self._summary), session.ended)
        session.last_output["ledger"] = event.text
        session.events.append(session.stamp(session.with_degraded(event), work.ticket))
        return True

    def _events(self, session: Session, work: Work, *, complete: bool = True) -> list[Event]:
        """The events of the segment's runs, task by task. Of a task that publishes early one per run, in
        their order, as far as they are done: how many there are does not depend on load."""
        made: list[Event] = []
        for task in self._tasks:
            runs = [run for run in work.runs if run.task is task]
            done = [run.outcome for run in itertools.takewhile(_succeeded, runs) if run.outcome]
            counts = range(0)
            if task.early:
                last = len(runs) - (not complete and not work.parts_left)  # waits for the segment
                counts = range(work.published.get(task.name, 0) + 1, min(len(done), last) + 1)
                work.published[task.name] = max(counts, default=counts.start - 1)
            elif complete and runs:
                counts = range(len(done), len(done) + 1)
            for count in counts:
                whole = complete and count == len(runs)
                events = task.join(work.segment, done[:count], work.held, count - 1, whole)
                made += [session.stamp(self._timed(e, work), work.ticket) for e in events]
        for event in made:
            if EMPTY in event.degraded or "empty" in event.degraded:
                self._observer.count("failed_runs", task=task_of(event), reason=EMPTY)
        return made

    def _timed(self, event: Event, work: Work) -> Event:
        """A translation with how long it took from the segment's acceptance, which is observed."""
        if not isinstance(event, TranslationEvent):
            return event
        waited = self._clock() - work.accepted_at
        self._observer.observe("translation_latency_seconds", waited, policy=event.policy)
        if event.is_final:
            erasure = event.stability.normalized_erasure
            self._observer.observe("translation_normalized_erasure", erasure)
        return replace(event, latency_ms=round(1000 * waited))


def _succeeded(run: TaskRun) -> bool:
    return run.outcome is not None and not run.outcome.failed


def is_final_text(segment: Segment) -> bool:
    """Whether its text belongs into the cache, if it is new."""
    return segment.type == "segment" and segment.is_final and bool(segment.text.strip())


def begins_again(session: Session, segment: Segment) -> bool:
    """Whether a segment after a stream's end is the first of a new epoch: a ``session_start``, or
    final text that does not repeat a segment from before the end."""
    if session.known.named(segment)[1] == "repeat":
        return False
    return segment.type == "session_start" or is_final_text(segment)
