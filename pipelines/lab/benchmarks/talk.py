"""Endless speech for benchmarks: the lines of a real meeting, over and over, each a new segment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from operators.events import Segment
from pipelines.dev.demo.plan import meeting_files
from pipelines.wire.codec import read_transcript


def speech(stream: str, characters: int = 0) -> Iterator[Segment]:
    """Segments without end, numbered on; lines run together until they have that many characters."""
    lines = [s for s in read_transcript(meeting_files()[0]) if s.text.strip()]
    texts: list[str] = []
    number = 0
    for line in itertools.cycle(lines):
        texts.append(line.text)
        if sum(map(len, texts)) >= characters:
            yield msgspec.structs.replace(
                line,
                stream_id=stream,
                seq=number,
                segment_id=f"{stream}-{number}",
                text=" ".join(texts),
            )
            texts, number = [], number + 1
