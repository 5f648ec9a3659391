"""Lanes whose next segment exceeds its tenant's rate wait here until it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from operators.events import Segment
from pipelines.worker.partition.queues import Lane
from pipelines.worker.partition.quotas import Tenants


class Pacing:
    """Of one partition. ``wake`` is called with a lane when its time has come."""

    def __init__(self, tenants: Tenants, wake: Callable[[Lane], None]) -> None:
        self._tenants, self._wake_lane = tenants, wake
        self.not_before: dict[int, float] = {}
        """By offset, monotonic seconds."""
        self._delayed: set[str] = set()

    def take(self, segment: Segment, offset: int) -> None:
        """Take the segment's share of its tenant's rates. Raises SegmentError where what exceeds them
        is refused."""
        if (at := self._tenants.pace(segment)) > 0:
            self.not_before[offset] = at

    def too_early(self, lane: Lane) -> bool:
        """Whether the lane's next segment exceeds its tenant's rate; then it is tried in time."""
        if not lane.waiting:
            return False
        left = self.not_before.get(lane.waiting[0][1], 0.0) - time.monotonic()
        if left <= 0:
            self.not_before.pop(lane.waiting[0][1], None)
            return False
        if lane.stream_id not in self._delayed:
            self._delayed.add(lane.stream_id)
            asyncio.get_running_loop().call_later(left, self.wake, lane)
        return True

    def wake(self, lane: Lane) -> None:
        self._delayed.discard(lane.stream_id)
        self._wake_lane(lane)
