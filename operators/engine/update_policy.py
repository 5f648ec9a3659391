"""When a summary update is due, and what becomes of it: coverage, the ledger, the end of a stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.residency import Parking
from operators.engine.session import Part, Session, Work
from operators.errors import DeviceError
from operators.events import SummaryEvent, Trigger
from operators.observer import Observer
from operators.tasks.summary import SummaryTask, View

MAX_UPDATE_FAILURES = 3
SKIPPED = "updates_skipped"
"""In ``degraded``: the stream was behind, and this update stands for several."""


class UpdatePolicy:
    """Decides what is forked at every frontier where a fork may happen (operators.engine.session)."""

    def __init__(
        self,
        config: OperatorConfig,
        cache: KvCache,
        parking: Parking,
        summary: SummaryTask,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._cache, self._parking, self._summary = config, cache, parking, summary
        self._observer, self._clock = observer, clock

    # --- what is due -------------------------------------------------------------------------

    def wanted(self, session: Session) -> Trigger | None:
        """Which trigger, if any, asks for an update at the current frontier."""
        if session.ending is not None:
            return "session_end"
        if session.requested is not None:
            return session.requested
        head = session.queue[0] if session.queue else None
        if isinstance(head, Part) and not session.fits(head):
            return "tokens"
        return None if self._behind(session) else self._by_rule(session)

    def _by_rule(self, session: Session) -> Trigger | None:
        """The trigger of the ordinary rhythm, which a stream that is behind may skip."""
        if session.frontier - session.last_fork >= self._config.update_tokens:
            return "tokens"
        return "interval" if self.interval_due(session, self._clock()) else None

    def _behind(self, session: Session) -> bool:
        """Whether so much waits that only updates the window needs are made (``skip_behind``)."""
        return 0 < self._config.skip_behind <= len(session.queue)

    def interval_due(self, session: Session, now: float) -> bool:
        """Whether time alone asks for an update."""
        at = self.due_at(session)
        return at is not None and now >= at

    def due_at(self, session: Session) -> float | None:
        """Clock time at which time alone will ask for an update, or None."""
        every = self._config.update_interval_s
        return session.last_fork_at + every if every and session.uncovered_tokens else None

    def next_part(self, session: Session) -> Part | None:
        """Take the next part off the queue, if the rules allow it now."""
        if session.due or session.ending or not session.queue:
            return None
        head = session.queue[0]
        if isinstance(head, Work) or not session.fits(head):
            return None
        if self.wanted(session):
            return None  # an update is due here and waits for the running one to finish
        if self._behind(session) and self._by_rule(session) and SKIPPED not in session.degraded:
            session.degraded = (*session.degraded, SKIPPED)
        if not session.uncovered_tokens:
            session.last_fork_at = self._clock()  # silence does not count towards the interval
        session.queue.popleft()
        return head

    def make_due(self, session: Session, now: float) -> None:
        """Start what the session's rules ask for at this frontier: the end mark, questions, an
        update. Mutates the session."""
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
        trigger = self.wanted(session)
        if trigger is not None:
            self._update(session, trigger, now)

    def _update(self, session: Session, trigger: Trigger, now: float) -> None:
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

    # --- what becomes of it ------------------------------------------------------------------

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
        session.close(generation, self._cache)
        session.summary_running = False
        if generation.finish_reason == "nonfinite":
            self._failed(session)
            return
        session.update_failures = 0
        if view.trigger == "session_end":
            self._end(session, view, generation)
        else:
            session.events.append(self._finish(session, view, generation))

    def _failed(self, session: Session) -> None:
        session.update_failures += 1
        session.degraded = ("update_failed",)
        session.last_fork = session.covered
        if session.ending is not None or session.update_failures >= MAX_UPDATE_FAILURES:
            raise DeviceError(
                f"{session.update_failures} summary updates of one stream gave no finite "
                "numbers: try dtype fp32, or another model"
            )

    def _finish(self, session: Session, view: View, generation: Generation | None) -> SummaryEvent:
        event = self._summary.finish(session, view, generation)
        erasure = event.stability.normalized_erasure
        self._observer.observe("summary_normalized_erasure", erasure)
        return event

    def _end(self, session: Session, view: View, generation: Generation | None) -> None:
        """Publish the final revision; the stream's end mark is then done and its memory free."""
        work = session.ending
        assert work is not None
        event = self._finish(session, view, generation)
        work.build = lambda _: [event]
        work.owed = 0
        session.ending, session.ended = None, True
        self._parking.drop(session)
