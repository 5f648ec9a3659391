"""The operator: endless text in, summaries and translations out, one bounded state per stream.

    operator = StreamOperator(load_model(path), OperatorConfig(targets=("fr",)))
    meeting = operator.open("meeting-1")
    meeting.feed("Good morning.", speaker="Ana")
    for event in meeting.results():
        print(event)

This is for callers that wait for results (:mod:`operators.stream`). A caller with a loop of its own
feeds segments under tickets and steps:

    operator.feed(Segment(stream_id="meeting-1", text="Good morning.", segment_id="a"), ticket=0)
    while operator.has_work():
        for emission in operator.step():
            print(emission.events, emission.done)

One step is four calls: receive, schedule, forward, process. Single-threaded; nothing here waits, sleeps,
or knows where text comes from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace
from torch import Tensor

from operators.cache.attention import Heads
from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout, bytes_per_stream
from operators.cache.offload import KvStore, Offload
from operators.config import OperatorConfig
from operators.decoding.acceptance import Costs
from operators.decoding.draft_head import DraftHead
from operators.decoding.draft_model import DraftModel
from operators.engine.archive import Archive
from operators.engine.intake import Intake, begins_again
from operators.engine.partials import Partials
from operators.engine.requests import PendingTranslation, Requests
from operators.engine.residency import Residency
from operators.engine.runner import Runner, StepRunner
from operators.engine.scheduler import Scheduler
from operators.engine.session import Session
from operators.engine.snapshot import draft_identity, identity, settings_hash
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import TaskRunner, make_index
from operators.engine.update_policy import UpdatePolicy
from operators.engine.wakeful import Wakeful
from operators.errors import CapacityError, ConfigError
from operators.events import ModelInfo, Question, Segment, SummaryEvent
from operators.model.head import Head
from operators.model.loader import DecoderModel
from operators.observer import Observer
from operators.redaction import redact
from operators.state import Emission, SessionState
from operators.stream import Stream
from operators.tasks.answer import AnswerTask
from operators.tasks.base import Asked, Due, Spoken, Task, Tools
from operators.tasks.prompts import Prompts, check_branch_size, translation_size
from operators.tasks.summary import SummaryTask
from operators.tasks.translation import TextToTranslate, TranslationTask


def no_clock() -> float:
    """A constant: nothing becomes due by time, no duration is measured."""
    return 0.0


class StreamOperator:
    """See the module's docstring. Errors: ConfigError when sizes do not fit each other or the model,
    SegmentError/CapacityError from :meth:`feed`, DeviceError from :meth:`step`.

    ``clock`` (seconds) is needed for updates by time and for measurements. ``draft`` is a smaller
    model with the same vocabulary, ``draft_head`` a head of this model (one of the two), ``costs`` what
    forwards cost on this machine; all change the speed only. ``store`` takes the KV of idle streams
    beyond ``host_streams``; only this operator may use it. ``tasks``: further tasks beside summaries,
    translations and answers (:mod:`operators.tasks.base`). ``heads``: alignment heads by target
    language, which the policy ``alignatt`` needs (:mod:`operators.tasks.alignment`); without them it
    commits nothing early."""

    def __init__(
        self,
        model: DecoderModel,
        config: OperatorConfig | None = None,
        *,
        clock: Callable[[], float] = no_clock,
        observer: Observer | None = None,
        draft: DecoderModel | None = None,
        costs: Costs | None = None,
        store: KvStore | None = None,
        tasks: Sequence[Task] = (),
        heads: Mapping[str, Heads] | None = None,
        draft_head: Head | None = None,
    ) -> None:
        self._heads = heads
        self.model, self.config = model, config or OperatorConfig()
        self._observer, self._clock = observer or Observer(), clock
        for name in ("update_interval_s", "update_silence_s"):
            if getattr(self.config, name) and clock is no_clock:
                raise ConfigError(f"{name} needs a clock: give the operator time.monotonic")
        config = self.config
        self._prompts = Prompts(model.tokenizer, config.prompts)
        self.layout = KvLayout(
            len(self._prompts.prefix), config.window, config.slack, config.branch_tokens
        )
        check_branch_size(config, self._prompts)
        self.cache = model.new_cache(self.layout, slots=config.slots, branches=config.branches)
        self._draft = self._new_draft(draft)
        self._head = self._new_head(draft_head)
        self._sessions: dict[str, Session] = {}
        self._wakeful = Wakeful(clock)
        self._streams: dict[str, Stream] = {}
        self._build_memory(draft, store)
        drafter = Path(config.draft_head).name or config.drafter
        self._build_step(
            ModelInfo(model.name, draft.name if draft is not None else drafter), costs, tasks
        )

    def _build_memory(self, draft: DecoderModel | None, store: KvStore | None) -> None:
        encode = self.model.tokenizer.encode
        offload = Offload(self.config.host_streams, store, self.config.host_bytes)
        self._residency = Residency(
            self.cache, self._make_prefix(), self._draft, offload, encode, self._observer
        )
        self._archive = Archive(
            self._residency,
            identity(self.model, self.layout, self._prompts.prefix),
            settings_hash(self.config),
            draft_identity(draft) if draft is not None else None,
            encode,
        )

    def _build_step(self, info: ModelInfo, costs: Costs | None, tasks: Sequence[Task]) -> None:
        config, cache, tokenizer = self.config, self.cache, self.model.tokenizer
        residency, seen_by = self._residency, (self._observer, self._clock)
        summary, translation, answers = SummaryTask(), TranslationTask(), AnswerTask()
        check_names([summary, translation, answers, *tasks])
        for task in (summary, translation, answers, *tasks):
            task.tools = Tools(config, self._prompts, tokenizer, info)
        runs = self._new_task_runner()
        self._partials = Partials(config, cache, residency, translation, runs, *seen_by)
        by_segment = (translation, *tasks)
        self._intake = Intake(
            *(config, tokenizer, cache, by_segment, runs, self._partials, *seen_by),
            summary=summary,
            translatable=translation_size(config, self._prompts) <= config.branch_tokens,
        )
        self._policy = UpdatePolicy(config, runs, residency, summary, tasks, *seen_by)
        self._requests = Requests(answers, translation, info, self._observer)
        self._scheduler = self._new_scheduler(costs)
        self._runner = self._new_runner()

    # What the operator on a served model (operators.served_operator) has others of.

    def _new_task_runner(self) -> TaskRunner:
        model = self.model
        return TaskRunner(
            self.config, self.cache, model.tokenizer, self._clock, model.vocab_size, self._heads
        )

    def _new_scheduler(self, costs: Costs | None) -> Scheduler:
        if self._head is not None:
            costs = self._head.costs(costs or Costs())
        draft = self._draft or self._head
        return Scheduler(self.cache, self.config, self._residency, draft=draft, costs=costs)

    def _new_runner(self) -> StepRunner:
        draft = self._draft or self._head
        return Runner(self.model, self.cache, draft, self._observer, self._clock)

    # --- memory and the draft model ----------------------------------------------------------

    @property
    def bytes_per_stream(self) -> int:
        """KV bytes of one stream: slot plus its share of branch scratch, in the draft model's cache
        too if there is one, or of what a draft head keeps. Fixed, computed beforehand."""
        by_model = self._draft or self._head
        drafts = by_model.bytes_per_stream if by_model is not None else 0
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
            block=config.prefill_budget,
        )

    def _new_head(self, head: Head | None) -> DraftHead | None:
        config = self.config
        if (head is None) != (not config.draft_head):
            which = "set, but it was not loaded" if head is None else "to be set for a head"
            raise ConfigError(f"draft_head={config.draft_head!r} is {which}")
        if head is None:
            return None
        if self._draft is not None:
            raise ConfigError("a draft head and a draft model do not go together: give one of them")
        return DraftHead(
            head,
            self.model,
            slots=config.slots,
            branches=config.branches,
            tokens=config.branch_tokens,
        )

    def _make_prefix(self) -> Tensor:
        """Run the pinned prefix once; every stream starts from a copy of it."""
        slot = self.cache.allocate()
        tokens = self._prompts.prefix
        while slot.length < len(tokens):
            end = slot.length + self.layout.slack
            self.model.forward("prefill", self.cache, [Row(slot, tokens[slot.length : end])])
        prefix = self.cache.export(slot)
        self.cache.release(slot)
        return prefix

    # --- streams in and out ------------------------------------------------------------------

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> Stream:
        """Make a stream known; with ``state`` it continues from there.

        A ``snapshot`` of the stream makes that exact (``restored: snapshot``); without a state it
        continues from the snapshot's own. From a state alone, or with a snapshot that does not
        reach it, the window's text is run through the model again: an approximation of the lost KV,
        marked ``restored: replay``. Raises SnapshotError when the snapshot is torn or was made with
        another model, type or size; nothing has then changed.
        """
        found = self._archive.read(snapshot) if snapshot is not None else None
        if stream_id in self._sessions:
            self.drop(stream_id)
        if found is not None and state is None:
            state = found.memory.state
        session = self._new_session(stream_id, state.epoch if state else 0)
        self._sessions[stream_id] = session
        self._wakeful.add(stream_id)
        if state is not None:
            self._archive.resume(session, state, found)
            if state.weights not in ("", self.model.weights):
                session.add_degraded("weights_changed")
                self._observer.count("weights_changed")
            if session.restored != "none":
                self._observer.count("kv_restores", kind=session.restored)
        self._gauge_streams()
        stream = self._streams[stream_id] = Stream(self, stream_id)
        return stream

    def _new_session(self, stream_id: str, epoch: int) -> Session:
        index = make_index(self.config)
        session = Session(stream_id, self.layout, index, epoch=epoch, weights=self.model.weights)
        session.covered = session.last_fork = session.offloaded_length = self.layout.sinks
        session.last_fork_at = session.last_part_at = self._clock()
        return session

    def serves(self, stream: Stream) -> bool:
        """Whether this handle is the stream's current one."""
        return self._streams.get(stream.id) is stream

    def cursor(self, stream_id: str) -> int:
        """Ticket of the last segment done; what is fed next must be above it."""
        return self._sessions[stream_id].cursor

    def quiet(self, stream_id: str) -> bool:
        """Whether all that was fed to the stream has been done and handed out: then, and only
        then, its memory belongs to its state and a snapshot may be taken. Hypotheses do not count:
        they are in neither."""
        session = self._sessions[stream_id]
        waiting = session.works or session.events or session.finished or session.failed
        return session.idle and session.between_parts and not waiting and not session.ended

    def snapshot(self, stream_id: str) -> bytes:
        """The stream's whole memory, to be given to :meth:`open` in this or another process.

        Changes nothing. Raises CapacityError while the stream is not :meth:`quiet`; OSError or
        SnapshotError when its KV was in the store and is lost.
        """
        if not self.quiet(stream_id):
            raise CapacityError(f"stream {stream_id} is busy; step() until it is quiet")
        return self._archive.save(self._sessions[stream_id])

    def drop(self, stream_id: str) -> None:
        """Drop the stream at once, with its work in progress. Nothing more is emitted for it."""
        session = self._sessions.pop(stream_id, None)
        self._wakeful.remove(stream_id)
        self._streams.pop(stream_id, None)
        if session is not None:
            self._requests.drop(session)
            self._residency.drop(session)
        self._gauge_streams()

    def close(self) -> None:
        """Drop every stream, including its KV in the store."""
        for stream_id in list(self._sessions):
            self.drop(stream_id)

    def request_summary(self, stream_id: str) -> None:
        """Ask for an update at the next place where one is possible."""
        self._sessions[stream_id].requested = "request"
        self._wakeful.wake(stream_id)

    def standing_summary(self, stream_id: str) -> SummaryEvent | None:
        """The stream's last summary as its state has it: what was published under that revision, without
        what the update cost. None before the first."""
        return self._policy.standing(self._sessions[stream_id])

    def ask(self, question: Question, ticket: int | None = None) -> None:
        """Ask about the stream as it is now; an AnswerEvent comes with a later emission, and the
        ``ticket`` with it. A question whose id was answered before gets the same answer again; answers
        come in the order of the questions.

        After the stream's end its notes are still there, its window is not. Raises SegmentError when
        the question is blank or too long (the ticket is then not taken). A question under way is not
        part of the state: ask again after a restart.
        """
        question = replace(question, text=redact(question.text, self.config.redact))
        self._requests.ask(self._sessions[question.stream_id], question, ticket)
        self._wakeful.wake(question.stream_id)

    def translate(
        self, stream_id: str, text: str, language: str, previous: str = ""
    ) -> PendingTranslation:
        """Translate text from outside the stream, with its window as context; a later step fills the
        result in. The stream's memory and revisions do not change.

        ``previous`` is the translation of an earlier version of the text (a partial hypothesis that
        has grown since): it is the draft for this one, which changes the speed only.

        Raises SegmentError when the stream has ended, ConfigError for an unknown language.
        """
        wanted = TextToTranslate(redact(text, self.config.redact), language, previous)
        self._wakeful.wake(stream_id)
        return self._requests.translate(self._sessions[stream_id], wanted)

    def end(self, stream_id: str) -> None:
        """End a stream that nobody else will end, as a ``session_end`` would behind all that was fed.
        No ticket comes back for it. Without effect on one that has ended or is about to."""
        self._wakeful.wake(stream_id)
        self._intake.end(self._sessions[stream_id])

    def feed(self, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        """Queue one segment of an open stream; its ``ticket`` comes back in an emission. ``waited``:
        seconds it has waited with the caller; scheduling is oldest first.

        Tickets of a stream must grow. Raises SegmentError for a segment that is refused (the ticket
        is then not taken), CapacityError when the stream's queue is full (try again later),
        KeyError when the stream is not open.
        """
        session = self._sessions[segment.stream_id]
        segment = self._intake.redacted(segment)
        self._intake.check(session, segment)
        self._submit(session, segment, ticket, waited)

    def _submit(self, session: Session, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        self._wakeful.wake(session.stream_id)
        if session.closing:
            session.later.append((segment, ticket))
            return
        if session.ended and begins_again(session, segment):
            session = self._start_again(session)
        self._intake.submit(session, segment, ticket, waited)

    def _start_again(self, session: Session) -> Session:
        """A stream that had ended begins a new epoch with an empty memory."""
        fresh = self._new_session(session.stream_id, session.epoch + 1)
        fresh.works, fresh.events = session.works, session.events
        fresh.finished, fresh.failed = session.finished, session.failed
        fresh.answers, fresh.answered = session.answers, session.answered
        fresh.cursor, fresh.question_cursor = session.cursor, session.question_cursor
        fresh.known_questions = session.known_questions
        self._residency.drop(session)  # a question about the ended stream may have a slot
        self._requests.move(session, fresh)
        self._sessions[session.stream_id] = fresh
        self._gauge_streams()
        return fresh

    # --- the step ----------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether a step would do anything now."""
        return any(self.busy(name) or self._rest(name) for name in self._wakeful.names())

    def _rest(self, stream_id: str) -> bool:
        """Let a stream without work sleep; False."""
        self._wakeful.sleep(stream_id, self._policy.due_at(self._sessions[stream_id]))
        return False

    def busy(self, stream_id: str) -> bool:
        """Whether anything of the stream is still to be done or handed out."""
        s = self._sessions[stream_id]
        waiting = s.works or s.events or s.finished or s.failed or s.answers or s.questions
        working = not s.idle or s.partials
        return bool(working or waiting or self._policy.wanted(s))

    def idle_until(self) -> float | None:
        """Clock time of the next update that is due by time alone, or None."""
        awake = (self._policy.due_at(self._sessions[name]) for name in self._wakeful.names())
        times = (*awake, self._wakeful.next_alarm())
        return min((at for at in times if at is not None), default=None)

    def step(self) -> list[Emission]:
        """Run one forward per role at most; return what is ready to be published.

        Raises DeviceError when the model fails for good; whatever was not returned is not done.
        """
        began = self._clock()
        names = self._wakeful.names()
        sessions = [self._sessions[name] for name in names if self.busy(name) or self._rest(name)]
        # 1. Receive: runs of tasks start where their streams' rules or callers ask for them.
        for session in sessions:
            self._policy.start_due(session)
        # 2. Schedule: slots and branches first, then the rows of this step.
        self._partials.preempt(sessions)
        self._scheduler.admit(sessions)
        self._partials.fill_gaps(sessions)
        plan = self._scheduler.plan(sessions, self._policy)
        # 3. Forward: one forward per role, and the tokens that follow from it.
        self._policy.begin_parts(plan.blocks)
        if plan:
            self._runner.run(plan)
            self._observer.observe("step_seconds", self._clock() - began)
        # 4. Process: what was ingested, which runs have an outcome, which segments are done.
        for block in plan.blocks:
            self._intake.note_ingested(block.session, block.row.tokens)
        for session in sessions:
            for run in session.conclude_runs(self.cache):
                self._conclude(session, run)
            self._partials.conclude(session)
            self._policy.start_due(session)
            session.answer_questions()
            if session.ended and session.slot is not None and session.idle:
                self._residency.drop(session)  # only a question had it again
            self._intake.finish(session)
        return self._collect(sessions)

    def _conclude(self, session: Session, run: TaskRun) -> None:
        """Hand a finished run to the part of the engine that started it."""
        match run.occasion:
            case Due():
                self._policy.conclude(session, run)
            case Spoken():
                self._intake.conclude(session, run)
            case Asked():
                self._requests.conclude(session, run)

    def _collect(self, sessions: Sequence[Session]) -> list[Emission]:
        emissions = [e for s in sessions if (e := s.take_emission()) is not None]
        for emission in emissions:
            self._retire(emission)
        self._gauge()
        if any(emission.state.ended for emission in emissions):
            self._gauge_streams()
        return emissions

    def advance(self) -> None:
        """A step whose results are kept for the streams' own :meth:`Stream.results`."""
        for emission in self.step():
            if emission.stream_id in self._streams:
                self._streams[emission.stream_id].deliver(emission)

    # --- after the step ----------------------------------------------------------------------

    def _retire(self, emission: Emission) -> None:
        session = self._sessions.get(emission.stream_id)
        if session is None or not session.ended or session.works:
            return
        session.window.clear()
        session.closing = False
        later, session.later = session.later, deque()
        for segment, ticket in later:  # all of it fits: it was counted when it was fed
            self._submit(self._sessions[session.stream_id], segment, ticket)

    def _gauge_streams(self) -> None:
        self._observer.gauge("active_streams", sum(not s.ended for s in self._sessions.values()))

    def _gauge(self) -> None:
        used = self.config.slots - self.cache.free_slots
        self._observer.gauge("resident_streams", used)
        self._observer.gauge("host_streams", self._residency.offload.in_host)
        self._observer.gauge("stored_streams", self._residency.offload.on_disk)
        self._observer.gauge("host_kv_bytes", self._residency.offload.nbytes)
        self._observer.gauge("host_kv_limit_bytes", self.config.host_bytes)
        self._observer.gauge("kv_slots_used", used)
        awake = (self._sessions[name] for name in self._wakeful.names())
        waiting = sum(s.slot is None and not s.idle for s in awake)
        self._observer.gauge("streams_waiting_for_slot", waiting)
        self._observer.gauge("kv_slots", self.config.slots)
        by_model = self._draft or self._head
        drafts = by_model.cache.nbytes if by_model is not None else 0
        self._observer.gauge("kv_bytes", self.cache.nbytes + drafts)


def check_names(tasks: Sequence[Task]) -> None:
    """Raises ConfigError unless every task has a name of its own."""
    names = [task.name for task in tasks]
    for name in names:
        if not name.replace("_", "").isalnum() or names.count(name) > 1:
            raise ConfigError(f"task name {name!r}: letters, digits and _, and no other task's")
