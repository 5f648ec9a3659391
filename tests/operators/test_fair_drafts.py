"""The room of verify blocks shared out fairly over time: a simulation of answers decoded together."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.decoding.acceptance import (
    TYPICAL,
    Candidate,
    Choice,
    CostCurve,
    Costs,
    DraftControl,
    smoothed_tokens_per_verify,
)
from operators.decoding.allocation import FLOOR, share_out
from pipelines.lab.benchmarks.streams import jain

DRAFTS = Candidate("previous", 16)
MEASURED = Costs(CostCurve(((1, 44.0), (8, 52.0), (16, 65.0), (32, 110.0), (128, 380.0))))
"""Milliseconds as found on two cores with w8a8 weights; the other curve is that of bf16."""
CURVES = st.sampled_from(
    [MEASURED.verify, CostCurve(((1, 100.0), (4, 101.0), (16, 160.0), (32, 244.0), (64, 420.0)))]
)


@dataclass
class Decoded:
    """Tokens per second of every answer, and of each if none drafted."""

    speeds: list[float]
    plain: float

    @property
    def together(self) -> float:
        return sum(self.speeds)


WARM_UP = 40


def decode(
    chances: Sequence[float | None], curve: CostCurve, turns: int, seed: int, fair: bool = True
) -> Decoded:
    """Answers that decode together, each with a drafter right with its chance, or with none; the first
    WARM_UP turns, in which the drafters become known, do not count. With ``fair`` off every step is
    shared out as if it were the first."""
    rng, costs, rows = random.Random(seed), Costs(curve), len(chances)
    controls = [DraftControl() for _ in chances]
    rates, tokens, spent = [1.0] * rows, [0] * rows, 0.0
    for turn in range(-WARM_UP, turns):
        order = [(turn + at) % rows for at in range(rows)]
        choices = [
            controls[at].choose([DRAFTS] if chances[at] is not None else [], rows, costs)
            for at in order
        ]
        lengths = share_out(choices, costs, [rates[at] for at in order] if fair else None)
        spent += curve.seconds(rows + sum(lengths)) * (turn >= 0)
        for at, k in zip(order, lengths, strict=True):
            chance = chances[at] or 0.0
            accepted = next((i for i in range(k) if rng.random() >= chance), k)
            tokens[at] += (accepted + 1) * (turn >= 0)
            rates[at] = smoothed_tokens_per_verify(rates[at], accepted + 1)
            if k:
                controls[at].update("previous", k, accepted)
    return Decoded([count / spent for count in tokens], 1 / curve.seconds(rows))


@settings(max_examples=25, deadline=None)
@given(
    chances=st.lists(st.floats(0.95, 1.0), min_size=7, max_size=7),
    place=st.integers(0, 7),
    curve=CURVES,
    seed=st.integers(0, 10_000),
)
def test_one_stream_without_drafts_among_near_perfect_ones_is_treated_fairly(
    chances: list[float], place: int, curve: CostCurve, seed: int
) -> None:
    found = decode([*chances[:place], None, *chances[place:]], curve, 40, seed)
    assert jain(found.speeds) >= 0.95
    assert found.speeds[place] >= 0.999 * FLOOR * found.plain
    assert found.together > 1.4 * 8 * found.plain, "the others must still gain by their drafts"


@settings(max_examples=25, deadline=None)
@given(chances=st.lists(st.floats(0.95, 1.0), min_size=7, max_size=7), seed=st.integers(0, 10_000))
def test_near_equal_streams_get_near_equal_speeds(chances: list[float], seed: int) -> None:
    """The likeliest drafts are one stream's by a hair: it must not take the room step after step."""
    fair = decode([*chances, None], MEASURED.verify, 60, seed)
    assert jain(fair.speeds[:7]) >= 0.98


def test_without_a_memory_of_who_got_what_one_stream_takes_the_room() -> None:
    """What the test above would not see if the simulation were too kind; fairness costs next to no
    throughput here."""
    chances = [1.0, *[0.9] * 6, None]
    greedy, fair = (decode(chances, MEASURED.verify, 60, 1, fair) for fair in (False, True))
    assert jain(greedy.speeds[:7]) < 0.95 < 0.98 < jain(fair.speeds[:7])
    assert fair.together > 0.97 * greedy.together


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("rows", [2, 4, 8, 16])
def test_equal_chances_cost_no_throughput(chance: float, rows: int) -> None:
    def speed(fair: bool) -> float:
        runs = (decode([chance] * rows, MEASURED.verify, 100, seed, fair) for seed in range(8))
        return statistics.mean(run.together for run in runs)

    assert speed(fair=True) >= 0.98 * speed(fair=False)


@given(rate=st.floats(1.0, 17.0), acceptance=st.floats(0.01, 0.98), limit=st.integers(1, 16))
def test_an_answer_alone_drafts_as_far_whatever_it_got(
    rate: float, acceptance: float, limit: int
) -> None:
    choice = Choice(Candidate("previous", limit), acceptance)
    assert share_out([choice], MEASURED, [rate]) == share_out([choice], MEASURED)


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(
        st.tuples(st.floats(0.01, 0.98) | st.none(), st.floats(1.0, 17.0)), min_size=1, max_size=12
    ),
    curve=CURVES,
)
def test_no_step_breaks_the_floor_nor_is_slower_than_plain(
    answers: list[tuple[float | None, float]], curve: CostCurve
) -> None:
    """As expected tokens per second, whatever the answers got before."""
    choices = [Choice(DRAFTS, a) if a is not None else None for a, _ in answers]
    lengths = share_out(choices, Costs(curve), [rate for _, rate in answers])
    expected = [
        sum((a or 0.0) ** j for j in range(k + 1))
        for (a, _), k in zip(answers, lengths, strict=True)
    ]
    longer = curve.seconds(len(answers) + sum(lengths)) / curve.seconds(len(answers))
    assert min(expected) >= FLOOR * longer * (1 - 1e-9)
    assert sum(expected) >= len(answers) * longer * (1 - 1e-9)


def by_the_rule(choices: list[Choice], costs: Costs, rates: list[float]) -> list[int]:
    """The rule of share_out written down plainly, every sum made anew: for answers that draft without
    a model and owe nothing."""
    weights = [sum(rates) / len(rates) / rate for rate in rates]

    def expected(lengths: list[int]) -> list[float]:
        return [
            1 + sum(c.acceptance**j for j in range(1, k + 1))
            for c, k in zip(choices, lengths, strict=True)
        ]

    def seconds(lengths: list[int]) -> float:
        return costs.verify.seconds(len(lengths) + sum(lengths))

    def rate(lengths: list[int]) -> float:
        return sum(w * e for w, e in zip(weights, expected(lengths), strict=True)) / seconds(
            lengths
        )

    def allowed(lengths: list[int]) -> bool:
        longer = seconds(lengths) / costs.verify.seconds(len(lengths))
        got = expected(lengths)
        return min(got) >= FLOOR * longer and sum(got) >= len(got) * longer

    lengths = [0] * len(choices)
    left: list[tuple[float, int]] = []
    tokens = [
        [(-(c.acceptance**j) * weights[at], at) for j in range(1, c.candidate.limit + 1)]
        for at, c in enumerate(choices)
    ]
    for queue in ([own[:1] for own in tokens], [own[1:] for own in tokens]):
        ordered = sorted([*left, *(t for own in queue for t in own)], key=lambda token: token[0])
        trial, best, best_rate = lengths.copy(), 0, rate(lengths)
        for count, (_, at) in enumerate(ordered, start=1):
            trial[at] += 1
            if rate(trial) > best_rate * (1 + 1e-12) and allowed(trial):
                best, best_rate = count, rate(trial)
        for _, at in ordered[:best]:
            lengths[at] += 1
        left = ordered[best:]
    return lengths


def test_sums_kept_up_to_date_share_out_as_the_plain_rule_does() -> None:
    rng = random.Random(5)
    for _ in range(60):
        rows = rng.randint(1, 12)
        choices = [
            Choice(Candidate("previous", rng.randint(1, 9)), rng.uniform(0.05, 0.97))
            for _ in range(rows)
        ]
        rates = [rng.uniform(1, 6) for _ in range(rows)]
        for curve in (TYPICAL, CostCurve(((1, 1.0), (8, 1.0), (16, 2.0)))):
            costs = Costs(curve)
            assert share_out(choices, costs, rates) == by_the_rule(choices, costs, rates)
