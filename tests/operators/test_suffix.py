"""The suffix index: the longest earlier match, newest first, bounded, and what it forgets."""

from __future__ import annotations

import random

import pytest

from operators.decoding.suffix import LONGEST, SHORTEST, SuffixIndex


def plainly(text: list[int], tail: list[int], k: int) -> tuple[int, list[int]]:
    """The longest end of ``tail`` that occurs in ``text`` with a token behind it, newest first."""
    for length in range(min(len(tail), LONGEST), SHORTEST - 1, -1):
        want = tail[-length:]
        for at in range(len(text) - length - 1, -1, -1):
            if text[at : at + length] == want:
                return length, text[at + length : at + length + k]
    return 0, []


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("vocabulary", [2, 3, 20])
def test_it_finds_what_a_plain_search_finds(seed: int, vocabulary: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(vocabulary) for _ in range(160)]
    index = SuffixIndex(200)
    for at, token in enumerate(text):
        index.extend([token])
        tail = text[max(0, at - rng.randrange(40)) : at + 1]
        got, want = index.lookup(tail, 5), plainly(text[: at + 1], tail, 5)
        assert got == want


def test_it_is_bounded_and_forgets() -> None:
    rng, window = random.Random(1), 100
    index = SuffixIndex(window)
    index.extend([900, 901, 902, 903])
    assert index.lookup([900, 901], 2) == (2, [902, 903])
    most = 0
    for _ in range(40):
        index.extend(rng.randrange(50) for _ in range(window))
        most = max(most, index.entries)
        assert len(index) <= 2 * window
    assert most <= 2 * (2 * window + 2 * LONGEST) + 2
    assert index.lookup([900, 901], 2) == (0, [])


def test_the_last_window_is_always_there() -> None:
    rng, window = random.Random(2), 64
    text = [rng.randrange(400) for _ in range(1000)]
    index = SuffixIndex(window)
    for at, token in enumerate(text):
        index.extend([token])
        assert index.tokens == text[max(0, at + 1 - window) : at + 1]
        if at > window and at % 7 == 0:
            start = at - rng.randrange(8, window - 4)
            length, found = index.lookup(text[start : start + 4], 3)
            assert length == 4
            assert found == text[start + 4 : start + 7]


def test_its_tokens_give_it_back() -> None:
    index, again = SuffixIndex(50), SuffixIndex(50)
    index.extend(at * at % 17 for at in range(400))
    again.extend(index.tokens)
    text = index.tokens
    for start in range(0, 40, 3):
        found = again.lookup(text[start : start + 6], 4)
        assert found == plainly(text, text[start : start + 6], 4)
