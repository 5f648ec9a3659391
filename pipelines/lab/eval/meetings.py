"""Transcripts with reference summaries and points known to lie at certain places.

A folder holds ``NAME.jsonl`` (a line per utterance: ``seq``, ``speaker``, ``start_ms``, ``text``),
``summaries.jsonl`` (``stream_id``, ``summary``) and ``timed_points.jsonl`` (``stream_id``, ``text``,
``relevant_seq`` as pairs of first and last line, or ``t_ms``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.lab.eval.words import common_stems, units

NEAR_MS = 240_000
"""A point of which only the time is known is spoken of within so many milliseconds around it."""


@dataclass(frozen=True)
class Line:
    """One utterance. ``seq`` is its place in the transcript, counted from 0 without gaps."""

    seq: int
    text: str
    speaker: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None


@dataclass(frozen=True)
class Point:
    """Something known to be said in ``lines`` (first and last, inclusive, per range)."""

    text: str
    lines: tuple[tuple[int, int], ...]

    @property
    def first(self) -> int:
        return min(start for start, _ in self.lines)

    def about(self, seq: int) -> bool:
        return any(start <= seq <= end for start, end in self.lines)


@dataclass(frozen=True)
class Meeting:
    name: str
    lines: tuple[Line, ...]
    reference: str = ""
    points: tuple[Point, ...] = ()
    language: str = "en"

    def until(self, seq: int) -> str:
        """The transcript up to and with a line, as a reader sees it."""
        return "\n".join(spoken(line) for line in self.lines[: seq + 1])

    @cached_property
    def common(self) -> frozenset[str]:
        return common_stems(line.text for line in self.lines)

    @cached_property
    def speakers(self) -> frozenset[str]:
        return frozenset(line.speaker for line in self.lines if line.speaker)

    def checkpoints(self, count: int) -> list[int]:
        """The lines after which 1/count, 2/count … of all words have been said."""
        lengths = [len(units(line.text)) for line in self.lines]
        total, said = sum(lengths), 0
        found: list[int] = []
        for line, length in zip(self.lines, lengths, strict=True):
            said += length
            while len(found) < count and said * count >= total * (len(found) + 1):
                found.append(line.seq)
        return found


def spoken(line: Line) -> str:
    return f"{line.speaker}: {line.text}" if line.speaker else line.text


def read_meetings(folder: Path, names: Sequence[str], limit: int = 0) -> list[Meeting]:
    """The meetings by their names, which may leave out what the files' names begin with
    (``ES2006b`` finds ``qmsum_ES2006b.jsonl``); all that have a reference, without names. ``limit``:
    only so many lines of each. Raises ConfigError for a name that is not there."""
    references = {row["stream_id"]: row["summary"] for row in _rows(folder / "summaries.jsonl")}
    points: dict[str, list[Any]] = {}
    for row in _rows(folder / "timed_points.jsonl"):
        points.setdefault(row["stream_id"], []).append(row)
    wanted = [_find(folder, name) for name in names or sorted(references)]
    return [
        _meeting(file, references.get(file.stem, ""), points.get(file.stem, []), limit)
        for file in wanted
    ]


def _find(folder: Path, name: str) -> Path:
    files = [
        f for f in sorted(folder.glob("*.jsonl")) if f.stem == name or f.stem.endswith(f"_{name}")
    ]
    if len(files) != 1:
        raise ConfigError(f"meeting {name!r}: {len(files)} files of that name in {folder}")
    return files[0]


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]


def _meeting(file: Path, reference: str, points: Sequence[Any], limit: int) -> Meeting:
    rows = [row for row in _rows(file) if str(row.get("text", "")).strip()]
    numbers = {int(row["seq"]): at for at, row in enumerate(rows)}
    lines = tuple(
        Line(at, row["text"], row.get("speaker"), row.get("start_ms"), row.get("end_ms"))
        for at, row in enumerate(rows)
    )
    found = [_point(row, lines, numbers) for row in points]
    last = limit or len(lines)
    language = str(rows[0].get("language", "en")) if rows else "en"
    kept = tuple(p for p in found if p is not None and p.first < last)
    return Meeting(file.stem, lines[:last], reference, kept, language)


def _point(row: Any, lines: Sequence[Line], numbers: dict[int, int]) -> Point | None:
    """None for a point nobody can place."""
    if row.get("relevant_seq"):
        ranges = tuple(
            (_at(numbers, start), _at(numbers, end)) for start, end in row["relevant_seq"]
        )
        return Point(row["text"], ranges)
    at = row.get("t_ms")
    near = [
        line.seq
        for line in lines
        if at is not None and line.start_ms is not None and abs(line.start_ms - at) <= NEAR_MS
    ]
    return Point(row["text"], ((near[0], near[-1]),)) if near else None


def _at(numbers: dict[int, int], seq: int) -> int:
    """Where a line of the file stands after lines without text were left out."""
    return numbers.get(
        seq, min((at for s, at in numbers.items() if s >= seq), default=len(numbers) - 1)
    )


def numbered(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The same lines, counted anew."""
    return tuple(replace(line, seq=at) for at, line in enumerate(lines))
