"""Small measures of a text in any language: units, numbers, overlap, repetition, what was taken back.

A *unit* is a lower-case word; in scripts that are written without spaces it is a pair of neighbouring
characters. Nothing here knows a language: no word lists, no case rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import regex

_WORD = regex.compile(r"[\w\p{M}]+(?:['’][\w\p{M}]+)*")
"""Letters with their marks: Hindi's vowels, Arabic's and Hebrew's points are marks."""
_LETTERS = re.compile(r"\w+")
_APOSTROPHE = re.compile("['’]")
_GOES_ON = tuple(",;")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_NUMBER = re.compile(r"\d+(?:[.,:\u066b\u066c \u00a0\u202f]\d+)*")
_NUMBER_OR_WORD = regex.compile(f"({_NUMBER.pattern})|{_WORD.pattern}")
_SPELLED = regex.compile(r"(?<!\w)(?:\p{L}[._]){2,}\p{L}?(?![^\W_])")
_ALPHABETS = [regex.compile(rf"\p{{{name}}}") for name in ("Latin", "Greek", "Cyrillic")]
_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")
_STEM, _ENDING = 6, 2
_FULL_WEIGHT = 4


def words(text: str) -> list[str]:
    """Lower-case words of a text, punctuation dropped."""
    return words_as_written(text.lower())


def words_as_written(text: str) -> list[str]:
    """The same with their capitals."""
    return list(_WORD.findall(text))


def parts(text: str) -> list[str]:
    """The same, cut at apostrophes: "l'usine" is two."""
    return [part for word in words(text) for part in _APOSTROPHE.split(word)]


def units(text: str) -> list[str]:
    """The text's units in order: words, and pairs of characters where a script has no spaces."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        at = 0
        for run in _UNSPACED.finditer(word):
            found += _whole(word[at : run.start()])
            for part in _LETTERS.findall(run.group()):
                found += [part[i : i + 2] for i in range(len(part) - 1)] or [part]
            at = run.end()
        found += _whole(word[at:])
    return found


def _whole(word: str) -> list[str]:
    return [word] if word else []


def is_pair(unit: str) -> bool:
    """Whether a unit is characters of a script without spaces rather than a word."""
    return bool(_UNSPACED.match(unit))


QUESTION_MARKS = "?\uff1f\u061f\u037e\u2e2e\u055e\u1367\ua60f"
"""Of Latin, Chinese, Arabic, Greek, reversed, Armenian, Ethiopic and Vai. Written as escapes: the Greek
one looks like a semicolon, and normalising a file would make it one."""


def is_question(sentence: str) -> bool:
    """Whether a sentence ends with a question mark, of any script, whatever quotes and brackets close
    behind it."""
    return _last(sentence) in tuple(QUESTION_MARKS)


def ends_sentence(text: str) -> bool:
    """Whether the text ends with a mark that ends sentences, of any script."""
    return bool(_TERMINAL.match(_last(text)))


def _last(sentence: str) -> str:
    """The last character that closes nothing; empty if there is none."""
    end = len(sentence)
    while end and _closes(sentence[end - 1]):
        end -= 1
    return sentence[end - 1 : end]


def _closes(char: str) -> bool:
    return char.isspace() or char in "\"'" or unicodedata.category(char) in ("Pe", "Pf", "Pi")


def trimmed(text: str) -> str:
    """The text without white space and punctuation at its ends, of any script."""
    start, end = 0, len(text)
    while start < end and unicodedata.category(text[start])[0] in "PZC":
        start += 1
    while start < end and unicodedata.category(text[end - 1])[0] in "PZC":
        end -= 1
    return text[start:end]


def unspaced(text: str) -> bool:
    """Whether the text is mostly in a script that is written without spaces."""
    letters = sum(char.isalnum() for char in text)
    return 2 * sum(len(run) for run in _UNSPACED.findall(text)) > letters


def content(text: str, digits: bool = True) -> dict[str, float]:
    """The text's units with weights; without ``digits`` no numbers. Words of alphabetic scripts lose
    what may be an ending ("moves" and "move" are one), and count the less the shorter they are: short
    ones mostly support nothing."""
    weighed: dict[str, float] = {}
    for unit in units(text):
        if unit[0].isdigit():
            if digits:
                weighed[unit] = 1.0
        elif _UNSPACED.match(unit):
            weighed[unit] = 1.0
        else:
            stem = unit[: min(_STEM, max(_FULL_WEIGHT, len(unit) - _ENDING))]
            weighed[stem] = min(1.0, (len(unit) / _FULL_WEIGHT) ** 2)
    return weighed


def support(text: str, sources: Iterable[str]) -> float:
    """Share of the text's content that occurs in the source texts, 0 to 1."""
    have: dict[str, float] = {}
    for source in sources:
        have |= content(source)
    return covered(content(text), have)


def covered(want: Mapping[str, float], have: Mapping[str, float]) -> float:
    """Share of one content that the other has, 0 to 1."""
    total = sum(want.values())
    return sum(weight for unit, weight in want.items() if unit in have) / total if total else 0.0


def similarity(a: str, b: str, digits: bool = True) -> float:
    """Shared content over the smaller of the two contents, 0 to 1 (1: one contains the other). Without
    ``digits`` numbers count on neither side."""
    return overlap(content(a, digits), content(b, digits))


def overlap(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """:func:`similarity` of two contents."""
    smaller = min(sum(left.values()), sum(right.values()))
    shared = sum(min(weight, right[unit]) for unit, weight in left.items() if unit in right)
    return shared / smaller if smaller else 0.0


def numbers(text: str) -> set[str]:
    """The numbers in a text as plain digits: 40,000 and 40 000 are one, in digits of any script."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return {ascii_digits(number) for number in found}


def counted(text: str, reach: int) -> dict[str, set[str]]:
    """Words, of scripts with spaces, with the last number before each occurrence, where it is at most
    ``reach`` words away: what it counts, mostly."""
    found: dict[str, set[str]] = {}
    last, since = "", reach
    for match in _NUMBER_OR_WORD.finditer(unicodedata.normalize("NFKC", text).lower()):
        word = match[0]
        if match[1]:
            last, since = ascii_digits(word), 0
            continue
        since += 1
        if since <= reach and not unspaced(word):
            found.setdefault(word, set()).add(last)
    return found


def ascii_digits(number: str) -> str:
    """The digits of a number, of any script, as ASCII; whatever stands between them is left out."""
    return "".join(str(unicodedata.digit(char)) for char in number if char.isdigit())


def capitalised(sentence: str) -> list[str]:
    """The words of a sentence that begin with a capital, but for its first: names, days, in German all
    nouns; without an article or ending set off by an apostrophe ("l'Aurora", "Ana's"). None in scripts
    without capitals."""
    found = _WORD.findall(unicodedata.normalize("NFKC", sentence))[1:]
    return [name for word in found if _is_name(name := _bare(word))]


def spelled(text: str) -> list[str]:
    """What is spelled letter by letter, as words: "L_C_D_" and "L.C.D." are LCD."""
    return [run.replace("_", "").replace(".", "") for run in _SPELLED.findall(text)]


def mixed(text: str) -> set[str]:
    """Words with letters of two alphabets ("политischer"): no language writes so, a model may."""
    return {word for word in words(text) if sum(bool(a.search(word)) for a in _ALPHABETS) > 1}


def names_inside(text: str) -> list[str]:
    """Those of any text that stand behind another word or a comma: a capital behind a full stop, a colon
    or an opening mark says nothing."""
    return [word for word in _inside(text) if _is_name(word)]


def capital_share(text: str) -> float:
    """Share of the words inside sentences that have a capital, 0 to 1: some where it marks names, a
    quarter and more where it marks nouns."""
    inside = [word for word in _inside(text) if len(word) > 1]
    return sum(map(_is_name, inside)) / len(inside) if inside else 0.0


def _inside(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text)
    found = []
    for match in _WORD.finditer(text):
        before = text[: match.start()].rstrip()[-1:]
        if before.isalnum() or before in _GOES_ON:
            found.append(_bare(match.group()))
    return found


def _bare(word: str) -> str:
    return max(_APOSTROPHE.split(word), key=len)


def _is_name(word: str) -> bool:
    return word[0].isupper() and sum(map(str.isalpha, word[:2])) > 1


def cased(text: str) -> bool:
    """Whether the text is of a script that has capitals."""
    return text.upper() != text.lower()


def longest_copy(text: str, source: str) -> int:
    """Length in units of the longest stretch of the text that stands in the source."""
    mine, theirs = units(text), units(source)
    best, before = 0, [0] * (len(theirs) + 1)
    for unit in mine:
        row = [0] * (len(theirs) + 1)
        for at, other in enumerate(theirs, start=1):
            if unit == other:
                row[at] = before[at - 1] + 1
                best = max(best, row[at])
        before = row
    return best


def script(text: str) -> str:
    """The script most of the text's letters are of, by their Unicode names; empty without letters.
    Kana and Han together are one: Japanese is written in both."""
    counts: dict[str, int] = {}
    for char in text:
        if char.isalpha():
            name = unicodedata.name(char, "").split(" ")[0]
            name = "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else ""


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


def lines_erased(before: str, after: str) -> tuple[int, float]:
    """The same of a list: words of the lines of ``before`` that ``after`` has not, wherever they stand,
    and that number over the length of ``after``."""
    left = Counter(line.strip() for line in before.splitlines())
    left -= Counter(line.strip() for line in after.splitlines())
    deleted = sum(count * len(units(line)) for line, count in left.items())
    return deleted, deleted / max(1, len(units(after)))
