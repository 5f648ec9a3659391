"""Sampling: the distribution is the target's with any kind of draft, and places repeat themselves."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from operators.config import OperatorConfig, Sampling
from operators.decoding.acceptance import CostCurve, Costs
from operators.decoding.sampling import DRAFT, TOKEN, Sampler, sampler_key
from operators.decoding.verify import accept_sampled
from operators.errors import ConfigError
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_draft_model import FREE
from tests.operators.test_stream_operator import CONFIG, Clock, drain, events, ordered, run, speech

VOCAB, LENGTH, RUNS = 5, 3, 2000
TABLE = torch.tensor(
    [[2.0, 1.0, 0.5, -1.0, 0.0], [0.0, 2.5, 1.0, 1.5, -2.0], [1.0, 1.2, 0.8, 1.1, 0.9]]
)
"""A toy target: logits depend on the last token (mod 3). Its draft model sees it distorted."""
SETTINGS = {
    "plain": Sampling(temperature=1.0),
    "cool": Sampling(temperature=0.6, repetition_penalty=1.4),
    "top-k": Sampling(temperature=1.3, top_k=3),
    "top-p": Sampling(temperature=1.0, top_p=0.8),
}


def target(before: int) -> Tensor:
    return TABLE[before % 3]


def draft(before: int) -> Tensor:
    return target(before).flip(0) * 0.5 + target(before)


def reference(logits: Sequence[float], answer: Sequence[int], sampling: Sampling) -> list[float]:
    """The filters once more, plainly: penalty, temperature, top-k, top-p, in this order."""
    scores = list(logits)
    for token in set(answer):
        by = sampling.repetition_penalty
        scores[token] = scores[token] / by if scores[token] > 0 else scores[token] * by
    weights = [math.exp(s / sampling.temperature) for s in scores]
    order = sorted(range(len(scores)), key=lambda token: -weights[token])
    kept = order[: sampling.top_k or None]
    total, mass, nucleus = sum(weights[t] for t in kept), 0.0, []
    for token in kept:
        if mass < sampling.top_p * total:
            nucleus.append(token)
        mass += weights[token]
    total = sum(weights[t] for t in nucleus)
    return [weights[t] / total if t in nucleus else 0.0 for t in range(len(scores))]


def expected(sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Probability of every answer of LENGTH tokens."""
    found = {}
    for answer in itertools.product(range(VOCAB), repeat=LENGTH):
        chance = 1.0
        for at, token in enumerate(answer):
            before = answer[at - 1] if at else 0
            chance *= reference(target(before).tolist(), answer[:at], sampling)[token]
        found[answer] = chance
    return found


Drafts = Callable[[Sampler, list[int]], tuple[list[int], Tensor | None]]


def no_drafts(sampler: Sampler, answer: list[int]) -> tuple[list[int], Tensor | None]:
    return [], None


def fixed_drafts(sampler: Sampler, answer: list[int]) -> tuple[list[int], Tensor | None]:
    """A deterministic drafter: follows a fixed text."""
    return [1, 3, 0, 2][len(answer) :][:2], None


def model_drafts(sampler: Sampler, answer: list[int]) -> tuple[list[int], Tensor | None]:
    drafts: list[int] = []
    chances = []
    rejection = sampler.sampling.acceptance == "rejection"
    for _ in range(2):
        context = [*answer, *drafts]
        chances.append(sampler.probs(draft(context[-1] if context else 0), context))
        drafts.append(sampler.pick(chances[-1], len(context), DRAFT if rejection else TOKEN))
    return drafts, torch.stack(chances) if rejection else None


def sample(sampling: Sampling, make: Drafts, run: int) -> tuple[tuple[int, ...], int, int]:
    """One answer, and how many drafts were made and accepted."""
    sampler = Sampler(sampling, sampler_key(f"stream-{run}", 0, "test", sampling.seed, [run]))
    answer: list[int] = []
    drafted = accepted = 0
    while len(answer) < LENGTH:
        drafts, probs = make(sampler, answer)
        context = [*answer, *drafts]
        logits = [
            target(context[at - 1] if at else 0) for at in range(len(answer), len(context) + 1)
        ]
        verdict = accept_sampled(torch.stack(logits), drafts, frozenset(), sampler, answer, probs)
        answer += verdict.tokens
        drafted, accepted = drafted + len(drafts), accepted + verdict.accepted
    return tuple(answer[:LENGTH]), drafted, accepted


def chi_square(counts: Counter[tuple[int, ...]], chances: dict[tuple[int, ...], float]) -> float:
    """Pearson's statistic as standard deviations above its mean; rare answers pooled."""
    assert all(chances[answer] > 0 for answer in counts), "an answer that cannot be"
    total = counts.total()
    pooled_count, pooled_chance, statistic, cells = 0, 0.0, 0.0, 0
    for answer, chance in chances.items():
        if chance * total < 5:
            pooled_count, pooled_chance = pooled_count + counts[answer], pooled_chance + chance
        else:
            statistic += (counts[answer] - chance * total) ** 2 / (chance * total)
            cells += 1
    if pooled_chance * total > 1:
        statistic += (pooled_count - pooled_chance * total) ** 2 / (pooled_chance * total)
        cells += 1
    freedom = cells - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["none", "deterministic", "coupled model", "rejected model"])
def test_the_distribution_is_the_targets(kind: str, setting: str) -> None:
    sampling = SETTINGS[setting]
    make: Drafts = {"none": no_drafts, "deterministic": fixed_drafts}.get(kind, model_drafts)
    if kind == "rejected model":
        sampling = Sampling(**{**sampling.__dict__, "acceptance": "rejection"})
    runs = [sample(sampling, make, at) for at in range(RUNS)]
    counts = Counter(answer for answer, _, _ in runs)
    assert chi_square(counts, expected(sampling)) < 4
    drafted, accepted = sum(r[1] for r in runs), sum(r[2] for r in runs)
    if kind != "none":
        assert min(accepted, drafted - accepted) > 500, "both outcomes must be tried often"


def test_the_statistic_notices_a_wrong_distribution() -> None:
    """What a sloppy acceptance would give: drafts taken as they come."""
    sampling = Sampling(temperature=1.0, acceptance="rejection")
    found: Counter[tuple[int, ...]] = Counter()
    for at in range(RUNS):
        sampler = Sampler(sampling, sampler_key("s", 0, "test", at, []))
        drafts, _ = model_drafts(sampler, [])
        found[(*drafts, sampler.pick(sampler.probs(target(drafts[-1]), drafts), 2))] += 1
    assert chi_square(found, expected(sampling)) > 20


def test_what_the_draft_has_too_much_of_is_left_out_of_the_second_draw() -> None:
    """Rejected drafts are never drawn again, and equal distributions reject nothing."""
    sampling = Sampling(temperature=1.0, acceptance="rejection")
    logits = torch.stack([TABLE[0], TABLE[0]])
    for at in range(300):
        sampler = Sampler(sampling, sampler_key("s", 0, "test", at, []))
        wanted = sampler.probs(TABLE[0], [])
        same = accept_sampled(logits, [at % 5], frozenset(), sampler, [], wanted[None])
        assert same.accepted == 1
        sure = torch.nn.functional.one_hot(torch.tensor([3]), 5).double()
        verdict = accept_sampled(logits, [3], frozenset(), sampler, [], sure)
        assert (verdict.tokens[0] == 3) == (verdict.accepted == 1)


def test_deterministic_and_coupled_drafts_give_the_very_text_of_plain_sampling() -> None:
    for setting in SETTINGS.values():
        for at in range(100):
            plain = sample(setting, no_drafts, at)[0]
            assert sample(setting, fixed_drafts, at)[0] == plain
            assert sample(setting, model_drafts, at)[0] == plain


def test_coupled_noise_makes_alike_distributions_pick_alike() -> None:
    """Far more often than two independent draws would."""
    runs = [sample(Sampling(temperature=1.0), model_drafts, at) for at in range(500)]
    rate = sum(r[2] for r in runs) / sum(r[1] for r in runs)
    assert rate > 0.45


# --- filters and noise -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_probabilities_equal_the_plain_reference(seed: int) -> None:
    rng = random.Random(seed)
    for vocab in (7, 3000):
        logits = [rng.gauss(0, 3) for _ in range(vocab)]
        answer = [rng.randrange(vocab) for _ in range(6)]
        for sampling in (
            Sampling(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.3),
            Sampling(temperature=2.0, top_p=0.97),
            Sampling(temperature=50.0, top_p=0.99),
        ):
            got = Sampler(sampling).probs(torch.tensor(logits, dtype=torch.float64), answer)
            want = torch.tensor(reference(logits, answer, sampling), dtype=torch.float64)
            torch.testing.assert_close(got, want)


def test_the_penalty_counts_in_greedy_decoding_too() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    logits = torch.tensor([3.0, 2.0, -1.0])
    assert sampler.pick(sampler.probs(logits, []), 0) == 0
    assert sampler.pick(sampler.probs(logits, [0]), 1) == 1
    verdict = accept_sampled(torch.stack([logits] * 3), [0, 1], frozenset(), sampler, [])
    assert verdict.tokens == [0, 1, 0]  # 3/2 against 2/2: the draft before counts as said


def test_every_place_purpose_and_answer_has_noise_of_its_own() -> None:
    seen = set()
    for stream, epoch, task, seed, prompt in itertools.product(
        ("a", "b"), (0, 1), ("summary", "answer"), (0, 1), ([1], [1, 2])
    ):
        key = sampler_key(stream, epoch, task, seed, prompt)
        for start, at, purpose in itertools.product((0, 1), (0, 10, 2**40), range(4)):
            value = Sampler(Sampling(temperature=1.0), key, start).uniform(at, purpose)
            seen.add((start + at, purpose, key, value))
    assert len({value for *_, value in seen}) == len(seen) == 32 * 4 * 6


def test_noise_is_the_same_on_every_machine() -> None:
    """Pinned: a change here would change what a replay gives."""
    sampler = Sampler(Sampling(temperature=1.0), sampler_key("s", 1, "t", 2, [3, 4]), start=5)
    assert sampler.uniform(7, TOKEN) == pytest.approx(NOISE, abs=0)


NOISE = 0.2867524360233648


# --- in the operator -------------------------------------------------------------------------

HOT = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}


def make(costs: Costs | None = None, **changes: object) -> StreamOperator:
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), "targets": ("fr",), **HOT, **changes})
    draft = toy_decoder(seed=7, layers=1) if config.draft_model else None
    return StreamOperator(toy_decoder(), config, clock=Clock(), draft=draft, costs=costs)


def texts(operator: StreamOperator, names: str = "a", shuffle: int = 0) -> list[object]:
    words = [segment for name in names for segment in speech(name, 4)]
    random.Random(shuffle).shuffle(order := [s.stream_id for s in words])
    queues = {name: iter([s for s in words if s.stream_id == name]) for name in names}
    return ordered(events(run(operator, [next(queues[n]) for n in order], shuffle), "a"))


@pytest.mark.usefixtures("device")
def test_sampled_text_repeats_itself_with_any_drafter_and_among_others() -> None:
    plain = texts(make(drafter="none"))
    assert plain == texts(make(drafter="none"))
    assert plain != texts(make(drafter="none", sampling_seed=1))
    assert plain != texts(make(drafter="none", temperature=0.0))
    assert plain == texts(make(FREE, drafter="auto", draft_model="toy"))
    assert plain == texts(make(FREE, drafter="combined"), "ab", shuffle=3)


@pytest.mark.usefixtures("device")
def test_rejection_sampling_repeats_itself_whatever_the_load() -> None:
    rejecting = {"draft_model": "toy", "sampling_acceptance": "rejection"}
    steep = Costs(CostCurve(((1, 1.0), (2, 2.0))))
    first = texts(make(FREE, **rejecting))
    assert first == texts(make(steep, **rejecting), "ab", shuffle=3)
    assert first != texts(make(drafter="none"))


@pytest.mark.usefixtures("device", "dtype")
def test_a_restored_stream_draws_what_it_would_have_drawn() -> None:
    words = speech("a", 10)
    operator, other = make(), make()
    operator.open("a")
    for at, segment in enumerate(words[:5]):
        operator.feed(segment, at)
    drain(operator)
    other.open("a", snapshot=operator.snapshot("a"))
    after = []
    for each in (operator, other):
        for at, segment in enumerate(words[5:], start=5):
            each.feed(segment, at)
        after.append(ordered(events(drain(each), "a")))
    assert after[0] == after[1]


def test_only_the_named_tasks_are_sampled() -> None:
    greedy = texts(make(temperature=0.0, repetition_penalty=1.0))
    some = texts(make(sampled_tasks=("translation",)))

    def of(found: list[object], kind: str) -> list[object]:
        return [e for e in found if (e[0] == "summary") == (kind == "summary")]  # type: ignore[index]

    assert of(some, "summary") == of(greedy, "summary")
    assert of(some, "translation") != of(greedy, "translation")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("repetition_penalty", 0.0),
        ("sampling_acceptance", "always"),
        ("sampled_tasks", ("sumary",)),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name}="):
        OperatorConfig.from_dict({name: value})
