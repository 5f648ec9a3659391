"""What a person does to the notes: it is theirs, it lasts, and no update undoes it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.errors import SegmentError
from operators.events import (
    Evidence,
    ItemChange,
    ItemEdit,
    ItemKind,
    LedgerItem,
    Segment,
    Speaker,
    SummaryEvent,
)
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from operators.tasks import ledger
from operators.tasks.base import Ledger
from operators.tasks.edits import edited
from tests.engine import toy_decoder

CONFIG = OperatorConfig(
    window=200,
    slack=64,
    branch_tokens=900,
    slots=1,
    update_tokens=150,
    summary_method="lines",
    summary_tokens=8,
    ledger_tokens=60,
    ledger_bytes=1024,
)


def noted(number: int, text: str, kind: ItemKind = "decision", **fields: Any) -> LedgerItem:
    return LedgerItem(
        id=f"i{number}", kind=kind, text=text, evidence=(Evidence(f"s{number}"),), **fields
    )


ITEMS = (noted(1, "The beta ships on Tuesday."), noted(2, "Ben calls the supplier.", "action_item"))


def edit(name: str = "e1", **fields: Any) -> Segment:
    return Segment(
        stream_id="a",
        type="edit",
        segment_id=name,
        speaker=Speaker(name="Ana"),
        edit=ItemEdit(**fields),
    )


def opened(config: OperatorConfig = CONFIG, **state: Any) -> StreamOperator:
    operator = StreamOperator(toy_decoder(), config)
    operator.open("a", SessionState(stream_id="a", **{"items": ITEMS, "next_item": 3, **state}))
    return operator


def run(operator: StreamOperator, *segments: Segment, first: int = 0) -> list[Emission]:
    for ticket, segment in enumerate(segments, start=first):
        operator.feed(segment, ticket)
    found = []
    while operator.has_work():
        found += operator.step()
    return found


def items_after(*segments: Segment) -> dict[str, LedgerItem]:
    return {item.id: item for item in run(opened(), *segments)[-1].state.items}


def test_an_edit_is_published_at_once_without_the_model() -> None:
    (emission,) = run(opened(), edit(op="update", item="i1", text="The beta ships on Thursday."))
    (event,) = emission.events
    assert isinstance(event, SummaryEvent)
    assert (event.trigger, event.revision, event.usage.finish_reason) == ("edit", 1, "skipped")
    assert "Thursday" in event.text
    assert (event.items[0].by, event.items[0].last_changed_revision) == ("person", 1)
    assert (emission.done, emission.state.items) == ([0], event.items)


def test_an_edits_event_says_what_it_changed() -> None:
    done = edit("1", op="done", item="i2")
    gone = edit("2", op="withdraw", item="i1")
    new = edit("3", op="add", text="A remark.")
    emissions = run(opened(), done, gone, new)
    changes = [event.changes for emission in emissions for event in emission.events]  # type: ignore[union-attr]
    assert changes == [
        (ItemChange("done", "i2"),),
        (ItemChange("withdraw", "i1"),),
        (ItemChange("add", "i3"),),
    ]


def test_every_operation() -> None:
    items = items_after(
        edit("1", op="add", kind="action_item", text="Book the  room.", owner="Cy", due="Friday"),
        edit("2", op="done", item="i2"),
        edit("3", op="withdraw", item="i1"),
        edit("4", op="add", text="A passing remark."),
        edit("5", op="update", item="i3", owner="", text="Book both rooms."),
    )
    assert (items["i2"].state, items["i1"].state) == ("done", "withdrawn")
    room = items["i3"]
    assert (room.text, room.owner, room.due, room.kind) == (
        *("Book both rooms.", None, "Friday"),
        "action_item",
    )
    assert room.evidence == (Evidence("1", speaker="Ana"),)
    assert items["i4"].kind == "topic"
    assert items_after(edit("1", op="done", item="i2"), edit("2", op="reopen", item="i2"))[
        "i2"
    ].state == ("open")


def test_an_edit_brings_a_note_back_from_the_archive() -> None:
    """It was refused as unknown_item, though the note still answered questions."""
    old = (noted(1, "The beta ships on Tuesday."), noted(2, "The room is booked.", "topic"))
    operator = opened(archived=old, items=(noted(3, "Ben calls.", "action_item"),), next_item=4)
    (emission,) = run(operator, edit(op="update", item="i1", text="The beta ships on Thursday."))
    state = emission.state
    assert [item.id for item in state.items] == ["i1", "i3"]
    assert [item.id for item in state.archived] == ["i2"]
    assert (state.items[0].by, state.items[0].evidence) == ("person", old[0].evidence)
    (event,) = emission.events
    assert isinstance(event, SummaryEvent)
    assert event.changes == (ItemChange("add", "i1"),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"op": "done", "item": "i9"}, "unknown_item"),
        ({"op": "add", "text": "  "}, "missing_text"),
        ({"op": "add", "text": "x" * 1001}, "text_too_large"),
        ({"op": "update", "item": "i1", "owner": "x" * 1001}, "text_too_large"),
    ],
)
def test_what_cannot_be_done_is_a_dead_letter_and_changes_nothing(
    fields: dict[str, Any], reason: str
) -> None:
    (emission,) = run(opened(), edit(**fields))
    (failure,) = emission.failed
    assert (failure.ticket, failure.stage, failure.reason) == (0, "edit", reason)
    assert emission.state.items == ITEMS
    assert (emission.events, emission.state.cursor) == ([], 0)


def test_persons_notes_are_bounded() -> None:
    found = Ledger(ITEMS, 3)
    more = [edit(f"{number}", op="add", text="x" * 200) for number in range(6)]
    for each in more[:5]:
        found = edited(found, each, 1024, 1)
    with pytest.raises(SegmentError) as error:
        edited(found, more[5], 1024, 1)
    assert error.value.reason == "ledger_full"


def test_an_edit_outlives_restarts_and_snapshots() -> None:
    operator = opened()
    said = Segment(stream_id="a", text="Hello there.", segment_id="w")
    state = run(operator, said, edit(op="withdraw", item="i1"))[-1].state
    again = StreamOperator(toy_decoder(), CONFIG)
    again.open("a", state)
    assert again._sessions["a"].ledger.items == state.items
    from_snapshot = StreamOperator(toy_decoder(), CONFIG)
    from_snapshot.open("a", snapshot=operator.snapshot("a"))
    assert from_snapshot._sessions["a"].ledger.items == state.items


def test_an_edit_put_twice_is_done_once() -> None:
    again = edit(op="add", text="Book the room.")
    emissions = run(opened(), again, again)
    assert len(emissions[-1].state.items) == 3
    restarted = StreamOperator(toy_decoder(), CONFIG)
    restarted.open("a", emissions[-1].state)
    assert len(run(restarted, again, first=2)[-1].state.items) == 3


def test_notes_of_an_ended_stream_can_be_edited() -> None:
    operator = opened()
    end = Segment(stream_id="a", type="session_end", segment_id="end")
    run(operator, end)
    (emission,) = run(operator, edit(op="done", item="i2"), first=1)
    (event,) = emission.events
    assert isinstance(event, SummaryEvent)
    assert (event.status, event.revision, emission.state.ended) == ("final", 2, True)
    assert event.items[1].state == "done"
    assert operator.cache.free_slots == 1


def test_an_update_changes_nothing_of_a_persons() -> None:
    mine = noted(1, "Ben calls the supplier in Bergen.", "action_item", by="person")
    gone = noted(2, "The office moves to Dublin.", state="withdrawn", by="person")
    assert ledger.settle((mine,), [("i1", Evidence("x"))], 5) == (mine,)
    refused: Counter[str] = Counter()
    new = [
        noted(3, "Ben calls the supplier.", "action_item"),
        noted(4, "The office moves to Dublin."),
    ]
    assert ledger.add_items((mine, gone), new, refused) == (mine, gone)
    assert refused == {"person": 2}
    later = noted(5, "Ben calls the supplier in Bergen on Friday.", "action_item", supersedes="i1")
    assert ledger.add_items((mine, gone), [later], refused) == (mine, gone, later)
    many = (mine, gone, *(noted(n, f"Topic {n} " + "x" * 200, "topic") for n in range(3, 20)))
    kept, gone = ledger.trim(many, 1024)
    assert gone
    assert {"i1", "i2"} <= {item.id for item in kept}


def test_a_compaction_keeps_what_is_a_persons() -> None:
    """Here the notes are far too long for the model, so that the older half is merged or dropped."""
    mine = noted(1, "Mine, and the oldest of all.", by="person")
    others = tuple(noted(n, f"Note {n} is about something long.", "topic") for n in range(2, 9))
    operator = opened(items=(mine, *others), next_item=9)
    words = [
        Segment(stream_id="a", text="word " * 20, segment_id=f"w{number}") for number in range(4)
    ]
    state = run(operator, *words)[-1].state
    assert mine in state.items


def test_an_edit_comes_in_its_place_among_updates() -> None:
    """An update that was running when the edit came does not undo it."""
    operator = opened(dataclasses.replace(CONFIG, ledger_tokens=300, branch_tokens=1200))
    for number in range(3):
        operator.feed(Segment(stream_id="a", text="word " * 20, segment_id=f"w{number}"), number)
    operator.feed(edit(op="withdraw", item="i1"), 3)
    states = [emission.state for _ in range(4000) for emission in operator.step()]
    final = {item.id: item for item in states[-1].items}
    assert final["i1"].state == "withdrawn"
    for state in states:
        withdrawn = {item.id: item.state for item in state.items}.get("i1") == "withdrawn"
        assert withdrawn == (state.cursor >= 3)
