"""What a later revision of a segment, of its text or its speaker, does to the notes that rest on it.

The evidence says what the segment says now. A note is checked against that: its numbers must be there,
and half of its words. One that fails is marked ``doubtful``, not deleted: other turns may bear it out.
An owner who was taken for the speaker follows the speaker. What a person wrote is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from operators.events import Evidence, LedgerItem
from operators.text import numbers, support

CHARS = 280
"""Characters of a correction that are kept."""
MIN_SUPPORT = 0.5
"""Share of a note's content that the corrected turn, its speaker and its owner must have."""


def corrected(
    items: Sequence[LedgerItem],
    segment_id: str,
    text: str | None,
    speaker: str | None,
    revision: int,
) -> tuple[LedgerItem, ...]:
    """The items with a correction wherever they cite the segment, checked against it; the others are the
    same objects. ``text``, ``speaker``: as they are now, None for unchanged; ``revision``: its own."""
    return tuple(
        _corrected(item, segment_id, text, speaker, revision)
        if any(cited.segment_id == segment_id for cited in item.evidence)
        else item
        for item in items
    )


def _corrected(
    item: LedgerItem, segment_id: str, text: str | None, speaker: str | None, revision: int
) -> LedgerItem:
    def cite(cited: Evidence) -> Evidence:
        if cited.segment_id != segment_id:
            return cited
        return replace(
            cited,
            correction=text or cited.correction,
            speaker=speaker or cited.speaker,
            revision=max(revision, cited.revision),
        )

    before = {cited.speaker for cited in item.evidence if cited.segment_id == segment_id}
    found = replace(item, evidence=tuple(map(cite, item.evidence)))
    if item.by == "person":
        return found
    if speaker and item.owner and item.owner in before:
        found = replace(found, owner=speaker)
    return replace(found, check=_check(found)) if text else found


def _check(item: LedgerItem) -> str:
    """Only what the whole turn says decides: nothing is doubted while a part of it is unknown."""
    said = [cited.correction or "" for cited in item.evidence]
    if not all(said) or any(len(text) >= CHARS for text in said):
        return item.check
    people = [name for cited in item.evidence if (name := cited.speaker)]
    sources = [*said, *people, item.owner or ""]
    wrong = numbers(item.text) - numbers(" ".join(sources))
    return "doubtful" if wrong or support(item.text, sources) < MIN_SUPPORT else "stands"
