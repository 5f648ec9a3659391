"""Latency of a simultaneous translation, and how much of what was shown is taken back.

*LAAL* (Papi et al. 2022) of a segment with its own source: how long a word comes, on average, behind
an ideal translator that spreads its words evenly over the source. *LongYAAL* (Polák et al. 2025,
arXiv 2509.17349) is for a whole talk: the output is first cut into the reference's segments
(:func:`resegment`, their SoftSegmenter), and words after the talk's end do not count.

All times are milliseconds. *Unaware* of computation is when the source that was needed had been
heard; *aware* adds what the machine took.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import regex

from pipelines.lab.eval.words import units

_TOKEN = regex.compile(
    r"[\p{L}\p{M}\p{N}]+(?:['’\-.,][\p{L}\p{M}\p{N}]+)*['’]?|[^\s\p{L}\p{M}\p{N}]"
)
_MARKS = frozenset(".!?,;:-()。！？，；：—（）ー")


@dataclass(frozen=True)
class Timed:
    """A word of the output and when it was there to read."""

    text: str
    unaware: float
    aware: float


@dataclass(frozen=True)
class Span:
    """One segment of the reference in its talk."""

    start: float
    end: float
    reference: str


@dataclass(frozen=True)
class Cut:
    """A segment of the reference with the output that belongs to it; times count from its start.

    ``remaining``: from the segment's start to the end of the talk.
    """

    reference: str
    words: tuple[str, ...]
    unaware: tuple[float, ...]
    aware: tuple[float, ...]
    length: float
    remaining: float

    @property
    def text(self) -> str:
        return " ".join(self.words)


def laal(delays: Sequence[float], length: float, reference_words: int) -> float | None:
    """Length-adaptive average lagging of one segment; None where there is nothing to measure."""
    if not delays or length <= 0:
        return None
    if delays[0] > length:
        return delays[0]
    pace = length / max(len(delays), reference_words)
    last = next((i for i, d in enumerate(delays) if d >= length), len(delays) - 1)
    return mean(d - i * pace for i, d in enumerate(delays[: last + 1]))


def yaal(
    delays: Sequence[float], length: float, reference_words: int, remaining: float
) -> float | None:
    """LongYAAL of one segment: like LAAL, but words after the segment's end count, and those after
    the talk's do not."""
    before = [d for d in delays if d < remaining]
    stop = next((i for i, d in enumerate(delays) if d >= remaining), len(delays))
    if length <= 0 or not before or stop == 0:
        return None
    pace = length / max(len(delays), reference_words)
    return mean(d - i * pace for i, d in enumerate(delays[:stop]))


def average(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def lags(cuts: Sequence[Cut]) -> dict[str, float | None]:
    """LongYAAL and LAAL over segments, unaware and aware of computation, in milliseconds."""

    def over(aware: bool, long: bool) -> float | None:
        found: list[float | None] = []
        for cut in cuts:
            delays = cut.aware if aware else cut.unaware
            size = len(cut.reference.split())
            if long:
                found.append(yaal(delays, cut.length, size, cut.remaining))
            else:
                found.append(laal(delays, cut.length, size))
        return average(found)

    return {
        "yaal_ms": over(False, True),
        "laal_ms": over(False, False),
        "yaal_aware_ms": over(True, True),
        "laal_aware_ms": over(True, False),
    }


def without_queueing(words: Sequence[Timed]) -> list[Timed]:
    """Times of a log in which ``aware`` is the source's time plus all computation so far, as
    SimulEval writes it, put right: each word's own computation only, never earlier than the word
    before it."""
    fixed: list[Timed] = []
    latest = 0.0
    for at, word in enumerate(words):
        before = words[at - 1]
        own = word.aware if at == 0 else word.aware - before.aware + before.unaware
        latest = own if at == 0 else max(own, latest)
        fixed.append(Timed(word.text, word.unaware, latest))
    return fixed


# --- the output of a whole talk, cut as its reference is ------------------------------------------


@dataclass(frozen=True)
class _Token:
    text: str
    owner: int  # number of the word (of the output) or segment (of the reference) it is part of
    first: bool


def resegment(spans: Sequence[Span], words: Sequence[Timed]) -> list[Cut]:
    """Give every word of a talk's output to one segment of its reference, in order.

    Both sides are aligned by dynamic programming over the likeness of words (Jaccard index of their
    characters) without a price for gaps; a word that found no partner goes to the neighbouring
    segment it is more like.
    """
    reference = [
        t for number, span in enumerate(spans) for t in _tokens(span.reference.lower(), number)
    ]
    output = [t for number, word in enumerate(words) for t in _tokens(word.text.lower(), number)]
    owner = _owners(reference, output)
    belong: list[list[Timed]] = [[] for _ in spans]
    for token, segment in zip(output, owner, strict=True):
        if token.first and segment is not None:
            belong[segment].append(words[token.owner])
    end = max((span.end for span in spans), default=0.0)
    return [
        Cut(
            reference=span.reference,
            words=tuple(w.text for w in own),
            unaware=tuple(w.unaware - span.start for w in own),
            aware=tuple(w.aware - span.start for w in own),
            length=span.end - span.start,
            remaining=end - span.start,
        )
        for span, own in zip(spans, belong, strict=True)
    ]


def _tokens(text: str, owner: int) -> list[_Token]:
    found: list[_Token] = []
    for word in unicodedata.normalize("NFKC", text).split():
        pieces = _TOKEN.findall(word) or [word]
        found += [_Token(piece, owner, at == 0) for at, piece in enumerate(pieces)]
    # Of a word of the output only the first token stands for it, wherever the word was cut.
    return found


def _owners(reference: Sequence[_Token], output: Sequence[_Token]) -> list[int | None]:
    """The segment each token of the output belongs to."""
    if not reference or not output:
        return [None] * len(output)
    like = _likeness(reference, output)
    path = _aligned(like)
    owners: list[int | None] = [None] * len(output)
    coming = _coming(path)
    previous: int | None = None
    for at, (mate, token) in enumerate(path):
        if mate is None and token is not None:
            after = coming[at]
            to_next = like[after, token] if after is not None else -np.inf
            to_previous = like[previous, token] if previous is not None else -np.inf
            mate = after if to_next > to_previous else previous
        if mate is not None:
            previous = mate  # so that what follows cannot go back behind it
            if token is not None:
                owners[token] = reference[mate].owner
    return owners


def _coming(path: Sequence[tuple[int | None, int | None]]) -> list[int | None]:
    """For every place of an alignment the next token of the reference."""
    found: list[int | None] = [None] * len(path)
    following: int | None = None
    for at in range(len(path) - 1, -1, -1):
        found[at] = following
        following = path[at][0] if path[at][0] is not None else following
    return found


def _likeness(reference: Sequence[_Token], output: Sequence[_Token]) -> np.ndarray:
    """``[reference, output]``: Jaccard index of the characters; marks are unlike words."""
    letters = sorted({c for t in (*reference, *output) for c in t.text})
    index = {c: i for i, c in enumerate(letters)}

    def bags(tokens: Sequence[_Token]) -> np.ndarray:
        made = np.zeros((len(tokens), len(letters)), dtype=np.float32)
        for row, token in enumerate(tokens):
            made[row, [index[c] for c in token.text]] = 1
        return made

    one, other = bags(reference), bags(output)
    shared = one @ other.T
    either = one.sum(1)[:, None] + other.sum(1)[None, :] - shared
    marks = [np.array([t.text in _MARKS for t in tokens]) for tokens in (reference, output)]
    likeness: np.ndarray = shared.astype(np.float64) / np.maximum(either, 1)
    likeness[marks[0][:, None] ^ marks[1][None, :]] = -np.inf
    return likeness


def _aligned(like: np.ndarray) -> list[tuple[int | None, int | None]]:
    """The best monotone alignment, as pairs of (reference token, output token) in order, with None
    for a gap. Among equals a match goes before a gap in the output, and that before one in the
    reference."""
    rows, columns = like.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(1, rows + 1):
        match = best[i - 1, :-1] + like[i - 1]
        best[i, 1:] = np.maximum.accumulate(np.maximum(match, best[i - 1, 1:]))
    path: list[tuple[int | None, int | None]] = []
    i, j = rows, columns
    while i > 0 or j > 0:
        here = best[i, j]
        if i > 0 and j > 0 and best[i - 1, j - 1] + like[i - 1, j - 1] == here:
            i, j = i - 1, j - 1
            path.append((i, j))
        elif i > 0 and (j == 0 or best[i - 1, j] == here):
            i -= 1
            path.append((i, None))
        else:
            j -= 1
            path.append((None, j))
    return path[::-1]


# --- what was shown and taken back ---------------------------------------------------------------


def erased(shown: Sequence[str]) -> tuple[int, float]:
    """Words taken back over successive versions of one text, and that over the last one's length
    (normalized erasure, Arivazhagan et al. 2020)."""
    deleted = 0
    for before, after in itertools.pairwise(shown):
        old, new = units(before), units(after)
        deleted += len(old) - _same(old, new)
    return deleted, deleted / max(1, len(units(shown[-1]))) if shown else 0.0


def retractions(committed: Sequence[str]) -> int:
    """How many successive versions of committed text do not begin with the one before."""
    pairs = itertools.pairwise(committed)
    return sum(not after.startswith(before) for before, after in pairs)


def _same(old: Sequence[str], new: Sequence[str]) -> int:
    length = 0
    while length < min(len(old), len(new)) and old[length] == new[length]:
        length += 1
    return length
