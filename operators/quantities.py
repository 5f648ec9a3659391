"""Numbers with a word for their size: 3.1 million, 3,1 Mio., 310万, milioni 3.

The words are those of ICU's compact numbers (CLDR), so there is no list of them here, and they are
known for every language that CLDR describes. What a number is in another language follows from its
value.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import regex
from icu4py.messageformat import MessageFormat

from operators.text import ascii_digits

SMALLEST, LARGEST = 3, 15
"""Powers of ten whose words are asked for."""
FORMS = (Decimal(1), Decimal(2), Decimal(4), Decimal(5), Decimal("1.5"))
"""Numbers that show all forms of such a word."""
MARKS = r".,'’\u00a0\u202f\u2009\u066b\u066c "
"""What may stand between the digits of one number, before decimals or between thousands."""
_NUMBER = rf"\p{{Nd}}+(?:[{MARKS}]\p{{Nd}}+)*"
LONGEST = 40
"""Characters of a number; a longer one counts nothing."""
_DIGITS = regex.compile(r"\p{Nd}+")
_DIRECTION = regex.compile(r"\p{Bidi_Control}")
"""Marks of direction, as before a Hebrew number. A joiner inside a word (Sinhala's trillion) stays."""
_JOINED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)
"""Letters behind which the next word may follow at once."""
_THOUSANDS = 3


@dataclass(frozen=True)
class Quantity:
    """A number as it stands in a text. ``values``: what it may mean, the likeliest first ("1.200" is
    1.2 or 1200). ``size``: what its word stands for, 1 without one."""

    text: str
    start: int
    end: int
    values: tuple[Decimal, ...]
    size: Decimal


@dataclass(frozen=True)
class _Words:
    """Case-folded words for sizes, before and behind a number, and what finds numbers with them."""

    before: dict[str, Decimal]
    behind: dict[str, Decimal]
    expression: Any


def sized(text: str, tag: str) -> list[Quantity]:
    """The numbers that have a word for their size in the language ``tag``. A single letter that has a
    capital and a small form (5K) is no such word: it may be a unit."""
    return [found for found in _found(text, tag, _words(tag, lenient=False)) if found.size > 1]


def values(text: str, tag: str) -> set[Decimal]:
    """All that the numbers of a text may mean, with and without words for their size; neighbours also
    together (3亿1000万)."""
    found = _found(text, tag, _words(tag, lenient=True))
    there = {value for number in found for value in number.values}
    for first, second in itertools.pairwise(found):
        if not text[first.end : second.start].strip() and first.size > second.size:
            there |= {a + b for a in first.values for b in second.values}
    return there


def written(value: Decimal, tag: str) -> str:
    """The number as the language writes it, with a word for its size."""
    form = MessageFormat("{n, number, ::compact-long .######}", tag)
    exact = int(value) if value == int(value) else float(value)
    return str(form.format({"n": exact}))


def _found(text: str, tag: str, words: _Words) -> list[Quantity]:
    made = []
    for match in words.expression.finditer(text):
        if len(match["number"]) > LONGEST:
            continue
        first, last = (_plain(match[side] or "") for side in ("before", "behind"))
        size = words.before.get(first) or words.behind.get(last) or Decimal(1)
        if first in words.behind and last:  # Burmese: ten million, number, of 100,000
            size = words.behind[first] * words.behind.get(last, Decimal(1))
        read = tuple(size * value for value in _readings(match["number"], _point(tag)))
        made.append(Quantity(match.group(), match.start(), match.end(), read, size))
    return made


def _readings(number: str, point: str) -> Sequence[Decimal]:
    """What a written number may be, the likeliest first; ``point`` is the language's decimal mark. A
    mark before other than three digits separates no thousands."""
    groups = [ascii_digits(run) for run in _DIGITS.findall(number)]
    whole = Decimal("".join(groups))
    if len(groups) == 1:
        return (whole,)
    part = Decimal("".join(groups[:-1]) + "." + groups[-1])
    if len(groups[-1]) != _THOUSANDS:
        return (part,)
    mark = number[-_THOUSANDS - 1]
    return (part, whole) if mark == point else (whole, part)


def _plain(word: str) -> str:
    return " ".join(word.casefold().split())


@functools.lru_cache(maxsize=64)
def _point(tag: str) -> str:
    return str(MessageFormat("{n, number, ::.0}", tag).format({"n": 0.5}))[1]


@functools.lru_cache(maxsize=64)
def _words(tag: str, *, lenient: bool) -> _Words:
    """The language's words for sizes; ``lenient``: single letters too, and a character of Han before
    them (550多万)."""
    before: dict[str, Decimal] = {}
    behind: dict[str, Decimal] = {}
    for style in ("long", "short"):
        form = MessageFormat(f"{{n, number, ::compact-{style}}}", tag)
        for power, number in itertools.product(range(SMALLEST, LARGEST + 1), FORMS):
            value = number * 10**power
            said = _DIRECTION.sub("", str(form.format({"n": int(value)})))
            shown = regex.search(_NUMBER, said)
            if shown is None:
                continue  # French has "mille" for one thousand
            size = value / _readings(shown.group(), _point(tag))[0]
            for word, known in ((said[: shown.start()], before), (said[shown.end() :], behind)):
                plain = _plain(word)
                if size > 1 and plain and (lenient or len(plain) > 1 or plain == plain.upper()):
                    known.setdefault(plain, size)
    gap = r"\p{Cf}*" + (r"[\s\p{Pd}\p{Han}]??" if lenient else r"[\s\p{Pd}]?")
    first, last = _one_of("before", before), _one_of("behind", behind)
    expression = rf"(?:{first}{gap})?(?P<number>{_NUMBER})(?:{gap}{last})?"
    return _Words(before, behind, regex.compile(expression, regex.IGNORECASE))


def _one_of(name: str, words: Iterable[str]) -> str:
    """An expression for the longest of the words, as whole words where these have spaces between."""
    longest_first = sorted(words, key=len, reverse=True)
    found = [
        r"\s+".join(map(regex.escape, word.split()))
        + ("" if _JOINED.match(word[-1]) else r"(?![\p{L}\p{M}])")
        for word in longest_first
    ]
    return f"(?P<{name}>{'|'.join(found) or '(?!)'})"
