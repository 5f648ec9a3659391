"""The way of a segment from :meth:`StreamOperator.feed` into the cache: checked, cut into parts, queued,
ingested, and what it then owes in translations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.partials import Partials
from operators.engine.session import Known, Part, Session, Work
from operators.errors import CapacityError, SegmentError
from operators.events import Event, Segment
from operators.model.tokenizer import Tokenizer
from operators.observer import Observer
from operators.state import Failure, WindowSegment
from operators.tasks.translation import TranslationTask, split_text


class Intake:
    """Puts segments into sessions' queues and notes their parts as they enter the cache."""

    def __init__(
        self,
        config: OperatorConfig,
        tokenizer: Tokenizer,
        cache: KvCache,
        translation: TranslationTask,
        partials: Partials,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._tokenizer, self._cache = config, tokenizer, cache
        self._translation, self._partials = translation, partials
        self._observer, self._clock = observer, clock

    # --- into the queue ----------------------------------------------------------------------

    def check(self, session: Session, segment: Segment) -> None:
        """Raises CapacityError or SegmentError when the segment cannot be taken; changes nothing."""
        if len(session.queue) + len(session.later) >= self._config.max_queue:
            raise CapacityError(
                f"stream {segment.stream_id}: {self._config.max_queue} in the queue"
            )
        size = len(segment.text.encode())
        if size > self._config.max_text_bytes:
            raise SegmentError(
                "text_too_large", f"{size} bytes of text, at most {self._config.max_text_bytes}"
            )

    def take(self, session: Session, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        """Queue a checked segment. Mutates the session."""
        work = Work(ticket, segment, accepted_at=self._clock(), waited=waited)
        session.works.append(work)
        known = session.recent.get(segment.segment_id) if segment.segment_id else None
        if is_final_text(segment):
            work.shown = session.hypotheses.forget(segment.segment_id, self._cache)
        if segment.type == "session_end" and not session.ended:
            session.hypotheses.clear(self._cache)
            work.owed, session.closing = 1, True
            session.queue.append(work)
        elif segment.type == "session_end":
            self._observer.count("duplicate_inputs")
        elif segment.type == "speaker_revision":
            self._correct(session, work)
        elif is_final_text(segment) and known is None:
            self._enqueue(session, work)
        elif is_final_text(segment) and known is not None:
            # A corrected final is not taken either: what was said stays as it was first heard.
            if is_repeat(segment, known):
                self._observer.count("duplicate_inputs")
            else:
                session.remember(segment.segment_id, segment.revision, segment.text)
                self._correct(session, work)
        elif segment.type == "segment" and not segment.is_final:
            self._partials.hear(session, segment, ticket)

    def _correct(self, session: Session, work: Work) -> None:
        """Corrections take effect in feed order, when all before them is done."""

        def apply(done: Work) -> list[Event]:
            session.correct(done.segment)
            return []

        self._observer.count("late_revisions")
        work.build = apply

    def _enqueue(self, session: Session, work: Work) -> None:
        """Cut the segment into parts of at most W/2 tokens and queue them."""
        segment = work.segment
        # A number that does not grow (late, or counted anew) would make coverage claim too much.
        seq = max(session.next_seq, -1 if segment.seq is None else segment.seq)
        work.seq, session.next_seq = seq, seq + 1
        if segment.segment_id:
            session.remember(segment.segment_id, segment.revision, segment.text)
        name = (segment.speaker.name or segment.speaker.id or "") if segment.speaker else ""
        label = f"{name[:80]}: " if name else ""
        if self._count(label) > self._config.window // 4:
            label = ""  # a name must not fill the window
        room = self._config.window // 2 - self._count(label) - 2
        pieces = split_text(" ".join(segment.text.split()), max(4, room), self._count)
        work.parts_left = len(pieces)
        work.build = partial(self._translations, session)
        for at, piece in enumerate(pieces):
            text = f"{label}{piece}\n"
            tokens = self._tokenizer.encode(text)
            info = WindowSegment(
                segment_id=segment.segment_id,
                seq=seq,
                text=text,
                tokens=len(tokens),
                offset=work.ticket,
                last_part=at == len(pieces) - 1,
                speaker=name or None,
                start_ms=segment.start_ms,
                end_ms=segment.end_ms,
            )
            session.queue.append(Part(text, piece, tokens, info, work))

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    # --- out of the queue, into the cache ----------------------------------------------------

    def ingested(self, session: Session, row: Row) -> None:
        """Note that ``row`` is in the cache. With a part's last token its translations become due."""
        evicted = session.evicted_total
        part = session.advance(row.tokens)
        self._observer.count("kv_evicted_tokens", session.evicted_total - evicted)
        if part is None or part.work is None:
            return
        work = part.work
        work.parts_left -= 1
        if part.info.last_part:
            self._observer.observe("queue_wait_seconds", self._clock() - work.accepted_at)
        finish = partial(self._translated, session, work)
        for generation in self._translation.generations(session, part, finish):
            generation.due_at = self._clock()
            session.due.append(generation)

    def _translations(self, session: Session, work: Work) -> list[Event]:
        made = self._translation.events(session, work)
        for event in made:
            erasure = event.stability.normalized_erasure
            self._observer.observe("translation_normalized_erasure", erasure)
        return [*made]

    def _translated(self, session: Session, work: Work, generation: Generation) -> None:
        session.close(generation, self._cache)
        work.owed -= 1
        if generation.finish_reason == "nonfinite":
            work.failure = Failure(
                work.ticket, "translate", "nonfinite_logits", "the model gave no finite numbers"
            )


def is_final_text(segment: Segment) -> bool:
    """Whether its text belongs into the cache, if it is new."""
    return segment.type == "segment" and segment.is_final and bool(segment.text.strip())


def is_repeat(segment: Segment, known: Known) -> bool:
    """Whether a segment with a known id says nothing new: an older revision, or the same again."""
    if segment.revision != known.revision:
        return segment.revision < known.revision
    return known.text is None or known.text == hash(segment.text)


def begins_again(session: Session, segment: Segment) -> bool:
    """Whether a segment behind a stream's end is the first of a new epoch: it says so, or it is
    final text that is not a late repetition of what was said before the end."""
    known = session.recent.get(segment.segment_id) if segment.segment_id else None
    if known is not None and is_repeat(segment, known):
        return False
    return segment.type == "session_start" or is_final_text(segment)
