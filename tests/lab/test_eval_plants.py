"""Planted facts: where they go, and what a summary has to say to have them."""

from __future__ import annotations

import pytest

from operators.errors import ConfigError
from pipelines.lab.eval import plants
from pipelines.lab.eval.command import DATA
from pipelines.lab.eval.grounding import Note
from pipelines.lab.eval.meetings import Line, Meeting, Point
from pipelines.lab.eval.plants import (
    Change,
    Fact,
    FactSheet,
    has,
    kept,
    plant,
    read_sheet,
    superseded,
)

MEETING = Meeting(
    "m",
    tuple(Line(at, f"line {at}", "Ana", at * 10, at * 10 + 9) for at in range(100)),
    points=(Point("the end", ((90, 99),)),),
)
MOVED = Fact(
    id="falcon",
    kind="decision",
    keys=("Falcon",),
    value="Tuesday",
    say="The Falcon review is on Tuesday.",
    question="When?",
    change=Change(say="The Falcon review is on Thursday.", value="Thursday"),
)
TASK = Fact(
    id="contract",
    kind="action_item",
    keys=("Hartmann",),
    value="14",
    owner="Priya",
    due="14",
    speaker="Priya",
    say="I will send the Hartmann contract by March 14.",
    question="Who?",
    answer="Priya",
    change=Change(say="The Hartmann contract is sent.", done=True),
)
SHEET = FactSheet((MOVED, TASK))


def test_facts_are_said_at_known_places_and_changed_later() -> None:
    planted = plant(MEETING, SHEET)
    texts = [line.text for line in planted.meeting.lines]
    said = [texts.index(text) for text in (MOVED.say, MOVED.change.say, TASK.say, TASK.change.say)]
    assert len(texts) == 104
    assert said == [2, 18, 82, 98]
    assert planted.position == {"falcon": 2 / 104, "contract": 82 / 104}
    assert [line.seq for line in planted.meeting.lines] == list(range(104))


def test_the_rest_of_the_meeting_keeps_its_order_and_its_points() -> None:
    planted = plant(MEETING, SHEET)
    said = {MOVED.say, MOVED.change.say, TASK.say, TASK.change.say}
    assert [x.text for x in planted.meeting.lines if x.text not in said] == [
        x.text for x in MEETING.lines
    ]
    (first, last) = planted.meeting.points[0].lines[0]
    assert planted.meeting.lines[first].text == "line 90"
    assert planted.meeting.lines[last].text == "line 99"


def test_a_planted_line_is_spoken_by_whoever_spoke_unless_it_says_who() -> None:
    speakers = {x.text: x.speaker for x in plant(MEETING, SHEET).meeting.lines}
    assert (speakers[MOVED.say], speakers[TASK.say]) == ("Ana", "Priya")


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("The budget is 42.500 euro", "42,500", True),
        ("The budget is 4,250 euro", "42,500", False),
        ("Die Werften in Bergen", "Werft", True),
        ("Die Werk in Bergen", "Werft", False),
        ("The Kestrel-Prototyp", "Kestrel", True),
        ("会议在周五举行", "周五", True),
        ("会议在周六举行", "周五", False),
        ("اجتماع يوم الجمعة", "الجمعة", True),
        ("बैठक शुक्रवार को", "शुक्रवार", True),
    ],
)
def test_a_name_word_or_number_is_found_in_a_text(text: str, wanted: str, found: bool) -> None:
    assert has(text, wanted) is found


@pytest.mark.parametrize(
    ("notes", "is_kept", "right"),
    [
        ([Note("Falcon review on Thursday")], True, True),
        ([Note("Falcon review moved from Tuesday to Thursday")], True, True),
        ([Note("Falcon review on Tuesday")], True, False),
        ([Note("Falcon on Tuesday"), Note("Falcon on Thursday")], True, False),
        ([Note("Falcon on Tuesday", state="superseded"), Note("Falcon on Thursday")], True, True),
        ([Note("Falcon on Tuesday", state="superseded")], False, False),
        ([Note("There is a Falcon review")], False, False),
        ([Note("The review is on Thursday")], False, False),
        ([], False, False),
    ],
)
def test_a_changed_fact(notes: list[Note], is_kept: bool, right: bool) -> None:
    assert kept(MOVED, notes) is is_kept
    assert superseded(MOVED, notes) is right


def test_a_done_fact_needs_its_state_and_sides_without_states_are_not_judged() -> None:
    text = "Priya sends the Hartmann contract by 14 March"
    assert superseded(TASK, [Note(text, kind="action_item", state="done")]) is True
    assert superseded(TASK, [Note(text, kind="action_item")]) is False
    assert superseded(TASK, [Note(text)]) is None
    assert superseded(Fact("x", "topic", ("x",), "1", "x is 1", "?"), []) is None


def test_owner_and_date_of_a_kept_action() -> None:
    right = Note("Send the Hartmann contract by March 14", owner="Priya")
    wrong = Note("Priya hopes somebody sends the Hartmann contract", owner="Ana")
    assert plants.owner_right(TASK, [right]) is True
    assert plants.owner_right(TASK, [wrong]) is False
    assert plants.owner_right(TASK, [Note("Priya sends the Hartmann contract")]) is True
    assert plants.owner_right(TASK, []) is None
    assert plants.due_right(TASK, [right]) is True
    assert plants.due_right(TASK, [wrong]) is False
    assert plants.owner_right(MOVED, [right]) is None


def test_an_answer_needs_the_last_value() -> None:
    assert plants.answers(MOVED, "On Thursday.")
    assert not plants.answers(MOVED, "On Tuesday.")
    assert plants.answers(TASK, "Priya will.")


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_sheets_hold_facts_that_their_own_words_contain(language: str) -> None:
    sheet = read_sheet(DATA, language)
    changed = [fact for fact in sheet.facts if fact.change]
    assert len(changed) * 2 == len(sheet.facts)
    assert len(sheet.unanswerable) == 6
    for fact in sheet.facts:
        said = Note(fact.say, owner=fact.owner or None)
        assert kept(fact, [said]), fact.id
        assert not fact.due or plants.due_right(fact, [Note(fact.say)]) is (not _redated(fact))
    for fact in changed:
        later = Note(fact.change.say, kind=fact.kind, state="done" if fact.change.done else "open")
        assert superseded(fact, [later]), fact.id
        assert superseded(fact, [Note(fact.say, kind=fact.kind)]) is False, fact.id


def _redated(fact: Fact) -> bool:
    return bool(fact.change and fact.change.due)


def test_a_language_without_a_sheet_is_refused() -> None:
    with pytest.raises(ConfigError, match="no facts in the language 'xx'"):
        read_sheet(DATA, "xx")
