"""What a person does to a stream's notes. Pure functions.

An item that a person wrote or changed is theirs: no update changes, merges or trims it, and an item they
took back does not come again.
"""

from __future__ import annotations

from msgspec.structs import replace

from operators.errors import SegmentError
from operators.events import Evidence, ItemEdit, LedgerItem, Segment
from operators.tasks.base import Ledger

MAX_CHARS = 1000
"""Characters of a person's note."""
_STATES = {"done": "done", "withdraw": "withdrawn", "reopen": "open"}


def edited(ledger: Ledger, segment: Segment, limit: int, revision: int) -> Ledger:
    """The ledger after a segment's edit. ``limit``: bytes of the notes that are persons'; ``revision``:
    the one that will show it. Raises SegmentError: unknown_item, missing_text, text_too_large,
    ledger_full."""
    edit = segment.edit
    if edit is None:
        raise SegmentError("wrong_type", "an edit without an operation")
    _check_text(edit)
    if edit.op == "add":
        items = (*ledger.items, _added(edit, segment, ledger.next_item, revision))
        found = Ledger(items, ledger.next_item + 1, ledger.archived)
    else:
        found = _with_changed(ledger, edit, revision)
    if sum(len(item.text.encode()) for item in found.items if item.by == "person") > limit:
        raise SegmentError("ledger_full", f"persons' notes exceed {limit} bytes (ledger_bytes)")
    return found


def _check_text(edit: ItemEdit) -> None:
    if edit.op == "add" and not (edit.text or "").strip():
        raise SegmentError("missing_text", "a note needs text")
    if any(len(text or "") > MAX_CHARS for text in (edit.text, edit.owner, edit.due)):
        raise SegmentError("text_too_large", f"a note has at most {MAX_CHARS} characters")


def _added(edit: ItemEdit, segment: Segment, number: int, revision: int) -> LedgerItem:
    who = segment.speaker
    name = (who.name or who.id) if who else None
    return LedgerItem(
        id=f"i{number}",
        kind=edit.kind or "topic",
        text=" ".join((edit.text or "").split()),
        owner=edit.owner or None,
        due=edit.due or None,
        importance=1.0,
        by="person",
        last_changed_revision=revision,
        evidence=(Evidence(segment.segment_id, segment.start_ms, segment.end_ms, name),),
    )


def _with_changed(ledger: Ledger, edit: ItemEdit, revision: int) -> Ledger:
    """A note of the archive comes back, before those of the ledger: it is older than they are."""
    archived = [item for item in ledger.archived if item.id != edit.item]
    back = [item for item in ledger.archived if item.id == edit.item]
    items = [*back, *ledger.items]
    if all(item.id != edit.item for item in items):
        raise SegmentError("unknown_item", "the stream has no note of this id")
    done = (_changed(i, edit, revision) if i.id == edit.item else i for i in items)
    return Ledger(tuple(done), ledger.next_item, tuple(archived))


def _changed(item: LedgerItem, edit: ItemEdit, revision: int) -> LedgerItem:
    item = replace(item, by="person", last_changed_revision=revision)
    if edit.op in _STATES:
        return replace(item, state=_STATES[edit.op])
    text = " ".join((edit.text or "").split())
    return replace(
        item,
        kind=edit.kind or item.kind,
        text=text or item.text,
        owner=item.owner if edit.owner is None else edit.owner or None,
        due=item.due if edit.due is None else edit.due or None,
    )
