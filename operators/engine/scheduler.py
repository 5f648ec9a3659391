"""Which rows run next: slots and branch regions for those that need them, and a step's token budget.

Prefill, decode and verify are all rows; the only difference is their role (see operators.model.loader).
A step prefills at most ``prefill_budget`` tokens over all streams, however long a segment is.

Oldest-first scheduling: slots, branch regions and prompt tokens go to the stream whose oldest unfinished
segment has waited longest; a stream that never pauses gives up its slot between two parts. Up to half of
a step's transcript tokens are kept for the stream that was given some longest ago, so a long segment
cannot starve the others. Every answer in progress has a row in every step. Without a clock, streams
take turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.acceptance import Candidate, Choice, Costs
from operators.decoding.allocation import share_out
from operators.decoding.draft_head import DraftHead
from operators.decoding.draft_model import DraftModel, ModelDrafter
from operators.decoding.drafters import Draft
from operators.decoding.generation import NO_DRAFT, Generation
from operators.engine.residency import Residency
from operators.engine.session import Part, Session

HELD_DRAFTS = 4
"""Tokens of every draft where the text depends on them (rejection sampling): a number that
varied with load would make the text irreproducible."""


PATIENCE_S = 2.0
"""How much longer a stream must have waited than the one whose slot it takes: moving slots at each
segment would cost more than it gains."""


class Block(NamedTuple):
    """Transcript tokens of one stream: a stretch of ``part``, which may begin with it."""

    row: Row
    session: Session
    part: Part


@dataclass
class Planned:
    """One answer's next verify: its draft, or ``length`` tokens to be made by its model drafter."""

    generation: Generation
    draft: Draft = NO_DRAFT
    by_model: ModelDrafter | None = None
    length: int = 0


@dataclass
class StepPlan:
    """Rows of one step, with what each belongs to."""

    blocks: list[Block] = field(default_factory=list)
    prompts: list[tuple[Row, Generation]] = field(default_factory=list)
    decoding: list[Planned] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.blocks or self.prompts or self.decoding)


class Transcript(Protocol):
    """Decides which text may enter a window: operators.engine.update_policy."""

    def next_part(self, session: Session) -> Part | None: ...


class Scheduler:
    """Admission and row selection. Holds no state of streams but the order of rotation."""

    def __init__(
        self,
        cache: KvCache,
        config: OperatorConfig,
        residency: Residency,
        *,
        draft: DraftModel | DraftHead | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._cache, self._config, self._residency = cache, config, residency
        self._draft, self._costs = draft, costs or Costs()
        self._turn = 0

    # --- admission ---------------------------------------------------------------------------

    def admit(self, sessions: list[Session]) -> None:
        """Give slots to sessions that have work, offloading idle ones, least recently used first; then
        open branches while regions are free. Mutates sessions and cache."""
        for session in sessions:
            session.yielding = False
        for session in self._oldest_first(sessions):
            waits = session.slot is None and not session.idle
            if waits and not self._residency.make_resident(session):
                if self._displace(session, sessions):
                    self._residency.make_resident(session)
                break
        self._open_branches([s for s in self._oldest_first(sessions) if s.slot is not None])

    def _open_branches(self, sessions: list[Session]) -> None:
        waiting = [session for session in sessions if session.wants_branch]
        while waiting:
            for session in waiting:
                if not self._cache.free_regions:
                    return
                session.open_branch(self._cache)
            waiting = [session for session in waiting if session.wants_branch]

    def _displace(self, waiting: Session, sessions: list[Session]) -> bool:
        """Take the slot of the stream that has waited least for one that has waited much longer: at
        once if it is at rest, else it begins no further part. Returns whether a slot is free now."""
        held = [s for s in sessions if s.slot is not None]
        last = max(held, key=lambda session: session.waiting_since, default=None)
        # "not … >": two infinite values give nan, and then no slot is taken.
        if last is None or not last.waiting_since - waiting.waiting_since > PATIENCE_S:
            return False
        last.yielding = True
        if last.at_rest:
            self._residency.evict(last)
            return True
        return False

    # --- rows --------------------------------------------------------------------------------

    def plan(self, sessions: list[Session], transcript: Transcript) -> StepPlan:
        """Choose the rows of the next step. Changes nothing but the order of rotation."""
        plan = StepPlan()
        resident = [s for s in sessions if s.slot is not None]
        rotated, order = self._rotated(resident), self._oldest_first(resident)
        self._turn += 1
        for session in order:
            if not session.idle or session.partials:
                session.last_used = self._turn
        running = [g for s in rotated for g in s.running]
        hypotheses = [g for s in rotated for g in s.partials.running]
        plan.decoding = self._drafts([g for g in [*running, *hypotheses] if not g.prefilling])
        budget = _prompts(plan, [g for s in order for g in s.running], self._config.prefill_budget)
        budget = self._blocks(plan, order, budget, transcript)
        _prompts(plan, hypotheses, budget)
        return plan

    def _blocks(
        self, plan: StepPlan, order: list[Session], budget: int, transcript: Transcript
    ) -> int:
        """Share ``budget`` out among the streams that may append transcript; what is left of it."""
        ready = {}
        for session in order:
            part = session.current or transcript.next_part(session)
            if part is not None and (room := self._room(session, part)):
                ready[session.stream_id] = part, room
        able = [session for session in order if session.stream_id in ready]
        if budget <= 0 or not able:
            return budget
        turn = min(able, key=lambda session: session.last_fed)
        kept = min(ready[turn.stream_id][1], budget // 2)
        for session in [*(s for s in able if s is not turn), turn]:
            if session is turn:
                kept = 0
            part, room = ready[session.stream_id]
            size = min(room, budget - kept)
            if size > 0:
                plan.blocks.append(_block(session, part, size))
                session.last_fed = self._turn
                budget -= size
        return budget

    def _room(self, session: Session, part: Part) -> int:
        """How many transcript tokens of the part the session may append now."""
        assert session.slot is not None
        done = session.current_done if part is session.current else 0
        return max(0, min(self._cache.ingest_room(session.slot), len(part.tokens) - done))

    def _drafts(self, decoding: list[Generation]) -> list[Planned]:
        """What each answer drafts in this step: first the drafter of each answer, then how the room of
        the step is shared out."""
        offers = [self._candidates(generation) for generation in decoding]
        choices = [
            self._choose(generation, offer, len(decoding))
            for generation, offer in zip(decoding, offers, strict=True)
        ]
        lengths = share_out(choices, self._costs, _tokens_per_verify(decoding))
        planned = []
        for generation, offer, choice, k in zip(decoding, offers, choices, lengths, strict=True):
            made = offer[choice.candidate] if choice is not None and k else NO_DRAFT
            if isinstance(made, ModelDrafter):
                planned.append(Planned(generation, by_model=made, length=k))
            else:
                planned.append(Planned(generation, made.cut(k)))
        return planned

    def _choose(
        self, generation: Generation, offer: Iterable[Candidate], rows: int
    ) -> Choice | None:
        control = generation.decoding.control
        if not self._held(generation):
            return control.choose(list(offer), rows, self._costs)
        model = next(iter(offer), None)
        if model is None:
            return None
        return Choice(model, control.arm(model.arm).acceptance, owed=model.limit)

    def _held(self, generation: Generation) -> bool:
        """Whether the text depends on the drafts."""
        sampler = generation.decoding.sampler
        drafted = isinstance(self._draft, DraftModel) and generation.decoding.by_model
        return drafted and sampler is not None and sampler.sampling.acceptance == "rejection"

    def _candidates(self, generation: Generation) -> dict[Candidate, Draft | ModelDrafter]:
        """The drafters that can draft for this answer now; a draft model's or head's tokens are not made
        yet."""
        limit = min(generation.draft_room(self._cache), self._config.max_draft)
        found: dict[Candidate, Draft | ModelDrafter] = {}
        if self._held(generation):
            limit = min(limit, HELD_DRAFTS)
        else:
            found.update(generation.candidates(limit))
        if self._draft is None or not generation.decoding.by_model or limit < 1:
            return found
        drafter = next((d for d in generation.drafters if isinstance(d, ModelDrafter)), None)
        if drafter is None:
            drafter = self._draft.open(generation)
            generation.drafters.append(drafter)
        return {**found, self._draft.candidate(drafter, limit): drafter}

    def _oldest_first(self, sessions: list[Session]) -> list[Session]:
        return sorted(self._rotated(sessions), key=lambda session: session.waiting_since)

    def _rotated(self, sessions: list[Session]) -> list[Session]:
        if not sessions:
            return []
        at = self._turn % len(sessions)
        return sessions[at:] + sessions[:at]


def _tokens_per_verify(decoding: list[Generation]) -> list[float]:
    """The rate of every answer; a new one starts with the mean of the others."""
    known = [
        generation.tokens_per_verify for generation in decoding if generation.tokens_per_verify
    ]
    usual = sum(known) / len(known) if known else 1.0
    for generation in decoding:
        generation.tokens_per_verify = generation.tokens_per_verify or usual
    return [generation.tokens_per_verify for generation in decoding]


def _block(session: Session, part: Part, size: int) -> Block:
    assert session.slot is not None
    done = session.current_done if part is session.current else 0
    return Block(Row(session.slot, part.tokens[done : done + size]), session, part)


def _prompts(plan: StepPlan, generations: list[Generation], budget: int) -> int:
    """Add the prompts' next stretches, as far as the budget goes; returns what is left of it."""
    for generation in generations:
        if generation.prefilling and budget > 0:
            row = generation.prompt_row(budget)
            plan.prompts.append((row, generation))
            budget -= len(row.tokens)
    return budget
