"""Bounds on what callers may ask for at once and per second."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_CALLERS = 10_000
Record = Callable[..., None]
"""``record(metric, value, *labels)``: see pipelines.observability.catalogue.GATEWAY_SPECS."""


class Rate:
    """A token bucket per caller; the callers seen longest ago are forgotten beyond MAX_CALLERS."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, max(1.0, 2 * per_second), clock
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """0 if the caller may go on, else seconds to wait."""
        now = self._clock()
        left, then = self._callers.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._callers[caller] = (left - 1 if not wait else left, now)
        if len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)
        return wait


class Full(Exception):
    """Too many at once."""


class Places:
    """At most ``limit`` holders at once."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises Full."""
        if self.used >= self.limit:
            raise Full
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1
