"""What can be checked of a translation without a second model: what must be kept, and plain failures.

Every check compares the output with its source; there are no lists of words. A check may be wrong
about a good translation (a number written as a word), so its finding leads to one more try and a flag
in ``degraded``, never to a refusal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import regex

from operators import languages, quantities
from operators.decoding.constraints import Grammar
from operators.text import ascii_digits, ends_sentence, is_question, units, words

COPY_SHARE, FEW_WORDS = 0.9, 4
"""An output of which so many of the word pairs are the source's is a copy; shorter ones are not."""
LOOP_LENGTH, LOOP_REPEATS = 16, 4
"""A stretch of up to LOOP_LENGTH words that comes so many times in a row is a loop."""
OVERLONG, SPARE = 3.0, 8
"""An output of so many times the source's width, and SPARE more, is an answer or an invention; so is one
that the source exceeds by as much. No human translation of 10,846 in both directions does, and 1 of
1,700 pairs of CLDR's names of languages, territories, scripts, days and months in 53 languages, half of
which are 8 wide or less."""
NO_TRANSLATION, QUESTION_CHANGED = "not_a_translation", "question_changed"
MIN_SCRIPT = 0.5
"""Share of an output's letters that must be of the target's script."""

_ADDRESS = regex.compile(r"(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", regex.I)
_IDENTIFIER = regex.compile(
    r"\b(?=\w*\p{L})(?=\w*\p{Nd})\w{3,}(?:[-.]\w+)*|\b\p{L}+-\p{Nd}[\w-]*|\b\p{L}*\p{Ll}\p{Lu}\w*"
)
_TIED = regex.compile(r"\p{Nd}+\p{Ll}{1,3}\b")
"""A number with an ending: 1st, 10am, 90s. Languages differ too much in these."""
_GROUPED = regex.compile(rf"(?<=\p{{Nd}})[:{quantities.MARKS}](?=\p{{Nd}})")
_DIGITS = regex.compile(r"\p{Nd}+")
_NUMBER = regex.compile(rf"\p{{Nd}}+(?:{_GROUPED.pattern}\p{{Nd}}+)*")
_TOGETHER = regex.compile(rf"{_NUMBER.pattern}(?:\p{{Pd}}{_NUMBER.pattern})*")
"""Numbers with dashes between: a score, a range."""
_DATE = regex.compile(r"\b\p{Nd}{1,4}([-/.])\p{Nd}{1,2}\1\p{Nd}{2,4}\b")
_DECIMAL = regex.compile(r"(?<!\p{Nd})(\p{Nd}+)[.,](\p{Nd}+)(?!\p{Nd})")
_COLONS = (":", "\uff1a")
_QUOTE = regex.compile(r"[\"\p{Pi}„‚「『]")
_QUOTED = regex.compile(rf"{_QUOTE.pattern}[^\"\p{{Pi}}„‚「『」』]+[\"\p{{Pi}}\p{{Pf}}」』]")
"""A text that stands in one pair of quotation marks. The apostrophe ’ may stand inside."""
_APOSTROPHE = regex.compile("['’]")
_JOINS = "-.'’"
_HAN = regex.compile(r"\p{Han}")
_SYLLABLE = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")
_EDGE = ".,;:!?)]}»”\"'"


@dataclass(frozen=True)
class Expected:
    """What an output is held against. ``terms``: glossary, source term to its translation. ``names``: of
    people in the conversation. ``marked``: whether the conversation's questions have question marks."""

    source: str
    source_lang: str | None
    target_lang: str
    terms: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    marked: bool = False

    @property
    def asks(self) -> bool | None:
        """Whether the source asks something; None where its writing does not tell."""
        if is_question(self.source):
            return True
        marked = self.marked and self.source_lang and languages.marks_questions(self.source_lang)
        return False if marked and ends_sentence(self.source) else None


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. ``keep``: what must stand in the output, ``drop``: what must not; both
    empty for a plain failure."""

    kind: str
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def faults(expected: Expected, output: str) -> list[Fault]:
    """What is wrong with an output, worst first; empty if nothing is."""
    if not output.strip():
        return [Fault("empty")]
    plain = [kind for kind in (_form(expected, output), _language(expected, output)) if kind]
    kept = [
        Fault("numbers_missing", _missing_numbers(expected, output)),
        Fault("addresses_missing", _missing(addresses(expected.source), output)),
        Fault("names_missing", _missing_names(expected, output)),
        Fault(
            "terms_missing", _missing(applying(expected.terms, expected.source).values(), output)
        ),
    ]
    left = [Fault("words_left", drop=found)] if (found := words_left(expected, output)) else []
    return [Fault(kind) for kind in plain] + left + [fault for fault in kept if fault.keep]


def _form(expected: Expected, output: str) -> str:
    """An answer, an invention or a loop in place of a translation. What turns a question into a
    statement, or the reverse, is a reply; of human translations 5 of 99 questions and 2 of 5,028
    statements do."""
    if is_loop(output) and not is_loop(expected.source):
        return "loop"
    lines = [line for line in output.splitlines() if line.strip()]
    shorter, longer = sorted((_width(output), _width(expected.source)))
    if len(lines) > 1 or longer > OVERLONG * shorter + SPARE:
        return NO_TRANSLATION
    marked = languages.marks_questions(expected.target_lang)
    if marked and expected.asks not in (None, is_question(output)):
        return QUESTION_CHANGED
    return ""


def is_short(text: str) -> bool:
    """Whether a text may be no more than a sound or a name: these stay as they are."""
    return len(units(text)) < FEW_WORDS


def _language(expected: Expected, output: str) -> str:
    """The wrong script, a copy of the source, or surely another language than the target."""
    source, target = expected.source_lang, expected.target_lang
    rest = _without_names(expected, output)
    if languages.script_share(rest, target) < MIN_SCRIPT <= _best_share(expected):
        return "wrong_language"
    if source is not None and languages.same(source, target):
        return ""
    if _copied(expected.source, output) >= COPY_SHARE:
        return "copy"
    if source is not None and languages.looks_like(output, source, target):
        return "wrong_language"
    found = languages.detect(output)  # a third one
    if found and not languages.same(found, target) and languages.looks_like(output, found, target):
        return "wrong_language"
    return ""


def _without_names(expected: Expected, output: str) -> str:
    """The output without words of the source that have a capital and kept their script, as CNN in
    Chinese."""
    if expected.source_lang is None:
        return output
    for word in languages.foreign(expected.source, expected.source_lang, expected.target_lang):
        if word != word.lower():
            output = output.replace(word, " ")
    return output


def words_left(expected: Expected, output: str) -> tuple[str, ...]:
    """Words of the source that stand in an output of another script, as "boycott" in Chinese. What has a
    capital is a name and may, so may what is quoted, a single letter and what a full stop joins; of a
    source that is written without capitals nothing is told."""
    source, target, text = expected.source_lang, expected.target_lang, expected.source
    if source is None or text == text.lower() != text.upper():
        return ()
    kept = {word for term in expected.terms.values() for word in words(term)}
    said = {word.lower() for word in languages.foreign(text, source, target)} - kept
    rest = _QUOTED.sub(" ", _IDENTIFIER.sub(" ", _ADDRESS.sub(" ", output)))
    found = languages.foreign(rest, source, target)
    return tuple(dict.fromkeys(word for word in found if word in said and _may_be_left(word)))


def ends_in_a_name(expected: Expected, text: str) -> bool:
    """Whether a text ends, perhaps within it, with a word in letters of the source where the target has
    others."""
    if expected.source_lang is None:
        return False
    found = languages.foreign(text, expected.source_lang, expected.target_lang)
    return bool(found) and text.rstrip(_JOINS).endswith(found[-1])


def without_source_words(expected: Expected) -> Grammar:
    """The form of a translation that has no letter of the source's script but in what may stay: words
    with a capital or a full stop, addresses, identifiers, the glossary's terms and people's names."""
    source, text = expected.source_lang or "", expected.source
    found = languages.foreign(text, source, expected.target_lang)
    without_endings = {part for word in found for part in _APOSTROPHE.split(word)}  # of "Ana's"
    names = {part for part in without_endings if part != part.lower() or "." in part}
    names |= {*addresses(text), *_IDENTIFIER.findall(text)}
    names |= {*expected.terms.values(), *expected.names}
    stays = sorted(map(re.escape, filter(None, names)), key=len, reverse=True)
    return Grammar.regex(f"(?:{'|'.join([languages.other_letters(source), *stays])})*")


def _may_be_left(word: str) -> bool:
    cased = word.lower() != word.upper()
    return "." not in word and word == word.lower() and (len(word) > 1 or not cased)


def _best_share(expected: Expected) -> float:
    """1 unless the source is nothing but addresses and identifiers, which keep their script."""
    rest = _IDENTIFIER.sub("", _ADDRESS.sub("", expected.source))
    return 1.0 if any(char.isalpha() for char in rest) else 0.0


def is_loop(text: str) -> bool:
    """Whether a stretch of words repeats itself again and again at one place."""
    found = units(text)
    for length in range(1, LOOP_LENGTH + 1):
        same = 0
        for at in range(length, len(found)):
            same = same + 1 if found[at] == found[at - length] else 0
            if same >= length * (LOOP_REPEATS - 1):
                return True
    return False


def _copied(source: str, output: str) -> float:
    """Share of the output's word pairs that stand in the source."""
    mine, theirs = units(output), units(source)
    if len(mine) < FEW_WORDS or len(theirs) < FEW_WORDS:
        return 0.0
    there = set(itertools.pairwise(theirs))
    pairs = list(itertools.pairwise(mine))
    return sum(pair in there for pair in pairs) / len(pairs)


def _width(text: str) -> int:
    """Characters, those of Han as three, of kana and Hangul as two: about as much as is said by so many
    letters."""
    return len(text) + 2 * len(_HAN.findall(text)) + len(_SYLLABLE.findall(text))


# --- what is put right by form alone -------------------------------------------------------------


def announcement(source: str, output: str) -> int:
    """Characters at the output's beginning that only announce it ("Here is the translation:"): a first
    line that ends with a colon where the source has none, and the quotation mark behind it."""
    line = regex.match(r"\s*[^\n]*", output).group()
    if not line.rstrip().endswith(_COLONS) or any(colon in source for colon in _COLONS):
        return 0
    rest = output[len(line) :].lstrip()
    quoted = _QUOTE.match(rest) and not _QUOTE.match(source.lstrip())
    return len(output) - len(rest) + bool(quoted)


def quoted(source: str, output: str) -> bool:
    """Whether the whole output stands in quotation marks, and the source begins with none."""
    return bool(_QUOTED.fullmatch(output)) and not _QUOTE.match(source.lstrip())


def mended(source: str, output: str) -> str:
    """The output without a line that announces it, without quotation marks around all of it, and without
    a space inside a number that the source has (``5, 69`` for 5.69)."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if len(lines) == 2 and announcement(source, output):
        output = lines[1]
    if quoted(source, output):
        output = output[1:-1].strip()
    for whole, part in _DECIMAL.findall(source):
        torn = rf"(?<!\p{{Nd}}){whole}([.,])[ \u00a0]{part}(?!\p{{Nd}})"
        output = regex.sub(torn, rf"{whole}\g<1>{part}", output)
    return output


# --- what must be kept ---------------------------------------------------------------------------


def addresses(text: str) -> list[str]:
    """Addresses of pages and mail in a text."""
    return [found.rstrip(_EDGE) for found in _ADDRESS.findall(text)]


def applying(terms: Mapping[str, str], source: str) -> dict[str, str]:
    """The entries of a glossary whose source term stands in the text, longest first."""
    said = _padded(source)
    found = [term for term in terms if term.strip() and _padded(term) in said]
    return {term: terms[term] for term in sorted(found, key=len, reverse=True)}


def _padded(text: str) -> str:
    """The text's units between spaces, so that only whole words are found in it."""
    return f" {' '.join(units(text))} "


def _missing(wanted: Iterable[str], output: str) -> tuple[str, ...]:
    said = output.casefold()
    return tuple(dict.fromkeys(w for w in wanted if w.casefold() not in said))


def _missing_names(expected: Expected, output: str) -> tuple[str, ...]:
    """Identifiers, and people's names where source and target are written with the same letters."""
    rest = _TIED.sub(" ", _ADDRESS.sub(" ", expected.source))
    wanted = [m.group() for m in _IDENTIFIER.finditer(rest)]
    source = expected.source_lang
    if source is not None and languages.shares_script(source, expected.target_lang):
        said = _padded(expected.source)
        wanted += [name for name in expected.names if name and _padded(name) in said]
    return _missing(wanted, output)


def _written_numbers(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """The numbers of a text: how each is written, with those it is tied to (``1-0``), and its groups of
    digits (ASCII): ``1,318`` is ``("1", "318")``. Those of addresses, dates, identifiers and ``1st`` are
    left out."""
    plain = _ADDRESS.sub(" ", text)
    plain = _IDENTIFIER.sub(" ", _TIED.sub(" ", _DATE.sub(" ", plain)))
    return [
        (together.group(), tuple(ascii_digits(group) for group in _DIGITS.findall(number)))
        for together in _TOGETHER.finditer(plain)
        for number in _NUMBER.findall(together.group())
    ]


def _missing_numbers(expected: Expected, output: str) -> tuple[str, ...]:
    """Numbers of the source that the output has in no form: with or without separators, as parts, on
    the clock of 12 or 24 hours, and, where numbers are counted in myriads, without their zeros. Those
    with a word for their size must be there with their value; they are named as the target writes
    them."""
    source, missing = _without_sizes(expected, output)
    runs = [ascii_digits(run) for run in _DIGITS.findall(output)]
    merged = [ascii_digits(run) for run in _DIGITS.findall(_GROUPED.sub("", output))]
    there = {_bare(run) for run in (*runs, *merged)}
    myriads = any(languages.unspaced(c) or "\uac00" <= c <= "\ud7a3" for c in output)
    if myriads:
        there |= {run.rstrip("0") for run in there}

    def kept(group: str) -> bool:
        bare = _bare(group)
        forms = {bare, bare.rstrip("0") or bare} if myriads else {bare}
        if len(bare) <= 2 and 1 <= int(bare) <= 23:
            forms |= {str(int(bare) + 12), str(int(bare) - 12)}
        return not forms.isdisjoint(there)

    missing += [
        written
        for written, number in _written_numbers(source)
        if not kept("".join(number)) and not all(kept(group) for group in number)
    ]
    for date in _DATE.finditer(_ADDRESS.sub(" ", source)):
        groups = [ascii_digits(group) for group in _DIGITS.findall(date.group())]
        if sum(kept(group) for group in groups) < len(groups) - 1:  # the month may be a word
            missing.append(date.group())
    return tuple(dict.fromkeys(missing))


def _without_sizes(expected: Expected, output: str) -> tuple[str, list[str]]:
    """The source without its numbers that have a word for their size, and those of them whose value the
    output has not: 3.1 million is 310万 or 3,100,000, not 3100万."""
    source, target = expected.source, expected.target_lang
    if expected.source_lang is None:
        return source, []
    there = quantities.values(output, target)
    missing: list[str] = []
    for number in reversed(quantities.sized(source, expected.source_lang)):
        source = f"{source[: number.start]} {source[number.end :]}"
        if there.isdisjoint(number.values):
            missing.insert(0, quantities.written(number.values[0], target))
    return source, missing


def _bare(digits: str) -> str:
    return digits.lstrip("0") or "0"
