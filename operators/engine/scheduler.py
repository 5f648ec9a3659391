"""Which rows run next: admission to slots and branch regions, and the token budget of a step.

Prefill, decode and verify are all rows; the only difference is their role (see operators.model.loader).
A step prefills at most ``ingest_budget`` tokens over all streams, however long a segment is.

Oldest first: slots, branch regions and prompt tokens go to the stream whose oldest segment that is not
done has waited longest; a stream that never pauses gives up its slot between two parts. So that none
waits for another's long text, up to half of a step's transcript tokens are for the stream that was
given some longest ago. Every answer under way has its row in every step. Where nothing tells streams
apart (no clock), they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.acceptance import Candidate, Choice, Costs
from operators.decoding.allocation import share_out
from operators.decoding.draft_model import DraftModel, ModelDrafter
from operators.decoding.drafters import Draft
from operators.decoding.generation import NO_DRAFT, Generation
from operators.engine.residency import Parking
from operators.engine.session import Part, Session

HELD_DRAFTS = 4
"""Tokens of every draft where the text depends on them (rejection sampling): a number that changed with
load or luck would make the text irreproducible."""


PATIENCE_S = 2.0
"""How much longer than a stream in a slot another must have waited to be given it: slots that changed
hands at every segment would cost more than they give."""


@dataclass
class StepPlan:
    """Rows of one step by role, with what each row belongs to."""

    blocks: list[tuple[Row, Session]] = field(default_factory=list)
    prompts: list[tuple[Row, Generation]] = field(default_factory=list)
    verifies: list[tuple[Row, Generation]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.blocks or self.prompts or self.verifies)


class Scheduler:
    """Admission and row selection. Holds no stream state besides the order of rotation."""

    def __init__(
        self,
        cache: KvCache,
        config: OperatorConfig,
        parking: Parking,
        *,
        draft: DraftModel | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._cache, self._config, self._parking = cache, config, parking
        self._draft, self._costs = draft, costs or Costs()
        self._turn = 0

    # --- admission ---------------------------------------------------------------------------

    def admit(self, sessions: list[Session]) -> None:
        """Give slots to sessions that have work, parking idle ones, least recently used first; then
        open due forks while regions are free. Mutates sessions and cache."""
        for session in sessions:
            session.yielding = False
        for session in self._oldest_first(sessions):
            waits = session.slot is None and not session.idle
            if waits and not self._parking.make_resident(session):
                if self._displace(session, sessions):
                    self._parking.make_resident(session)
                break
        waiting = [s for s in self._oldest_first(sessions) if s.slot is not None and s.due]
        while waiting and self._cache.free_regions:
            for session in list(waiting):
                if not self._cache.free_regions:
                    break
                self._open_fork(session)
                if not session.due:
                    waiting.remove(session)

    def _displace(self, waiting: Session, sessions: list[Session]) -> bool:
        """Have the stream that has waited least leave its slot to one that has waited much longer:
        at once if it is at rest, else it begins nothing more. Returns whether a slot came free."""
        held = [s for s in sessions if s.slot is not None]
        last = max(held, key=lambda session: session.waiting_since, default=None)
        # "not … >": two that nobody waits for give nan, and neither gives way to the other.
        if last is None or not last.waiting_since - waiting.waiting_since > PATIENCE_S:
            return False
        last.yielding = True
        if last.at_rest:
            self._parking.park(last)
            return True
        return False

    def _open_fork(self, session: Session) -> None:
        assert session.slot is not None
        generation = session.due.popleft()
        generation.start(self._cache.fork(session.slot))
        session.running.append(generation)

    # --- rows --------------------------------------------------------------------------------

    def plan(
        self, sessions: list[Session], start_part: Callable[[Session], Part | None]
    ) -> StepPlan:
        """Choose the rows of the next step. ``start_part(session)`` takes the next part a session
        may ingest off its queue, or returns None. Runs the draft model, if there is one."""
        plan = StepPlan()
        resident = [s for s in sessions if s.slot is not None]
        turns, order = self._rotated(resident), self._oldest_first(resident)
        self._turn += 1
        for session in order:
            if not session.idle or session.hypotheses:
                session.last_used = self._turn
        running = [g for s in turns for g in s.running]
        hypotheses = [g for s in turns for g in s.hypotheses.running]
        decoding = [g for g in [*running, *hypotheses] if not g.prefilling]
        for generation, draft in zip(decoding, self._drafts(decoding), strict=True):
            plan.verifies.append((generation.verify_row(draft), generation))
        budget = _prompts(plan, [g for s in order for g in s.running], self._config.ingest_budget)
        budget = self._blocks(plan, order, budget, start_part)
        _prompts(plan, hypotheses, budget)
        return plan

    def _blocks(
        self,
        plan: StepPlan,
        order: list[Session],
        budget: int,
        start_part: Callable[[Session], Part | None],
    ) -> int:
        """Share ``budget`` out among the streams that may append transcript; what is left of it."""
        by_turn = sorted(order, key=lambda session: session.last_fed)
        turn = next((s for s in by_turn if self._ready(s, start_part)), None)
        if budget <= 0 or turn is None:
            return budget
        kept = min(self._ready(turn, start_part), budget // 2)
        for session in [*(s for s in order if s is not turn), turn]:
            if session is turn:
                kept = 0
            if budget <= kept:
                continue  # a part that is begun with nothing keeps questions waiting
            size = min(self._ready(session, start_part), budget - kept)
            if size > 0:
                plan.blocks.append((_block(session, size), session))
                session.last_fed = self._turn
                budget -= size
        return budget

    def _drafts(self, decoding: list[Generation]) -> list[Draft]:
        """What each answer drafts in this step: every answer picks a drafter, the step shares out
        its room, the draft model does its part."""
        offers = [self._candidates(generation) for generation in decoding]
        choices = [
            self._choose(generation, offer, len(decoding))
            for generation, offer in zip(decoding, offers, strict=True)
        ]
        lengths = share_out(choices, self._costs, _tokens_per_verify(decoding))
        drafts: list[Draft] = []
        modelled: list[tuple[int, ModelDrafter, int]] = []
        for at, (offer, choice, k) in enumerate(zip(offers, choices, lengths, strict=True)):
            made = offer[choice.candidate] if choice is not None and k else NO_DRAFT
            if isinstance(made, ModelDrafter):
                modelled.append((at, made, k))
                made = NO_DRAFT
            drafts.append(made.cut(k))
        if modelled and self._draft is not None:
            by_model = self._draft.draft([(drafter, k) for _, drafter, k in modelled])
            for (at, _, _), draft in zip(modelled, by_model, strict=True):
                drafts[at] = draft
        return drafts

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
        """Whether the drafts have a say in the text."""
        sampler = generation.decoding.sampler
        drafted = self._draft is not None and generation.decoding.by_model
        return drafted and sampler is not None and sampler.sampling.acceptance == "rejection"

    def _candidates(self, generation: Generation) -> dict[Candidate, Draft | ModelDrafter]:
        """Who could draft for this answer now; the draft model's tokens are not made yet."""
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
            assert generation.branch is not None
            drafter = self._draft.open(
                generation.branch,
                generation.prompt,
                generation.output,
                generation.decoding.sampler,
            )
            generation.drafters.append(drafter)
        return {**found, self._draft.candidate(drafter, limit): drafter}

    def _ready(self, session: Session, start_part: Callable[[Session], Part | None]) -> int:
        """How many transcript tokens the session may append now. Begins its next part if it may."""
        assert session.slot is not None
        if session.current is None:
            part = start_part(session) if not session.yielding else None
            if part is None:
                return 0
            session.begin(part)
        assert session.current is not None
        left = len(session.current.tokens) - session.current_done
        return max(0, min(self._cache.ingest_room(session.slot), left))

    def _oldest_first(self, sessions: list[Session]) -> list[Session]:
        return sorted(self._rotated(sessions), key=lambda session: session.waiting_since)

    def _rotated(self, sessions: list[Session]) -> list[Session]:
        if not sessions:
            return []
        at = self._turn % len(sessions)
        return sessions[at:] + sessions[:at]


def _tokens_per_verify(decoding: list[Generation]) -> list[float]:
    """The pace of every answer; one that begins is taken to be as fast as the others."""
    known = [
        generation.tokens_per_verify for generation in decoding if generation.tokens_per_verify
    ]
    usual = sum(known) / len(known) if known else 1.0
    for generation in decoding:
        generation.tokens_per_verify = generation.tokens_per_verify or usual
    return [generation.tokens_per_verify for generation in decoding]


def _block(session: Session, size: int) -> Row:
    assert session.slot is not None
    assert session.current is not None
    done = session.current_done
    return Row(session.slot, session.current.tokens[done : done + size])


def _prompts(plan: StepPlan, generations: list[Generation], budget: int) -> int:
    """Add the prompts' next stretches, as far as the budget goes; returns what is left of it."""
    for generation in generations:
        if generation.prefilling and budget > 0:
            row = generation.prompt_row(budget)
            plan.prompts.append((row, generation))
            budget -= len(row.tokens)
    return budget
