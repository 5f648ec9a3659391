"""The operator without Kafka: feed text, read results, ask.

    from pipelines.live import Live

    live = Live("smollm2-135m", targets=("fr",))
    live.feed("meeting", "The review moves to Friday at ten.", speaker="Ana")
    for event in live.results():
        print(event)
    print(live.summarize("meeting"))
    print(live.translate("meeting", "See you on Friday.", "de"))
    print(live.ask("meeting", "When is the review?").text)
    snapshot = live.snapshot("meeting")
    live.close("meeting")

Synchronous and single-threaded: the model runs while you wait for something. Streams may be fed for
ever; each keeps its fixed memory. Not safe to use from several threads at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from operators.config import OperatorConfig
from operators.errors import CapacityError, LongstreamError
from operators.model import DecoderModel, load_model
from operators.stream_operator import StreamOperator
from operators.types import (
    AnswerEvent,
    Event,
    Failure,
    Segment,
    Speaker,
    SummaryEvent,
)
from pipelines import model_store

Result = Event | AnswerEvent


class Live:
    """Streams on one model in this process. ``settings`` are those of OperatorConfig.

    ``model``: a loaded one, or whatever ``longstream model pull`` takes. Raises ModelError or
    ConfigError.
    """

    def __init__(
        self,
        model: str | DecoderModel,
        *,
        device: str = "auto",
        clock: Callable[[], float] = time.monotonic,
        on_refused: Callable[[str, Failure], None] | None = None,
        **settings: Any,
    ) -> None:
        config = OperatorConfig.from_dict(settings)
        if isinstance(model, str):
            model = load_model(
                model_store.resolve(model),
                name=model,
                device=device,
                dtype_ingest=config.dtype_ingest,
                dtype_generation=config.dtype_generation,
                rows=config.branches,
            )
        self.operator = StreamOperator(model, config, clock=clock)
        self._on_refused = on_refused
        self._tickets: dict[str, int] = {}
        self._latest: dict[str, SummaryEvent] = {}
        self._waiting: deque[Result] = deque()

    def feed(self, stream: str, text: str, *, speaker: str | None = None, **fields: Any) -> None:
        """Append text to a stream, which begins with its first. ``fields`` are those of Segment.

        What comes of it waits for :meth:`results`: read them now and then. Where the stream's queue
        is full, this computes until there is room. Raises SegmentError when
        the text is refused.
        """
        named = Speaker(name=speaker) if speaker else None
        self.feed_segment(Segment(stream_id=stream, text=text, speaker=named, **fields))

    def feed_segment(self, segment: Segment) -> None:
        """Like :meth:`feed`, with everything about the segment said."""
        stream = segment.stream_id
        if stream not in self._tickets:
            self._tickets[stream] = 0
            self.operator.open(stream)
        if not segment.segment_id:
            segment = msgspec.structs.replace(segment, segment_id=f"{self._tickets[stream]}")
        while True:
            try:
                self.operator.feed(segment, self._tickets[stream])
            except CapacityError:
                self._step()
            else:
                self._tickets[stream] += 1
                return

    def results(self) -> Iterator[Result]:
        """Events as they come, until there is nothing left to compute. Feeding meanwhile is fine."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if not self.operator.has_work():
                return
            self._step()

    def summarize(self, stream: str) -> SummaryEvent | None:
        """The stream's summary with everything said so far; None if nothing ever was."""
        self._settle()
        self.operator.request_summary(stream)
        self._settle()
        return self._latest.get(stream)

    def translate(self, stream: str, text: str, language: str) -> str:
        """``text`` in the language of a code like ``fr``, with the stream as context."""
        done: list[str] = []
        self.operator.translate(stream, text, language, done.append)
        self._until(lambda: bool(done))
        return done[0]

    def ask(self, stream: str, question: str) -> AnswerEvent:
        """The answer to a question about the stream. Raises SegmentError when it is too long."""
        found: list[AnswerEvent] = []
        self.operator.ask(stream, question)
        self._until(lambda: bool(found), found)
        return found[0]

    def snapshot(self, stream: str) -> bytes:
        """The stream's whole memory, for :meth:`restore` in this or another process."""
        self._settle()
        return self.operator.snapshot(stream)

    def restore(self, stream: str, snapshot: bytes) -> None:
        """Go on with a stream as if nothing had happened. Raises SnapshotError."""
        self.operator.open(stream, snapshot=snapshot)
        self._tickets[stream] = self.operator.cursor(stream) + 1

    def close(self, stream: str) -> SummaryEvent | None:
        """End the stream: its last summary, revision "final". Its memory is free afterwards."""
        self.feed_segment(Segment(stream_id=stream, type="session_end", segment_id="end"))
        self._settle()
        self.operator.drop(stream)
        del self._tickets[stream]
        return self._latest.pop(stream, None)

    # --- stepping -----------------------------------------------------------------------------

    def _settle(self) -> None:
        self._until(lambda: not self.operator.has_work())

    def _until(self, done: Callable[[], bool], answers: list[AnswerEvent] | None = None) -> None:
        """Step until ``done()``; what comes out meanwhile waits for :meth:`results`, but answers go
        to ``answers`` if that is given."""
        while not done():
            if not self.operator.has_work():
                raise LongstreamError("the operator came to rest without the result asked for")
            self._step(answers)

    def _step(self, answers: list[AnswerEvent] | None = None) -> None:
        for emission in self.operator.step():
            for event in emission.events:
                if isinstance(event, SummaryEvent):
                    self._latest[event.stream_id] = event
                self._waiting.append(event)
            for failure in emission.failed:
                if self._on_refused is not None:
                    self._on_refused(emission.stream_id, failure)
            (self._waiting if answers is None else answers).extend(emission.answers)
