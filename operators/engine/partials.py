"""Live translation of partial hypotheses (``translate_partials``): shown until the final's is out.

A hypothesis never enters the cache. It is translated on branches of its own, with the translation of
the unit's earlier hypothesis as the draft, and only in what is left over: where everything else of the
stream is at rest, in branches and slots that nobody else waits for. Whatever needs them takes them, and
the hypothesis waits again. So it moves no frontier at which anything else is forked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.hypotheses import Hypothesis, Piece, Unit
from operators.engine.residency import Parking
from operators.engine.session import Session
from operators.events import Segment
from operators.observer import Observer
from operators.tasks.translation import TranslationTask

COALESCED = "partials_coalesced"
"""In ``degraded``: newer words came before older ones of the unit were translated."""


class Partials:
    """Takes hypotheses and works on them in the gaps."""

    def __init__(
        self,
        config: OperatorConfig,
        cache: KvCache,
        parking: Parking,
        translation: TranslationTask,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._cache, self._parking = config, cache, parking
        self._translation, self._observer, self._clock = translation, observer, clock

    def hear(self, session: Session, segment: Segment, ticket: int) -> None:
        """Take a partial; without effect when it has no id, is late or says nothing new."""
        wanted = self._config.translate_partials and not session.ended and segment.segment_id
        late = segment.segment_id in session.recent
        if wanted and not late and self._targets(segment):
            session.hypotheses.hear(segment, ticket, self._cache)

    # --- between the steps -------------------------------------------------------------------

    def make_way(self, sessions: Sequence[Session]) -> None:
        """Take the branches back where the stream has something else to do, or another has no
        branch for what is due."""
        busy = [s for s in sessions if s.hypotheses.running]
        for session in busy:
            if not _at_rest(session):
                session.hypotheses.recall(self._cache)
        due = sum(len(s.due) for s in sessions)
        for session in busy:
            if self._cache.free_regions >= due:
                return
            session.hypotheses.recall(self._cache)

    def open(self, sessions: Sequence[Session]) -> None:
        """Fork what waits, as far as slots and branches are left over."""
        if any(s.due or (s.slot is None and not s.idle) for s in sessions):
            return
        for session in sessions:
            if not session.hypotheses or not _at_rest(session):
                continue
            if session.slot is None and not self._parking.make_resident(session, only_spare=True):
                continue
            if not _at_rest(session):
                continue  # its memory was lost and its text is queued to be read again
            for unit in session.hypotheses.units.values():
                self._begin(unit)
                while unit.todo and self._cache.free_regions:
                    self._fork(session, unit, unit.todo.popleft())

    def _begin(self, unit: Unit) -> None:
        hypothesis = unit.waiting
        if hypothesis is None or unit.working is not None:
            return
        unit.working, unit.waiting = hypothesis, None
        texts = self._translation.pieces(" ".join(hypothesis.segment.text.split()))
        languages = [c for c in self._targets(hypothesis.segment) if c not in hypothesis.told]
        unit.pieces = len(texts)
        unit.todo = deque(
            Piece(code, number, text) for code in languages for number, text in enumerate(texts)
        )

    def _fork(self, session: Session, unit: Unit, piece: Piece) -> None:
        assert session.slot is not None
        generation = self._translation.generation(
            session,
            piece.language,
            piece.text,
            partial(self._finished, session, unit, piece.language),
            number=piece.number,
            previous=unit.shown.get(piece.language, ""),
        )
        generation.due_at = self._clock()
        generation.start(self._cache.fork(session.slot))
        unit.running.append(generation)

    # --- what becomes of it ------------------------------------------------------------------

    def _finished(self, session: Session, unit: Unit, code: str, generation: Generation) -> None:
        hypothesis = unit.working
        assert hypothesis is not None
        assert generation.branch is not None
        self._cache.drop(generation.branch)
        unit.running.remove(generation)
        if generation.finish_reason == "nonfinite":
            unit.todo.clear()  # nothing is shown; the final will say what is wrong
        else:
            unit.made.setdefault(code, []).append(generation)
            if len(unit.made[code]) == unit.pieces:
                self._tell(session, unit, hypothesis, code)
        if not unit.todo and not unit.running:
            unit.stop(self._cache)

    def _tell(self, session: Session, unit: Unit, hypothesis: Hypothesis, code: str) -> None:
        made = sorted(unit.made.pop(code), key=lambda g: g.number)
        event = self._translation.hypothesis_event(
            session,
            hypothesis.segment,
            hypothesis.ticket,
            code,
            made,
            shown=unit.shown.get(code, ""),
            degraded=(COALESCED,) if hypothesis.coalesced else (),
        )
        hypothesis.told.add(code)
        unit.shown[code] = event.tail
        session.events.append(event)
        erasure = event.stability.normalized_erasure
        self._observer.observe("translation_normalized_erasure", erasure)

    def _targets(self, segment: Segment) -> list[str]:
        return [code for code in self._config.targets if code != segment.language]


def _at_rest(session: Session) -> bool:
    """Whether a fork now delays nothing: no transcript waits to be read, nothing waits for a fork."""
    waits = session.queue or session.asked or session.due or session.ending or session.requested
    return session.current is None and not waits
