"""Which streams may have work: the others cost a step nothing, however many are open.

A stream is awake from whatever was done to it (fed, asked, opened) until it was found without work. One
whose next update is due by time alone sleeps with an alarm.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Wakeful:
    """Names of open streams. ``clock``: seconds, as the alarms'."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._opened: dict[str, int] = {}
        self._count = 0
        self._awake: set[str] = set()
        self._alarms: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def add(self, name: str) -> None:
        """The stream was opened: it is awake, and comes after those opened before."""
        self._count += 1
        self._opened[name] = self._count
        self.wake(name)

    def remove(self, name: str) -> None:
        self._opened.pop(name, None)
        self._awake.discard(name)
        self._alarms.pop(name, None)

    def wake(self, name: str) -> None:
        """Something was done to the stream."""
        self._awake.add(name)
        self._alarms.pop(name, None)

    def names(self) -> list[str]:
        """Those awake, among them those whose alarm has gone off; in the order of opening."""
        now = self._clock()
        while (at := self.next_alarm()) is not None and at <= now:
            self.wake(self._heap[0][1])
        return sorted(self._awake, key=self._opened.__getitem__)

    def sleep(self, name: str, until: float | None) -> None:
        """The stream has no work before ``until`` (None: before something is done to it)."""
        self._awake.discard(name)
        if until is not None:
            self._alarms[name] = until
            heapq.heappush(self._heap, (until, name))

    def next_alarm(self) -> float | None:
        """The earliest alarm of a sleeping stream."""
        while self._heap and self._alarms.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # of a stream that was woken before, or is gone
        return self._heap[0][0] if self._heap else None
