"""Words, sentences and numbers of a text in any script, for counting and comparing.

Words are those of Unicode (UAX 29, as the package ``regex`` implements it): letters with their
marks, and in scripts without spaces one character each. Nothing here knows a language.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

import regex

_BOUNDARY = regex.compile(r"(?V1w)\b")
_SPOKEN = regex.compile(r"[\p{L}\p{N}]")
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)
_SENTENCE_END = regex.compile(r"(?<=[.!?…؟।。！？][\"'”’»)\]]*)\s+|(?<=[。！？])(?=\S)|\n+")
_GROUPS = regex.compile(r"(?<=\p{Nd})[.,'’\u00a0\u202f\u2009 ](?=\p{Nd})")
_DIGITS = regex.compile(r"\p{Nd}+")
STEM = 5
"""Letters of a word that are compared where endings must not matter."""


def normal(text: str) -> str:
    """Compatibility forms and letter case taken away."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words of a text as they are written; a character each in scripts without spaces."""
    return [piece for piece in _BOUNDARY.split(text) if _SPOKEN.search(piece)]


def units(text: str) -> list[str]:
    """The words of a text in normal form: what is counted and compared."""
    return words(normal(text))


def sentences(text: str) -> list[str]:
    """Stretches that end with a sentence mark or a line."""
    return [s.strip() for s in _SENTENCE_END.split(text) if s.strip()]


def unspaced(unit: str) -> bool:
    """Whether the unit is of a script that puts no spaces between words."""
    return _UNSPACED.match(unit) is not None


def stems(text: str) -> list[str]:
    """Words cut to their first letters; in scripts without spaces pairs of characters."""
    found: list[str] = []
    before = ""
    for unit in units(text):
        if not unspaced(unit):
            found.append(unit[:STEM])
            before = ""
            continue
        if before:
            found.append(before + unit)
        before = unit
    return found


def common_stems(texts: Iterable[str], count: int = 80) -> frozenset[str]:
    """The most frequent stems of a long text, which carry no content whatever the language is."""
    counted = Counter(stem for text in texts for stem in stems(text))
    return frozenset(stem for stem, _ in counted.most_common(count))


def content(text: str, common: frozenset[str]) -> frozenset[str]:
    """The stems of a text that carry content: those not common, of more than one letter."""
    return frozenset(s for s in stems(text) if s not in common and len(s) > 1)


def numbers(text: str) -> list[str]:
    """Numbers written in digits of any script, as ASCII digits without separators, in order:
    ``1,318`` and ``1 318`` are both ``1318``, ``3.5`` is ``35``."""
    return [_ascii(run) for run in _DIGITS.findall(_GROUPS.sub("", text))]


def number_forms(text: str) -> frozenset[str]:
    """Every reading of the digits in a text: with and without its separators."""
    return frozenset(numbers(text)) | {_ascii(run) for run in _DIGITS.findall(text)}


def _ascii(digits: str) -> str:
    return "".join(str(unicodedata.digit(d)) for d in digits)


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
