"""One stream's records in a partition: waiting, with the device, or suspected of ending the device.

Every segment that the device had when it failed gets a *strike*. One strike proves nothing: a machine
can run out of memory for any reason. From the last but one allowed strike on, suspected segments are
fed alone, one at a time, so that the last strike falls on the segment that caused it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from operators.events import Question, Segment
from operators.state import SessionState

LOST = "segment_lost"
"""In ``degraded``: a segment of the stream ended the device repeatedly and was left out."""


@dataclass
class StreamQueue:
    """One stream's records in offset order."""

    stream_id: str
    cursor: int
    """The highest offset that is finished; records up to it are skipped."""
    waiting: deque[tuple[Segment, int]] = field(default_factory=deque)
    given: dict[int, Segment] = field(default_factory=dict)
    """With the device, by offset."""
    questions: deque[tuple[Question, int]] = field(default_factory=deque)
    """Waiting, with their offsets on the topic of questions."""
    asked: dict[int, Question] = field(default_factory=dict)
    """With the device, by offset."""
    question_cursor: int = -1
    """The highest question that is answered; those up to it are skipped."""
    question_strikes: dict[int, int] = field(default_factory=dict)
    """Failures of the device while it had a question."""
    state: SessionState | None = None
    """The newest state: a restarted device continues from it."""
    open: bool = False
    """Whether the stream is open on the device."""
    tried: bool = False
    """On trial: only suspected segments are fed, one at a time."""
    strikes: dict[int, int] = field(default_factory=dict)
    """Failures of the device while it had a segment, by offset."""
    uncovered_since: float | None = None
    """When the oldest segment that no summary covers was read (monotonic seconds)."""
    input_times: dict[int, float] = field(default_factory=dict)
    """When segments no summary covers yet were produced, by offset (Unix seconds)."""
    newest_input: float | None = None
    """The newest of them ever; after a takeover, when the earlier owner wrote the state."""
    silent: bool = False
    """Opened without a record of the stream; its tenant is not known yet."""
    heard_at: float = field(default_factory=time.monotonic)
    """When the newest record of the stream was read (monotonic seconds)."""
    ending: bool = False
    """No record came for ``stream_idle_timeout_s``: the device is to end the stream…"""
    end_given: bool = False
    """…and has been told so."""
    end_failures: int = 0
    stopped: bool = False
    """Its state does not fit its topic: nothing of the stream is processed any more."""

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.given or self.questions or self.asked)

    def has_work(self, least: int) -> bool:
        """Whether the device has anything to do for the stream: a record, a question, an end, or
        ``least`` tokens that no summary covers."""
        state = self.state
        uncovered = state.uncovered_tokens if state is not None and not state.ended else 0
        return bool(self.waiting or self.questions or self.ending or uncovered >= least)

    def heard(self) -> None:
        """A record of the stream was read: it is not ended, unless the device does so already."""
        self.heard_at = time.monotonic()
        self.ending, self.end_failures = self.end_given, 0

    def next(self, bound: int, suspicious: int) -> tuple[Segment, int] | None:
        """Move the next segment to ``given`` and return it, if the device may have it now.

        At most ``bound`` are given. ``suspicious``: strikes from which a segment is fed alone.
        """
        if not self.waiting or not self.open or len(self.given) >= bound:
            return None
        if self.tried and (self.given or not self.suspected(suspicious)):
            return None
        segment, offset = self.waiting.popleft()
        self.given[offset] = segment
        return segment, offset

    def next_question(self, bound: int) -> tuple[Question, int] | None:
        """Move the next question to ``asked`` and return it, if the device may have it now; none while
        the queue is on trial."""
        if not self.questions or not self.open or self.tried or len(self.asked) >= bound:
            return None
        question, offset = self.questions.popleft()
        self.asked[offset] = question
        return question, offset

    def finish_question(self, offset: int) -> None:
        self.asked.pop(offset, None)
        self.question_strikes.pop(offset, None)

    def finish(self, offset: int) -> None:
        """The device finished or refused the segment."""
        self.given.pop(offset, None)
        self.strikes.pop(offset, None)

    def suspected(self, strikes: int) -> bool:
        """Whether the next waiting segment has at least so many strikes."""
        return bool(self.waiting) and self.strikes.get(self.waiting[0][1], 0) >= strikes

    def device_lost(self) -> None:
        """The device failed: a strike for each given segment; all go back to the front of the queue."""
        for offset, segment in reversed(self.given.items()):
            self.strikes[offset] = self.strikes.get(offset, 0) + 1
            self.waiting.appendleft((segment, offset))
        self.given.clear()
        for offset, question in reversed(self.asked.items()):
            self.question_strikes[offset] = self.question_strikes.get(offset, 0) + 1
            self.questions.appendleft((question, offset))
        self.asked.clear()
        self.end_failures += self.end_given
        self.open = self.tried = self.end_given = False

    def quarantine(self) -> int:
        """Leave out the first waiting segment and mark the stream degraded. Returns its offset."""
        _, offset = self.waiting.popleft()
        self.strikes.pop(offset, None)
        state = self.state or SessionState(stream_id=self.stream_id)
        flags = state.degraded if LOST in state.degraded else (*state.degraded, LOST)
        self.state = msgspec.structs.replace(state, cursor=offset, degraded=flags)
        self.cursor = offset
        return offset
