"""What a caller asks of a stream besides its summaries: an answer, a translation of other words. Both
are forks behind the transcript and leave the stream as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from operators.cache.kv_cache import KvCache
from operators.config import LANGUAGES
from operators.decoding.generation import Generation
from operators.engine.session import Session
from operators.errors import ConfigError, SegmentError
from operators.tasks.answer import AnswerTask
from operators.tasks.translation import TranslationTask


class Requests:
    """Queues requests at a session; they are forked at the next place where that is possible."""

    def __init__(self, cache: KvCache, answers: AnswerTask, translation: TranslationTask) -> None:
        self._cache, self._answers, self._translation = cache, answers, translation

    def ask(self, session: Session, question: str, question_id: str) -> None:
        """Raises SegmentError when the question is too long or the stream has ended."""
        _check_living(session)
        made = partial(self._answers.generation, session, question)
        made(lambda _: None)  # refused here rather than in the middle of a step
        finish = partial(self._answered, session, question_id, question)
        session.asked.append(partial(made, finish))

    def translate(
        self,
        session: Session,
        text: str,
        language: str,
        done: Callable[[str], None],
        previous: str,
    ) -> None:
        """``previous``: translation of an earlier version of the text, or empty. Raises
        SegmentError when the stream has ended, ConfigError for an unknown language."""
        if language not in LANGUAGES:
            raise ConfigError(f"unknown language code {language!r}; known: {', '.join(LANGUAGES)}")
        _check_living(session)
        pieces = self._translation.pieces(" ".join(text.split()))
        finished: list[Generation] = []

        def finish(generation: Generation) -> None:
            session.close(generation, self._cache)
            finished.append(generation)
            if len(finished) == len(pieces):
                done(self._translation.text(sorted(finished, key=lambda g: g.number)))

        for number, piece in enumerate(pieces):
            session.asked.append(
                partial(
                    self._translation.generation,
                    session,
                    language,
                    piece,
                    finish,
                    number=number,
                    previous=previous,
                )
            )

    def _answered(
        self, session: Session, question_id: str, question: str, generation: Generation
    ) -> None:
        session.close(generation, self._cache)
        session.answers.append(self._answers.event(session, question_id, question, generation))


def _check_living(session: Session) -> None:
    if session.ended or session.ending is not None:
        raise SegmentError(
            "stream_ended", f"stream {session.stream_id} has ended, its memory is gone"
        )
