"""What a caller asks of a stream besides its summaries: an answer, a translation of other words. Both
leave the stream's memory as it was."""

from __future__ import annotations

from dataclasses import dataclass

from operators import languages
from operators.engine.session import Asked as AskedQuestion
from operators.engine.session import Session
from operators.engine.task_run import TaskRun
from operators.errors import SegmentError
from operators.events import AnswerEvent, ModelInfo, Question
from operators.observer import Observer
from operators.tasks.answer import AnswerTask
from operators.tasks.base import EMPTY, Asked
from operators.tasks.translation import TextToTranslate, TranslationTask


@dataclass(eq=False)
class PendingTranslation:
    """``text``: the translation, once a step has made it. ``failed``: why there will be none."""

    text: str | None = None
    failed: str = ""


class Requests:
    """Queues requests at a session; they start at the next place where that is possible."""

    def __init__(
        self,
        answers: AnswerTask,
        translation: TranslationTask,
        model: ModelInfo,
        observer: Observer,
    ) -> None:
        self._answers, self._translation, self._model = answers, translation, model
        self._observer = observer
        self._translations: dict[TaskRun, PendingTranslation] = {}
        self._questions: dict[TaskRun, AskedQuestion] = {}

    def ask(self, session: Session, question: Question, ticket: int | None = None) -> None:
        """Raises SegmentError when the question is blank or too long."""
        name = question.question_id
        pending = any(asked.question.question_id == name for asked in session.questions)
        if name and (name in session.known_questions or pending):
            self._observer.count("duplicate_inputs")
            session.questions.append(AskedQuestion(question, ticket, repeat=True))
            return
        self._answers.check(question)  # refused here rather than in the middle of a step
        asked = AskedQuestion(question, ticket)
        session.questions.append(asked)
        self._start(session, asked)

    def _start(self, session: Session, asked: AskedQuestion) -> None:
        run = TaskRun(self._answers, Asked(asked.question))
        session.requests.append(run)
        self._questions[run] = asked

    def move(self, ended: Session, fresh: Session) -> None:
        """Ask what an ended stream has not answered of the stream's next epoch."""
        waiting = {id(asked) for asked in ended.questions}
        self._questions = {r: a for r, a in self._questions.items() if id(a) not in waiting}
        fresh.questions = ended.questions
        for asked in fresh.questions:
            if not asked.done:
                self._start(fresh, asked)

    def drop(self, session: Session) -> None:
        """The session is gone: nobody waits for its questions."""
        waiting = {id(asked) for asked in session.questions}
        self._questions = {r: a for r, a in self._questions.items() if id(a) not in waiting}

    def translate(self, session: Session, wanted: TextToTranslate) -> PendingTranslation:
        """Raises SegmentError when the stream has ended, ConfigError for an unknown language."""
        languages.canonical(wanted.language)
        if session.ended or session.ending is not None:
            raise SegmentError(
                "stream_ended", f"stream {session.stream_id} has ended, its memory is gone"
            )
        run = TaskRun(self._translation, Asked(wanted))
        session.requests.append(run)
        pending = self._translations[run] = PendingTranslation()
        return pending

    def conclude(self, session: Session, run: TaskRun) -> None:
        """Deliver the outcome: to the pending translation, or as the answer to a question."""
        outcome = run.outcome
        assert outcome is not None
        reasons = [outcome.failed, *(r for e in outcome.events for r in e.degraded if r == EMPTY)]
        for reason in filter(None, reasons):
            self._observer.count("failed_runs", task=run.task.name, reason=reason)
        if (pending := self._translations.pop(run, None)) is not None:
            pending.text, pending.failed = (
                (None if outcome.failed else outcome.text),
                outcome.failed,
            )
        elif (asked := self._questions.pop(run, None)) is not None:
            made = [event for event in outcome.events if isinstance(event, AnswerEvent)]
            answer = made[0] if made else self._refusal(session, asked.question, outcome.failed)
            asked.answer = answer  # numbered when it is its turn to be published
            self._observer.count(
                "questions_answered",
                kind=answer.kind,
                refused="true" if answer.refused else "false",
            )

    def _refusal(self, session: Session, question: Question, reason: str) -> AnswerEvent:
        return AnswerEvent(
            stream_id=session.stream_id,
            epoch=session.epoch,
            revision=0,
            question_id=question.question_id,
            kind=question.kind,
            question=question.text,
            refused=True,
            model=self._model,
            kv=session.kv_info(),
            degraded=(reason,),
        )
