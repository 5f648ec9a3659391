"""Meters of summaries: against a reference, against the transcript, and over time."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.lab.eval.grounding import Note, Source, evidence_valid, is_false, share
from pipelines.lab.eval.meetings import Meeting, Point
from pipelines.lab.eval.words import content, ngrams, sentences, units

VERBATIM = 8
"""Words in a row that count as copied."""
COVERED = 0.3
"""Share of a point's content words from which on it counts as noted."""


@dataclass(frozen=True)
class Revision:
    """What a side had published after it had heard ``seq``."""

    seq: int
    text: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came back to one question."""

    question: str
    text: str
    refused: bool


@dataclass
class Summarised:
    """One side on one meeting."""

    revisions: list[Revision] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    prefilled: int = 0
    generated: int = 0
    seconds: float = 0.0
    degraded: list[str] = field(default_factory=list)

    def at(self, seq: int) -> Revision:
        """What was there to read after a line; an empty text before the first revision."""
        return next((r for r in reversed(self.revisions) if r.seq <= seq), Revision(seq, ""))

    @property
    def last(self) -> Revision:
        return self.revisions[-1] if self.revisions else Revision(-1, "")


class _Units:
    """The tokenizer rouge-score is given: any script, no stemming."""

    def tokenize(self, text: str) -> list[str]:
        return units(text)


def rouge(text: str, reference: str) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-Lsum over :func:`units`."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeLsum"], tokenizer=_Units())
    scores = scorer.score("\n".join(sentences(reference)), "\n".join(sentences(text)))
    return {name: float(found.fmeasure) for name, found in scores.items()}


def area(values: Sequence[float]) -> float:
    """Area under the line from (0, 0) through the values at 1/n, 2/n … 1: the trapezoid rule."""
    before = [0.0, *values]
    return sum(a + b for a, b in zip(before, values, strict=False)) / (2 * len(values))


def repeated_share(text: str) -> float:
    """Share of the text's word trigrams that it had before."""
    grams = ngrams(units(text), 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def verbatim_share(text: str, transcript: frozenset[tuple[str, ...]]) -> float:
    """Share of the text's words inside runs of VERBATIM words that the transcript has too."""
    tokens = units(text)
    inside = [False] * len(tokens)
    for at, gram in enumerate(ngrams(tokens, VERBATIM)):
        if gram in transcript:
            inside[at : at + VERBATIM] = [True] * VERBATIM
    return sum(inside) / len(tokens) if tokens else 0.0


def verbatim_grams(meeting: Meeting) -> frozenset[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for line in meeting.lines:
        found.update(ngrams(units(line.text), VERBATIM))
    return frozenset(found)


def erasure(before: str, after: str) -> float:
    """Words of ``before`` that ``after`` takes back (has no longer, in order), over the words of
    ``after``. Text put in between takes nothing back."""
    old, new = units(before), units(after)
    kept = sum(m.size for m in difflib.SequenceMatcher(None, old, new, False).get_matching_blocks())
    return (len(old) - kept) / max(1, len(new))


def erasures(made: Summarised) -> list[float]:
    texts = [r.text for r in made.revisions]
    return [erasure(a, b) for a, b in itertools.pairwise(texts)]


def point_recall(point: Point, revision: Revision, meeting: Meeting, anywhere: bool) -> float:
    """Share of the point's content words in the notes that rest on its lines, or in all notes."""
    wanted = content(point.text, meeting.common)
    noted = [
        n.said for n in revision.notes if anywhere or any(point.about(seq) for seq in n.evidence)
    ]
    there = frozenset[str]().union(*(content(text, frozenset()) for text in noted))
    return len(wanted & there) / len(wanted) if wanted else 0.0


def point_delay(point: Point, made: Summarised, meeting: Meeting) -> int | None:
    """Lines between the beginning of a point and the first revision that notes it; None if none."""
    for revision in made.revisions:
        covered = point_recall(point, revision, meeting, anywhere=False) >= COVERED
        if revision.seq >= point.first and covered:
            return revision.seq - point.first
    return None


def meter(made: Summarised, meeting: Meeting, checkpoints: Sequence[int]) -> dict[str, Any]:
    """All figures of one side on one meeting; None where there is nothing to measure."""
    last = made.last
    figures: dict[str, Any] = {
        "words": len(units(last.text)),
        "revisions": len(made.revisions),
        "repeated": repeated_share(last.text),
        "verbatim": verbatim_share(last.text, verbatim_grams(meeting)),
        "erasure": _mean(erasures(made)),
        "prefilled": made.prefilled,
        "generated": made.generated,
        "seconds": made.seconds,
        "compression": len(units(last.text)) / max(1, len(units(meeting.until(last.seq)))),
    }
    source = Source(part for line in meeting.lines for part in (line.text, line.speaker or ""))
    found, wanted = source.precision(_statements(last))
    figures["precision"] = found / wanted if wanted else None
    if meeting.reference:
        curve = [rouge(made.at(seq).text, meeting.reference)["rouge1"] for seq in checkpoints]
        figures |= rouge(last.text, meeting.reference) | {"r1_auc": area(curve), "curve": curve}
    return figures | _points(made, meeting) | _notes(made, meeting)


def _statements(revision: Revision) -> str:
    """What is stated, without headings and labels."""
    return "\n".join(note.text for note in revision.notes) or revision.text


def _points(made: Summarised, meeting: Meeting) -> dict[str, Any]:
    if not meeting.points:
        return {}
    last, points = made.last, meeting.points
    figures: dict[str, Any] = {
        "points_anywhere": _mean([point_recall(p, last, meeting, True) for p in points])
    }
    if any(note.evidence for note in last.notes):
        delays = [point_delay(p, made, meeting) for p in points]
        known = sorted(d for d in delays if d is not None)
        figures |= {
            "points": _mean([point_recall(p, last, meeting, False) for p in points]),
            "points_noted": len(known) / len(points),
            "point_delay_lines": known[len(known) // 2] if known else None,
        }
    return figures


def _notes(made: Summarised, meeting: Meeting) -> dict[str, Any]:
    """Of sides whose notes name their evidence."""
    last = made.last
    if not any(note.evidence or note.kind for note in last.notes):
        return {}
    return {
        "notes": len(last.notes),
        "evidence_valid": share([evidence_valid(n, last.seq) for n in last.notes]),
        "false_notes": share([is_false(n, meeting, last.seq) for n in last.notes]),
        "evidence_places": _places(last, meeting),
    }


def _places(revision: Revision, meeting: Meeting) -> list[int]:
    """How many notes rest on each tenth of the transcript."""
    counts = [0] * 10
    for note in revision.notes:
        if note.evidence and note.evidence[0] >= 0:
            counts[min(9, 10 * note.evidence[0] // max(1, len(meeting.lines)))] += 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
