"""Meters of translations on cases whose figures are known."""

from __future__ import annotations

import pytest

from pipelines.lab.eval.translation_meters import (
    corpus_bleu,
    corpus_chrf,
    faults,
    is_loop,
    kept_numbers,
    kept_terms,
    score,
    sentence_chrf,
)

SOURCE = "The review moves to Friday at ten in the big room"
FRENCH = "La revue est déplacée à vendredi à dix heures dans la grande salle"


def test_a_perfect_translation_scores_100() -> None:
    assert corpus_chrf([FRENCH], [FRENCH]) == pytest.approx(100)
    assert corpus_bleu([FRENCH], [FRENCH], "fr") == pytest.approx(100)
    assert sentence_chrf([FRENCH, "ZZZ"], [FRENCH, FRENCH]) == pytest.approx([100, 0], abs=1)
    assert corpus_bleu(["会议在周五举行。"], ["会议在周五举行。"], "zh") == pytest.approx(100)


def test_bleu_counts_characters_where_there_are_no_spaces() -> None:
    assert corpus_bleu(["会议在周五举行了"], ["会议在周五举行"], "zh") > 50
    assert corpus_bleu(["会议在周五举行了"], ["会议在周五举行"], "fr") < 50


@pytest.mark.parametrize(
    ("source", "reference", "output", "kept"),
    [
        ("40,000 euro", "40 000 euros", "40.000 euros", (1, 1)),
        ("40,000 euro", "40 000 euros", "400 euros", (0, 1)),
        ("5 of 12", "cinq sur 12", "5 sur 12", (1, 1)),
        ("12 people", "١٢ شخصا", "12 شخصا", (1, 1)),
        ("no number", "sans", "sans", (0, 0)),
    ],
)
def test_numbers_that_the_reference_keeps_must_be_kept(
    source: str, reference: str, output: str, kept: tuple[int, int]
) -> None:
    assert kept_numbers(source, reference, output) == kept


def test_terms_that_the_reference_takes_over_must_be_kept() -> None:
    source, reference = "Ana uses GPT4 in London", "Ana utilise GPT4 à Londres"
    assert kept_terms(source, reference, "Ana utilise GPT5 à Londres") == (1, 2)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (FRENCH, set()),
        ("  ", {"empty"}),
        (SOURCE, {"copy"}),
        ("We will meet each other on Friday morning at ten o'clock", {"language"}),
        ("会议在周五上午十点在大房间举行。", {"language"}),
        ("à dix heures à dix heures à dix heures à dix heures", {"loop"}),
        (f"{FRENCH}. " * 6, {"loop", "overlong"}),
    ],
)
def test_plain_faults_are_named(output: str, found: set[str]) -> None:
    assert faults(SOURCE, FRENCH, output, ("en", "fr")) == found


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("史密斯20岁。", set()),
        ("Sims 时年 20 岁。", set()),
        ("Сим было 20 лет.", {"language"}),
    ],
)
def test_a_name_that_the_reference_leaves_in_latin_letters_need_not_be(
    output: str, found: set[str]
) -> None:
    source, reference = "Sims was 20 years old.", "Sims 时年 20 岁。"
    assert faults(source, reference, output, ("en", "zh")) == found


def test_a_sentence_that_its_translator_left_alone_is_no_copy() -> None:
    name = "Attention is All You Need"
    assert faults(name, name, name, ("en", "fr")) == set()


@pytest.mark.parametrize("text", ["是的是的是的是的", "ha ha ha ha", "نعم نعم نعم نعم"])
def test_loops_in_any_script(text: str) -> None:
    assert is_loop(text)


def test_three_times_is_no_loop() -> None:
    assert not is_loop("ha ha ha")


def test_a_side_is_scored_as_a_whole() -> None:
    found = score([SOURCE, "I have 3"], [FRENCH, "J'en ai 3"], [FRENCH, ""], ("en", "fr"))
    assert (found["bad_output"], found["faults"]) == (0.5, {"empty": 1})
    assert (found["numbers_kept"], found["numbers"]) == (0.0, 1)
