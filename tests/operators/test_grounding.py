"""Whether a note says what its turn says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from operators.events import LedgerItem
from operators.tasks.grounding import (
    Draft,
    Habits,
    Known,
    Turn,
    checked,
    lost_names,
    problem_of,
    says_it_best,
)
from tests.operators.test_minutes import ANA, MEETINGS, view

MARKED = Habits.of(["Yes. Who pays?", "Um, the um case."])


def test_a_note_of_a_question_is_a_question() -> None:
    """A question of forty minutes became "Industrial Designer has forty minutes"."""
    said = "Do we have forty minutes for this discussion?"
    draft = Draft(Turn("Ana", said, 9, []), "open_question", 1.0, "Ana has forty minutes for this.")
    assert problem_of(draft, ANA) == "no_question"
    draft.problem = "no_question"
    assert checked(draft, Counter())
    assert draft.text == said


@pytest.mark.parametrize(
    ("said", "stated", "asked"),
    [
        (
            "Is the plan still in line with what we promised in spring,",  # cut there, so no mark
            "Ana stated that the plan is in line with what was promised in spring.",
            "Is the plan in line with what was promised in spring?",
        ),
        ("谁来支付标签的费用", "有人支付标签的费用。", "谁支付标签的费用？"),
        ('लेबल का "खर्च" कौन देगा', 'लेबल का "खर्च" कोई देगा।', 'लेबल का "खर्च" कौन देगा?'),
        ("من يدفع ثمن الملصقات", "يدفع أحدهم ثمن الملصقات.", "من يدفع ثمن هذه الملصقات؟"),
    ],
)
def test_what_is_asked_is_not_stated(said: str, stated: str, asked: str) -> None:
    turn = Turn("Ana", said, 12, [])
    assert problem_of(Draft(turn, "open_question", 0.8, stated), ANA) == "no_question"
    assert problem_of(Draft(turn, "open_question", 0.8, asked), ANA) == ""


@pytest.mark.parametrize(
    ("said", "note", "moved"),
    [
        (
            "Around 6.8 million transactions will be affected by 7904.",
            "7904 transactions will be affected by 6.8 million.",
            True,
        ),
        (
            "Around 6.8 million transactions will be affected by 7904.",
            "EIP 7904 will affect 6.8 million transactions.",
            False,
        ),
        ("We sold 40 chairs and 12 tables.", "12 tables and 40 chairs were sold.", False),
        ("We sold 40 chairs and 12 tables.", "12 chairs and 40 tables were sold.", True),
        ("It takes between 3 and 5 days.", "It takes 3 days to 5 days.", False),
        ("The meeting on 5 May is at 10.", "The meeting is at 10 on 5 May.", False),
        ("Wir haben 40 Stühle und 12 Tische.", "Es gibt 12 Stühle und 40 Tische.", True),
        ("لدينا ٣ أقلام و ٥ كتب.", "لدينا ٥ أقلام و ٣ كتب.", True),
        ("४० कुर्सियाँ और १२ मेज़ें हैं।", "१२ कुर्सियाँ और ४० मेज़ें हैं।", True),
        ('"Haus 40" hat 12 Tische.', '12 Tische hat "Haus 40".', False),
        ("5人买了3本书。", "3本书由5人买了。", False),  # no words to tell by
    ],
)
def test_a_number_counts_what_it_counted(said: str, note: str, moved: bool) -> None:
    draft = Draft(Turn("Ana", said, 12, []), "topic", 0.8, note)
    assert (problem_of(draft, ANA) == "number_moved") == moved


@pytest.mark.parametrize(
    ("said", "note", "wrong"),
    [
        ("Wir untersuchen die Sprachmodelle.", "Speachmodelle werden untersucht.", True),
        ("Das ist gut abgedeckt worden.", "Es ist gut abbgedeckt worden.", True),
        ("The supplier is Shangbin now.", "The supplier is Schangbin now.", True),
        ("Das politische Ziel ist klar.", "Das Ziel ist политischer Art, klar.", True),
        ("We fix the labelling of the box.", "The labeling of the box is fixed.", False),
        ("Wir werden das Formular einreichen.", "Das Formular ist einzureichen.", False),
        ("The strategy is good for firms.", "A strategic plan is good for firms.", False),
        ("نراجع المشروع اليوم هنا.", "نراجع والمشروع اليوم هنا.", False),  # "and" is a prefix
    ],
)
def test_a_word_of_the_turn_is_spelled_as_there(said: str, note: str, wrong: bool) -> None:
    """The limit on copies made the model write the next best letters of a word."""
    long = f"{said} {' '.join('abcdefghijklmnopqrs')}"  # a short turn's names are checked before
    draft = Draft(Turn("Ana", long, 30, []), "topic", 0.8, note)
    assert (problem_of(draft, ANA) == "misspelled") == wrong


@pytest.mark.parametrize(
    ("said", "note", "stands"),
    [
        (
            "We changed our minds about the Falcon trial: it runs in Porto instead of Lisbon.",
            "The Falcon trial runs in Porto.",
            True,
        ),
        (
            "We changed our minds about the Falcon trial: it runs in Porto instead of Lisbon.",
            "We changed our minds, it runs in Porto instead of Lisbon.",
            False,  # which trial?
        ),
        (
            "Das Formular für Lisbon hat Zeit: Falcon reicht es bis zum 28. Juni in Porto ein.",
            "Das Formular für Lisbon hat bis zum 28. Juni Zeit, in Porto.",
            False,  # who?
        ),
    ],
)
def test_only_what_was_before_may_be_left_out_of_a_change(
    said: str, note: str, stands: bool
) -> None:
    was = LedgerItem(id="1", kind="decision", text="The Falcon trial is in Lisbon.")
    turn = Turn("Ana", said, 20, [], changes=was)
    draft = Draft(turn, "decision", 0.9, note)
    draft.problem = problem_of(draft, ANA)
    assert draft.problem == "name_lost"
    assert checked(draft, Counter())
    assert (draft.text == note) == stands


@pytest.mark.parametrize(
    ("kind", "changes", "most"),
    [("decision", False, 18), ("topic", False, 12), ("topic", True, 25)],
)
def test_how_long_a_turn_may_be_to_stand_for_itself(kind: Any, changes: bool, most: int) -> None:
    was = LedgerItem(id="1", kind=kind, text="Rita came in 2026.") if changes else None
    for count in (most, most + 1):
        said = " ".join(["Rita", *("word" for _ in range(count - 3)), "in", "2027"]) + "."
        turn = Turn("Ana", said, 30, [], changes=was)
        draft = Draft(turn, kind, 0.9, "Nothing.", problem="unsupported")
        assert checked(draft, Counter()) == (count == most)


@pytest.mark.parametrize(
    ("kind", "said", "best"),
    [
        ("open_question", "Who pays for the blue labels?", True),
        ("open_question", "Who pays for the blue labels of the second batch?", False),
        ("open_question", "Do you have any i idea about the costs?", False),  # a false start
        ("open_question", "I wonder who pays for the labels.", False),
        ("decision", "We will not use teletext.", True),
        ("decision", "We will not use teletext in the first release of it.", False),
        ("action_item", "Ben calls the supplier on Friday.", True),
        ("action_item", "I call the supplier on Friday.", False),
        ("topic", "I find Bath too loud.", False),
    ],
)
def test_a_short_clean_turn_is_its_own_note(kind: Any, said: str, best: bool) -> None:
    turn = Turn("Ana", said, 9, [], language="en")
    draft = Draft(turn, kind, 1.0, owner="Ben")
    assert says_it_best(draft) == best
    assert not says_it_best(replace(draft, wanted="fr"))


def test_a_change_too_long_to_quote_may_lose_a_name_rather_than_be_lost() -> None:
    """Refused, it would leave the old note standing."""
    was = LedgerItem(id="1", kind="decision", text="The trial of Ryan is in Lisbon.")
    said = f"The trial of Ryan moves to Porto, {' '.join('abcdefghijklmnopqrs')} and so on."
    assert len(said.split()) > 25
    turn = Turn("Ana", said, 40, [], changes=was)
    assert problem_of(Draft(turn, "decision", 0.9, "The trial of Ryan moves."), ANA) == ""


def test_a_long_turn_whose_sentence_fails_is_refused_and_counted() -> None:
    said = " ".join(f"{n} talked about this and that," for n in "abcdefgh") + " so it is decided."
    refused: Counter[str] = Counter()
    draft = Draft(Turn("Ana", said, 99, []), "decision", 1.0, text="Nothing like it at all.")
    draft.problem = problem_of(draft, ANA)
    assert not checked(draft, refused)
    assert refused == {"unsupported": 1}


@pytest.mark.parametrize(
    ("said", "note", "problem", "language"),
    [
        ("The freeze is on the 22nd.", "The freeze is on February 22nd.", "date_added", "en"),
        ("The freeze is on the 22nd.", "February 22nd is the freeze.", "date_added", "en"),
        ("The code freeze is on Feb 22nd.", "On February 22nd the code freeze is.", "", "en"),
        ("The freeze may be on the 22nd.", "On the 22nd the freeze may be.", "", "en"),
        ("Le gel est le 22, dit-elle.", "Le gel est le 22 février.", "date_added", "fr"),
        ("Le gel est le vendredi 22.", "Le gel est vendredi le 22.", "", "fr"),
        ("产品评审改到周五。", "产品评审改到星期五。", "", "zh"),
        ("评审改到周五。", "评审改到星期四。", "date_added", "zh"),
        ("Встреча в пятницу.", "Пятница: встреча.", "", "ru"),
        ("We test the sensor again.", "The sensor is tested again in Halden.", "name_added", "en"),
        ("We test the sensor again.", "Ana: The sensor is tested again.", "", "en"),
        ("They like a little L_C_D_ screen on it.", "They like a little LCD screen.", "", "en"),
        ("They like a little L.C.D. screen on it.", "They like a little LCD screen.", "", "en"),
        ("We test Ana's sensor again.", "The sensor of Ana is tested again.", "", "en"),
    ],
)  # fmt: skip
def test_a_day_a_month_or_a_name_that_was_not_said_is_no_evidence(
    said: str, note: str, problem: str, language: str
) -> None:
    """ "February 22nd" was written where only "22nd" had been said."""
    turn = Turn("Ana", said, 8, [], language=language)
    draft = Draft(turn, "topic", 1.0, text=note)
    assert problem_of(draft, ANA) == problem


def test_a_day_is_checked_in_a_translation_too() -> None:
    turn = Turn("Ana", "Die Abnahme ist am Freitag.", 8, [], language="de")
    right, wrong = (
        Draft(turn, "topic", 1.0, text=text, wanted="en")
        for text in ("The acceptance test is on Friday.", "The acceptance test is on Tuesday.")
    )
    assert problem_of(right, ANA) == ""
    assert problem_of(wrong, ANA) == "date_added"


def test_where_capitals_mark_nouns_a_new_noun_is_no_new_name() -> None:
    lines = ["Wir verschieben die Besprechung auf Freitag um zehn.", "Der Termin passt der Gruppe."]
    known = Known.of(view(lines))
    assert not known.named
    turn = Turn("Ana", lines[0], 8, [], language="de")
    note = "Laut Beschluss verschieben wir die Besprechung auf Freitag um zehn."
    assert problem_of(Draft(turn, "topic", 1.0, text=note), known) == ""
    assert Known.of(view(MEETINGS["en"])).named


def test_a_note_that_says_nothing_of_its_turn_is_none() -> None:
    """ "Project Manager asked a question." """
    said = (
        "So what I would like to know before we go on is whether the case of the remote could be made"
        " of rubber, and what that would do to the price we can ask for it in the end?"
    )
    turn = Turn("Project Manager", said, 40, [])
    known = Known(("Project Manager",), named=True)
    empty = Draft(turn, "open_question", 1.0, text="Project Manager asked.")
    good = Draft(turn, "open_question", 1.0, text="What would a case of rubber cost?")
    assert problem_of(replace(empty, kind="topic"), known) == "content_lost"
    assert problem_of(empty, known) == "no_question"
    assert problem_of(good, known) == ""


def test_a_word_that_also_stands_without_a_capital_is_no_name() -> None:
    """ "Um" had to stand in the note."""
    said = "So Um we pick the case of Ryan."
    draft = Draft(Turn("Ana", said, 9, [], habits=MARKED), "decision", 1.0)
    draft.text = "We pick the case of Ryan."
    assert problem_of(draft, ANA) == ""
    draft.text = "We pick the case."
    assert problem_of(draft, ANA) == "name_lost"
    assert lost_names(draft) == ["Ryan"]


def test_copies_of_long_turns_are_no_notes() -> None:
    said = " ".join(f"word{n}" for n in range(40))
    draft = Draft(Turn("Ana", said, 40, []), "topic", 1.0, text=" ".join(said.split()[:12]))
    assert problem_of(draft, ANA) == "copied"
