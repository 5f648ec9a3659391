"""A late revision of a segment reaches the notes that rest on it."""

from __future__ import annotations

from typing import Any

import pytest

from operators.events import Evidence, LedgerItem, Segment, Speaker
from operators.state import SessionState
from operators.stream_operator import StreamOperator
from operators.tasks.corrections import CHARS, corrected
from tests.engine import toy_decoder
from tests.operators.test_edits import CONFIG


def note(text: str, *segments: str, **fields: Any) -> LedgerItem:
    evidence = tuple(Evidence(name, speaker="Ana") for name in segments or ("s1",))
    return LedgerItem(id="i1", kind="decision", text=text, evidence=evidence, **fields)


@pytest.mark.parametrize(
    ("text", "correction", "check"),
    [
        ("The beta ships on Thursday.", "The beta will ship on Thursday.", "stands"),
        ("The beta costs 15 euros.", "The beta costs 50 euros.", "doubtful"),
        ("The beta ships on Thursday.", "Better chips for Saturday.", "doubtful"),
        ("Ana will ship the beta.", "I ship the beta.", "stands"),
        ("发布日期定于星期四。", "发布日期定为星期四。", "stands"),
        ("发布日期定于星期四。", "预算是四万七千欧元。", "doubtful"),
    ],
)
def test_a_note_is_checked_against_what_the_turn_says_now(
    text: str, correction: str, check: str
) -> None:
    (item,) = corrected([note(text)], "s1", correction, None, 1)
    assert (item.check, item.evidence[0].correction) == (check, correction)
    assert item.evidence[0].revision == 1


def test_nothing_is_doubted_while_a_part_of_the_turn_is_unknown() -> None:
    (item,) = corrected([note("The beta costs 15 euros.", "s1", "s2")], "s1", "Something.", None, 1)
    assert item.check == ""
    (item,) = corrected([item], "s2", "The beta costs 50 euros.", None, 1)
    assert item.check == "doubtful"
    (item,) = corrected([note("The beta costs 15 euros.")], "s1", "x" * CHARS, None, 1)
    assert item.check == ""


def test_the_owner_follows_the_speaker_and_only_if_that_was_the_speaker() -> None:
    own, other = note("Call.", owner="Ana"), note("Call.", owner="Ben")
    found = corrected([own, other], "s1", None, "Dee", 1)
    assert [item.owner for item in found] == ["Dee", "Ben"]
    assert [item.evidence[0].speaker for item in found] == ["Dee", "Dee"]


def test_what_a_person_wrote_is_theirs() -> None:
    (item,) = corrected(
        [note("It costs 15.", owner="Ana", by="person")], "s1", "Nothing.", "Dee", 1
    )
    assert (item.check, item.owner, item.evidence[0].correction) == ("", "Ana", "Nothing.")


def test_other_notes_are_the_same_objects() -> None:
    items = (note("A."), note("B.", "s2"))
    found = corrected(items, "s1", "C.", None, 1)
    assert found[1] is items[1]


def test_a_correction_on_its_way_through_the_engine_marks_the_note() -> None:
    operator = StreamOperator(toy_decoder(), CONFIG)
    item = note("The beta costs 15 euros.", owner="Ana")
    operator.open("a", SessionState(stream_id="a", items=(item,), next_item=2))
    late = Segment(stream_id="a", segment_id="s1", revision=1, text="The beta costs 50 euros.")
    who = Segment(
        stream_id="a", segment_id="s1", type="speaker_revision", speaker=Speaker(name="Dee")
    )
    operator.feed(late, 0)
    operator.feed(who, 1)
    states = [emission.state for _ in range(9) for emission in operator.step()]
    (found,) = states[-1].items
    assert (found.check, found.owner) == ("doubtful", "Dee")
