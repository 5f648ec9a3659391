"""Which turns are about which notes, found before a model is asked: by the words they share; of
questions by what others say next.

Notes are those of the ledger, and those that the update itself is to write: what is said, changed or
done within one update has no item yet, so its turn stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from operators.events import Evidence, LedgerItem
from operators.tasks.base import SeenSegment, StreamView
from operators.tasks.grounding import Draft, Turn, fits, in_words
from operators.tasks.selection import judged
from operators.text import content, covered, is_question, overlap, units

TELLING = 3.0
"""Content a turn must have to be compared with items: a few short words are like anything."""
RELATED, PAIRS = 0.4, 12
"""Share of content from which a turn is compared with an item, and how many are in one update."""
LESS_RELATED, SHARED = 0.33, 2
"""Share that is enough where both have so many words that are not usual, and the item is no task: in a
few words about something like it a turn would settle a task."""
OWN = 0.1
"""So much less is enough for a task if its owner speaks, in a turn that is no decision, task or question
itself: who has done something says so in few words."""
UNWRITTEN = "turn "
"""Begins the name of a note that is yet to be written."""


RareWords = Callable[[str], Set[str]]
"""The words of a text that are not usual."""
REPLIES = 2
"""So many segments of others behind a question may answer it."""
RESUMED = 4
"""Words of the asker's next segment that end the wait for an answer."""


class Exchange(NamedTuple):
    """An open question and what somebody else said next. ``note``: an item's id, or the name of a note
    that is yet to be written."""

    note: str
    question: str
    reply: str
    evidence: Evidence


class Live(NamedTuple):
    """An open item and what it is about: without numbers, with them, and its words."""

    item: LedgerItem
    about: Mapping[str, float]
    whole: Mapping[str, float]
    words: frozenset[str]
    number: int = -1
    """Of a note that is yet to be written: its turn's."""

    @classmethod
    def of(cls, item: LedgerItem, number: int = -1) -> Live:
        words = frozenset(units(item.text))
        return cls(item, content(item.text, digits=False), content(item.text), words, number)


def related(
    turns: Sequence[Turn], items: Sequence[LedgerItem], rare: RareWords
) -> list[tuple[LedgerItem, Turn]]:
    """Each turn with the open item that it is most about, if it shares enough with one and does not
    just repeat it; the closest PAIRS of them."""
    live = [Live.of(i) for i in items if i.state == "open" and i.kind != "open_question"]
    return _closest(turns, live, rare)


def within(
    turns: Sequence[Turn], drafts: Sequence[Draft], rare: RareWords
) -> list[tuple[LedgerItem, Turn]]:
    """The same for notes of the update itself, and the turns behind theirs. Turns that are known to
    change or settle an item are left out."""
    live = [Live.of(draft_item(d), d.turn.number) for d in drafts if d.kind != "open_question"]
    return _closest([t for t in turns if t.changes is None and not t.settles], live, rare)


def exchanges(
    view: StreamView, drafts: Sequence[Draft], turns: Sequence[Turn] = ()
) -> list[Exchange]:
    """Open questions of the ledger and of the update itself, each with the new segments that may answer
    it. What changes or settles another note is no answer; nor is anything where no speaker is known."""
    questions = [
        (item.id, item.text, item.evidence[0])
        for item in view.ledger.items
        if item.kind == "open_question" and item.state == "open" and item.evidence
    ]
    questions += [
        (name_of(d), d.turn.said, d.turn.evidence[0]) for d in drafts if d.kind == "open_question"
    ]
    taken = {t.evidence[-1] for t in turns if t.evidence and (t.changes is not None or t.settles)}
    places = {segment.evidence: at for at, segment in enumerate(view.segments)}
    return [
        Exchange(name, f"{asked.speaker}: {text}", f"{r.evidence.speaker}: {r.text}", r.evidence)
        for name, text, asked in questions
        if asked.speaker and asked in places
        for r in _replies(view.segments[places[asked] + 1 :], asked.speaker)
        if r.new and r.evidence not in taken and not is_question(r.text)
    ]


def _replies(after: Sequence[SeenSegment], asker: str) -> list[SeenSegment]:
    """The first segments of others, up to where the asker goes on."""
    found: list[SeenSegment] = []
    for segment in after:
        if segment.evidence.speaker == asker and not fits(segment.text, RESUMED - 1):
            break
        if segment.evidence.speaker not in (None, asker):
            found.append(segment)
        if len(found) == REPLIES:
            break
    return found


def draft_item(draft: Draft) -> LedgerItem:
    """What a draft may become, with its turn's words and, until the owner is known, its speaker."""
    turn = draft.turn
    return LedgerItem(
        id=name_of(draft),
        kind=draft.kind,
        text=turn.said,
        owner=(turn.speaker or None) if draft.kind == "action_item" else None,
        importance=draft.importance,
    )


def name_of(draft: Draft) -> str:
    """What a draft is called until its item has a number."""
    return f"{UNWRITTEN}{draft.turn.number}"


def _closest(
    turns: Sequence[Turn], live: Sequence[Live], rare: RareWords
) -> list[tuple[LedgerItem, Turn]]:
    found: list[tuple[float, LedgerItem, Turn]] = []
    for turn in turns:
        said, whole = content(turn.said, digits=False), content(turn.said)
        earlier = [one for one in live if one.number < turn.number]
        if not earlier or sum(said.values()) < TELLING:
            continue
        reports = turn.speaker if judged(turn)[0] in (None, "topic") else ""
        shares = [
            (
                max(overlap(one.about, said), covered(one.whole, whole))
                + (OWN if reports and reports == one.item.owner else 0.0),
                at,
            )
            for at, one in enumerate(earlier)
        ]
        share, at = max(shares)
        least = LESS_RELATED if _alike(turn, earlier[at], rare) else RELATED
        if share >= least and not set(units(turn.said)) <= earlier[at].words:
            found.append((share, earlier[at].item, turn))
    found.sort(key=lambda pair: -pair[0])
    return [(item, turn) for _, item, turn in found[:PAIRS]]


def _alike(turn: Turn, one: Live, rare: RareWords) -> bool:
    """Whether they share words that few texts have. Short ones count for less, as in any content."""
    words = content(" ".join(rare(turn.said)), digits=False)
    shared = sum(min(weight, one.about.get(unit, 0.0)) for unit, weight in words.items())
    return one.item.kind != "action_item" and shared >= in_words(turn.said, SHARED)
