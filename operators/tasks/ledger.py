"""The ledger: a stream's durable memory, a bounded list of items with evidence.

Sinks and window alone would summarise the last paragraphs. What lasts is explicit text: items of
four kinds, written once and then frozen. An update adds what is new; when the ledger outgrows its
budget the oldest items are merged. Everything here is plain data and text, no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from operators.events import ChangeOp, Evidence, ItemChange, ItemKind, LedgerItem
from operators.text import (
    content,
    numbers,
    overlap,
    repeated_trigram_share,
    similarity,
    support,
    trigrams,
    units,
    words,
)

Items = tuple[LedgerItem, ...]
_LINE = re.compile(
    r"^\s*(?:[-*•]|\d+[.)])?\s*\**(TOPIC|DECISION|ACTION|QUESTION)S?\b\**"
    r"\s*(?:\(([^)]{1,60})\))?\s*\**:\**\s*(.+)$",
    re.IGNORECASE,
)
_SEAM = re.compile(r"(?<=[.?!])\s+(?=(?:TOPIC|DECISION|ACTION|QUESTION)\b(?:\s*\([^)]{1,60}\))?:)")
"""Where a model forgot to begin a new line."""
_KINDS: dict[str, ItemKind] = {
    "TOPIC": "topic",
    "DECISION": "decision",
    "ACTION": "action_item",
    "QUESTION": "open_question",
}
_LABELS = {kind: label for label, kind in _KINDS.items()}
MAX_ITEM_CHARS = 280
SAME = 0.7
"""Similarity from which two items are about the same thing."""
NEAR, MAX_EVIDENCE = 0.6, 6
"""Similarity from which two topics are one in a ledger that is too long, and places that it then has."""
MAX_REPEATED = 0.3
"""Share of a note's trigrams that may stand in the ledger already: small models vary sentences' ends."""


@dataclass(frozen=True)
class Note:
    """One parsed line of a model's answer."""

    kind: ItemKind
    text: str
    owner: str | None = None


def parse_notes(answer: str, limit: int) -> list[Note]:
    """Read the lines of an update; lines in no known form and repeated ones are dropped.

    Lines that are mostly a repetition of themselves (a loop) are dropped too.
    """
    notes: list[Note] = []
    for line in _SEAM.sub("\n", answer).splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        label, owner, text = match.groups()
        text = " ".join(text.split())[:MAX_ITEM_CHARS].strip(" *")
        if len(units(text)) < 3 or repeated_trigram_share(text) > 0.2:
            continue
        kind, name = _KINDS[label.upper()], (owner or "").strip()
        notes.append(Note(kind, text, name if name and kind == "action_item" else None))
    return notes[:limit]


def copied(text: str, source: str) -> bool:
    """Whether the item is a stretch of transcript passed off as a summary: most of its trigrams
    stand in one and the same segment."""
    mine, theirs = trigrams(words(text)), set(trigrams(words(source)))
    return len(mine) >= 4 and sum(t in theirs for t in mine) / len(mine) > 0.6


def repeated(text: str, items: Iterable[LedgerItem]) -> float:
    """Share of the text's word trigrams that the items hold already."""
    mine = trigrams(words(text))
    told = {t for item in items for t in trigrams(words(item.text))}
    return sum(t in told for t in mine) / len(mine) if mine else 0.0


def find_evidence(text: str, segments: Sequence[tuple[Evidence, str]]) -> tuple[Evidence, ...]:
    """The up to two segments that share most content with the item, in transcript order."""
    want = content(text)
    scored = [
        (sum(want[unit] for unit in want.keys() & content(said).keys()), at)
        for at, (_, said) in enumerate(segments)
    ]
    best = sorted((s for s in scored if s[0] > 0), key=lambda s: (-s[0], s[1]))[:2]
    return tuple(segments[at][0] for _, at in sorted(best, key=lambda s: s[1]))


@dataclass(frozen=True)
class Update:
    """Outcome of one update: the new ledger, and how many answer lines were refused and why."""

    items: tuple[LedgerItem, ...]
    added: int
    duplicate: int = 0
    ungrounded: int = 0
    copied: int = 0


def add_notes(
    items: tuple[LedgerItem, ...],
    notes: Sequence[Note],
    segments: Sequence[tuple[Evidence, str]],
    *,
    revision: int,
    next_id: int,
    min_support: float = 0.5,
) -> Update:
    """Append what is new; existing items are frozen.

    A note is refused when an item of the ledger already says it, or the ledger much of its wording,
    when less than ``min_support`` of its content words occur in the window's ``segments``, or when
    it is a copied stretch of one.
    """
    said = [text for _, text in segments]
    kept = list(items)
    duplicate = ungrounded = verbatim = 0
    for note in notes:
        if any(similarity(note.text, item.text) >= 0.7 for item in kept) or (
            repeated(note.text, kept) > MAX_REPEATED
        ):
            duplicate += 1
        elif support(note.text, said) < min_support:
            ungrounded += 1
        elif any(copied(note.text, text) for text in said):
            verbatim += 1
        else:
            kept.append(
                LedgerItem(
                    id=f"i{next_id + len(kept) - len(items)}",
                    kind=note.kind,
                    text=note.text,
                    owner=note.owner,
                    last_changed_revision=revision,
                    evidence=find_evidence(note.text, segments),
                )
            )
    return Update(tuple(kept), len(kept) - len(items), duplicate, ungrounded, verbatim)


def merge_notes(
    items: tuple[LedgerItem, ...],
    old: int,
    notes: Sequence[Note],
    *,
    revision: int,
    next_id: int,
) -> tuple[LedgerItem, ...]:
    """Replace the topics among the ``old`` oldest items by the merged ``notes``. These must be fewer,
    grounded in them, and keep every number; else nothing changes."""
    sources = [item for item in items[:old] if item.kind == "topic" and item.by == "model"]
    said = [item.text for item in sources]
    good = [n for n in notes if n.kind == "topic" and support(n.text, said) >= 0.6]
    kept = numbers(" ".join(n.text for n in good))
    if not good or len(good) >= len(sources) or not numbers(" ".join(said)) <= kept:
        return items
    merged = tuple(
        LedgerItem(
            id=f"i{next_id + at}",
            kind="topic",
            text=note.text,
            last_changed_revision=revision,
            evidence=_evidence_of(note.text, sources),
        )
        for at, note in enumerate(good)
    )
    gone = {item.id for item in sources}
    return merged + tuple(item for item in items if item.id not in gone)


def _evidence_of(text: str, sources: Sequence[LedgerItem]) -> tuple[Evidence, ...]:
    """Evidence of the two source items closest to a merged line."""
    close = sorted(sources, key=lambda item: -similarity(text, item.text))[:2]
    return tuple(dict.fromkeys(e for item in close for e in item.evidence))[:3]


def render(items: Sequence[LedgerItem]) -> str:
    """The ledger's live items as text, one line per item, with owner and due date where the item's text
    does not say them; "(none)" when there is none."""
    lines = []
    for item in items:
        if item.state in GONE:
            continue
        details = [
            d for d in (item.owner, item.due) if d and d.casefold() not in item.text.casefold()
        ]
        details += ["done"] if item.state == "done" else []
        about = f" ({', '.join(details)})" if details else ""
        lines.append(f"{_LABELS[item.kind]}{about}: {item.text}")
    return "\n".join(lines) or "(none)"


GONE = ("superseded", "withdrawn")


def add_items(
    items: tuple[LedgerItem, ...], new: Sequence[LedgerItem], refused: Counter[str]
) -> tuple[LedgerItem, ...]:
    """Put new items behind the old ones. One that names the item it supersedes, does. One that says
    what a live item of its kind says already is refused as a duplicate; one that says nearly the same
    in other words, with another number, date or negation, supersedes that item."""
    kept = list(items)
    said = [content(item.text, digits=False) for item in kept]
    for item in new:
        if any(_settled_by_person(old, item) for old in items):
            refused["person"] += 1
            continue
        if item.supersedes and any(old.id == item.supersedes for old in kept):
            kept = [_replaced(old, item) if old.id == item.supersedes else old for old in kept]
            kept.append(item)
            said.append(content(item.text, digits=False))
            continue
        mine = content(item.text, digits=False)
        like = [at for at, old in enumerate(kept) if _comparable(old, item)]
        share, best = max(((overlap(said[at], mine), -at) for at in like), default=(0.0, 0))
        if share < SAME:
            kept.append(item)
            said.append(mine)
            continue
        best = -best  # of equals the first
        old = kept[best]
        if set(units(item.text)) <= set(units(old.text)):
            refused["duplicate"] += 1
            continue
        kept[best] = _replaced(old, item)
        kept.append(replace(item, supersedes=old.id))
        said.append(mine)
    return tuple(kept)


def _replaced(old: LedgerItem, new: LedgerItem) -> LedgerItem:
    """The old item once the new one says otherwise; what a person wrote stays."""
    if old.by == "person" or old.state in GONE:
        return old
    return replace(old, state="superseded", last_changed_revision=new.last_changed_revision)


def _settled_by_person(old: LedgerItem, new: LedgerItem) -> bool:
    """Whether a person has written all that a new note says, or has taken it back: it does not come
    again."""
    if old.by != "person" or old.kind != new.kind:
        return False
    if old.state in GONE:
        return similarity(old.text, new.text) >= SAME
    return set(units(new.text)) <= set(units(old.text))


def _comparable(old: LedgerItem, new: LedgerItem) -> bool:
    owners = old.owner == new.owner or not (old.owner and new.owner)
    kinds = old.kind == new.kind or "open_question" not in (old.kind, new.kind)
    return kinds and old.state == "open" and owners and old.by == "model"


def settle(
    items: tuple[LedgerItem, ...], done: Sequence[tuple[str, Evidence]], revision: int
) -> tuple[LedgerItem, ...]:
    """Mark actions as done and questions as answered, each with the segment that says so."""
    where = dict(done)
    return tuple(
        replace(
            item,
            state="done",
            evidence=tuple(dict.fromkeys((*item.evidence, where[item.id]))),
            last_changed_revision=revision,
        )
        if item.id in where and item.state == "open" and item.by == "model"
        else item
        for item in items
    )


def trim(items: Items, limit: int) -> tuple[Items, Items]:
    """The ledger within ``limit`` bytes of text, and what has no room: first topics that another says
    too, then what is superseded or withdrawn, then what is done, then topics, the oldest first.
    Decisions, open actions and open questions stay, and so does what a person wrote."""
    if _size(items) <= limit:
        return items, ()
    kept = _without_doubles(items)
    size, gone = _size(kept), {item.id for item in items} - {item.id for item in kept}
    for item in sorted(kept, key=_worth):
        if size <= limit or _worth(item) == KEEP:
            break
        gone.add(item.id)
        size -= _size([item])
    left = tuple(item for item in kept if item.id not in gone)
    return left, tuple(item for item in items if item.id in gone)


def _without_doubles(items: Items) -> Items:
    """The items without topics that a later topic says nearly too, numbers included; that one takes
    over where it was said."""
    kept: list[LedgerItem] = []
    topics: list[tuple[LedgerItem, dict[str, float], set[str]]] = []
    for item in reversed(items):
        if item.kind != "topic" or item.state != "open" or item.by == "person":
            kept.append(item)
            continue
        said, counted = content(item.text, digits=False), numbers(item.text)
        like = next(
            (t for t, has, its in topics if counted <= its and overlap(said, has) >= NEAR), None
        )
        if like is None:
            kept.append(item)
            topics.append((item, said, counted))
            continue
        at = next(n for n, found in enumerate(kept) if found.id == like.id)
        both = tuple(dict.fromkeys((*item.evidence, *kept[at].evidence)))[:MAX_EVIDENCE]
        kept[at] = replace(kept[at], evidence=both)
    return tuple(reversed(kept))


KEEP = 3
HELD, FADES = 0.3, 0.01
"""By how much weightier a note must be to take another's place in a text, and by how much less for each
that has come since."""


def _worth(item: LedgerItem) -> int:
    if item.by == "person":
        return KEEP
    if item.state in GONE:
        return 0
    if item.state == "done":
        return 1
    return 2 if item.kind == "topic" else KEEP


def archive(archived: Items, gone: Items, limit: int) -> tuple[Items, bool]:
    """The archive with what left the ledger, within ``limit`` bytes of text, and whether its oldest
    items were forgotten."""
    found = (*archived, *gone)
    size, first = _size(found), 0
    while size > limit:
        size -= _size([found[first]])
        first += 1
    return found[first:], first > 0


def _size(items: Iterable[LedgerItem]) -> int:
    return sum(len(item.text.encode()) for item in items)


def published(items: Items, most: int) -> Items:
    """The live items that a summary's text shows, in their order. What is decided or to be done comes
    first, by importance, the newer of equals. Of the ``most`` places a third is for topics and what is
    done, which are more and say less of what has come out, and a quarter for open questions, or what
    decisions and tasks leave."""
    live = [item for item in items if item.state not in GONE]
    standing: list[int] = []
    others: list[int] = []
    for at, item in enumerate(live):
        (standing if _worth(item) == KEEP else others).append(at)
    standing.sort(key=lambda at: (live[at].importance, at), reverse=True)
    asked = [at for at in standing if live[at].kind == "open_question"]
    settled = [at for at in standing if live[at].kind != "open_question"]
    room = max(most // 3, min(1, most - len(standing)))
    told = [others[at] for at in _steady([live[at].importance for at in others], room)]
    left = most - len(told)
    asked = asked[: max(most // 4, left - len(settled))]
    shown = settled[: left - len(asked)] + asked + told
    return tuple(live[at] for at in sorted(shown))


def _steady(weights: Sequence[float], room: int) -> list[int]:
    """The places of at most ``room`` of the ``weights``, in the order in which they came. One that is
    there gives way to one that is HELD weightier, and to less for each that has come since: what is
    read should not change with every update, nor stay what was said first."""
    kept = list(range(min(room, len(weights))))
    for new in range(len(kept), len(weights) if kept else 0):
        now, weakest = min((weights[at] - FADES * (new - at), at) for at in kept)
        if weights[new] >= now + HELD:
            kept.remove(weakest)
            kept.append(new)
    return kept


def changes_of(before: Items, after: Items) -> Iterator[ItemChange]:
    """What was done to the items between two states of a ledger. An item that another supersedes is told
    with that one."""
    old, new = ({item.id: item for item in items} for items in (before, after))
    replaced = {item.supersedes for item in after if item.id not in old}
    for item in before:
        if item.id not in new:
            yield ItemChange("remove", item.id)
    for item in after:
        was = old.get(item.id)
        if was is None:
            told: ChangeOp = "update" if item.supersedes in old else "add"
            yield ItemChange(told, item.id, item.supersedes)
        elif item.state != was.state and item.id not in replaced:
            yield ItemChange(_SETTLED.get(item.state, "update"), item.id)
        elif item.state == was.state and _told(item) != _told(was):
            yield ItemChange("update", item.id)


_SETTLED: dict[str, ChangeOp] = {"done": "done", "withdrawn": "withdraw"}


def _told(item: LedgerItem) -> tuple[str | None, ...]:
    return item.kind, item.text, item.owner, item.due
