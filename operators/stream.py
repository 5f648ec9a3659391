"""One stream of an operator, for callers that wait: every method computes until its result is there.

Other streams are stepped meanwhile; their results wait at their own handles. A stream may be fed without
end; its memory is fixed. Not safe to use from several threads at once.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from operators.engine.requests import PendingTranslation
from operators.errors import CapacityError, LongstreamError
from operators.events import AnswerEvent, Event, Question, Segment, Speaker, SummaryEvent
from operators.state import Emission, Failure

Result = Event | AnswerEvent | Failure


class Operator(Protocol):
    """What a stream needs of its :class:`~operators.stream_operator.StreamOperator`."""

    def cursor(self, stream_id: str) -> int: ...
    def feed(self, segment: Segment, ticket: int, waited: float = 0.0) -> None: ...
    def advance(self) -> None: ...
    def busy(self, stream_id: str) -> bool: ...
    def has_work(self) -> bool: ...
    def serves(self, stream: Stream) -> bool: ...
    def request_summary(self, stream_id: str) -> None: ...
    def standing_summary(self, stream_id: str) -> SummaryEvent | None: ...
    def ask(self, question: Question, ticket: int | None = None) -> None: ...
    def translate(
        self, stream_id: str, text: str, language: str, previous: str = ""
    ) -> PendingTranslation: ...
    def snapshot(self, stream_id: str) -> bytes: ...
    def drop(self, stream_id: str) -> None: ...


class Stream:
    """Made by :meth:`StreamOperator.open`, unusable after :meth:`close` (LongstreamError)."""

    def __init__(self, operator: Operator, stream_id: str) -> None:
        self.id = stream_id
        self._operator = operator
        self._ticket = operator.cursor(stream_id) + 1
        self._latest: SummaryEvent | None = None
        self._waiting: deque[Result] = deque()
        self._open = True

    def feed(self, text: str, *, speaker: str | None = None, **fields: Any) -> None:
        """Append text. ``fields`` are those of Segment.

        The results wait for :meth:`results`: read them from time to time. Where the stream's queue
        is full, this computes until there is room. Raises SegmentError when the text is refused.
        """
        named = Speaker(name=speaker) if speaker else None
        self.feed_segment(Segment(stream_id=self.id, text=text, speaker=named, **fields))

    def feed_segment(self, segment: Segment) -> None:
        """Like :meth:`feed`, with all fields of the segment."""
        operator = self._living()
        if not segment.segment_id:
            segment = msgspec.structs.replace(segment, segment_id=f"{self._ticket}")
        while True:
            try:
                operator.feed(segment, self._ticket)
            except CapacityError:
                operator.advance()
            else:
                self._ticket += 1
                return

    def results(self) -> Iterator[Result]:
        """Events as they come, until all that was fed is done. Feeding meanwhile is fine. A Failure
        stands for a segment that could not be processed; the stream continues."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if not self._open or not self._operator.busy(self.id):
                return
            self._operator.advance()

    def summarize(self) -> SummaryEvent | None:
        """The summary of everything fed so far, in this process or before; None if nothing was."""
        self._settle()
        self._operator.request_summary(self.id)
        self._settle()
        return self._latest or self._operator.standing_summary(self.id)

    def translate(self, text: str, language: str, previous: str = "") -> str:
        """``text`` in the language of a code like ``fr``, with the stream as context. ``previous``:
        the translation of an earlier version of the text, if there is one; it makes this one faster
        and changes nothing about it."""
        pending = self._living().translate(self.id, text, language, previous)
        self._until(lambda: pending.text is not None or bool(pending.failed))
        if pending.text is None:
            raise LongstreamError(f"stream {self.id}: no translation: {pending.failed}")
        return pending.text

    def ask(self, question: str = "", **fields: Any) -> AnswerEvent:
        """The answer to a question about all that was fed so far. ``fields`` are those of Question: a
        ``kind`` other than free needs no text. Raises SegmentError when it is too long, or blank."""
        fields = {"question_id": uuid.uuid4().hex, **fields}
        asked = Question(stream_id=self.id, text=question, **fields)
        name = asked.question_id
        self._settle()
        self._living().ask(asked)
        found: list[AnswerEvent] = []

        def answered() -> bool:
            found.extend(
                e for e in self._waiting if isinstance(e, AnswerEvent) and e.question_id == name
            )
            return bool(found)

        self._until(answered)
        self._waiting.remove(found[0])
        return found[0]

    def snapshot(self) -> bytes:
        """The stream's whole memory, for :meth:`StreamOperator.open` in this or another process."""
        self._settle()
        return self._operator.snapshot(self.id)

    def close(self) -> SummaryEvent | None:
        """End the stream: its last summary, status "final". Its memory is free afterwards; what
        came before can still be read from :meth:`results`."""
        self.feed_segment(Segment(stream_id=self.id, type="session_end", segment_id="end"))
        self._settle()
        self._open = False
        self._operator.drop(self.id)
        return self._latest

    def deliver(self, emission: Emission) -> None:
        """Keep what a step produced for this stream. For the operator."""
        for event in emission.events:
            if isinstance(event, SummaryEvent):
                self._latest = event
            self._waiting.append(event)
        self._waiting.extend(emission.failed)
        self._waiting.extend(emission.answers)

    # --- stepping -----------------------------------------------------------------------------

    def _living(self) -> Operator:
        if not self._open or not self._operator.serves(self):
            raise LongstreamError(f"stream {self.id} was closed or reopened: open() it again")
        return self._operator

    def _settle(self) -> None:
        operator = self._living()
        self._until(lambda: not operator.busy(self.id))

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if not self._operator.has_work():
                raise LongstreamError("the operator came to rest without the result asked for")
            self._operator.advance()
