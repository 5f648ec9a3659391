"""What a caller asks of a stream besides its summaries: an answer, a translation of other words. Both
are forks behind the transcript and leave the stream as it was."""

from __future__ import annotations

from dataclasses import dataclass

from operators import languages
from operators.engine.session import Session
from operators.engine.task_run import TaskRun
from operators.errors import SegmentError
from operators.events import AnswerEvent, ModelInfo
from operators.observer import Observer
from operators.tasks.answer import AnswerTask, Question
from operators.tasks.base import EMPTY, Asked
from operators.tasks.translation import TextToTranslate, TranslationTask


@dataclass(eq=False)
class PendingTranslation:
    """``text``: the translation, once a step has made it. ``failed``: why there will be none."""

    text: str | None = None
    failed: str = ""


class Requests:
    """Queues requests at a session; they are forked at the next place where that is possible."""

    def __init__(
        self,
        answers: AnswerTask,
        translation: TranslationTask,
        model: ModelInfo,
        observer: Observer,
    ) -> None:
        self._answers, self._translation, self._model = answers, translation, model
        self._observer = observer
        self._pending: dict[TaskRun, PendingTranslation] = {}

    def ask(self, session: Session, question: Question) -> None:
        """Raises SegmentError when the question is too long or the stream has ended."""
        _check_living(session)
        self._answers.check(question)  # refused here rather than in the middle of a step
        session.requests.append(TaskRun(self._answers, Asked(question)))

    def translate(self, session: Session, wanted: TextToTranslate) -> PendingTranslation:
        """Raises SegmentError when the stream has ended, ConfigError for an unknown language."""
        languages.canonical(wanted.language)
        _check_living(session)
        run = TaskRun(self._translation, Asked(wanted))
        session.requests.append(run)
        pending = self._pending[run] = PendingTranslation()
        return pending

    def conclude(self, session: Session, run: TaskRun) -> None:
        """Deliver the outcome: to the pending translation, or as an answer of the stream."""
        outcome = run.outcome
        assert outcome is not None
        assert isinstance(run.occasion, Asked)
        reasons = [outcome.failed, *(r for e in outcome.events for r in e.degraded if r == EMPTY)]
        for reason in filter(None, reasons):
            self._observer.count("failed_runs", task=run.task.name, reason=reason)
        if (pending := self._pending.pop(run, None)) is not None:
            pending.text, pending.failed = (
                (None if outcome.failed else outcome.text),
                outcome.failed,
            )
        elif outcome.failed:
            session.answers.append(self._refusal(session, run.occasion.request, outcome.failed))
        else:
            for event in outcome.events:
                if isinstance(event, AnswerEvent):
                    session.answers.append(session.stamp(event))

    def _refusal(self, session: Session, question: Question, reason: str) -> AnswerEvent:
        return session.stamp(
            AnswerEvent(
                stream_id=session.stream_id,
                epoch=session.epoch,
                revision=0,
                question_id=question.question_id,
                question=question.text,
                model=self._model,
                kv=session.kv_info(),
                degraded=(reason,),
            )
        )


def _check_living(session: Session) -> None:
    if session.ended or session.ending is not None:
        raise SegmentError(
            "stream_ended", f"stream {session.stream_id} has ended, its memory is gone"
        )
