"""Live translation of partial hypotheses (``translate_partials``): shown until the final's is out.

A hypothesis never enters the cache. It is translated on branches of its own, with the translation of
the unit's earlier hypothesis as the draft, and only in spare capacity: while the rest of the stream is
idle, in branches and slots that are not wanted otherwise. Other work preempts it, and the hypothesis
waits again. So it moves no frontier at which anything else is forked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from operators.cache.kv_cache import KvCache
from operators.commit import NOTHING_HELD
from operators.config import OperatorConfig
from operators.engine.partial_hypotheses import Hypothesis, Unit
from operators.engine.residency import Residency
from operators.engine.session import Session
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import TaskRunner
from operators.events import Segment, TranslationEvent
from operators.observer import Observer
from operators.tasks.base import Outcome, Partial
from operators.tasks.translation import TranslationTask

COALESCED = "partials_coalesced"
"""In ``degraded``: a newer hypothesis of the unit arrived before the older one was translated."""


class Partials:
    """Takes hypotheses and translates them in spare capacity."""

    def __init__(
        self,
        config: OperatorConfig,
        cache: KvCache,
        residency: Residency,
        translation: TranslationTask,
        runner: TaskRunner,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._cache, self._residency = config, cache, residency
        self._translation, self._runner = translation, runner
        self._observer, self._clock = observer, clock

    def submit(self, session: Session, segment: Segment, ticket: int, *, late: bool) -> None:
        """Take a partial; no effect if it has no id, is late or has no new text."""
        wanted = self._config.translate_partials and not session.ended and segment.segment_id
        if wanted and not late and self._translation.targets(session.settings):
            session.partials.submit(segment, ticket, self._cache, self._clock())

    # --- between the steps -------------------------------------------------------------------

    def preempt(self, sessions: Sequence[Session]) -> None:
        """Preempt hypotheses of streams with other work, and as many more as due runs need
        branches."""
        busy = [s for s in sessions if s.partials.running]
        for session in busy:
            if not _at_rest(session):
                session.partials.preempt(self._cache)
        due = sum(len(run.waiting) for s in sessions for run in (*s.due, *s.runs))
        for session in busy:
            if self._cache.free_regions >= due:
                return
            session.partials.preempt(self._cache)

    def fill_gaps(self, sessions: Sequence[Session]) -> None:
        """Fork what waits, as far as slots and branches are left over."""
        if any(s.wants_branch or (s.slot is None and not s.idle) for s in sessions):
            return
        for session in sessions:
            if not session.partials or not _at_rest(session):
                continue
            if session.slot is None and not self._residency.make_resident(session, only_spare=True):
                continue
            if not _at_rest(session):
                continue  # its KV was lost and its text is queued to be prefilled again
            for unit in session.partials.units.values():
                self._begin(session, unit)
                self._fork(session, unit)

    def _begin(self, session: Session, unit: Unit) -> None:
        hypothesis = unit.waiting
        if hypothesis is None or unit.working is not None:
            return
        unit.working, unit.waiting = hypothesis, None
        languages = self._translation.targets(session.settings)
        unit.todo = deque(code for code in languages if code not in hypothesis.done)

    def _fork(self, session: Session, unit: Unit) -> None:
        assert session.slot is not None
        assert unit.working is not None or not unit.todo
        for run in unit.runs:
            while run.can_open and self._cache.free_regions:
                run.open_next(session.slot, self._cache)
        while unit.todo and self._cache.free_regions:
            assert unit.working is not None
            code = unit.todo.popleft()
            held = unit.held.get(code, NOTHING_HELD)
            run = TaskRun(self._translation, Partial(unit.working.segment, code, held))
            self._runner.begin(session, run)
            unit.runs.append(run)
            while run.can_open and self._cache.free_regions:
                run.open_next(session.slot, self._cache)

    # --- after the forward -------------------------------------------------------------------

    def conclude(self, session: Session) -> None:
        """Publish the translations that are done. Mutates the session."""
        for unit in session.partials.units.values():
            for run in list(unit.runs):
                run.advance(self._cache)
                if run.outcome is not None:
                    unit.runs.remove(run)
                    self._publish(session, unit, run, run.outcome)
            if unit.working is not None and not unit.todo and not unit.runs:
                unit.stop(self._cache)

    def _publish(self, session: Session, unit: Unit, run: TaskRun, outcome: Outcome) -> None:
        hypothesis, occasion = unit.working, run.occasion
        assert hypothesis is not None
        assert isinstance(occasion, Partial)
        if outcome.failed:
            unit.todo.clear()  # nothing is published; the final's run reports the failure
            return
        hypothesis.done.add(occasion.language)
        if outcome.part is not None:
            unit.held[occasion.language] = outcome.part
        for event in outcome.events:
            if isinstance(event, TranslationEvent):
                session.events.append(self._event(session, hypothesis, event))
                erasure = event.stability.normalized_erasure
                self._observer.observe("translation_normalized_erasure", erasure)

    def _event(
        self, session: Session, hypothesis: Hypothesis, event: TranslationEvent
    ) -> TranslationEvent:
        flags = (COALESCED,) if hypothesis.coalesced else ()
        waited = self._clock() - hypothesis.accepted_at
        self._observer.observe("translation_latency_seconds", waited, policy=event.policy)
        made = replace(event, degraded=(*flags, *event.degraded), latency_ms=round(1000 * waited))
        return session.stamp(made, hypothesis.ticket)


def _at_rest(session: Session) -> bool:
    """Whether a fork now delays nothing: no transcript is queued and no run waits for a fork."""
    waits = session.queue or session.requests or session.due or session.ending or session.requested
    return session.current is None and not waits
