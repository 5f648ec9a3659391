"""Speculation changes speed, never text: any drafter, any k, across wraps and rollbacks."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.cache.kv_cache import Branch, StreamSlot
from operators.decoding.drafters import (
    CombinedDrafter,
    Draft,
    Drafter,
    NgramDrafter,
    NgramIndex,
    PreviousOutputDrafter,
)
from operators.decoding.generation import NO_DRAFT, Decoding, Generation, is_looping
from operators.decoding.suffix import SuffixIndex
from operators.decoding.verify import NOTHING, accept_greedy, most_likely
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import SINKS, Driver, ToyTokenizer, layout, random_tokens, toy_decoder
from tests.toy import toy_model

EOS = ToyTokenizer.eos_ids


class JunkDrafter:
    """Proposes random tokens, and now and then the truth, so that every outcome occurs."""

    def __init__(self, truth: Sequence[int], seed: int) -> None:
        self.truth, self.at, self.rng = list(truth), 0, random.Random(seed)

    def propose(self, k: int) -> Draft:
        draft = self.truth[self.at : self.at + k]
        draft += [self.rng.randrange(256) for _ in range(k - len(draft))]
        if self.rng.random() < 0.6 and draft:
            draft[self.rng.randrange(len(draft))] = self.rng.randrange(256)
        return Draft(draft, "junk", "junk")

    def accept(self, tokens: Sequence[int]) -> None:
        self.at += len(tokens)


def generate(
    driver: Driver,
    slot: StreamSlot,
    prompt: list[int],
    drafter: Drafter | None,
    k: int,
    count: int = 40,
    eos: frozenset[int] = EOS,
) -> Generation:
    """Run one answer to its end with verify blocks of up to k drafts; drops its branch."""
    decoding = Decoding(make_drafters=lambda: [drafter] if drafter is not None else [])
    generation = Generation("test", prompt, count, eos, decoding)
    generation.start(driver.cache.fork(slot))
    while generation.prefilling:
        row = generation.prompt_row(7)
        logits = driver.model.forward("prefill", driver.cache, [row])
        generation.prompt_done(len(row.tokens), logits if row.num_logits else None)
    while not generation.finish_reason:
        offers = generation.candidates(min(k, generation.draft_room(driver.cache)))
        row = generation.verify_row(next(iter(offers.values()), NO_DRAFT))
        generation.verified(driver.model.forward("decode", driver.cache, [row]))
    driver.cache.drop(generation.branch)
    return generation


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("k", [1, 2, 5, 16])
@pytest.mark.parametrize("kind", ["junk", "oracle", "ngram", "suffix", "previous", "combined"])
def test_any_drafter_and_length_gives_plain_greedy_text(kind: str, k: int) -> None:
    driver = Driver(toy_decoder(), layout(branch=64))
    reference = StreamReference(toy_model(), SINKS, window=24)
    slot, rng, index = driver.stream(SINKS), random.Random(1), NgramIndex(24)
    suffixes = SuffixIndex(24)
    accepted = 0
    for turn in range(4):
        history = random_tokens(31, seed=turn)  # wraps the ring again and again
        driver.feed(slot, history, rng)
        reference.ingest(history)
        index.extend(history)
        suffixes.extend(history)
        prompt = random_tokens(9, seed=50 + turn)
        want = reference.fork().greedy(prompt, 40, eos_id=next(iter(EOS)))
        text = [t for t in want if t not in EOS]
        drafter: Drafter = {
            "junk": JunkDrafter(text, seed=turn),
            "oracle": PreviousOutputDrafter(text),
            "ngram": NgramDrafter(index, prompt, 64),
            "suffix": NgramDrafter(suffixes, prompt, 64),
            "previous": PreviousOutputDrafter([*text[:7], 0, *text[9:]]),
            "combined": CombinedDrafter(
                [PreviousOutputDrafter(text[::2]), NgramDrafter(index, prompt, 64)]
            ),
        }[kind]
        got = generate(driver, slot, prompt, drafter, k)
        plain = generate(driver, slot, prompt, None, 0)
        assert (got.output, got.finish_reason) == (plain.output, plain.finish_reason)
        loops = plain.finish_reason == "repetition"  # the reference does not know that rule
        assert got.output == (text[: len(got.output)] if loops else text)
        accepted += got.accepted
    if kind in ("junk", "oracle", "previous"):
        assert accepted > 0, "nothing was ever accepted: the test would prove nothing"


@pytest.mark.usefixtures("device")
def test_accepting_everything_takes_one_forward_per_k_plus_one_tokens() -> None:
    driver = Driver(toy_decoder(), layout(branch=64))
    slot = driver.stream(SINKS)
    driver.feed(slot, random_tokens(40, seed=3), random.Random(1))
    prompt = random_tokens(5, seed=4)
    never = frozenset[int]()
    plain = generate(driver, slot, prompt, None, 0, count=21, eos=never)
    drafter = PreviousOutputDrafter(plain.output)
    fast = generate(driver, slot, prompt, drafter, 4, count=21, eos=never)
    assert fast.output == plain.output
    assert plain.verifies == len(plain.output) == 21
    assert fast.verifies == 5  # the prompt's own token, then 4 blocks of 4 drafts and a bonus


@pytest.mark.parametrize("k", [0, 1, 3, 7, 16])
def test_a_loop_ends_an_answer_at_the_same_token_with_any_draft(k: int) -> None:
    """It was looked for once per verify block: a drafted answer ran on by up to k tokens."""
    script = [1, 2, 3, *[7, 8] * 20]
    generation = scripted(script, k, max_tokens=40)
    assert generation.finish_reason == "repetition"
    assert generation.output == script[:27]


@pytest.mark.parametrize("k", [0, 1, 4, 9])
def test_an_answer_of_full_length_is_cut_even_if_its_end_was_drafted(k: int) -> None:
    generation = scripted([*range(10), next(iter(EOS))], k, max_tokens=10)
    assert (generation.output, generation.finish_reason) == (list(range(10)), "length")


def scripted(script: list[int], k: int, max_tokens: int) -> Generation:
    """An answer whose target says ``script``, drafted k tokens at a time by who knows it."""
    generation = Generation("test", [1], max_tokens, EOS)
    generation.branch = Branch(StreamSlot(0), 0, fork=0)
    generation.prompt_done(1, one_hot(script[:1]))
    while not generation.finish_reason:
        at = len(generation.output)
        generation.verify_row(Draft(script[at : at + k], "oracle", "oracle"))
        generation.verified(one_hot(script[at : at + k + 1]))
    return generation


def one_hot(tokens: Sequence[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), 300).float()


def test_nothing_behind_an_end_token_inside_a_block_is_kept() -> None:
    logits = torch.full((4, 300), -1.0)
    eos = next(iter(EOS))
    for at, token in enumerate([7, eos, 9, 11]):
        logits[at, token] = 1.0
    verdict = accept_greedy(most_likely(logits), [7, eos, 9], EOS)
    assert (verdict.tokens, verdict.accepted, verdict.stopped) == ([7], 1, True)


def test_first_wrong_draft_ends_the_block_and_the_target_speaks() -> None:
    logits = torch.full((4, 300), -1.0)
    for at, token in enumerate([7, 8, 9, 10]):
        logits[at, token] = 1.0
    verdict = accept_greedy(most_likely(logits), [7, 5, 9], EOS)
    assert (verdict.tokens, verdict.accepted, verdict.stopped) == ([7, 8], 1, False)


def test_non_finite_logits_end_a_generation_as_failed() -> None:
    generation = Generation("test", [1], 5, EOS)
    generation.prompt_done(1, torch.full((1, 300), torch.nan))
    assert generation.finish_reason == "nonfinite"
    assert generation.output == []


def test_loops_are_noticed() -> None:
    assert is_looping([9] * 24)
    assert is_looping([5, 6, 7, 8] * 10)
    assert not is_looping(list(range(60)))
    assert not is_looping([1, 2] * 5)


# --- drafters --------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=120),
    window=st.integers(1, 30),
    k=st.integers(1, 6),
)
def test_ngram_index_equals_a_plain_search_and_stays_small(
    tokens: list[int], window: int, k: int
) -> None:
    """Longest match first, most recent of equals, nothing outside the window, bounded entries."""
    index = NgramIndex(window, sizes=(3, 2))
    index.extend(tokens)
    kept = tokens[-window:]
    assert len(index) == len(kept)
    assert index.entries <= 2 * window
    tail = tokens[-3:]
    want: tuple[int, list[int]] = (0, [])
    for n in (3, 2):
        places = [
            i for i in range(len(kept) - n) if len(tail) >= n and kept[i : i + n] == tail[-n:]
        ]
        if places:
            at = places[-1] + n
            want = (n, kept[at : at + k])
            break
    assert index.lookup(tail, k) == want


def test_previous_output_drafter_finds_its_place_again() -> None:
    drafter = PreviousOutputDrafter([1, 2, 3, 4, 5, 6, 7, 8])
    assert drafter.propose(3).tokens == [1, 2, 3]
    drafter.accept([1, 2, 99])
    guess = drafter.propose(3)
    assert (guess.tokens, guess.arm) == ([4, 5, 6], "previous?"), "as if 99 stood for 3"
    drafter.accept([4, 5])
    assert drafter.propose(3).tokens == [6, 7, 8]
    drafter.accept([99, 2])
    assert drafter.propose(2).tokens == [3, 4], "the last token alone is looked for nearby"
    drafter.accept([7, 8])
    assert (drafter.propose(2).tokens, drafter.propose(2).arm) == ([], "previous")


@pytest.mark.parametrize("vocab", [1, 7, 64, 258, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_most_likely_token_is_the_first_greatest(vocab: int, dtype: torch.dtype) -> None:
    """In bf16 many are equal: which one is taken must not depend on how it was found."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(9, vocab, generator=generator).mul(2).round().to(dtype)
    assert most_likely(logits) == logits.float().argmax(dim=-1).tolist()
    assert [most_likely(row[None])[0] for row in logits] == most_likely(logits)
    assert most_likely(logits[:0]) == []


def test_rows_without_finite_numbers_have_no_token() -> None:
    logits = torch.zeros(6, 128).bfloat16()
    logits[1, 100], logits[2, 5], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, 3], logits[5, 7] = -torch.inf, 1.0
    assert most_likely(logits) == [0, NOTHING, NOTHING, NOTHING, 0, 7]
