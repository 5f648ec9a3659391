"""Which stretches of a long transcript a soak sends, each as a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from operators.errors import ConfigError
from operators.events import Segment
from pipelines.cli.replaying import spoken_seconds


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


def dealt(segments: Sequence[Segment], streams: int, seconds: float) -> list[list[Segment]]:
    """So many ``seconds`` of speech, one line after the other, dealt out like cards to ``streams``
    streams that are all live from the first line to the last: most of them silent at any time.

    Raises ConfigError for a transcript that holds less speech.
    """
    said, at = [], 0.0
    for segment in segments:
        if at >= seconds:
            break
        if segment.type == "segment" and segment.text.strip():
            start, at = at, at + spoken_seconds(segment)
            said.append((segment, round(start * 1000), round(at * 1000)))
    if at < seconds:
        raise ConfigError(f"the transcript holds {at / 60:.0f} minutes of speech")
    parts: list[list[Segment]] = []
    for number in range(streams):
        name = f"live-{number}"
        lines = [
            Segment(
                stream_id=name, text=line.text, speaker=line.speaker, seq=seq, start_ms=start,
                end_ms=end, segment_id=f"{name}/{seq}",
            )
            for seq, (line, start, end) in enumerate(said[number::streams])
        ]  # fmt: skip
        first = Segment(stream_id=name, type="session_start", segment_id=f"{name}/a", start_ms=0)
        last = Segment(
            stream_id=name, type="session_end", segment_id=f"{name}/z", start_ms=round(at * 1000)
        )
        parts.append([first, *lines, last])
    return parts


def _named(segments: Sequence[Segment], number: int) -> list[Segment]:
    return [msgspec.structs.replace(s, stream_id=f"{s.stream_id}-{number}") for s in segments]
