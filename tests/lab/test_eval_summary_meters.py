"""Meters of summaries on cases whose figures are worked out by hand."""

from __future__ import annotations

import pytest

from pipelines.lab.eval.grounding import Note, Source, evidence_valid, is_false, names
from pipelines.lab.eval.meetings import Line, Meeting, Point
from pipelines.lab.eval.summary_meters import (
    Revision,
    Summarised,
    area,
    erasure,
    meter,
    point_delay,
    point_recall,
    repeated_share,
    rouge,
    verbatim_grams,
    verbatim_share,
)

MEETING = Meeting(
    "m",
    (
        Line(0, "Good morning to all of you", "Ana"),
        Line(1, "The supplier in Lisbon wants 4 percent more money", "Ben"),
        Line(2, "Then we decide on Friday whether we take the offer", "Ana"),
        Line(3, "See you", "Ben"),
    ),
    points=(Point("supplier wants money", ((1, 1),)), Point("decision about offer", ((2, 2),))),
)


def test_rouge_1_2_and_lsum() -> None:
    found = rouge("a b c d", "a c d e")  # a, c and d; the pair "c d"; longest in order: a c d
    assert found["rouge1"] == pytest.approx(3 / 4)
    assert found["rouge2"] == pytest.approx(1 / 3)
    assert found["rougeLsum"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("text", ["会议在周五", "الاجتماع يوم الجمعة", "बैठक शुक्रवार को है"])
def test_rouge_of_a_text_with_itself_is_1_in_any_script(text: str) -> None:
    assert rouge(text, text)["rouge1"] == 1
    assert rouge(text, text)["rougeLsum"] == 1


def test_area_under_the_line_from_the_origin() -> None:
    assert area([0.5, 0.5]) == pytest.approx(0.375)  # a triangle of 1/8 and a square of 1/4
    assert area([1.0]) == pytest.approx(0.5)


def test_repeated_trigrams() -> None:
    assert repeated_share("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_share("a b c d") == 0
    assert repeated_share("会议在会议在") == pytest.approx(1 / 4)


def test_verbatim_is_the_share_of_words_in_copied_runs_of_eight() -> None:
    grams = verbatim_grams(MEETING)
    copied = "supplier in Lisbon wants 4 percent more money"  # eight words of line 1
    assert verbatim_share(f"{copied} now ok", grams) == pytest.approx(8 / 10)
    assert verbatim_share("supplier in Lisbon wants 4 percent more", grams) == 0


def test_erasure_counts_what_is_taken_back_and_not_what_is_put_in_between() -> None:
    assert erasure("a b c", "a x b c") == 0
    assert erasure("a b c d", "a b e") == pytest.approx(2 / 3)
    assert erasure("", "a") == 0


def test_names_are_capitals_that_open_no_sentence() -> None:
    assert names("The supplier in Lisbon told Ana. Then we left.") == ["lisbon", "ana"]
    assert names("ACTION (Ben): call iPhone and GmbH") == ["action", "ben", "iphone", "gmbh"]
    assert names("Results: We have 5") == []
    assert names("会议在 Lisbon 举行") == ["lisbon"]


def test_precision_finds_numbers_and_names_in_the_source() -> None:
    source = Source(["The supplier in Lisbon wants 4 percent", "Ana"])
    assert source.precision("They say Lisbon and Porto want 4 or 90 percent") == (2, 4)
    assert source.precision("We heard Ana's plan") == (1, 1)
    assert Source(["An L_C_D_ screen."]).precision("They want an LCD or a CRT screen.") == (1, 2)


def test_evidence_is_valid_when_it_had_been_said() -> None:
    assert evidence_valid(Note("x", evidence=(1, 2)), written_at=2)
    assert not evidence_valid(Note("x", evidence=(3,)), written_at=2)
    assert not evidence_valid(Note("x", evidence=(-1,)), written_at=2)
    assert not evidence_valid(Note("x"), written_at=2)


@pytest.mark.parametrize(
    ("note", "false"),
    [
        (Note("Supplier wants 4 percent more money", evidence=(1,)), False),
        (Note("Supplier wants 90 percent more money", evidence=(1,)), True),
        (Note("Supplier of Porto wants more money", evidence=(1,)), True),
        (Note("Weather turned cold yesterday evening", evidence=(1,)), True),
        (Note("Supplier wants 4 percent more money", evidence=()), True),
    ],
)
def test_a_note_is_false_that_its_evidence_does_not_carry(note: Note, false: bool) -> None:
    meeting = Meeting("m", MEETING.lines)
    object.__setattr__(meeting, "common", frozenset())  # a text this short has no common words
    assert is_false(note, meeting, written_at=3) is false


def test_points_are_looked_for_in_notes_that_rest_on_their_lines() -> None:
    meeting = Meeting("m", MEETING.lines, points=MEETING.points)
    object.__setattr__(meeting, "common", frozenset())
    first, second = meeting.points
    early = Revision(1, "", (Note("Supplier asks for money", evidence=(1,)),))
    late = Revision(3, "", (*early.notes, Note("An offer", evidence=(0,))))
    made = Summarised([early, late])
    assert point_recall(first, early, meeting, anywhere=False) == pytest.approx(2 / 3)
    assert point_recall(second, late, meeting, anywhere=False) == 0
    assert point_recall(second, late, meeting, anywhere=True) == pytest.approx(1 / 3)
    assert point_delay(first, made, meeting) == 0
    assert point_delay(second, made, meeting) is None


def test_a_meeting_is_metered_as_a_whole() -> None:
    meeting = Meeting("m", MEETING.lines, reference="The supplier wants money.")
    texts = ("Supplier", "Supplier wants money")
    made = Summarised([Revision(1, texts[0]), Revision(3, texts[1])], prefilled=5, generated=3)
    found = meter(made, meeting, [0, 1, 3])
    assert found["curve"] == pytest.approx([0, 2 / 5, 6 / 7])
    assert found["r1_auc"] == pytest.approx((0 + (0 + 2 / 5) / 2 + (2 / 5 + 6 / 7) / 2) / 3)
    assert (found["words"], found["revisions"], found["prefilled"]) == (3, 2, 5)
    assert found["erasure"] == 0
    assert "evidence_valid" not in found


def test_checkpoints_lie_where_so_many_words_were_said() -> None:
    lines = tuple(Line(at, "word " * count) for at, count in enumerate((1, 1, 1, 1, 4)))
    assert Meeting("m", lines).checkpoints(2) == [3, 4]
    assert Meeting("m", lines).checkpoints(4) == [1, 3, 4, 4]
