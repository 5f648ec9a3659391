"""Which stretches of a long transcript a soak sends, each as a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from operators.errors import ConfigError
from operators.events import Segment


def stretches(
    segments: Sequence[Segment], streams: int, seconds: float | None
) -> list[list[Segment]]:
    """``streams`` parts of a transcript, each ``seconds`` of it long (None: all of it), starting at
    places spread evenly over it; each a stream of its own.

    Raises ConfigError for a transcript without start times when ``seconds`` is given.
    """
    if seconds is None:
        return [_named(segments, number) for number in range(streams)]
    starts = [s.start_ms for s in segments if s.start_ms is not None]
    if not starts:
        raise ConfigError("the transcript has no start times (start_ms), so it has no minutes")
    free = max(0.0, starts[-1] - starts[0] - seconds * 1000)
    parts = []
    for number in range(streams):
        begin = starts[0] + free * number / max(1, streams - 1)
        end = begin + seconds * 1000
        part = [s for s in segments if s.start_ms is not None and begin <= s.start_ms <= end]
        parts.append(_named(part, number))
    return [part for part in parts if part]


def _named(segments: Sequence[Segment], number: int) -> list[Segment]:
    return [msgspec.structs.replace(s, stream_id=f"{s.stream_id}-{number}") for s in segments]
