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

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.config import OperatorConfig
from operators.decoding.acceptance import Costs, DraftControl
from operators.decoding.draft_model import DraftModel
from operators.decoding.drafters import NgramIndex
from operators.decoding.generation import Generation
from operators.engine.residency import Parking
from operators.engine.scheduler import Scheduler, StepPlan
from operators.engine.session import Part, Session
from operators.errors import ConfigError
from operators.events import ModelInfo, Segment
from operators.model.loader import DecoderModel
from operators.observer import Observer
from operators.state import WindowSegment
from operators.tasks.prompts import Prompts
from operators.tasks.summary import SummaryTask
from operators.tasks.translation import TranslationTask


@dataclass(frozen=True)
class Tasks:
    """What makes answers under one set of settings."""

    config: OperatorConfig
    summary: SummaryTask
    translation: TranslationTask


@dataclass
class Turn:
    """One verify of one answer: when it came, its drafts, how many stood, the tokens it gave."""

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
            model.forward("ingest", self.cache, [row])
        self._prefix = self.cache.export(slot)
        self.cache.release(slot)

    def _new_draft(self, draft: DecoderModel) -> DraftModel:
        config = self.config
        return DraftModel(
            draft,
            self.model,
            self.layout,
            self.prompts.prefix,
            slots=config.slots,
            branches=config.branches,
            block=config.ingest_budget,
        )

    def scheduler(self, config: OperatorConfig, costs: Costs | None = None) -> Scheduler:
        by_model = self.draft if config.drafter in ("auto", "draft") else None
        encode = self.model.tokenizer.encode
        parking = Parking(self.cache, config, self._prefix, by_model, None, encode, Observer())
        return Scheduler(self.cache, config, parking, draft=by_model, costs=costs)

    def tasks(self, config: OperatorConfig) -> Tasks:
        tokenizer, info = self.model.tokenizer, ModelInfo()
        return Tasks(
            config,
            SummaryTask(config, self.prompts, tokenizer, info),
            TranslationTask(config, self.prompts, tokenizer, info),
        )

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
                self.model.forward("ingest", self.cache, [Row(session.slot, block)])
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

    def place(self, session: Session) -> Session:
        """The stream as it is now, to be taken up again any number of times by :meth:`at`."""
        assert session.slot is not None
        return dataclasses.replace(
            session,
            slot=None,
            parked=self.cache.export(session.slot),
            parked_length=session.slot.length,
            parked_draft=self.draft.export(session.slot) if self.draft is not None else None,
            window=deque(session.window),
            last_output=dict(session.last_output),
        )

    @staticmethod
    def at(place: Session, controls: dict[str, DraftControl]) -> Session:
        """A stream that stands at ``place`` and has learned ``controls`` about its drafters."""
        return dataclasses.replace(place, draft_controls=controls, due=deque(), running=[])

    def read_prompt(self, place: Session, generation: Generation) -> ReadPrompt:
        """Read an answer's prompt at that place; stream and answer stay as they are."""
        slot = self.cache.allocate()
        assert place.parked is not None
        self.cache.restore(slot, place.parked, place.parked_length)
        branch = self.cache.fork(slot)
        row = Row(slot, generation.prompt, branch, num_logits=1)
        logits = self.model.forward("ingest", self.cache, [row])
        pools = (self.cache.branch_keys, self.cache.branch_values)
        keys, values = (
            torch.stack([layer[branch.region, :, : branch.length] for layer in pool])
            for pool in pools
        )
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
            session.due.append(generation)
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
            if not keep and session.slot is not None:
                self.cache.release(session.slot)
                session.slot = None
        return answers

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
        began, budget = time.perf_counter(), self.config.ingest_budget
        rows: list[tuple[Row, Generation]] = []
        for answer in answers:
            if answer.generation.prefilling and budget > 0:
                rows.append((answer.generation.prompt_row(budget), answer.generation))
                budget -= len(rows[-1][0].tokens)
        logits = self.model.forward("ingest", self.cache, [row for row, _ in rows])
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
        plan = scheduler.plan(sessions, lambda session: None)
        self._verifies(plan, answers)
        ended = time.perf_counter()
        for answer in answers:
            if any(g is answer.generation for _, g in plan.verifies):
                answer.decode_s += ended - began
        self._tidy(sessions)

    def _tidy(self, sessions: list[Session]) -> None:
        for session in sessions:
            for generation in [g for g in session.running if g.finish_reason]:
                assert generation.branch is not None
                self.cache.drop(generation.branch)
                session.running.remove(generation)

    def _verifies(self, plan: StepPlan, answers: list[Answered]) -> None:
        logits = self.model.forward("generation", self.cache, [row for row, _ in plan.verifies])
        at = 0
        for row, generation in plan.verifies:
            accepted, tokens = generation.verified(logits[at : at + row.num_logits])
            at += row.num_logits
            answer = next(a for a in answers if a.generation is generation)
            turn = Turn(time.perf_counter(), len(row.tokens) - 1, accepted, len(tokens))
            answer.turns.append(turn)


def ignore(generation: Generation) -> None:
    """For answers nobody waits for."""


Make = Callable[[Tasks, Session], Generation]
