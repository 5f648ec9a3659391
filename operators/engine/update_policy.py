"""When a run of a task is due, which text may enter the window, and what an update changes.

Forks happen only between parts of the transcript, at frontiers that depend on the stream alone, never
on load (see operators.engine.session).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from operators.config import OperatorConfig
from operators.engine.residency import Residency
from operators.engine.scheduler import Block
from operators.engine.session import Part, Session, Work
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import TaskRunner, view_of
from operators.errors import DeviceError
from operators.events import NO_SETTINGS, AnswerEvent, Event, SummaryEvent, Trigger, event_id
from operators.observer import Observer
from operators.stream_settings import merged
from operators.tasks.base import EMPTY, TOO_LONG, Due, Outcome, Progress, Task
from operators.tasks.summary import SummaryTask

MAX_UPDATE_FAILURES = 3
MAX_FACTOR = 4
"""Times ``update_tokens`` that an update is due after at most (``update_adaptive``)."""
UNANSWERED = (EMPTY, TOO_LONG)
"""Failures that are no fault: the model works."""
FAILED = "update_failed"
"""In ``degraded``: an update came to nothing; the reason stands beside it."""
SKIPPED = "updates_skipped"
"""In ``degraded``: the stream was behind, and this update stands for several."""


class UpdatePolicy:
    """Starts the runs that a stream's own rules ask for, and applies their outcomes.

    The summary is special: its outcomes alone move coverage, and it is forced where uncovered text
    would leave the window. ``others``: further tasks with a rhythm of their own.
    """

    def __init__(
        self,
        config: OperatorConfig,
        runner: TaskRunner,
        residency: Residency,
        summary: SummaryTask,
        others: Sequence[Task],
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._runner, self._residency = config, runner, residency
        self._summary, self._others = summary, others
        self._observer, self._clock = observer, clock

    # --- queries: no side effects ------------------------------------------------------------

    def wanted(self, session: Session) -> Trigger | None:
        """Which trigger, if any, asks for a summary update at the current frontier."""
        if session.ending is not None:
            return "session_end"
        if session.requested is not None:
            return session.requested
        if self._forced(session):
            return "tokens"
        return None if self._behind(session) else self._summary.due(self._progress(session))

    def due_at(self, session: Session) -> float | None:
        """Clock time at which an update becomes due by time alone, or None."""
        left = self._summary.seconds_left(self._progress(session))
        return None if left is None else self._clock() + left

    def next_part(self, session: Session) -> Part | None:
        """The part that may enter the window now, if any."""
        if session.due or session.ending or session.yielding or not session.queue:
            return None
        head = session.queue[0]
        if isinstance(head, Work) or not session.fits(head):
            return None
        return None if self.wanted(session) else head  # else an update is to be forked here first

    def _forced(self, session: Session) -> bool:
        """Whether the next text would push uncovered text out of the window."""
        head = session.queue[0] if session.queue else None
        return isinstance(head, Part) and not session.fits(head)

    def _behind(self, session: Session) -> bool:
        """Whether so much waits that only updates the window needs are made (``skip_behind``)."""
        return 0 < self._config.skip_behind <= len(session.queue)

    def _progress(self, session: Session) -> Progress:
        return Progress(
            tokens=session.frontier - session.last_fork,
            seconds=self._clock() - session.last_fork_at,
            uncovered=session.uncovered_tokens,
            silent=self._clock() - session.last_part_at,
            shift=session.shift,
            factor=session.update_factor,
        )

    def _progress_of(self, session: Session, task: Task) -> Progress:
        at, when = session.forks.get(task.name, (session.layout.sinks, session.last_fork_at))
        now = self._clock()
        return Progress(session.frontier - at, now - when, session.uncovered_tokens)

    # --- before the forward ------------------------------------------------------------------

    def start_due(self, session: Session) -> None:
        """Start what is due at this frontier: callers' requests, the summary, other tasks. Mutates
        the session."""
        self._take_settings(session)
        self._note_end_mark(session)
        if not session.between_parts or session.due:
            return
        # What is asked is asked of all that was said: text that is read again first.
        while session.requests and not self._is_ending(session) and not session.read_again():
            self._runner.start_run(session, session.requests.popleft())
        if session.due:
            return
        running = {run.task.name for run in session.runs}
        self._start_summary(session, running)
        for task in () if session.due else self._others:
            if task.name not in running and (trigger := task.due(self._progress_of(session, task))):
                session.forks[task.name] = (session.frontier, self._clock())
                self._runner.start(session, task, Due(trigger))

    def _is_ending(self, session: Session) -> bool:
        """Whether the final update runs: what is asked from then on is asked of the ended stream."""
        final = any(run.task is self._summary for run in session.runs)
        return final and session.ending is not None

    def _take_settings(self, session: Session) -> None:
        """Settings at the head of the queue hold from this frontier on."""
        while session.between_parts and session.queue:
            head = session.queue[0]
            if not isinstance(head, Work) or head.asks is None:
                return
            session.queue.popleft()
            begins = head.segment.type == "session_start"
            before = NO_SETTINGS if begins else session.settings
            session.settings = head.settings = merged(before, head.asks)
            head.asks = None

    def _note_end_mark(self, session: Session) -> None:
        head = session.queue[0] if session.queue else None
        if (
            isinstance(head, Work)
            and head.closing
            and session.between_parts
            and session.works[0] is head
        ):
            session.ending = head
            session.queue.popleft()

    def _start_summary(self, session: Session, running: set[str]) -> None:
        trigger = self.wanted(session)
        if trigger is None or self._summary.name in running:
            return
        if trigger == "session_end" and session.runs:
            return  # the end frees the slot: whatever is under way is finished first
        session.requested = None
        rule = self._rule(session, trigger)
        if self._config.update_adaptive:
            # By the update before this one, which has concluded: not by load.
            again = min(MAX_FACTOR, 2 * session.update_factor)
            session.update_factor = 1 if session.update_changed else again
        session.shift = 0.0
        session.last_fork, session.last_fork_at = session.frontier, self._clock()
        if session.uncovered_tokens or trigger == "session_end":
            self._runner.start(session, self._summary, Due(trigger, rule))

    def _rule(self, session: Session, trigger: Trigger) -> dict[str, float]:
        """What the trigger was measured against, for the event."""
        config, progress = self._config, self._progress(session)
        rules: dict[Trigger, dict[str, float]] = {
            "tokens": {"tokens": config.update_tokens, "factor": progress.factor},
            "interval": {"seconds": config.update_interval_s},
            "silence": {"seconds": config.update_silence_s},
            "topic_shift": {"shift": config.topic_shift, "measured": round(progress.shift, 3)},
        }
        return rules.get(trigger, {})

    def begin_parts(self, blocks: Iterable[Block]) -> None:
        """Take the parts that the planned blocks begin off their queues. Mutates the sessions."""
        for block in blocks:
            session = block.session
            if session.current is not None:
                continue
            if self._behind(session) and self._summary.due(self._progress(session)):
                session.add_degraded(SKIPPED)
            if not session.uncovered_tokens:
                session.last_fork_at = self._clock()  # silence does not count towards the interval
            session.queue.popleft()
            session.last_part_at = self._clock()
            session.begin(block.part)

    # --- after the forward -------------------------------------------------------------------

    def conclude(self, session: Session, run: TaskRun) -> None:
        """Apply the outcome of a run that was due. Mutates the session."""
        outcome, summary = run.outcome, run.task is self._summary
        assert outcome is not None
        assert isinstance(run.occasion, Due)
        if outcome.failed:
            self._observer.count("failed_runs", task=run.task.name, reason=outcome.failed)
            if not summary:
                return
            self._failed(session, outcome)
            if not self._last_try(session, outcome.failed):
                return
            event = self._summary.standing(view_of(session, self._summary), run.occasion.trigger)
            outcome = Outcome((event,), covers=True)
        events = [event for event in outcome.events if not isinstance(event, AnswerEvent)]
        if summary:
            session.update_failures = 0
            session.update_changed = outcome.items not in (None, session.ledger.items)
            session.apply(outcome, fork=run.fork)
            events = [self._summary_event(session, event, run.occasion) for event in events]
        else:
            session.apply(outcome)
            events = [session.stamp(event) for event in events]
        if summary and run.occasion.trigger == "session_end":
            self._end(session, events)
        else:
            session.events.extend(events)

    def _summary_event(self, session: Session, event: Event, due: Due) -> Event:
        if not isinstance(event, SummaryEvent):
            return session.stamp(event)
        event = replace(event, rule=dict(due.rule))
        made = session.stamp(session.with_degraded(event))
        erasure = made.stability.normalized_erasure
        self._observer.observe("summary_normalized_erasure", erasure)
        for reason, count in made.refused.items():
            self._observer.count("refused_notes", count, reason=reason)
        return made

    def standing(self, session: Session) -> SummaryEvent | None:
        """The event of the stream's last summary revision, from its state."""
        revision = session.revisions.get(self._summary.name, 0)
        if not revision:
            return None
        trigger: Trigger = "session_end" if session.ended else "request"
        event = self._summary.standing(view_of(session, self._summary), trigger)
        name, epoch = session.stream_id, session.epoch
        return replace(
            event,
            revision=revision,
            event_id=event_id(name, self._summary.name, epoch, revision),
            covers=session.covers_with_lag(),
        )

    def _failed(self, session: Session, outcome: Outcome) -> None:
        """An update came to nothing: ledger and coverage stay. Its words are seen again by the next
        one: at once after a fault, else with more words. Raises DeviceError when faults go on."""
        session.update_failures += 1
        session.add_degraded(FAILED)
        session.add_degraded(outcome.failed)
        if outcome.failed in UNANSWERED:
            return
        session.last_fork = session.covered
        if session.ending is not None or session.update_failures >= MAX_UPDATE_FAILURES:
            raise DeviceError(
                f"{session.update_failures} summary updates of one stream came to nothing: "
                f"{outcome.text}"
            )

    def _last_try(self, session: Session, reason: str) -> bool:
        """Whether an update that came to nothing must stand: nothing else would come of trying again.
        The text may then leave the window, and the event says why nothing was written."""
        if reason not in UNANSWERED:
            return False
        often = session.update_failures >= MAX_UPDATE_FAILURES
        return often or session.ending is not None or self._forced(session)

    def _end(self, session: Session, events: Sequence[Event]) -> None:
        """The final revision is there; the stream's end mark is then done and its memory free."""
        work = session.ending
        assert work is not None
        work.final, work.closing = events, False
        session.ending, session.ended = None, True
        waiting = list(session.requests)  # questions: the notes are still there to answer them
        self._residency.drop(session)
        session.requests.extend(waiting)
