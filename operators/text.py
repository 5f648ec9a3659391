"""Small measures of a text: words, repetition, what was taken back."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-case words of a text, punctuation dropped."""
    return _WORD.findall(text.lower())


def trigrams(tokens: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]


def repeated_trigram_share(text: str) -> float:
    """Share of word trigrams that already occurred earlier in the text (0 = no repetition)."""
    grams = trigrams(words(text))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def normalized_erasure(before: str, after: str) -> tuple[int, float]:
    """Words of ``before`` taken back by ``after`` (all behind the common prefix), and that number
    divided by the length of ``after`` (Arivazhagan et al. 2020, normalized erasure)."""
    old, new = before.split(), after.split()
    common = 0
    while common < min(len(old), len(new)) and old[common] == new[common]:
        common += 1
    deleted = len(old) - common
    return deleted, deleted / max(1, len(new))
