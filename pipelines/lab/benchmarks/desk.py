"""The engine's parts on a bench: streams fed by hand, answers run and timed one step at a time.

Everything that computes is the engine's own (cache, scheduler, draft control, tasks); only the rules
that say when an answer is due are left out, so that one answer can be run again and again from the
same place in a stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.cache.offload import Offload, OffloadedKv
from operators.commit import Held
from operators.config import OperatorConfig
from operators.decoding.acceptance import Costs, DraftControl
from operators.decoding.draft_model import DraftModel
from operators.decoding.drafters import NgramIndex
from operators.decoding.generation import Generation
from operators.decoding.verify import most_likely
from operators.engine.residency import Residency
from operators.engine.runner import Runner
from operators.engine.scheduler import Scheduler, StepPlan
from operators.engine.session import Part, Session
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import TaskRunner
from operators.errors import ConfigError
from operators.events import ModelInfo, Segment
from operators.model.loader import DecoderModel
from operators.observer import Observer
from operators.state import WindowSegment
from operators.tasks.base import (
    Ask,
    Asked,
    Due,
    Occasion,
    Outcome,
    Partial,
    Steps,
    StreamView,
    Task,
    Tools,
)
from operators.tasks.prompts import Prompts
from operators.tasks.summary import SummaryTask
from operators.tasks.translation import TextToTranslate, TranslationTask


class OneAnswer(Task):
    """Stands for whatever asked for an answer that is to be measured."""

    name = "measured"

    def run(self, view: StreamView, occasion: Asked) -> Steps:
        (answer,) = yield [occasion.request]
        return Outcome(text=answer.text)


@dataclass(frozen=True)
class Tasks:
    """What makes answers under one set of settings."""

    config: OperatorConfig
    summary: SummaryTask
    translation: TranslationTask
    runner: TaskRunner

    def begin(self, session: Session, task: Task, occasion: Occasion) -> TaskRun:
        """A run of the task with its first asks, for which no branch is open yet."""
        run = TaskRun(task, occasion)
        self.runner.begin(session, run)
        return run

    def update(self, session: Session) -> Generation:
        """The first answer that a summary update needs: a compaction or the update itself."""
        return self.begin(session, self.summary, Due("request")).asked[0]

    def translate(self, session: Session, text: str, previous: str = "") -> Generation:
        wanted = Asked(TextToTranslate(text, "fr", previous))
        return self.begin(session, self.translation, wanted).asked[0]

    def partial(self, session: Session, text: str, held: Held) -> Generation:
        """The translation of a text that still grows, behind what is committed of it."""
        heard = Segment(stream_id=session.stream_id, text=text, is_final=False, language="en")
        return self.begin(session, self.translation, Partial(heard, "fr", held)).asked[0]


@dataclass
class Turn:
    """One verify of one answer: when it came (the same for all of a step), its drafts, how many stood,
    the tokens it gave."""

    at: float
    drafted: int
    accepted: int
    tokens: int


@dataclass
class Answered:
    """An answer and the time it took, in seconds: its prompt, and its tokens behind the first."""

    generation: Generation
    prompt_s: float = 0.0
    decode_s: float = 0.0
    decoding_from: float = 0.0
    """When the last prompt of all that run together was through."""
    turns: list[Turn] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A stream as it was at some time, to be taken up again any number of times."""

    session: Session
    kv: OffloadedKv


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as it lies on an answer's branch: ``keys`` and ``values`` ``[layers, kv_heads, tokens,
    dim]`` and the logits ``[1, vocab]`` behind it. An answer can be begun from it again and again."""

    keys: Tensor
    values: Tensor
    logits: Tensor


class Desk:
    """Streams on one model. ``config``: sizes; ``draft``: a draft model, if any is to be tried."""

    def __init__(
        self, model: DecoderModel, config: OperatorConfig, draft: DecoderModel | None = None
    ) -> None:
        self.model, self.config = model, config
        self.prompts = Prompts(model.tokenizer)
        prefix = self.prompts.prefix
        self.layout = KvLayout(len(prefix), config.window, config.slack, config.branch_tokens)
        self.cache = model.new_cache(self.layout, slots=config.slots, branches=config.branches)
        self.draft = self._new_draft(draft) if draft is not None else None
        slot = self.cache.allocate()
        while slot.length < len(prefix):
            row = Row(slot, prefix[slot.length : slot.length + config.slack])
            model.forward("prefill", self.cache, [row])
        self._prefix = self.cache.export(slot)
        self.cache.release(slot)
        offload, encode = Offload(0), model.tokenizer.encode
        self.runner = Runner(model, self.cache, self.draft, Observer(), time.perf_counter)
        self.residency = Residency(
            self.cache, self._prefix, self.draft, offload, encode, Observer()
        )

    def _new_draft(self, draft: DecoderModel) -> DraftModel:
        config = self.config
        return DraftModel(
            draft,
            self.model,
            self.layout,
            self.prompts.prefix,
            slots=config.slots,
            branches=config.branches,
            block=config.prefill_budget,
        )

    def scheduler(self, config: OperatorConfig, costs: Costs | None = None) -> Scheduler:
        by_model = self.draft if config.drafter in ("auto", "draft") else None
        return Scheduler(self.cache, config, self.residency, draft=by_model, costs=costs)

    def tasks(self, config: OperatorConfig) -> Tasks:
        tokenizer = self.model.tokenizer
        runner = TaskRunner(config, self.cache, tokenizer, lambda: 0.0, self.model.vocab_size)
        config = dataclasses.replace(config, summary_method="lines")  # one long answer is measured
        tasks = Tasks(config, SummaryTask(), TranslationTask(), runner)
        for task in (tasks.summary, tasks.translation):
            task.tools = Tools(config, self.prompts, tokenizer, ModelInfo())
        return tasks

    # --- streams -----------------------------------------------------------------------------

    def open(self, stream_id: str) -> Session:
        """A stream that has heard nothing, in a slot."""
        session = Session(stream_id, self.layout, NgramIndex(self.layout.window))
        session.slot = self.cache.allocate()
        self.cache.restore(session.slot, self._prefix, self.layout.sinks)
        if self.draft is not None:
            self.draft.adopt(session.slot)
        session.covered = session.last_fork = self.layout.sinks
        return session

    def listen(self, session: Session, segments: Iterable[Segment], tokens: int) -> None:
        """Append segments until at least ``tokens`` more tokens are in the window's memory."""
        assert session.slot is not None
        until = session.frontier + tokens
        for segment in segments:
            session.begin(self._part(segment, session.next_seq))
            session.next_seq += 1
            while session.current is not None:
                done = session.current_done
                block = session.current.tokens[done : done + self.layout.slack]
                self.model.forward("prefill", self.cache, [Row(session.slot, block)])
                if self.draft is not None:
                    self.draft.ingest([Row(session.slot, block)])
                session.advance(block)
            if session.frontier >= until:
                return

    def _part(self, segment: Segment, seq: int) -> Part:
        said = " ".join(segment.text.split())
        name = segment.speaker.name if segment.speaker is not None else None
        text = f"{name}: {said}\n" if name else f"{said}\n"
        tokens = self.model.tokenizer.encode(text)[: self.layout.window // 2]
        info = WindowSegment(
            segment_id=segment.segment_id, seq=seq, text=text, tokens=len(tokens), speaker=name
        )
        return Part(text, said, tokens, info)

    def place(self, session: Session) -> Place:
        """The stream as it is now, to be taken up again any number of times by :meth:`at`."""
        return Place(_copy(session), self.residency.memory(session))

    def at(self, place: Place, controls: dict[str, DraftControl]) -> Session:
        """A stream that stands at ``place``, with draft statistics of its own."""
        session = _copy(place.session, draft_controls=controls)
        self.residency.keep(session, place.kv)
        return session

    def read_prompt(self, place: Place, generation: Generation) -> ReadPrompt:
        """Read an answer's prompt at that place; stream and answer stay as they are."""
        slot = self.cache.allocate()
        self.cache.restore(slot, place.kv.kv, place.kv.length)
        branch = self.cache.fork(slot)
        row = Row(slot, generation.prompt, branch, num_logits=1)
        logits = self.model.forward("prefill", self.cache, [row])
        pools = (self.cache.branch_keys, self.cache.branch_values)
        keys, values = (
            torch.stack([layer[branch.region, :, : branch.length] for layer in pool])
            for pool in pools
        )
        self.cache.drop(branch)
        self.cache.release(slot)
        return ReadPrompt(keys, values, logits)

    # --- answers -----------------------------------------------------------------------------

    def run(
        self,
        scheduler: Scheduler,
        asked: Sequence[tuple[Session, Generation]],
        prompts: Sequence[ReadPrompt] = (),
    ) -> list[Answered]:
        """Run the answers together until all are complete, each on a branch of its stream. Streams
        that stand at a place get a slot for that time. ``prompts``: what was read of each before."""
        sessions = [session for session, _ in asked]
        answers = [Answered(generation) for _, generation in asked]
        held = [session.slot is not None for session in sessions]
        for session, generation in asked:
            session.due.append(_run_of(generation))
        scheduler.admit(sessions)
        if any(session.due for session in sessions):
            raise ConfigError(f"{len(asked)} answers do not fit: raise slots and branches")
        for answer, prompt in zip(answers, prompts, strict=bool(prompts)):
            self._put(answer.generation, prompt)
        self._tidy(sessions)
        began = time.perf_counter()
        for answer in answers:
            answer.decoding_from = began
        while any(session.running for session in sessions):
            if any(generation.prefilling for _, generation in asked):
                self._prefill(sessions, answers)
            else:
                self._step(scheduler, sessions, answers)
        for session, keep in zip(sessions, held, strict=True):
            if not keep:
                self.residency.drop(session)
        return answers

    def summarise(self, scheduler: Scheduler, tasks: Tasks, session: Session) -> None:
        """Write an update, as the engine would, and put it into the stream's ledger."""
        run = tasks.begin(session, tasks.summary, Due("request"))
        while run.outcome is None:
            self.run(scheduler, [(session, generation) for generation in run.asked])
            run.waiting.clear()
            run.advance(self.cache)
        session.apply(run.outcome, fork=run.fork)

    def _put(self, generation: Generation, prompt: ReadPrompt) -> None:
        branch, used = generation.branch, prompt.keys.shape[2]
        assert branch is not None
        for layer in range(len(prompt.keys)):
            self.cache.branch_keys[layer][branch.region, :, :used] = prompt.keys[layer]
            self.cache.branch_values[layer][branch.region, :, :used] = prompt.values[layer]
        branch.length = used
        generation.prompt_done(used, prompt.logits)

    def _prefill(self, sessions: list[Session], answers: list[Answered]) -> None:
        """One forward of prompt tokens; no answer goes on before all prompts are through, so that
        decoding is timed by itself."""
        began, budget = time.perf_counter(), self.config.prefill_budget
        rows: list[tuple[Row, Generation]] = []
        for answer in answers:
            if answer.generation.prefilling and budget > 0:
                rows.append((answer.generation.prompt_row(budget), answer.generation))
                budget -= len(rows[-1][0].tokens)
        logits = self.model.forward("prefill", self.cache, [row for row, _ in rows])
        at = 0
        for row, generation in rows:
            generation.prompt_done(len(row.tokens), logits[at : at + 1] if row.num_logits else None)
            at += row.num_logits
        ended = time.perf_counter()
        for answer in answers:
            answer.prompt_s += ended - began
            answer.decoding_from = ended
        self._tidy(sessions)

    def _step(self, scheduler: Scheduler, sessions: list[Session], answers: list[Answered]) -> None:
        began = time.perf_counter()
        plan = scheduler.plan(sessions, NoTranscript())
        self._verifies(plan, answers)
        ended = time.perf_counter()
        for answer in answers:
            if any(planned.generation is answer.generation for planned in plan.decoding):
                answer.decode_s += ended - began
        self._tidy(sessions)

    def _tidy(self, sessions: list[Session]) -> None:
        for session in sessions:
            session.conclude_runs(self.cache)

    def _verifies(self, plan: StepPlan, answers: list[Answered]) -> None:
        self.runner.make_drafts(plan.decoding)
        rows = [planned.generation.verify_row(planned.draft) for planned in plan.decoding]
        logits = self.model.forward("decode", self.cache, rows)
        best = most_likely(logits)
        at, now = 0, time.perf_counter()
        for row, planned in zip(rows, plan.decoding, strict=True):
            end = at + row.num_logits
            accepted, tokens = planned.generation.verified(logits[at:end], best[at:end])
            at = end
            answer = next(a for a in answers if a.generation is planned.generation)
            turn = Turn(now, len(row.tokens) - 1, accepted, len(tokens))
            answer.turns.append(turn)


class NoTranscript:
    """Nothing is appended to any stream while answers are measured."""

    def next_part(self, session: Session) -> Part | None:
        return None


def _run_of(generation: Generation) -> TaskRun:
    """A run whose one answer is ``generation``."""
    task, ask = OneAnswer(), Ask(generation.prompt, generation.max_tokens)
    view = cast(StreamView, None)  # OneAnswer does not look at it
    run = TaskRun(task, Asked(ask), steps=task.run(view, Asked(ask)), make=lambda _: generation)
    run.start()
    return run


def _copy(session: Session, **changes: Any) -> Session:
    """The stream with nothing under way; what a run mutates is its own."""
    return dataclasses.replace(
        session,
        slot=None,
        offloaded_length=session.frontier,
        window=deque(session.window),
        last_output=dict(session.last_output),
        ledger=dataclasses.replace(session.ledger),
        due=deque(),
        runs=[],
        **changes,
    )


Make = Callable[[Tasks, Session], Generation]
