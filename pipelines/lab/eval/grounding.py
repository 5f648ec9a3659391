"""Whether what was written stands on what was said: numbers, names, evidence.

A number is found when the source has its digits. A name is a word with a capital letter that no
sentence begins with, or with a capital or digit inside; it is found when the source or a speaker's
name has it, or has it letter by letter ("L_C_D_"). Where capitals mark all nouns, as in German, a word
with the same first letters is enough, since nouns have endings. In scripts without capitals only
numbers and foreign names in them are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

from operators.text import spelled
from pipelines.lab.eval.meetings import Meeting
from pipelines.lab.eval.words import content, normal, number_forms, numbers, sentences, words

NEIGHBOURS = 3
"""Lines before and after a note's evidence that it may also rest on."""
GROUNDED = 1 / 3
"""Share of a note's content words that the lines it rests on must have, or it is false."""
NOUNS, STEM = 0.2, 5
"""Share of words with a capital from which they mark nouns, and how many letters then tell one from
another."""
_INNER = regex.compile(r"^.+[\p{Lu}]|\p{L}\p{Nd}|\p{Nd}\p{L}")
_CAPITAL = regex.compile(r"^\p{Lu}")
_OPENING = regex.compile(r"[:–—\"“«]\s*$")


@dataclass(frozen=True)
class Note:
    """One statement of a summary. ``evidence``: the lines it rests on, -1 for one that is not in the
    transcript. A plain side's lines are notes without kind and evidence."""

    text: str
    kind: str = ""
    owner: str | None = None
    due: str | None = None
    state: str = "open"
    evidence: tuple[int, ...] = ()

    @property
    def stands(self) -> bool:
        """Whether it is still held to be true."""
        return self.state not in ("superseded", "withdrawn")

    @property
    def said(self) -> str:
        """Everything it says, for looking things up."""
        return " ".join(filter(None, (self.text, self.owner, self.due)))


def names(text: str) -> list[str]:
    """The names in a text, in normal form (see the module's docstring)."""
    found: list[str] = []
    for sentence in sentences(text):
        opens = True
        rest = sentence
        for word in words(sentence):
            before, _, rest = rest.partition(word)
            opens = opens or bool(_OPENING.search(before))
            if (_CAPITAL.match(word) and not opens) or _INNER.search(word):
                found.append(normal(word))
            opens = False
    return [name for name in found if not name.isdigit() and len(name) > 1]


class Source:
    """What was said up to a line, to look numbers and names up in."""

    def __init__(self, texts: Iterable[str]) -> None:
        whole = "\n".join(texts)
        self._digits = number_forms(whole)
        said = words(whole)
        heard = [normal(whole), *map(normal, spelled(whole))]
        self._words = {part for text in heard for word in words(text) for part in _parts(word)}
        self._letters = STEM if len(names(whole)) >= NOUNS * len(said) > 0 else None
        self._begin = {word[: self._letters] for word in self._words}

    def precision(self, text: str) -> tuple[int, int]:
        """Numbers and names of the text: (found here, all)."""
        wanted = numbers(text)
        found = sum(n in self._digits for n in wanted)
        named = names(text)
        return found + sum(self._has(name) for name in named), len(wanted) + len(named)

    def _has(self, name: str) -> bool:
        return any(part[: self._letters] in self._begin for part in _parts(name))


def _parts(word: str) -> tuple[str, ...]:
    """A word, and what stands before its apostrophe."""
    return (word, *regex.split(r"['’]", word)[:1])


def evidence_valid(note: Note, written_at: int) -> bool:
    """Whether the note names lines, and only such as had been said when it was written."""
    return bool(note.evidence) and all(0 <= seq <= written_at for seq in note.evidence)


def is_false(note: Note, meeting: Meeting, written_at: int) -> bool:
    """Whether a note does not rest on its own evidence: none or invalid, a number or name that these
    lines and their neighbours have not, or hardly a word of them."""
    if not evidence_valid(note, written_at):
        return True
    near = sorted(
        {
            seq
            for at in note.evidence
            for seq in range(at - NEIGHBOURS, at + NEIGHBOURS + 1)
            if 0 <= seq < len(meeting.lines)
        }
    )
    texts = [meeting.lines[seq].text for seq in near]
    spoken = [*texts, *(meeting.lines[seq].speaker or "" for seq in near)]
    found, wanted = Source(spoken).precision(note.text)
    if found < wanted:
        return True
    said = content(note.text, meeting.common)
    there = frozenset[str]().union(*(content(text, frozenset()) for text in spoken))
    return bool(said) and len(said & there) < GROUNDED * len(said)


def share(hits: Sequence[bool]) -> float | None:
    """The share that is true; None of nothing."""
    return sum(hits) / len(hits) if hits else None
