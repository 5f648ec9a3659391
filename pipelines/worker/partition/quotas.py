"""Limits per tenant on one worker: open streams, segments and bytes per second.

Segments over a rate are delayed by default: after an outage a transcript arrives in one burst, and late
is better than lost. Order is kept, and the delay shows as lag. With ``tenant_excess`` set to dead_letter
such segments become dead letters instead, which ``longstream dlq replay`` puts back; other streams on
the partition are then never delayed. A stream over the limit is refused from its first record on; one
with a live session is always admitted.

Tenants are told apart by the ``tenant`` field; records without one share one allowance. Memory is
bounded: streams by those open, rates by the most recent tenants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from operators.errors import SegmentError
from operators.events import Segment
from pipelines.config.load import Settings
from pipelines.worker.context import Queue, Tenants

MAX_TENANTS = 10_000
"""Tenants whose rate is kept."""


class Rate:
    """A rate limit of ``per_s`` with a burst of ``burst_s`` seconds, by name (generic cell rate
    algorithm). Per name it keeps the time at which everything taken is within the rate."""

    def __init__(self, per_s: float, burst_s: float) -> None:
        self._per_s, self._burst_s = per_s, burst_s
        self._paid_at: dict[str, float] = {}

    def wait(self, name: str, amount: float, now: float) -> float:
        """Seconds until ``amount`` is within the allowance; 0 = now. Nothing is taken."""
        paid_at = max(self._paid_at.get(name, now), now) + amount / self._per_s
        # An amount larger than a whole burst passes when nothing else is outstanding.
        return max(0.0, paid_at - now - max(self._burst_s, amount / self._per_s))

    def take(self, name: str, amount: float, now: float) -> None:
        if len(self._paid_at) >= MAX_TENANTS and name not in self._paid_at:
            self._tidy(now)
        self._paid_at[name] = max(self._paid_at.get(name, now), now) + amount / self._per_s

    def _tidy(self, now: float) -> None:
        """Drop the names within their rate; if there are none, the one closest to it."""
        owing = {name: at for name, at in self._paid_at.items() if at > now}
        if len(owing) >= MAX_TENANTS:
            del owing[min(owing, key=lambda name: owing[name])]
        self._paid_at = owing


class TenantLimits:
    """The limits of one worker. ``open_streams``: the worker's, by id; ``clock``: monotonic seconds."""

    def __init__(
        self,
        settings: Settings,
        open_streams: Mapping[str, object],
        on_limited: Callable[[str], None] = lambda limit: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._open, self._clock = settings, open_streams, clock
        self._on_limited = on_limited
        self._streams: dict[str, set[str]] = {}
        burst = settings.tenant_burst_s
        rates = {
            "segments": settings.tenant_segments_per_s,
            "bytes": settings.tenant_bytes_per_s,
        }
        self._rates = {name: Rate(per_s, burst) for name, per_s in rates.items() if per_s}

    def admit(self, segment: Segment, live: bool) -> None:
        """Count a stream that is opened for its tenant; ``live``: it has a session that has not ended.

        Raises SegmentError("tenant_limit") above ``tenant_max_streams``.
        """
        limit = self._settings.tenant_max_streams
        if limit is None:
            return
        tenant = segment.tenant or ""
        streams = self._streams.get(tenant, set())
        if len(streams) >= limit:
            self._tidy()
            streams = self._streams.get(tenant, set())
        if len(streams) >= limit and not live and segment.stream_id not in streams:
            self._on_limited("streams")
            raise SegmentError(
                "tenant_limit",
                f"the tenant has {len(streams)} streams open on this worker, {limit} are allowed "
                "(tenant_max_streams); end one with session_end",
            )
        streams.add(segment.stream_id)
        self._streams[tenant] = streams

    def _tidy(self) -> None:
        open_now = set(self._open)
        kept = {tenant: streams & open_now for tenant, streams in self._streams.items()}
        self._streams = {tenant: streams for tenant, streams in kept.items() if streams}

    def reserve(self, segment: Segment) -> float:
        """Take the segment's share of the rates. Returns the time (of ``clock``) from which to feed it.

        Raises SegmentError("tenant_limit") where the excess is refused; nothing is taken then.
        """
        if not self._rates:
            return 0.0
        now, tenant = self._clock(), segment.tenant or ""
        amounts = {"segments": 1.0, "bytes": float(len(segment.text.encode()))}
        waits = {name: rate.wait(tenant, amounts[name], now) for name, rate in self._rates.items()}
        limit = max(waits, key=lambda name: waits[name])
        if waits[limit] > 0:
            self._on_limited(limit)
            if self._settings.tenant_excess == "dead_letter":
                raise SegmentError(
                    "tenant_limit",
                    f"the tenant is over its {limit} a second (tenant_{limit}_per_s)",
                )
        for name, rate in self._rates.items():
            rate.take(tenant, amounts[name], now)
        return now + waits[limit]


class Pacing:
    """Delays the queues of one partition whose next segment exceeds its tenant's rate. ``wake`` is
    called with a queue when its delay is over."""

    def __init__(self, tenants: Tenants, wake: Callable[[Queue], None]) -> None:
        self._tenants, self._wake_queue = tenants, wake
        self.not_before: dict[int, float] = {}
        """By offset, monotonic seconds."""
        self._delayed: set[str] = set()

    def reserve(self, segment: Segment, offset: int) -> None:
        """Take the segment's share of its tenant's rates. Raises SegmentError where the excess is
        refused."""
        if (at := self._tenants.reserve(segment)) > 0:
            self.not_before[offset] = at

    def delay(self, queue: Queue) -> bool:
        """Whether the queue's next segment exceeds its tenant's rate; its wake-up is then scheduled."""
        if not queue.waiting:
            return False
        left = self.not_before.get(queue.waiting[0][1], 0.0) - time.monotonic()
        if left <= 0:
            self.not_before.pop(queue.waiting[0][1], None)
            return False
        if queue.stream_id not in self._delayed:
            self._delayed.add(queue.stream_id)
            asyncio.get_running_loop().call_later(left, self.wake, queue)
        return True

    def wake(self, queue: Queue) -> None:
        self._delayed.discard(queue.stream_id)
        self._wake_queue(queue)
