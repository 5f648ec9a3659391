"""Words, numbers and stems of any script, on texts counted by hand."""

from __future__ import annotations

import pytest

from pipelines.lab.eval.words import (
    common_stems,
    content,
    number_forms,
    numbers,
    sentences,
    stems,
    units,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't pay 3.5 % — OK?", ["don't", "pay", "3.5", "ok"]),
        ("Straße im März", ["strasse", "im", "märz"]),
        ("会议在周五。", ["会", "议", "在", "周", "五"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("カタカナの本", ["カタカナ", "の", "本"]),
        ("— … !", []),
    ],
)
def test_units_are_words_or_characters_where_there_are_no_spaces(
    text: str, expected: list[str]
) -> None:
    assert units(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,318 answers and 42.500 euro", ["1318", "42500"]),
        ("3,5 or 3.5", ["35", "35"]),
        ("by March 14.", ["14"]),
        ("٤٢ و ४२", ["42", "42"]),
        ("none", []),
    ],
)
def test_numbers_are_read_without_separators_in_any_script(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected


def test_a_number_is_recognised_with_and_without_its_separators() -> None:
    assert number_forms("40 000 euros, 10.30") == {"40000", "40", "000", "1030", "10", "30"}


def test_stems_are_first_letters_or_pairs_of_characters() -> None:
    assert stems("Launching the launch") == ["launc", "the", "launc"]
    assert stems("会议在 A 周五") == ["会议", "议在", "a", "周五"]


def test_sentences_end_at_marks_of_any_script_and_at_lines() -> None:
    assert sentences("One. Two? 三。四！\nFive") == ["One.", "Two?", "三。", "四！", "Five"]
    assert sentences("नमस्ते। अलविदा।") == ["नमस्ते।", "अलविदा।"]
    assert sentences("It costs 3.5 euro.") == ["It costs 3.5 euro."]


def test_content_leaves_out_what_a_transcript_says_all_the_time() -> None:
    common = common_stems(["the the the the budget", "the a the"], count=1)
    assert content("The budget of a", common) == {"budge", "of"}
