"""Draft control: as many drafts as pay on this machine, fairly shared; the text never depends on it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.decoding.acceptance import (
    PROBE,
    TYPICAL,
    Arm,
    Candidate,
    Choice,
    CostCurve,
    Costs,
    DraftControl,
)
from operators.decoding.allocation import FLOOR, share_out
from operators.errors import ConfigError
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, Clock, events, ordered, run, speech

FLAT = Costs(CostCurve(((1, 1.0), (512, 1.001))))
STEEP = Costs(CostCurve(((1, 1.0), (2, 2.0))))
"""Weights read for nothing (drafts are free), and compute bound (every token costs the same)."""


def candidate(limit: int = 8, arm: str = "ngram3", **more: object) -> Candidate:
    return Candidate(arm, limit, **more)  # type: ignore[arg-type]


# --- the curve -------------------------------------------------------------------------------


def test_the_curve_is_straight_between_points_and_goes_on_behind_the_last() -> None:
    curve = CostCurve(((1, 1.0), (4, 2.5), (8, 3.0)))
    assert [curve.seconds(n) for n in (0, 1, 2, 4, 6, 8, 16)] == [0, 1.0, 1.5, 2.5, 2.75, 3.0, 4.0]


def test_noise_never_makes_a_longer_block_cheaper() -> None:
    curve = CostCurve.measured([(4, 0.9), (1, 1.0), (2, 1.2), (8, 2.0)])
    assert curve.points == ((1, 1.0), (2, 1.2), (4, 1.2), (8, 2.0))


@pytest.mark.parametrize(
    "points", [(), ((0, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 2.0), (2, 1.0)), ((1, 0.0),)]
)
def test_what_is_no_curve_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match="cost curve"):
        CostCurve(points)


# --- one answer ------------------------------------------------------------------------------


def simulate(
    costs: Costs, chance: float, turns: int, seed: int = 0, by_model: bool = False
) -> tuple[float, float]:
    """Run one answer's controller against a drafter right with ``chance``: seconds per token of
    plain decoding over those with drafts, and the tokens drafted per verify."""
    control, rng, spent, tokens, drafted = DraftControl(), random.Random(seed), 0.0, 0, 0
    for _ in range(turns):
        choice = control.choose([candidate(16, by_model=by_model)], 1, costs)
        (k,) = share_out([choice], costs)
        spent += costs.verify.seconds(1 + k) + (costs.drafting(k, 1) if by_model else 0)
        accepted = next((i for i in range(k) if rng.random() >= chance), k)
        tokens += accepted + 1
        drafted += k
        if k:
            control.update("ngram3", k, accepted)
    return tokens * costs.verify.seconds(1) / spent, drafted / turns


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3])
def test_a_drafter_below_break_even_costs_next_to_nothing(chance: float) -> None:
    speed, drafted = simulate(STEEP, chance, 2000)
    assert speed > 0.98
    assert 0 < drafted < 0.1, "it must go on probing"


@pytest.mark.parametrize("by_model", [False, True])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_on_a_typical_machine_drafting_never_loses(chance: float, by_model: bool) -> None:
    speed, _ = simulate(Costs(), chance, 2000, by_model=by_model)
    assert speed > 0.98


@pytest.mark.parametrize(("chance", "least"), [(0.8, 0.97), (0.95, 0.97), (0.5, 0.95)])
def test_it_comes_close_to_the_best_fixed_length(chance: float, least: float) -> None:
    curve = TYPICAL
    best = max(
        sum(chance**j for j in range(k + 1)) / curve.seconds(1 + k) * curve.seconds(1)
        for k in range(17)
    )
    assert simulate(Costs(), chance, 4000)[0] > least * best


def test_it_comes_back_when_the_drafter_does() -> None:
    control, costs = DraftControl(), Costs()
    for _ in range(200):
        control.update("ngram3", 2, 0)
    lengths = []
    for _ in range(400):
        choice = control.choose([candidate()], 1, costs)
        (k,) = share_out([choice], costs)
        lengths.append(k)
        if k:
            control.update("ngram3", k, k)
    assert lengths[0] == 0
    assert PROBE in lengths
    assert lengths[-1] == 8


def test_the_better_of_two_drafters_is_taken_and_the_other_still_tried() -> None:
    control, costs, taken = DraftControl(), Costs(), []
    chances, rng = {"ngram3": 0.2, "previous": 0.9}, random.Random(3)
    for _ in range(800):
        offer = [candidate(8, arm) for arm in chances]
        choice = control.choose(offer, 1, costs)
        (k,) = share_out([choice], costs)
        assert choice is not None
        arm = choice.candidate.arm
        taken.append(arm)
        accepted = next((i for i in range(k) if rng.random() >= chances[arm]), k)
        control.update(arm, k, accepted)
    assert taken.count("previous") > 0.9 * len(taken)
    assert "ngram3" in taken[400:]


def test_a_draft_model_pays_for_its_own_forwards_and_for_being_late() -> None:
    dear = Costs(TYPICAL, CostCurve(((1, 0.9), (64, 40.0))))
    cheap = Costs(TYPICAL, CostCurve(((1, 0.05), (64, 0.4))))
    ready, late = (
        candidate(8, "draft", by_model=True),
        candidate(8, "draft", by_model=True, lag=400),
    )
    assert DraftControl().choose([ready], 1, dear) is None
    assert DraftControl().choose([ready], 1, cheap) is not None
    slow = Costs(TYPICAL, CostCurve(((1, 0.05), (64, 6.4))))
    assert DraftControl().choose([ready], 1, slow) is not None
    assert DraftControl().choose([late], 1, slow) is None


def test_probing_a_late_draft_model_stays_within_its_share_of_the_time() -> None:
    """Every answer is new to the draft model: a probe pays for all of the prompt at once."""
    costs = Costs(TYPICAL, CostCurve(((1, 0.3), (8, 0.4), (128, 4.0))))
    control, late = DraftControl(), candidate(8, "draft", by_model=True, lag=128)
    control.update("draft", 40, 0)
    for _ in range(40):
        control.update("draft", 1, 0)
    probes, turns = 0, 4000
    for _ in range(turns):
        choice = control.choose([late], 1, costs)
        if choice is not None:
            assert choice.owed
            probes += 1
            control.update("draft", choice.owed, 0)
    assert probes > 2
    assert probes * (4.0 + 2 * 0.3) < 0.02 * turns


def test_what_is_known_survives_a_snapshot() -> None:
    control = DraftControl()
    control.update("ngram3", 4, 2)
    assert DraftControl.restored(control.memory) == control


# --- many answers ----------------------------------------------------------------------------

CHANCES = st.lists(st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95]), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    chances=CHANCES,
    limit=st.integers(1, 3),
    bend=st.floats(0.01, 1.0),
    paces=st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=3, max_size=3),
)
def test_sharing_out_is_as_good_as_trying_every_division(
    chances: list[float], limit: int, bend: float, paces: list[float]
) -> None:
    costs = Costs(
        CostCurve(((1, 1.0), (4, 1.0 + bend / 4), (5, 1.0 + bend), (16, 1.0 + 12 * bend)))
    )
    rows = len(chances)
    choices = [Choice(candidate(limit), a) for a in chances]

    def expected(lengths: tuple[int, ...]) -> list[float]:
        return [sum(a**j for j in range(k + 1)) for a, k in zip(chances, lengths, strict=True)]

    def rate(lengths: tuple[int, ...]) -> float:
        worth = sum(e / pace for e, pace in zip(expected(lengths), paces, strict=False))
        return worth / costs.verify.seconds(rows + sum(lengths))

    def fair(lengths: tuple[int, ...]) -> bool:
        longer = costs.verify.seconds(rows + sum(lengths)) / costs.verify.seconds(rows)
        got = expected(lengths)
        return min(got) >= FLOOR * longer and sum(got) >= rows * longer

    every = list(itertools.product(range(limit + 1), repeat=rows))
    got = tuple(share_out(list(choices), costs, paces[:rows]))
    assert rate(got) >= rate((0,) * rows)
    # The floor: nobody gets a second token at the price of another's first.
    single = (lengths for lengths in every if max(lengths) <= 1)
    ones = max(single, key=lambda lengths: (round(rate(lengths), 9), lengths))  # ties: first come
    assert fair(got)
    if not fair(ones):
        return
    floor = [k for k, one in zip(got, ones, strict=True) if one]
    assert min(floor, default=1) >= 1
    above = [each for each in every if all(k >= one for k, one in zip(each, ones, strict=True))]
    if fair(best := max(above, key=rate)):
        assert rate(got) >= rate(best) * (1 - 1e-9)


def test_every_answer_for_which_a_draft_pays_gets_one() -> None:
    """A stream that repeats itself must not take all the room."""
    costs = Costs(CostCurve(((1, 1.0), (12, 1.1), (32, 6.0))))
    keen, slow = Choice(candidate(16), 0.98), Choice(candidate(16), 0.3)
    lengths = share_out([keen, keen, slow, slow], costs)
    assert min(lengths) >= 1
    assert lengths[0] > lengths[2]


def test_whoever_drafts_nothing_keeps_three_quarters_of_its_speed() -> None:
    """Seven perfect drafters would fill the step: in tokens per second together it always pays."""
    costs = Costs(CostCurve(((1, 44.0), (8, 52.0), (16, 65.0), (32, 110.0), (128, 380.0))))
    keen = [Choice(candidate(16), 0.98)] * 7
    with_slow, alone = share_out([*keen, None], costs), share_out(keen, costs)
    assert sum(with_slow) > 0
    assert costs.verify.seconds(8 + sum(with_slow)) <= costs.verify.seconds(8) / FLOOR
    assert sum(alone) > 4 * sum(with_slow), "among themselves they may go further"


def test_the_more_answers_the_shorter_their_drafts_and_none_where_none_pays() -> None:
    for acceptance in (0.5, 0.8):
        lengths = [
            max(share_out([Choice(candidate(16), acceptance)] * n, Costs())) for n in (1, 2, 4, 16)
        ]
        assert lengths == sorted(lengths, reverse=True)
        assert (lengths[0] > 1, lengths[-1]) == (True, 0)
    assert share_out([None, None], Costs()) == [0, 0]
    assert share_out([], Costs()) == []
    assert share_out([Choice(candidate(), 0.9)] * 2, STEEP) == [0, 0]
    probed = share_out([Choice(candidate(), 0.1, owed=PROBE), None], STEEP)
    assert probed == [PROBE, 0]


@pytest.mark.parametrize("rows", [1, 4, 16, 32])
def test_what_a_draft_must_promise_does_not_grow_with_the_number_of_answers(rows: int) -> None:
    """A draft takes half the time that a token does in plain decoding: it must stand in half of all
    cases and a little more."""
    costs = Costs(CostCurve(((rows, float(rows)), (rows + 64, rows + 32.0))))
    for acceptance, pays in ((0.6, True), (0.5, False)):
        control = DraftControl({"ngram3": Arm(100 * acceptance, 100)})
        assert (control.choose([candidate(1)], rows, costs) is not None) is pays


def test_whoever_got_least_comes_first() -> None:
    """Room for one draft each of some: those behind are served, equals in their order."""
    costs = Costs(CostCurve(((1, 10.0), (6, 10.1), (7, 40.0))))
    equal = [Choice(candidate(1), 0.9)] * 4
    assert share_out(equal, costs) == [1, 1, 0, 0]
    assert share_out(equal, costs, [3.0, 1.0, 2.0, 1.5]) == [0, 1, 0, 1]


# --- in the operator -------------------------------------------------------------------------


def spoken(costs: Costs | None, **changes: object) -> tuple[list[object], list[Emission]]:
    config = type(CONFIG).from_dict({**CONFIG.to_dict(), **changes})
    draft = toy_decoder(seed=7, layers=1) if changes.get("draft_model") else None
    operator = StreamOperator(toy_decoder(), config, clock=Clock(), draft=draft, costs=costs)
    emissions = run(operator, [*speech("a", 4), *speech("b", 4)], shuffle=4)
    return [ordered(events(emissions, name)) for name in "ab"], emissions


def drafted(emissions: list[Emission]) -> int:
    return sum(e.usage.drafted for m in emissions for e in m.events)


def test_whatever_is_chosen_the_text_is_that_of_plain_decoding() -> None:
    plain, _ = spoken(None, drafter="none")
    wild = Costs(CostCurve(((1, 1.0), (3, 1.01), (7, 3.0), (40, 3.1))), CostCurve(((1, 0.01),)))
    counts = set()
    for costs in (None, FLAT, STEEP, wild):
        text, emissions = spoken(costs, drafter="auto", draft_model="toy")
        assert text == plain
        counts.add(drafted(emissions))
    assert len(counts) > 2, "the costs had no say: the test would prove nothing"
    assert all(math.isfinite(c) for c in counts)


def test_what_was_learned_stays_with_its_stream_and_kind_of_answer() -> None:
    """One stream's luck with drafts says nothing of another's, nor summaries of translations."""
    config = type(CONFIG).from_dict(
        {**CONFIG.to_dict(), "drafter": "auto", "targets": ("fr", "de"), "branches": 1}
    )  # one branch: answers of a kind end in the order in which they were asked
    operator = StreamOperator(toy_decoder(), config, clock=Clock(), costs=FLAT)
    run(operator, [*speech("a", 4)[:-1], *speech("b", 4)[:-1]], shuffle=4)
    known = {name: operator._sessions[name].draft_controls for name in "ab"}
    for controls in known.values():
        assert controls.keys() >= {"summary", "translation:fr", "translation:de"}
    alone = StreamOperator(toy_decoder(), config, clock=Clock(), costs=FLAT)
    run(alone, speech("a", 4)[:-1])
    learned = alone._sessions["a"].draft_controls
    assert {task: c.memory for task, c in learned.items()} == {
        task: c.memory for task, c in known["a"].items()
    }
    memories = [str(c.memory) for controls in known.values() for c in controls.values()]
    assert len(set(memories)) == len(memories)
