"""Which rows run next: admission to slots and branch regions, and the token budget of a step.

Prefill, decode and verify are all rows; the only difference is their role (see operators.model).
Order of service is a rotation over the streams, so none waits for another's long text: a step
prefills at most ``ingest_budget`` tokens over all streams, however long a segment is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from operators.attention import Row
from operators.config import OperatorConfig
from operators.generation import Generation
from operators.kv_cache import KvCache
from operators.session import Part, Session

VERIFY_BUDGET = 24
"""Tokens of all verify blocks of a step: beyond that a draft token costs more than it saves."""


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
        self, cache: KvCache, config: OperatorConfig, prefix: Tensor, prefix_tokens: int
    ) -> None:
        self._cache, self._config = cache, config
        self.prefix, self._prefix_tokens = prefix, prefix_tokens
        self._turn = 0

    # --- admission ---------------------------------------------------------------------------

    def admit(self, sessions: list[Session], now: float) -> None:
        """Give slots to sessions that have work, moving idle ones to host memory, least recently
        used first; then open due forks while regions are free. Mutates sessions and cache."""
        for session in self._rotated(sessions):
            if (
                session.slot is None
                and not session.idle
                and not self._make_resident(session, sessions)
            ):
                break
        waiting = [s for s in self._rotated(sessions) if s.slot is not None and s.due]
        while waiting and self._cache.free_regions:
            for session in list(waiting):
                if not self._cache.free_regions:
                    break
                self._open_fork(session, now)
                if not session.due:
                    waiting.remove(session)

    def _open_fork(self, session: Session, now: float) -> None:
        assert session.slot is not None
        generation = session.due.popleft()
        generation.start(self._cache.fork(session.slot))
        session.running.append(generation)
        session.last_used = now

    def _make_resident(self, session: Session, sessions: list[Session]) -> bool:
        if not self._cache.free_slots:
            idle = [s for s in sessions if s.slot is not None and s.idle]
            if not idle:
                return False
            self.park(min(idle, key=lambda s: s.last_used))
        session.slot = self._cache.allocate()
        if session.parked is not None:
            self._cache.restore(session.slot, session.parked, session.parked_length)
            session.parked = None
        else:
            self._cache.restore(session.slot, self.prefix, self._prefix_tokens)
        return True

    def park(self, session: Session) -> None:
        """Move an idle session's KV to host memory, bit for bit, and free its slot."""
        assert session.slot is not None
        session.parked = self._cache.export(session.slot)
        session.parked_length = session.slot.length
        self._cache.release(session.slot)
        session.slot = None

    # --- rows --------------------------------------------------------------------------------

    def plan(
        self, sessions: list[Session], start_part: Callable[[Session], Part | None]
    ) -> StepPlan:
        """Choose the rows of the next step. ``start_part(session)`` takes the next part a session
        may ingest off its queue, or returns None; everything else here is arithmetic."""
        plan = StepPlan()
        order = self._rotated([s for s in sessions if s.slot is not None])
        self._turn += 1
        running = [g for s in order for g in s.running]
        decoding = [g for g in running if not g.prefilling]
        spare = max(0, VERIFY_BUDGET - len(decoding))
        for at, generation in enumerate(decoding):
            share = -(-spare // (len(decoding) - at))
            row = generation.verify_row(self._cache, min(share, self._config.max_draft))
            spare -= len(row.tokens) - 1
            plan.verifies.append((row, generation))
        budget = self._config.ingest_budget
        for generation in running:
            if generation.prefilling and budget > 0:
                row = generation.prompt_row(budget)
                plan.prompts.append((row, generation))
                budget -= len(row.tokens)
        for session in order:
            if budget <= 0:
                break
            block = self._block(session, budget, start_part)
            if block is not None:
                plan.blocks.append((block, session))
                budget -= len(block.tokens)
        return plan

    def _block(
        self, session: Session, budget: int, start_part: Callable[[Session], Part | None]
    ) -> Row | None:
        """The next stretch of transcript this session may append, if any."""
        assert session.slot is not None
        if session.current is None:
            part = start_part(session)
            if part is None:
                return None
            session.begin(part)
        assert session.current is not None
        room = min(self._cache.ingest_room(session.slot), budget)
        if room <= 0:
            return None
        done = session.current_done
        return Row(session.slot, session.current.tokens[done : done + room])

    def _rotated(self, sessions: list[Session]) -> list[Session]:
        if not sessions:
            return []
        at = self._turn % len(sessions)
        return sessions[at:] + sessions[:at]
