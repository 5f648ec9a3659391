"""Small measures of a text in any language."""

from __future__ import annotations

import pytest

from operators import languages
from operators.text import (
    capitalised,
    cased,
    is_question,
    longest_copy,
    numbers,
    script,
    similarity,
    units,
)


def test_names_of_a_sentence() -> None:
    assert capitalised("Then Ana's team in Porto meets, I'll say, on Friday.") == [
        *("Ana", "Porto", "Friday")
    ]
    assert capitalised("评审改到周五10点。") == []
    assert (cased("Привет"), cased("今日は"), cased("नमस्ते")) == (True, False, False)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The budget is 42,500. Who pays for it?", 2),
        ("Das Treffen ist am 14. März. Dann entscheidet Ana.", 2),
        ("Er sagte: „Ja.“ Dann ging er.", 2),
        ("预算是42,500。谁付钱？“我付。”他说。", 4),
        ("الميزانية 42,500. من يدفع؟", 2),
        ("बजट 42,500 है। भुगतान कौन करेगा?", 2),
    ],
)
def test_sentences_with_numbers_dates_and_quotes_inside(text: str, pieces: int) -> None:
    found = languages.sentences(text)
    assert len([piece for piece in found if piece.strip()]) == pieces
    assert "".join(found) == text


def test_an_opening_mark_stays_with_what_it_opens() -> None:
    assert languages.sentences("谁付钱？“我付。”") == ["谁付钱？", "“我付。”"]
    assert languages.sentences("Ja.“ Nein. “") == ["Ja.“ ", "Nein. “"]
    assert languages.sentences("“") == ["“"]


def test_a_question_is_known_by_its_mark_and_a_semicolon_is_none() -> None:
    asked = [
        "Who pays?",
        "谁付钱？",
        "من يدفع؟",
        "Ποιος πληρώνει\u037e",
        "Er fragte: „Wer zahlt?“",
        "他问：“谁？”",
    ]
    assert all(map(is_question, asked))
    assert not any(map(is_question, ["We pay;", "We pay.", "“Who?” was asked.", ""]))


def test_words_numbers_and_scripts_of_any_language() -> None:
    assert units("Naïve café, 40,000!")[:2] == ["naïve", "café"]
    assert units("报告周五") == ["报告", "告周", "周五"]
    assert units("करूँगा שָׁלוֹם") == ["करूँगा", "שָׁלוֹם"], "a mark belongs to its letter"
    assert numbers("40,000 or 40 000 or ٤٠٠٠٠ or 4") == {"40000", "4"}
    assert (script("今日は"), script("Привет"), script("12 %")) == ("CJK", "CYRILLIC", "")
    assert similarity("Sie moves the labels", "she move a label") > 0.5
    assert longest_copy("a b c d", "x b c d y") == 3
