"""Which notes and turns a question is about, and whether any of them says enough to answer it.

Words that few passages have weigh more (inverse document frequency); those that none has weigh most, so
a question about something never mentioned is not answered by passages that share its common words. No
word list and no rule of a language: words are those of :func:`operators.text.content`, in scripts
without spaces pairs of characters.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from operators.events import Evidence, LedgerItem
from operators.text import content, is_pair

LONG = 6
"""Letters from which a word weighs fully."""
SAYS = 0.44
SAYS_PAIRS = 0.2
"""Share of a question's weight that one passage must have for an answer: of words, and of pairs of
characters, many of which lie across two words. Measured: docs/quality.md."""
MOST = 8
"""Passages that are shown to the model."""


@dataclass(frozen=True)
class Passage:
    """A note (``item``) or a turn of the window. ``line``: as it is shown; ``place``: its number among
    all passages."""

    line: str
    evidence: tuple[Evidence, ...]
    item: LedgerItem | None = None
    place: int = 0


@dataclass(frozen=True)
class Found:
    """``passages``: the best, best first. ``coverage``: the share of the question's weight that the best
    one has, 0 to 1; ``needed``: how much it must have for an answer."""

    passages: tuple[Passage, ...]
    coverage: float
    needed: float = SAYS

    @property
    def says(self) -> bool:
        return self.coverage >= self.needed


def search(question: str, passages: Sequence[Passage], most: int = MOST) -> Found:
    """The passages that share weight with the question, best first."""
    contents = [content(passage.line) for passage in passages]
    weights = question_weights(question, contents)
    total = sum(weights.values())
    if not total:
        return Found((), 0.0)
    shares = [sum(w for unit, w in weights.items() if unit in has) / total for has in contents]
    # Of equals the newer one: what was said last holds.
    order = sorted(range(len(passages)), key=lambda at: (-round(shares[at], 6), -at))
    kept = [at for at in order[:most] if shares[at] > 0]
    pairs = sum(weight for unit, weight in weights.items() if is_pair(unit)) / total
    needed = SAYS + (SAYS_PAIRS - SAYS) * pairs
    return Found(tuple(passages[at] for at in kept), max(shares, default=0.0), needed)


def question_weights(question: str, contents: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The question's units, weighed by how few of the passages have them."""
    frequency = Counter(unit for has in contents for unit in has)

    def rarity(unit: str) -> float:
        return math.sqrt(math.log(1 + len(contents) / (1 + frequency[unit])))

    def length(unit: str) -> float:
        letters = len(unicodedata.normalize("NFD", unit))  # a Korean syllable is several
        return 1.0 if unit[0].isdigit() else min(letters, LONG) / LONG

    return {
        unit: weight * rarity(unit) * length(unit) for unit, weight in content(question).items()
    }
