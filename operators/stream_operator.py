"""The operator: endless text in, summaries and translations out, one bounded state per stream.

    operator = StreamOperator(load_model(path), OperatorConfig(targets=("fr",)), clock=time.monotonic)
    operator.open("meeting-1")
    operator.feed(Segment(stream_id="meeting-1", text="Good morning.", segment_id="a"), ticket=0)
    while operator.has_work():
        for emission in operator.step():
            print(emission.events, emission.done)

One step is three calls: plan the rows, run them, take note of what came out. Single-threaded; the
caller owns the loop. Nothing here waits, sleeps, or knows where text comes from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import msgspec
from torch import Tensor

from operators import restore
from operators.attention import Row
from operators.config import LANGUAGES, OperatorConfig
from operators.draft_control import Costs
from operators.draft_model import DraftModel
from operators.drafting import NgramIndex
from operators.errors import CapacityError, ConfigError, DeviceError, SegmentError
from operators.generation import Generation
from operators.kv_cache import KvLayout, bytes_per_stream
from operators.model import DecoderModel
from operators.observer import Observer
from operators.scheduler import Scheduler, StepPlan
from operators.session import Part, Session, Work
from operators.snapshot import StreamMemory, from_bytes, identity, to_bytes
from operators.tasks.answer import AnswerTask
from operators.tasks.prompts import Prompts
from operators.tasks.summary import SummaryTask, View
from operators.tasks.translation import TranslationTask, split_text
from operators.types import (
    Emission,
    Failure,
    ModelInfo,
    Segment,
    SessionState,
    SummaryEvent,
    Trigger,
    WindowSegment,
)

MAX_UPDATE_FAILURES = 3
RECENT_IDS = 1024


class StreamOperator:
    """See the module's docstring. Errors: ConfigError when sizes do not fit each other or the model,
    SegmentError/CapacityError from :meth:`feed`, DeviceError from :meth:`step`.

    ``draft`` is a smaller model with the same vocabulary, ``costs`` what forwards cost on this
    machine; both change the speed only. The operator answers for ``draft`` as for ``model``."""

    def __init__(
        self,
        model: DecoderModel,
        config: OperatorConfig,
        *,
        clock: Callable[[], float],
        observer: Observer | None = None,
        draft: DecoderModel | None = None,
        costs: Costs | None = None,
    ) -> None:
        self.model, self.config = model, config
        self._observer, self._clock = observer or Observer(), clock
        self._tokenizer = model.tokenizer
        self._prompts = Prompts(model.tokenizer, config.prompts)
        self.layout = KvLayout(
            len(self._prompts.prefix), config.window, config.slack, config.branch_tokens
        )
        self._check_branch_size()
        self.cache = model.new_cache(self.layout, slots=config.slots, branches=config.branches)
        self._draft = self._new_draft(draft)
        info = ModelInfo(model.name, draft.name if draft is not None else config.drafter)
        self._summary = SummaryTask(config, self._prompts, model.tokenizer, info)
        self._translation = TranslationTask(config, self._prompts, model.tokenizer, info)
        self._answers = AnswerTask(config, self._prompts, model.tokenizer, info)
        self._sessions: dict[str, Session] = {}
        self._recent: dict[str, OrderedDict[str, int]] = {}
        prefix = self._make_prefix()
        self._scheduler = Scheduler(
            self.cache, config, prefix, len(self._prompts.prefix), draft=self._draft, costs=costs
        )
        self._steps = 0
        self.identity = identity(model, self.layout, self._prompts.prefix)

    # --- what it takes -----------------------------------------------------------------------

    @property
    def bytes_per_stream(self) -> int:
        """KV bytes of one stream: slot plus its share of branch scratch, in the draft model's cache
        too if there is one. Fixed, computed beforehand."""
        drafts = self._draft.bytes_per_stream if self._draft is not None else 0
        return drafts + bytes_per_stream(
            self.model.shape,
            self.layout,
            self.model.dtype,
            slots=self.config.slots,
            branches=self.config.branches,
        )

    def _new_draft(self, draft: DecoderModel | None) -> DraftModel | None:
        config = self.config
        if draft is None and config.draft_model:
            raise ConfigError(f"draft_model={config.draft_model!r} is set, but it was not loaded")
        if draft is None:
            return None
        return DraftModel(
            draft,
            self.model,
            self.layout,
            self._prompts.prefix,
            slots=config.slots,
            branches=config.branches,
            block=config.ingest_budget,
        )

    def _check_branch_size(self) -> None:
        config, b = self.config, self.config.branch_tokens
        empty = len(self._prompts.render("summary", ledger="", limit="4", since="x" * 80))
        need = empty + config.ledger_tokens + config.summary_tokens
        if need > b:
            raise ConfigError(
                f"branch_tokens={b}: a summary update needs {need} (instruction {empty} + "
                f"ledger_tokens {config.ledger_tokens} + summary_tokens {config.summary_tokens})"
            )
        if config.targets:
            empty = len(self._prompts.render("translate", language="", text=""))
            need = empty + 4 * config.translation_unit_tokens + 24
            if need > b:
                raise ConfigError(
                    f"branch_tokens={b}: a translation needs {need} (instruction {empty} + "
                    f"4 x translation_unit_tokens {config.translation_unit_tokens} + 24)"
                )

    def _make_prefix(self) -> Tensor:
        """Run the pinned prefix once; every stream starts from a copy of it."""
        slot = self.cache.allocate()
        tokens = self._prompts.prefix
        while slot.length < len(tokens):
            end = slot.length + self.layout.slack
            self.model.forward("ingest", self.cache, [Row(slot, tokens[slot.length : end])])
        prefix = self.cache.export(slot)
        self.cache.release(slot)
        return prefix

    # --- streams in and out ------------------------------------------------------------------

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> None:
        """Make a stream known; with ``state`` it continues from there.

        A ``snapshot`` of the stream makes that exact (``restored: snapshot``); without a state it
        continues from the snapshot's own. From a state alone, or with a snapshot that does not
        reach it, the window's text is run through the model again: an approximation of the lost KV,
        marked ``restored: replay``. Raises SnapshotError when the snapshot is torn or was made with
        another model, type or size; the stream is then not open.
        """
        found = from_bytes(snapshot, self.identity) if snapshot is not None else None
        if stream_id in self._sessions:
            self.drop(stream_id)
        if found is not None and state is None:
            state = found[0].state
        session = self._new_session(stream_id, state.epoch if state else 0)
        self._sessions[stream_id] = session
        self._recent[stream_id] = OrderedDict()
        if state is not None:
            self._continue(session, state, found)
        self._gauge_streams()

    def _new_session(self, stream_id: str, epoch: int) -> Session:
        index = NgramIndex(self.config.window)
        session = Session(stream_id, self.layout, index, epoch=epoch)
        session.covered = session.last_fork = session.parked_length = self.layout.sinks
        session.last_fork_at = session.last_used = self._clock()
        return session

    def _continue(
        self, session: Session, state: SessionState, found: tuple[StreamMemory, Tensor] | None
    ) -> None:
        encode = self._tokenizer.encode
        since = restore.said_since(found[0], state) if found is not None else None
        if found is not None and since is not None:
            restore.from_snapshot(session, state, *found, since, encode=encode)
            known = [*found[0].recent, *(info.segment_id for info in since)]
        else:
            restore.from_text(session, state, encode)
            known = [part.info.segment_id for part in session.queue if isinstance(part, Part)]
        for segment_id in known:
            self._remember(session.stream_id, segment_id, 0)
        if session.restored != "none":
            self._observer.count("kv_restores", kind=session.restored)

    def cursor(self, stream_id: str) -> int:
        """Ticket of the last segment done; what is fed next must be above it."""
        return self._sessions[stream_id].cursor

    def quiet(self, stream_id: str) -> bool:
        """Whether all that was fed to the stream has been done and handed out: then, and only
        then, its memory belongs to its state and a snapshot may be taken."""
        session = self._sessions[stream_id]
        waiting = session.works or session.events or session.finished or session.failed
        return session.idle and session.between_parts and not waiting and not session.ended

    def snapshot(self, stream_id: str) -> bytes:
        """The stream's whole memory, to be given to :meth:`open` in this or another process.

        Changes nothing. Raises CapacityError while the stream is not :meth:`quiet`.
        """
        if not self.quiet(stream_id):
            raise CapacityError(f"stream {stream_id} is busy; step() until it is quiet")
        session = self._sessions[stream_id]
        memory = restore.remember(session, self.identity, list(self._recent[stream_id]))
        if session.slot is not None:
            return to_bytes(memory, self.cache.export(session.slot))
        return to_bytes(
            memory, self._scheduler.prefix if session.parked is None else session.parked
        )

    def drop(self, stream_id: str) -> None:
        """Forget the stream at once, whatever it was doing. Nothing more is emitted about it."""
        session = self._sessions.pop(stream_id, None)
        self._recent.pop(stream_id, None)
        if session is not None and session.slot is not None:
            self.cache.release(session.slot)
        self._gauge_streams()

    def request_summary(self, stream_id: str) -> None:
        """Ask for an update at the next place where one is possible."""
        self._sessions[stream_id].requested = "request"

    def ask(self, stream_id: str, question: str, question_id: str = "") -> None:
        """Ask about the stream as it is now; an AnswerEvent comes with a later emission.

        Raises SegmentError when the question is too long, or the stream has ended and its memory
        with it. A question is not part of the stream's state: ask again after a restart.
        """
        session = self._living(stream_id)
        made = partial(self._answers.generation, session, question)
        made(lambda _: None)  # refused here rather than in the middle of a step
        finish = partial(self._answered, session, question_id, question)
        session.asked.append(partial(made, finish))

    def translate(
        self, stream_id: str, text: str, language: str, done: Callable[[str], None]
    ) -> None:
        """Translate words that are not the stream's own with its window as context; ``done`` gets
        the translation during a later step. The stream's memory and revisions stay as they are.

        Raises SegmentError when the stream has ended, ConfigError for an unknown language.
        """
        if language not in LANGUAGES:
            raise ConfigError(f"unknown language code {language!r}; known: {', '.join(LANGUAGES)}")
        session = self._living(stream_id)
        pieces = self._translation.pieces(" ".join(text.split()))
        finished: list[Generation] = []

        def finish(generation: Generation) -> None:
            self._close(session, generation)
            finished.append(generation)
            if len(finished) == len(pieces):
                done(self._translation.text(sorted(finished, key=lambda g: g.number)))

        for number, piece in enumerate(pieces):
            session.asked.append(
                partial(self._translation.generation, session, language, piece, finish, number)
            )

    def _living(self, stream_id: str) -> Session:
        session = self._sessions[stream_id]
        if session.ended or session.ending is not None:
            raise SegmentError("stream_ended", f"stream {stream_id} has ended, its memory is gone")
        return session

    def _answered(
        self, session: Session, question_id: str, question: str, generation: Generation
    ) -> None:
        self._close(session, generation)
        session.answers.append(self._answers.event(session, question_id, question, generation))

    def feed(self, segment: Segment, ticket: int) -> None:
        """Queue one segment of an open stream; its ``ticket`` comes back in an emission.

        Tickets of a stream must grow. Raises SegmentError for a segment that is refused (the ticket
        is then not taken), CapacityError when the stream's queue is full (try again later),
        KeyError when the stream is not open.
        """
        session = self._sessions[segment.stream_id]
        if len(session.queue) >= self.config.max_queue:
            raise CapacityError(f"stream {segment.stream_id}: {self.config.max_queue} in the queue")
        size = len(segment.text.encode())
        if size > self.config.max_text_bytes:
            raise SegmentError(
                "text_too_large", f"{size} bytes of text, at most {self.config.max_text_bytes}"
            )
        if session.ended and segment.type != "session_end":
            session = self._start_again(session)
        work = Work(ticket, segment, accepted_at=self._clock())
        session.works.append(work)
        if segment.type == "session_end":
            work.owed = 1
            session.queue.append(work)
        elif segment.type == "segment" and segment.is_final and segment.text.strip():
            if self._is_repeat(segment):
                self._observer.count("duplicate_inputs")
            else:
                self._enqueue(session, work)

    def _start_again(self, session: Session) -> Session:
        """A stream that had ended begins a new epoch with an empty memory."""
        fresh = self._new_session(session.stream_id, session.epoch + 1)
        fresh.works, fresh.events = session.works, session.events
        fresh.finished, fresh.failed = session.finished, session.failed
        fresh.cursor = session.cursor
        self._sessions[session.stream_id] = fresh
        self._recent[session.stream_id] = OrderedDict()
        return fresh

    def _is_repeat(self, segment: Segment) -> bool:
        """Whether this very segment (same id) has been taken before. A corrected final is not taken
        into the cache either: what was said stays as it was first heard."""
        seen = self._recent[segment.stream_id]
        return bool(segment.segment_id) and segment.segment_id in seen

    def _remember(self, stream_id: str, segment_id: str, revision: int) -> None:
        recent = self._recent[stream_id]
        recent[segment_id] = revision
        while len(recent) > RECENT_IDS:
            recent.popitem(last=False)

    def _enqueue(self, session: Session, work: Work) -> None:
        """Cut the segment into parts of at most W/2 tokens and queue them."""
        segment = work.segment
        seq = segment.seq if segment.seq is not None else session.next_seq
        work.segment = segment = msgspec.structs.replace(segment, seq=seq)
        session.next_seq = max(session.next_seq, seq + 1)
        if segment.segment_id:
            self._remember(segment.stream_id, segment.segment_id, segment.revision)
        name = (segment.speaker.name or segment.speaker.id or "") if segment.speaker else ""
        label = f"{name[:80]}: " if name else ""
        if len(self._tokenizer.encode(label)) > self.config.window // 4:
            label = ""  # a name must not fill the window
        room = self.config.window // 2 - len(self._tokenizer.encode(label)) - 2
        said = " ".join(segment.text.split())
        pieces = split_text(said, max(4, room), lambda t: len(self._tokenizer.encode(t)))
        work.parts_left = len(pieces)
        work.build = partial(self._translation.events, session)
        for at, piece in enumerate(pieces):
            text = f"{label}{piece}\n"
            tokens = self._tokenizer.encode(text)
            info = WindowSegment(
                segment_id=segment.segment_id,
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

    # --- the step ----------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether a step would do anything now."""
        now = self._clock()
        return any(
            not s.idle or s.works or s.events or self._interval_due(s, now)
            for s in self._sessions.values()
        )

    def idle_until(self) -> float | None:
        """Clock time of the next update that is due by time alone, or None."""
        every = self.config.update_interval_s
        times = [s.last_fork_at + every for s in self._sessions.values() if s.uncovered_tokens]
        return min(times, default=None) if every else None

    def step(self) -> list[Emission]:
        """Run one forward per role at most; return what is ready to be published.

        Raises DeviceError when the model fails for good; whatever was not returned is not done.
        """
        began = self._clock()
        sessions = list(self._sessions.values())
        for session in sessions:
            self._make_due(session, began)
        self._scheduler.admit(sessions, began)
        plan = self._scheduler.plan(sessions, self._start_part)
        if plan:
            self._run(plan)
            self._steps += 1
            self._observer.observe("step_seconds", self._clock() - began)
        for session in sessions:
            self._make_due(session, began)
            session.settle()
        emissions = [e for s in sessions if (e := s.take_emission()) is not None]
        for emission in emissions:
            self._retire(emission)
        self._gauge()
        return emissions

    def _run(self, plan: StepPlan) -> None:
        """Forward the rows of each role and hand every row's logits to its owner."""
        began = self._clock()
        ingest = [row for row, _ in plan.prompts] + [row for row, _ in plan.blocks]
        if ingest:
            tokens = sum(len(row.tokens) for row in ingest)
            logits = self.model.forward("ingest", self.cache, ingest)
            self._observer.count("prompt_tokens", tokens)
            self._observer.observe("prefill_seconds", self._clock() - began)
            at = 0
            for row, generation in plan.prompts:
                generated = generation.prompt_done(
                    len(row.tokens), logits[at : at + 1] if row.want else None
                )
                at += row.want
                if row.want:
                    self._observer.count("generation_tokens", generated)
                    generation.first_token_at = generation.last_token_at = self._clock()
                    waited = generation.first_token_at - generation.due_at
                    self._observer.observe("time_to_first_token_seconds", waited)
                self._finish_if_done(generation)
            if self._draft is not None:
                self._draft.ingest([row for row, _ in plan.blocks])
            for row, session in plan.blocks:
                self._ingested(session, row)
        if plan.verifies:
            rows = [row for row, _ in plan.verifies]
            logits = self.model.forward("generation", self.cache, rows)
            at = 0
            for row, generation in plan.verifies:
                block = logits[at : at + row.want]
                at += row.want
                self._verified(generation, len(row.tokens) - 1, block)
        every = len(ingest) and sum(len(r.tokens) for r in ingest)
        every += sum(len(r.tokens) for r, _ in plan.verifies)
        self._observer.observe("batch_tokens", every)

    def _verified(self, generation: Generation, drafted: int, logits: Tensor) -> None:
        accepted, tokens = generation.verified(logits)
        now = self._clock()
        if generation.last_token_at is not None and tokens:
            each = (now - generation.last_token_at) / len(tokens)
            self._observer.observe("inter_token_latency_seconds", each)
        generation.last_token_at = now
        self._observer.count("generation_tokens", len(tokens))
        if drafted:
            self._observer.count("spec_decode_drafts")
            self._observer.count("spec_decode_draft_tokens", drafted)
            self._observer.count(
                "spec_decode_accepted_tokens", accepted, drafter=generation.drafter_name
            )
            for position in range(accepted):
                self._observer.count("spec_decode_accepted_tokens_per_pos", position=str(position))
        self._finish_if_done(generation)

    def _finish_if_done(self, generation: Generation) -> None:
        if generation.finish_reason and generation.on_finish is not None:
            generation.on_finish(generation)

    def _close(self, session: Session, generation: Generation) -> None:
        """Throw the branch away; the stream's memory is as before the fork."""
        assert generation.branch is not None
        self.cache.drop(generation.branch)
        session.running.remove(generation)

    # --- ingest ------------------------------------------------------------------------------

    def _start_part(self, session: Session) -> Part | None:
        """Take the next part off the queue, if the rules allow it now (see operators.session)."""
        if session.due or session.ending or not session.queue:
            return None
        head = session.queue[0]
        if isinstance(head, Work) or not session.fits(head):
            return None
        if self._update_wanted(session):
            return None  # an update is due here and waits for the running one to finish
        session.queue.popleft()
        return head

    def _ingested(self, session: Session, row: Row) -> None:
        session.last_used = self._clock()
        evicted = session.evicted_total
        part = session.advance(row.tokens)
        self._observer.count("kv_evicted_tokens", session.evicted_total - evicted)
        if part is None or part.work is None:
            return
        work = part.work
        work.parts_left -= 1
        if part.info.last_part:
            self._observer.observe("queue_wait_seconds", self._clock() - work.accepted_at)
        finish = partial(self._translated, session, work)
        for generation in self._translation.generations(session, part, finish):
            generation.due_at = self._clock()
            session.due.append(generation)

    def _translated(self, session: Session, work: Work, generation: Generation) -> None:
        self._close(session, generation)
        work.owed -= 1
        if generation.finish_reason == "nonfinite":
            work.failure = Failure(
                work.ticket, "translate", "nonfinite_logits", "the model gave no finite numbers"
            )

    # --- summary updates ---------------------------------------------------------------------

    def _update_wanted(self, session: Session) -> Trigger | None:
        """Which trigger, if any, asks for an update at the current frontier."""
        fresh = session.frontier - session.last_fork
        if session.ending is not None:
            return "session_end"
        if session.requested is not None:
            return session.requested
        if fresh >= self.config.update_tokens:
            return "tokens"
        head = session.queue[0] if session.queue else None
        if isinstance(head, Part) and not session.fits(head):
            return "tokens"
        return "interval" if self._interval_due(session, self._clock()) else None

    def _interval_due(self, session: Session, now: float) -> bool:
        every = self.config.update_interval_s
        return bool(every and session.uncovered_tokens and now - session.last_fork_at >= every)

    def _make_due(self, session: Session, now: float) -> None:
        """Start what the session's rules ask for at this frontier: the end mark, an update."""
        head = session.queue[0] if session.queue else None
        if isinstance(head, Work) and session.between_parts and session.works[0] is head:
            session.ending = head
            session.queue.popleft()
        if not session.between_parts or session.due:
            return
        while session.asked:
            generation = session.asked.popleft()()
            generation.due_at = now
            session.due.append(generation)
        if session.summary_running or session.due:
            return
        trigger = self._update_wanted(session)
        if trigger is None:
            return
        session.requested = None
        view = self._summary.view(session, trigger)
        session.last_fork, session.last_fork_at = session.frontier, now
        if session.uncovered_tokens == 0:
            if trigger == "session_end":
                self._end(session, view, None)
            return
        session.summary_running = True
        if self._summary.needs_compaction(session):
            finish = partial(self._compacted, session, view)
            generation = self._summary.compaction(session, finish)
        else:
            generation = self._summary.update(session, partial(self._updated, session, view))
        generation.due_at = now
        session.due.append(generation)

    def _compacted(self, session: Session, view: View, generation: Generation) -> None:
        """The older items are merged; the update proper follows on the same fork."""
        assert generation.branch is not None
        self._summary.compacted(session, generation)
        update = self._summary.update(session, partial(self._updated, session, view))
        update.due_at = generation.due_at
        generation.branch.length = 0  # the region is used again from its start
        session.running.remove(generation)
        update.start(generation.branch)
        session.running.append(update)

    def _updated(self, session: Session, view: View, generation: Generation) -> None:
        self._close(session, generation)
        session.summary_running = False
        if generation.finish_reason == "nonfinite":
            session.update_failures += 1
            session.degraded = ("update_failed",)
            session.last_fork = session.covered
            if session.ending is not None or session.update_failures >= MAX_UPDATE_FAILURES:
                raise DeviceError(
                    f"{session.update_failures} summary updates of one stream gave no finite "
                    "numbers: try dtype fp32, or another model"
                )
            return
        session.update_failures = 0
        if view.trigger == "session_end":
            self._end(session, view, generation)
        else:
            session.events.append(self._finish_summary(session, view, generation))

    def _finish_summary(
        self, session: Session, view: View, generation: Generation | None
    ) -> SummaryEvent:
        event = self._summary.finish(session, view, generation)
        erasure = event.stability.normalized_erasure
        self._observer.observe("summary_normalized_erasure", erasure)
        return event

    def _end(self, session: Session, view: View, generation: Generation | None) -> None:
        """Publish the final revision; the stream's end mark is then done and its slot free."""
        work = session.ending
        assert work is not None
        event = self._finish_summary(session, view, generation)
        work.build = lambda _: [event]
        work.owed = 0
        session.ending, session.ended = None, True
        if session.slot is not None:
            self.cache.release(session.slot)
            session.slot = None

    # --- after the step ----------------------------------------------------------------------

    def _retire(self, emission: Emission) -> None:
        session = self._sessions.get(emission.stream_id)
        if session is not None and session.ended and not session.works:
            session.window.clear()

    def _gauge_streams(self) -> None:
        self._observer.gauge("active_streams", sum(not s.ended for s in self._sessions.values()))

    def _gauge(self) -> None:
        used = self.config.slots - self.cache.free_slots
        self._observer.gauge("resident_streams", used)
        self._observer.gauge("kv_slots_used", used)
        self._observer.gauge("kv_slots", self.config.slots)
        drafts = self._draft.cache.nbytes if self._draft is not None else 0
        self._observer.gauge("kv_bytes", self.cache.nbytes + drafts)
        self._gauge_streams()
