"""Beginnings of prompts are run once; what follows them is what it would be without that."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.cache.prompts import LEAST, Beginning, PromptCache, common
from tests.engine import toy_decoder

LAYOUT = KvLayout(sinks=4, window=32, slack=8, branch_tokens=120)
START = list(range(40, 70))


def nothing(tokens: int) -> Beginning:
    return Beginning((torch.zeros(1, tokens, 1),), (torch.zeros(1, tokens, 1),))


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_what_two_prompts_begin_with(a: list[int], b: list[int]) -> None:
    found = common(tuple(a), tuple(b))
    assert a[:found] == b[:found]
    assert found == min(len(a), len(b)) or a[found] != b[found]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), max_size=30))
def test_it_is_bounded_and_serves_no_token_that_is_not_the_prompts(
    prompts: list[list[int]],
) -> None:
    cache = PromptCache(100)
    for owner, prompt in enumerate(prompts):
        kept, count = cache.find(owner, prompt)
        assert count < len(prompt)
        assert (kept is None) == (count == 0)
        assert count == 0 or count >= LEAST
        assert count == 0 or any(p[:count] == prompt[:count] for p in prompts[:owner])
        if wanted := cache.wanted(owner):
            assert wanted > count
            cache.keep(owner, nothing(wanted))
        assert cache.tokens <= 100


def test_the_second_prompt_is_kept_and_the_third_begins_with_it() -> None:
    decoder = toy_decoder()
    cache = decoder.new_cache(LAYOUT, slots=1, branches=3)
    slot = cache.allocate()
    logits = {}
    for number, tail in enumerate(([1, 2, 3], [9, 8, 7], [1, 2, 3])):
        branch = cache.fork(slot, alone=True)
        prompt = [*START, *tail]
        begun = cache.begin(branch, prompt)
        assert begun == (len(START) if number == 2 else 0)
        row = Row(slot, prompt[begun:], branch, num_logits=1)
        logits[number] = decoder.forward("decode", cache, [row])
        cache.keep_beginning(branch)
        cache.drop(branch)
    assert torch.allclose(logits[2], logits[0], atol=1e-5)
    assert int(logits[2].argmax()) == int(logits[0].argmax())


def test_prompts_that_go_on_alike_for_a_word_do_not_push_out_the_others() -> None:
    cache = PromptCache(100)
    for owner, tail in enumerate(([1, 2], [3, 4], [3, 5], [3, 6], [3, *range(100, 130), 7])):
        _, served = cache.find(owner, [*START, *tail])
        assert served == (0 if owner < 2 else len(START))
        if wanted := cache.wanted(owner):
            assert owner == 1
            cache.keep(owner, nothing(wanted))
    assert cache.tokens == len(START)


def test_a_fault_is_not_kept() -> None:
    cache = PromptCache(100)
    cache.find(0, [*START, 1])
    cache.find(1, [*START, 2])
    bad = nothing(cache.wanted(1))
    bad.keys[0][0, 3, 0] = float("nan")
    cache.keep(1, bad)
    assert cache.tokens == 0


@pytest.mark.parametrize("length", [LEAST - 1, 130])
def test_what_is_too_short_or_too_long_is_not_kept(length: int) -> None:
    cache = PromptCache(100)
    for owner in range(2):
        cache.find(owner, [5] * length + [owner])
        assert cache.wanted(owner) == 0
