"""Which turns are worth a note, and of what kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operators.tasks.grounding import (
    NO_HABITS,
    Habits,
    Turn,
)
from operators.tasks.minutes import Names, due_in
from operators.tasks.selection import Usual, calibrated, select
from operators.text import (
    is_question,
)
from tests.engine import ToyTokenizer
from tests.operators.test_minutes import FLAT, view

MARKED = Habits.of(["Yes. Who pays?", "Um, the um case."])


def test_a_name_may_come_often_and_a_pronoun_once() -> None:
    """In a short stretch a person named twice was taken for a pronoun, and the task for the
    speaker's."""
    lines = ["Mireille files the form.", "Then Mireille calls, and he waits.", "He is late."]
    names = Names(view(lines))
    assert names.may_be("Mireille")
    assert not names.may_be("He"), "it is also written small"
    assert not names.may_be("Mireille and he")
    assert names.may_be("form"), "a role, such as the supplier, may be one"
    assert Names(view(["王芳明天发合同。", "好的。"])).may_be("王芳")


class ByRank(ToyTokenizer):
    """A token a word, the common ones first."""

    def encode(self, text: str) -> list[int]:
        common = [
            "i",
            "ll",
            "do",
            "that",
            "next",
            "time",
            "we",
            "the",
            "is",
            "of",
            "are",
            "any",
            "more",
        ]
        return [common.index(w) if w in common else 50_000 for w in text.split()]


@pytest.mark.parametrize(
    ("said", "telling"),
    [
        ("I'll do that next time.", False),
        ("I'll do the labels next time.", True),
        ("We do that 3 more.", True),
        ("Yeah, is that the next time?", False),  # it is in every other turn
    ],
)
def test_a_turn_of_usual_words_is_not_noted(said: str, telling: bool) -> None:
    """ "ACTION: Project Manager will do that next time." """
    seen = view(["Yeah, the labels.", "Yeah.", "Yeah, that.", "Yeah, we do.", "Yeah."])
    assert Usual(seen, ByRank()).telling(said) == telling
    assert Usual(seen, ToyTokenizer()).telling("I'll do that next time.")


def test_what_is_rather_a_task_has_a_place_among_the_topics() -> None:
    """A German task of no sure kind came behind whatever a talk had to tell."""
    told = [Turn("Ana", f"x{n}", 9, [], weights=(0, 0.9, 0, 0.1, 0)) for n in "abcdef"]
    task = Turn("Ana", "Oskar", 9, [], weights=(0.05, 0.3, 0.2, 0.4, 0.05))
    kept = select([*told, task])
    assert len(kept) < len(told)
    assert task in [draft.turn for draft in kept]


def test_what_is_sure_small_talk_or_unsure_gets_no_note() -> None:
    turns = [Turn("Ana", "x", 9, [], weights=w) for w in (FLAT, (0.9, 0.1, 0, 0, 0))]
    turns.append(Turn("Ana", "Um wi on a what?", 9, [], weights=(0.67, 0.04, 0, 0.01, 0.28)))
    assert select(turns) == []
    (asked,) = select([replace(turns[2], weights=(0.02, 0.08, 0.22, 0.3, 0.38))])
    assert asked.kind == "open_question"


def test_what_is_no_small_talk_and_of_no_sure_kind_is_a_topic() -> None:
    """A task between task and information fell between both limits: "Oskar ruft am Freitag die Werft in
    Bergen an." """
    said = "Oskar ruft am Freitag die Werft in Bergen an."
    (draft,) = select([Turn("Ana", said, 12, [], weights=(0.09, 0.34, 0.08, 0.4, 0.09))])
    assert draft.kind == "topic"
    assert select([Turn("Ana", said, 12, [], weights=(0.3, 0.2, 0.05, 0.4, 0.05))]) == []
    asks = (0.09, 0.3, 0.16, 0.16, 0.29)
    assert select([Turn("Ana", said, 12, [], weights=asks)]) == []


@pytest.mark.parametrize(
    ("said", "habits", "kind"),
    [
        ("Did we decide that rubber is important?", MARKED, None),
        ("The question is that item 8 be agreed.", MARKED, "decision"),
        ("The question is that item 8 be agreed.", NO_HABITS, "open_question"),
        ("and the question is that item 8", MARKED, "open_question"),  # no whole sentence
        ("问题是第8项是否通过。", MARKED, "decision"),
        ("प्रश्न यह है कि मद 8 स्वीकृत हो।", MARKED, "decision"),
        ("السؤال هو أن يُقر البند 8.", MARKED, "decision"),
        ("هل تقرر أن المطاط مهم؟", MARKED, None),
        ("ラベルの費用は誰が払いますか。", MARKED, "open_question"),  # か asks
    ],
)
def test_what_is_asked_is_no_decision_and_what_is_stated_no_question(
    said: str, habits: Habits, kind: str | None
) -> None:
    """ "QUESTION: Lynne agreed to amendment 8." and "We decided that rubber is important to us." """
    asked = (0.01, 0.09, 0.7, 0.01, 0.19)
    stated = (0.02, 0.03, 0.62, 0.01, 0.68)
    turn = Turn("Ana", said, 9, [], weights=asked if is_question(said) else stated, habits=habits)
    assert [draft.kind for draft in select([turn])] == ([kind] if kind else [])


@pytest.mark.parametrize(("weight", "kept"), [(0.7, 6), (0.9, 9)])
def test_what_the_judge_is_certain_of_is_taken_however_much_it_is(weight: float, kept: int) -> None:
    rest = (1 - weight) / 4
    turns = [
        Turn("Ana", f"We buy pump number {n}.", 5, [], weights=(rest, rest, weight, rest, rest))
        for n in range(9)
    ]
    assert len(select(turns)) == kept


def test_calibration_divides_by_what_a_blank_turn_gets() -> None:
    prior = (0.4, 0.3, 0.1, 0.1, 0.1)
    assert calibrated(prior, prior) == pytest.approx(FLAT)
    assert calibrated((0.3, 0.3, 0.2, 0.1, 0.1), prior)[2] == max(
        calibrated((0.3, 0.3, 0.2, 0.1, 0.1), prior)
    )


def test_a_date_is_taken_only_word_for_word() -> None:
    assert due_in("Wednesday", "before wednesday") == "Wednesday"
    assert due_in("周五之前", "我会在周五之前把报告发给大家。") == "周五之前"
    assert due_in("next month", "before Wednesday") is None
    assert due_in("-", "before Wednesday") is None
    assert due_in("«बुधवार से पहले».", "मैं बुधवार से पहले आऊँगा।") == "बुधवार से पहले"
