"""Languages by their BCP 47 tags: names, scripts, which two are the same, what a text is written in.

Tags and names come from ``langcodes`` (CLDR), the cutting of text from ICU (Unicode Standard Annex 29),
the language of a text from ``py3langid``, a model of 4 MB. There is no list of languages here.
"""

from __future__ import annotations

import datetime
import functools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import langcodes
import regex
from icu4py.breakers import SentenceBreaker, WordBreaker
from icu4py.messageformat import MessageFormat

from operators.errors import ConfigError

SURE = 0.9
"""Probability from which a text's language counts as known, among all languages there are."""
SURE_OF_TWO = 0.95
"""The same where only two languages are asked about."""
FEW_LETTERS = 20
"""A text of fewer letters says too little about its language; one ideograph or kana counts as three."""

_SCRIPTS = {
    "Hans": "Hani",
    "Hant": "Hani",
    "Jpan": "Hani Hira Kana",
    "Hrkt": "Hira Kana",
    "Kore": "Hang Hani",
}
"""Script codes that stand for several scripts, or for a way of writing one."""
_LETTER = regex.compile(r"\p{L}")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)
_CLAUSE_END = regex.compile(r"[\p{Terminal_Punctuation}\p{Pd}]")
_BLANK = regex.compile(r"\s*")
_OPENING = regex.compile(r"[\p{Pi}\p{Ps}]+$")
_ORDINAL = regex.compile(r"(?<![\p{Nd}.,:])\p{Nd}{1,2}\. *$")

_NO_QUESTION_MARK = {"Armn", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"}
"""Scripts in which a particle or a mark on a vowel tells a question, and a full stop may end it."""
_ASKS_BY_PARTICLE = regex.compile(
    r"[\p{Armenian}\p{Hiragana}\p{Katakana}\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}]"
)


def canonical(tag: str) -> str:
    """The tag as BCP 47 wants it written: ``ZH_hant`` is ``zh-Hant``, ``iw`` is ``he``. Raises
    ConfigError for what is no tag of a known language."""
    try:
        found = langcodes.Language.get(tag)
    except ValueError as error:
        raise ConfigError(f"unknown language code {tag!r}: {error}") from None
    if not found.language or not found.is_valid():
        raise ConfigError(
            f"unknown language code {tag!r}: use a BCP 47 tag such as de, fr-CA or zh-Hant"
        )
    return found.to_tag()


def known(tag: str | None) -> str | None:
    """The canonical tag, or None where there is none or it means nothing (``und``, ``multi``)."""
    if not tag:
        return None
    try:
        return canonical(tag)
    except ConfigError:
        return None


@functools.lru_cache(maxsize=256)
def name(tag: str) -> str:
    """The English name: French, ``French (Canada)``, ``Chinese (Traditional)``."""
    return str(langcodes.Language.get(tag).display_name("en"))


@functools.lru_cache(maxsize=256)
def _written(tag: str) -> tuple[str, str]:
    """Language and script that the tag stands for."""
    found = langcodes.Language.get(tag).prefer_macrolanguage().maximize()
    return found.language or "und", found.script or ""


def same(one: str, other: str) -> bool:
    """Whether text in one language need not be translated into the other: regions do not matter
    (``fr-FR``, ``fr``), nor two names of one language (``no``, ``nb``); scripts do (``sr-Latn``,
    ``sr``)."""
    (left, script), (right, other_script) = _written(one), _written(other)
    return script == other_script and (left == right or langcodes.tag_distance(left, right) <= 1)


@functools.lru_cache(maxsize=256)
def _of_script(tag: str) -> Any:
    code = _written(tag)[1]
    names = _SCRIPTS.get(code, code).split()
    try:
        return regex.compile("[" + "".join(rf"\p{{Script={n}}}" for n in names) + "]")
    except regex.error:
        return None


def script_share(text: str, tag: str) -> float:
    """Share of the text's letters that are of the language's script; 1 without letters, or for a script
    that Unicode's properties do not have."""
    of, letters = _of_script(tag), _LETTER.findall(text)
    if of is None or not letters:
        return 1.0
    return sum(of.match(letter) is not None for letter in letters) / len(letters)


@functools.lru_cache(maxsize=64)
def _foreign(source: str, target: str) -> Any:
    of, other = _of_script(source), _of_script(target)
    if of is None or other is None or shares_script(source, target):
        return None
    letter = rf"(?!{other.pattern}){of.pattern}"
    return regex.compile(rf"(?:{letter}\p{{M}}*)+(?:[-.'’](?:{letter}\p{{M}}*)+)*")


def other_letters(tag: str) -> str:
    """A regular expression for one character that is no letter of the language's script."""
    of = _of_script(tag)
    return "." if of is None else f"[^{of.pattern[1:]}"


def foreign(text: str, source: str, target: str) -> list[str]:
    """The words of a text that are written in the letters of ``source``, where ``target`` has others;
    what a hyphen, a full stop or an apostrophe joins is one."""
    words = _foreign(source, target)
    return words.findall(text) if words else []


def shares_script(one: str, other: str) -> bool:
    """Whether both languages are written with the same letters."""
    return _SCRIPTS.get(_written(one)[1], _written(one)[1]) == _SCRIPTS.get(
        _written(other)[1], _written(other)[1]
    )


def marks_questions(tag: str) -> bool:
    """Whether a question of the language ends with a question mark."""
    return _written(tag)[1] not in _NO_QUESTION_MARK


def may_ask_unmarked(text: str) -> bool:
    """Whether the text is in a script in which a question need not end with a question mark."""
    return _ASKS_BY_PARTICLE.search(text) is not None


# --- what a text is written in -------------------------------------------------------------------


def _letters(text: str) -> int:
    return sum(3 if _DENSE.match(letter) else 1 for letter in _LETTER.findall(text))


@functools.lru_cache(maxsize=64)
def _identifier(codes: tuple[str, ...]) -> Any:
    """An identifier of these languages only (all without any); None where it does not know one."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if not set(codes) <= set(identifier.labels):
        return None
    if codes:
        identifier.set_languages(list(codes))
    return identifier


def detect(text: str) -> str | None:
    """The language of a text, where it is long enough and says so clearly."""
    if _letters(text) < FEW_LETTERS:
        return None
    code, probability = _identifier(()).classify(text)
    return known(str(code)) if probability >= SURE else None


def looks_like(text: str, tag: str, rather_than: str) -> bool:
    """Whether a text is surely in the language ``tag`` if it is in one of the two."""
    codes = _written(tag)[0], _written(rather_than)[0]
    if codes[0] == codes[1] or _letters(text) < FEW_LETTERS:
        return False
    identifier = _identifier(codes)
    if identifier is None:
        return False
    said, probability = identifier.classify(text)
    return bool(said == codes[0] and probability >= SURE_OF_TWO)


# --- days and months -----------------------------------------------------------------------------

_DATES = {"whole": ("MMMM", "LLLL"), "all": ("MMMM", "LLLL", "MMM", "LLL")}
_DAYS = {"whole": ("EEEE", "cccc"), "all": ("EEEE", "cccc", "EEE", "ccc")}


@functools.lru_cache(maxsize=64)
def _calendar(tag: str, names: str) -> tuple[Any, dict[str, int]]:
    """An expression that finds the language's names of months (1 to 12) and days (101 to 107), and
    what each name stands for."""
    found: dict[str, int] = {}
    for number in range(1, 13):
        for form in _DATES[names]:
            found.setdefault(_of_date(tag, form, datetime.date(2024, number, 15)), number)
    for number in range(1, 8):
        for form in _DAYS[names]:
            day = datetime.date(2024, 1, number)  # a Monday is the first
            found.setdefault(_of_date(tag, form, day), 100 + number)
    found = {name: date for name, date in found.items() if any(map(str.isalpha, name))}
    name = "|".join(map(regex.escape, sorted(found, key=len, reverse=True)))
    if not any(map(unspaced, "".join(found))):
        name = rf"(?<![\p{{L}}\p{{M}}])(?:{name})(?![\p{{L}}\p{{M}}])"
    return regex.compile(name), found


def _of_date(tag: str, form: str, date: datetime.date) -> str:
    return str(MessageFormat(f"{{d, date, ::{form}}}", tag).format({"d": date})).rstrip(".")


def dates(text: str, tag: str, *, whole: bool = False) -> dict[str, int]:
    """The months (1 to 12) and days of the week (101 to 107) that a text in this language names, by the
    words it has for them, as they are written: "may" is no month. ``whole``: no abbreviations."""
    found, meaning = _calendar(tag, "whole" if whole else "all")
    return {name: meaning[name] for name in found.findall(text)}


# --- cutting and joining -------------------------------------------------------------------------


def unspaced(char: str) -> bool:
    """Whether the character is of a script that puts no spaces between words."""
    return _UNSPACED.match(char) is not None


def join(pieces: Sequence[str]) -> str:
    """Pieces of one text, with a space between two where the scripts at the seam have spaces."""
    text = ""
    for piece in (p.strip() for p in pieces):
        text = f"{text}{seam(text, piece)}{piece}"
    return text


def seam(before: str, after: str) -> str:
    """What stands between two pieces: a space, or nothing."""
    if not before or not after or before[-1].isspace():
        return ""
    return "" if _close(before[-1]) or _close(after[0]) else " "


def _close(char: str) -> bool:
    """Whether no space belongs beside the character: unspaced scripts and their wide punctuation."""
    wide = unicodedata.east_asian_width(char) in "WF" and not char.isalnum()
    return wide or unspaced(char)


def sentences(text: str, tag: str = "en") -> list[str]:
    """The text cut behind its sentences, white space and all: joined, the pieces are the text. A number
    of one or two digits with a full stop may be an ordinal (14. März), so it ends no sentence. A mark
    that opens a quotation goes with what it opens (ICU leaves it behind the sentence before)."""
    found: list[str] = []
    opening = ""
    for piece in SentenceBreaker(text, tag):
        whole = opening + piece
        opening = match.group() if (match := _OPENING.search(whole)) else ""
        whole = whole[: len(whole) - len(opening)]
        if found and _ORDINAL.search(found[-1]):
            found[-1] += whole
        elif whole:
            found.append(whole)
    if opening:  # nothing came behind it
        found[-1:] = ["".join([*found[-1:], opening])]
    return found


def clauses(text: str) -> list[str]:
    """The text cut behind punctuation that may end a clause, between words."""
    return _packed(WordBreaker(text, "en"), lambda word: _CLAUSE_END.search(word) is not None)


def words(text: str) -> list[str]:
    """The text cut between words; where a script has no spaces by ICU's dictionaries."""
    return _packed(WordBreaker(text, "en"), lambda word: any(c.isalnum() for c in word))


def _packed(segments: Iterable[str], ends: Callable[[str], bool]) -> list[str]:
    """Segments joined up to each that ends something, with the blanks and marks behind it."""
    found: list[str] = []
    open_ = True
    for segment in segments:
        fresh = not open_ and any(c.isalnum() for c in segment)
        if found and not fresh:
            found[-1] += segment
        else:
            found.append(segment)
            open_ = True
        if ends(segment):
            open_ = False
    return found


def split(text: str, limit: int, count: Callable[[str], int], tag: str = "en") -> list[str]:
    """Pieces of at most ``limit`` tokens (by ``count``), each as long as that allows: whole sentences
    if possible, else cut at the end of a clause, else between words, else anywhere. From the left, so
    that a text that grows keeps its first pieces. Stripped; :func:`join` gives the text back, up to
    white space."""
    text = text.strip()
    if not text or count(text) <= limit or len(text) < 2:
        return [text]
    finer: list[Callable[[str], list[str]]] = [lambda t: sentences(t, tag), clauses, words, list]
    return [p for piece in _fill(text, limit, count, finer) if (p := piece.strip())]


def _fill(
    text: str,
    limit: int,
    count: Callable[[str], int],
    cuts: Sequence[Callable[[str], list[str]]],
) -> list[str]:
    if count(text.strip()) <= limit or not cuts:
        return [text]
    filled: list[str] = []
    for unit in cuts[0](text):
        if filled and count((filled[-1] + unit).strip()) <= limit:
            filled[-1] += unit
        elif count(unit.strip()) <= limit:
            filled.append(unit)
        else:
            filled += _fill(unit, limit, count, cuts[1:])
    return filled
