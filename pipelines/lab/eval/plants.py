"""Facts put into real transcripts at known places, and whether a summary has them.

``facts.LANGUAGE.json``: decisions, actions with owner and date, and numbers, each with the words it is
said in; half of them are changed or done later. What is looked for are names and digits that stay
the same in any wording: ``keys`` say which fact it is, ``value`` what was said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from operators.errors import ConfigError
from pipelines.lab.eval.grounding import Note
from pipelines.lab.eval.meetings import Line, Meeting, Point, numbered
from pipelines.lab.eval.words import STEM, number_forms, numbers, stems, units, unspaced

FIRST, LAST = 0.02, 0.80
"""Between these shares of a transcript facts are first said."""
CHANGE_AFTER = 0.15
"""A change follows after this share of the transcript."""


class Change(msgspec.Struct, frozen=True):
    """What is said of a fact later: another ``value``, or that it is ``done``. ``old``: what is then
    no longer true, if that is not the fact's value."""

    say: str
    value: str = ""
    done: bool = False
    due: str = ""
    old: str = ""
    speaker: str = ""


class Fact(msgspec.Struct, frozen=True):
    """One planted fact. ``answer``: what the answer to its question must have; else its last value."""

    id: str
    kind: str
    keys: tuple[str, ...]
    value: str
    say: str
    question: str
    owner: str = ""
    due: str = ""
    speaker: str = ""
    answer: str = ""
    change: Change | None = None

    @property
    def last_value(self) -> str:
        return (self.change.value if self.change else "") or self.value

    @property
    def last_due(self) -> str:
        return (self.change.due if self.change else "") or self.due

    @property
    def values(self) -> tuple[str, ...]:
        """All that was ever said of it: any of them shows that it was kept."""
        changed = (self.change.value,) if self.change and self.change.value else ()
        return tuple(filter(None, (self.value, *changed, self.owner)))


class FactSheet(msgspec.Struct, frozen=True):
    facts: tuple[Fact, ...]
    unanswerable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planted:
    """A meeting with facts in it. ``position``: where each was first said, as a share of all lines."""

    meeting: Meeting
    sheet: FactSheet
    position: dict[str, float]


def read_sheet(folder: Path, language: str) -> FactSheet:
    """The facts of a language; raises ConfigError where there are none."""
    file = folder / f"facts.{language.split('-')[0]}.json"
    if not file.is_file():
        raise ConfigError(f"no facts in the language {language!r}: {file.name} is not in {folder}")
    return msgspec.json.decode(file.read_bytes(), type=FactSheet)


def plant(meeting: Meeting, sheet: FactSheet) -> Planted:
    """Put the facts evenly between the lines of a meeting, and their changes behind them. The
    reference and the points of the meeting stay what they were."""
    extra: list[tuple[float, Line, str]] = []
    step = (LAST - FIRST) / max(1, len(sheet.facts) - 1)
    for number, fact in enumerate(sheet.facts):
        at = FIRST + number * step
        extra.append((at, Line(0, fact.say, fact.speaker or None), fact.id))
        if fact.change is not None:
            said = Line(0, fact.change.say, fact.change.speaker or None)
            extra.append((at + CHANGE_AFTER, said, ""))
    return _woven(meeting, sheet, sorted(extra, key=lambda e: e[0]))


def _woven(meeting: Meeting, sheet: FactSheet, extra: Sequence[tuple[float, Line, str]]) -> Planted:
    lines: list[Line] = []
    moved: dict[int, int] = {}
    places: dict[str, int] = {}
    waiting = list(extra)
    for line in meeting.lines:
        moved[line.seq] = len(lines)
        lines.append(line)
        while waiting and waiting[0][0] * len(meeting.lines) <= line.seq + 1:
            _, said, fact = waiting.pop(0)
            if fact:
                places[fact] = len(lines)
            speaker = said.speaker or line.speaker
            at = line.end_ms
            lines.append(replace(said, speaker=speaker, start_ms=at, end_ms=at))
    points = tuple(
        Point(p.text, tuple((moved.get(a, 0), moved.get(b, len(lines) - 1)) for a, b in p.lines))
        for p in meeting.points
    )
    woven = replace(meeting, lines=numbered(lines), points=points)
    return Planted(woven, sheet, {fact: at / len(lines) for fact, at in places.items()})


# --- whether a summary has them ---------------------------------------------------------------------


def has(text: str, wanted: str) -> bool:
    """Whether a text says a name, a word (by its first letters) or a number."""
    digits = numbers(wanted)
    if not all(n in number_forms(text) for n in digits):
        return False
    there, spelled = stems(text), units(text)
    for word in units(wanted):
        if word.isdigit() or any(n in number_forms(word) for n in digits):
            continue
        if unspaced(word):
            return wanted in text
        if not any(stem.startswith(word[:STEM]) for stem in there) and word not in spelled:
            return False
    return True


def about(note: Note, fact: Fact) -> bool:
    return all(has(note.said, key) for key in fact.keys)


def kept(fact: Fact, notes: Sequence[Note]) -> bool:
    """Whether a note that stands says something of the fact that was once true."""
    return any(
        n.stands and about(n, fact) and any(has(n.said, v) for v in fact.values) for n in notes
    )


def superseded(fact: Fact, notes: Sequence[Note]) -> bool | None:
    """Whether the notes know the change: the new value stands and the old one alone does not; or the
    item is done. None for a fact that never changed, and for a done one on sides without states."""
    if fact.change is None:
        return None
    mine = [n for n in notes if about(n, fact)]
    if fact.change.done:
        if not any(n.kind for n in notes):
            return None
        return any(n.state == "done" for n in mine)
    standing = [n.said for n in mine if n.stands]
    old = fact.change.old or fact.value
    new = [text for text in standing if has(text, fact.change.value)]
    return bool(new) and not any(has(text, old) for text in standing if text not in new)


def owner_right(fact: Fact, notes: Sequence[Note]) -> bool | None:
    """Of a kept action: whether the note gives it to its owner. None for what is no kept action."""
    mine = [n for n in notes if n.stands and about(n, fact)]
    if not fact.owner or not mine:
        return None
    return any(has(n.owner if n.owner else n.text, fact.owner) for n in mine)


def due_right(fact: Fact, notes: Sequence[Note]) -> bool | None:
    """Of a kept action: whether the note has its last date. None for what is no kept action."""
    mine = [n for n in notes if n.stands and about(n, fact)]
    if not fact.due or not mine:
        return None
    return any(has(n.said, fact.last_due) for n in mine)


def answers(fact: Fact, text: str) -> bool:
    """Whether an answer has what the fact's question asks for."""
    return has(text, fact.answer or fact.last_value)
