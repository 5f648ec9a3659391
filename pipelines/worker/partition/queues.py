"""One stream's place in a partition: what waits, what the device has, and what killed the device.

A segment with the device when it dies is suspected: a *strike* against it. One strike says nothing
(a machine can run out of memory for any reason). From the last but one allowed on, the lane's
suspects are tried alone, one at a time, so that the last strike hits the right one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from operators.events import Segment, SessionState

LOST = "segment_lost"
"""In ``degraded``: a segment of the stream killed the device time and again and was left out."""


@dataclass
class Lane:
    """One stream's records in order: waiting ones and those with the device."""

    stream_id: str
    cursor: int
    waiting: deque[tuple[Segment, int]] = field(default_factory=deque)
    given: dict[int, Segment] = field(default_factory=dict)
    """With the device, by offset, in order."""
    state: SessionState | None = None
    """The newest state seen: where a device that starts again goes on."""
    open: bool = False
    """Whether the device knows the stream."""
    tried: bool = False
    """The lane is on trial: only its suspects are fed, one at a time."""
    strikes: dict[int, int] = field(default_factory=dict)
    """How often the device died with a segment, by offset."""
    uncovered_since: float | None = None
    input_times: dict[int, float] = field(default_factory=dict)
    """When segments no summary covers yet were produced, by offset (Unix seconds)."""
    newest_input: float | None = None
    """The newest of them ever; after a takeover, when the earlier owner wrote the state."""
    silent: bool = False
    """Opened without a record of the stream; its tenant is not known yet."""

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.given

    def next(self, bound: int, suspicious: int) -> tuple[Segment, int] | None:
        """Take what the device may have now, if anything; at most ``bound`` are with it.

        ``suspicious``: the number of strikes from which a segment is tried alone.
        """
        if not self.waiting or not self.open or len(self.given) >= bound:
            return None
        if self.tried and (self.given or not self.suspected(suspicious)):
            return None
        segment, offset = self.waiting.popleft()
        self.given[offset] = segment
        return segment, offset

    def finish(self, offset: int) -> None:
        """The device has done, or refused, one of its segments."""
        self.given.pop(offset, None)
        self.strikes.pop(offset, None)

    def suspected(self, suspicious: int) -> bool:
        """Whether the next waiting segment has that many strikes."""
        return bool(self.waiting) and self.strikes.get(self.waiting[0][1], 0) >= suspicious

    def device_lost(self) -> None:
        """The device is gone: a strike for what it had, which waits again, first in line."""
        for offset, segment in reversed(self.given.items()):
            self.strikes[offset] = self.strikes.get(offset, 0) + 1
            self.waiting.appendleft((segment, offset))
        self.given.clear()
        self.open = self.tried = False

    def condemn(self) -> int:
        """Leave out the first waiting segment; its offset. The stream goes on behind it, degraded."""
        _, offset = self.waiting.popleft()
        self.strikes.pop(offset, None)
        state = self.state or SessionState(stream_id=self.stream_id)
        flags = state.degraded if LOST in state.degraded else (*state.degraded, LOST)
        self.state = msgspec.structs.replace(state, cursor=offset, degraded=flags)
        self.cursor = offset
        return offset
