"""How much of a worker one tenant may take: streams open at once, segments and bytes a second.

Who is over its rate is delayed, not cut off: a transcript that catches up after an outage comes in one
burst, and losing it would be worse than having it late. Order is kept, the lag shows. An operator who
would rather have neighbours on the same partition never wait sets ``tenant_excess`` to dead_letter;
``longstream dlq replay`` puts such text back. A stream too many is refused from its first word, never
in the middle: one that has a live session is always let in.

All of it per worker, by the ``tenant`` field; records without one share one allowance. What is
remembered is bounded: streams by those open, rates by the tenants that have spoken lately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from operators.errors import SegmentError
from operators.events import Segment
from pipelines.config.load import Settings

SPEAKERS = 10_000
"""Tenants whose rate is remembered, at most."""


class Rate:
    """An allowance of ``per_s`` with a burst of ``burst_s`` seconds' worth, by name (GCRA).

    Kept per name is the time at which all that was taken will have been paid for.
    """

    def __init__(self, per_s: float, burst_s: float) -> None:
        self._per_s, self._burst_s = per_s, burst_s
        self._paid_at: dict[str, float] = {}

    def wait(self, name: str, amount: float, now: float) -> float:
        """Seconds until ``amount`` is within the allowance; 0 = now. Nothing is taken."""
        paid_at = max(self._paid_at.get(name, now), now) + amount / self._per_s
        # More than a whole burst at once is let through when nothing else is owed.
        return max(0.0, paid_at - now - max(self._burst_s, amount / self._per_s))

    def take(self, name: str, amount: float, now: float) -> None:
        if len(self._paid_at) >= SPEAKERS and name not in self._paid_at:
            self._tidy(now)
        self._paid_at[name] = max(self._paid_at.get(name, now), now) + amount / self._per_s

    def _tidy(self, now: float) -> None:
        """Let go of names that owe nothing; if all do, of the one that owes least."""
        owing = {name: at for name, at in self._paid_at.items() if at > now}
        if len(owing) >= SPEAKERS:
            del owing[min(owing, key=lambda name: owing[name])]
        self._paid_at = owing


class Tenants:
    """The limits of one worker. ``open_streams``: those it has now; ``clock``: monotonic seconds."""

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
        """Note a stream that is not open yet; ``live``: it has a session that has not ended.

        Raises SegmentError("tenant_limit") for one too many.
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

    def pace(self, segment: Segment) -> float:
        """Take the segment's share of the rates; the time (of ``clock``) from which it may go on.

        Raises SegmentError("tenant_limit") where what exceeds a rate is refused; it takes no share.
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
