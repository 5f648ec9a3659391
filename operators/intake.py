"""The way of a segment from :meth:`StreamOperator.feed` into the cache: checked, cut into parts, queued,
ingested, and what it then owes in translations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from operators.attention import Row
from operators.config import OperatorConfig
from operators.errors import CapacityError, SegmentError
from operators.generation import Generation
from operators.kv_cache import KvCache
from operators.observer import Observer
from operators.session import Part, Session, Work
from operators.tasks.translation import TranslationTask, split_text
from operators.text import Tokenizer
from operators.types import Failure, Segment, WindowSegment


class Intake:
    """Puts segments into sessions' queues and notes their parts as they enter the cache."""

    def __init__(
        self,
        config: OperatorConfig,
        tokenizer: Tokenizer,
        cache: KvCache,
        translation: TranslationTask,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._tokenizer, self._cache = config, tokenizer, cache
        self._translation, self._observer, self._clock = translation, observer, clock

    # --- into the queue ----------------------------------------------------------------------

    def check(self, session: Session, segment: Segment) -> None:
        """Raises CapacityError or SegmentError when the segment cannot be taken; changes nothing."""
        if len(session.queue) >= self._config.max_queue:
            raise CapacityError(
                f"stream {segment.stream_id}: {self._config.max_queue} in the queue"
            )
        size = len(segment.text.encode())
        if size > self._config.max_text_bytes:
            raise SegmentError(
                "text_too_large", f"{size} bytes of text, at most {self._config.max_text_bytes}"
            )

    def take(self, session: Session, segment: Segment, ticket: int) -> None:
        """Queue a checked segment. Mutates the session."""
        work = Work(ticket, segment, accepted_at=self._clock())
        session.works.append(work)
        if segment.type == "session_end":
            work.owed = 1
            session.queue.append(work)
        elif segment.type == "segment" and segment.is_final and segment.text.strip():
            # A corrected final is not taken either: what was said stays as it was first heard.
            if segment.segment_id and segment.segment_id in session.recent:
                self._observer.count("duplicate_inputs")
            else:
                self._enqueue(session, work)

    def _enqueue(self, session: Session, work: Work) -> None:
        """Cut the segment into parts of at most W/2 tokens and queue them."""
        segment = work.segment
        seq = segment.seq if segment.seq is not None else session.next_seq
        work.segment = segment = msgspec.structs.replace(segment, seq=seq)
        session.next_seq = max(session.next_seq, seq + 1)
        if segment.segment_id:
            session.remember(segment.segment_id)
        name = (segment.speaker.name or segment.speaker.id or "") if segment.speaker else ""
        label = f"{name[:80]}: " if name else ""
        if self._count(label) > self._config.window // 4:
            label = ""  # a name must not fill the window
        room = self._config.window // 2 - self._count(label) - 2
        pieces = split_text(" ".join(segment.text.split()), max(4, room), self._count)
        work.parts_left = len(pieces)
        work.build = partial(self._translation.events, session)
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

    def _translated(self, session: Session, work: Work, generation: Generation) -> None:
        session.close(generation, self._cache)
        work.owed -= 1
        if generation.finish_reason == "nonfinite":
            work.failure = Failure(
                work.ticket, "translate", "nonfinite_logits", "the model gave no finite numbers"
            )
