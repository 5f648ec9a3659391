"""Numbers with a word for their size, in any language that CLDR describes."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from operators import quantities

TAGS = [
    "af", "am", "ar", "ar-EG", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "en-IN", "es", "et",
    "eu", "fa", "fi", "fil", "fr", "fr-CA", "gu", "he", "hi", "hr", "hu", "hy", "id", "is", "it", "ja",
    "ka", "kk", "km", "kn", "ko", "lo", "lt", "lv", "mk", "ml", "mn", "mr", "ms", "my", "nb", "ne",
    "nl", "pa", "pl", "ps", "pt", "pt-BR", "ro", "ru", "si", "sk", "sl", "so", "sq", "sr", "sr-Latn",
    "sv", "sw", "ta", "te", "th", "tr", "uk", "ur", "uz", "vi", "yo", "zh", "zh-Hant", "zu",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "text", "found"),
    [
        ("en", "3.1 million, NBC 2,940 thousand.", {"3.1 million": 3.1e6, "2,940 thousand": 2.94e6}),
        ("en", "a 5-million-dollar house", {"5-million": 5e6}),
        ("en", "2 millionaires ran a 5K in 1,200 steps", {}),
        ("de", "3,1 Mio. Euro und 2 Milliarden", {"3,1 Mio.": 3.1e6, "2 Milliarden": 2e9}),
        ("fr", "5,69 millions", {"5,69 millions": 5.69e6}),
        ("es", "2.500 millones y 2 mil millones", {"2.500 millones": 2.5e9, "2 mil millones": 2e9}),
        ("zh", "共310 万人、1万亿元", {"310 万": 3.1e6, "1万亿": 1e12}),
        ("hi", "31 लाख और 2 करोड़", {"31 लाख": 3.1e6, "2 करोड़": 2e7}),
        ("ar", "٣٫١ مليون", {"٣٫١ مليون": 3.1e6}),
        ("he", "\u200f3.1 מיליון", {"3.1 מיליון": 3.1e6}),
        ("sw", "milioni 3.1 na elfu 20", {"milioni 3.1": 3.1e6, "elfu 20": 2e4}),
        ("ko", "310만명", {"310만": 3.1e6}),
    ],
)  # fmt: skip
def test_a_number_with_its_word_has_a_value(tag: str, text: str, found: dict[str, float]) -> None:
    made = quantities.sized(text, tag)
    assert {number.text: float(number.values[0]) for number in made} == found
    assert all(text[number.start : number.end] == number.text for number in made)


def test_three_digits_behind_a_mark_may_be_thousands() -> None:
    (german,) = quantities.sized("1.200 Milliarden", "de")
    assert german.values == (Decimal(1_200 * 10**9), Decimal("1.2") * 10**9)
    (english,) = quantities.sized("1.200 billion", "en")
    assert english.values == german.values[::-1]
    (plain,) = quantities.sized("3.1 million", "en")
    assert plain.values == (Decimal(3_100_000),), "never 31 million"


@pytest.mark.parametrize(
    ("tag", "text", "value"),
    [
        ("zh", "3亿1000万", 310_000_000),
        ("zh", "已有550多万人", 5_500_000),
        ("zh", "1万亿元", 10**12),
        ("en", "3,100,000 of them", 3_100_000),
        ("fr", "3 100 000", 3_100_000),
        ("fr", "3,1 M€", 3_100_000),
        ("de", "3.100.000", 3_100_000),
        ("my", "ကုဋေ ၁ သိန်း", 10**12),  # words before and behind
        ("si", "ට්\u200dරිලියන 1", 10**12),  # with a joiner in its word
    ],
)
def test_all_that_a_texts_numbers_may_mean(tag: str, text: str, value: int) -> None:
    assert Decimal(value) in quantities.values(text, tag)


@given(st.integers(1, 99_999), st.integers(0, 9), st.sampled_from(TAGS))
def test_what_is_written_is_read_as_the_same_value(digits: int, power: int, tag: str) -> None:
    value = Decimal(digits * 10**power)
    text = quantities.written(value, tag)
    assume(any(char.isdigit() for char in text))  # French writes one thousand as "mille"
    assert value in quantities.values(text, tag), text
    assert value in quantities.values(f"Ab {text}.", tag)


@given(st.text(), st.sampled_from(TAGS))
def test_any_text_can_be_read(text: str, tag: str) -> None:
    for number in quantities.sized(text, tag):
        assert text[number.start : number.end] == number.text
        assert number.size > 1
    quantities.values(text, tag)


@pytest.mark.parametrize("digits", [30, 5_000])
def test_a_very_long_number_does_no_harm(digits: int) -> None:
    text = f"It has {'9' * digits} million parts."
    found = quantities.sized(text, "en")
    assert [quantities.written(number.values[0], "zh") for number in found if digits > 30] == []
    assert len(found) == (digits == 30)
