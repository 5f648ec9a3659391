"""How many draft tokens every answer of a step gets: proportional fairness under the step's cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from operators.decoding.acceptance import Choice, Costs

FLOOR = 0.75
"""Share of its speed without drafts that every answer of a step keeps, whatever its neighbours draft."""


def share_out(
    choices: Sequence[Choice | None], costs: Costs, rates: Sequence[float] | None = None
) -> list[int]:
    """How many tokens every answer of a step may draft: ``len(choices)`` numbers.

    ``rates``: the tokens per verify every answer got lately (above zero; None: all the same). A token
    is worth its chance of acceptance divided by that rate. Maximising the sum of that per second in
    every step maximises the product of all answers' speeds over time (proportional fairness: Kelly
    1997; Stolyar 2005). So answers with equal chances get equal speeds, though a step may have room
    for the drafts of a few only.

    Owed tokens come first. Then each answer gets one draft, the most valuable first, as many as
    maximise the value of the step per second. Then the remaining tokens follow by the same rule. No
    answer's speed falls below FLOOR of its speed without drafts, and the sum of speeds does not fall.
    """
    rates = rates or [1.0] * len(choices)
    weights = [sum(rates) / len(rates) / rate for rate in rates]
    step = _Step(weights, [0] * len(choices), [1.0] * len(choices))
    ones: list[_Token] = []
    rest: list[_Token] = []
    for at, choice in enumerate(choices):
        if choice is None:
            continue
        limit, by_model = choice.owed or choice.candidate.limit, choice.candidate.by_model
        tokens = [_Token(at, choice.acceptance**j, by_model) for j in range(1, limit + 1)]
        if choice.owed:
            for token in tokens:
                step.add(token)
        else:
            ones += tokens[:1]
            rest += tokens[1:]
    left = step.extend(ones, costs)
    step.extend([*left, *rest], costs)
    return step.lengths


@dataclass(frozen=True)
class _Token:
    """One draft token of answer ``at``, and the chance that it is accepted."""

    at: int
    gain: float
    by_model: bool


@dataclass
class _Step:
    """Draft lengths under construction. ``weights``: what a token is worth to each answer; ``expected``:
    tokens of every answer; ``drafted``: in all; ``steps``, ``modelled``: forwards of the draft model,
    and how many answers they serve."""

    weights: Sequence[float]
    lengths: list[int]
    expected: list[float]
    drafted: int = 0
    steps: int = 0
    modelled: int = 0

    def add(self, token: _Token) -> None:
        self.lengths[token.at] += 1
        self.expected[token.at] += token.gain
        self.drafted += 1
        if token.by_model:
            self.modelled += self.lengths[token.at] == 1
            self.steps = max(self.steps, self.lengths[token.at])

    def seconds(self, costs: Costs) -> float:
        verify = costs.verify.seconds(len(self.lengths) + self.drafted)
        return verify + costs.drafting(self.steps, self.modelled)

    def rate(self, costs: Costs) -> float:
        """What the expected tokens are worth, per second."""
        worth = sum(w * e for w, e in zip(self.weights, self.expected, strict=True))
        return worth / self.seconds(costs)

    def allowed(self, costs: Costs) -> bool:
        """Whether each answer keeps FLOOR of its speed in plain decoding, and all together their
        sum."""
        rows = len(self.lengths)
        longer = self.seconds(costs) / costs.verify.seconds(rows)
        return min(self.expected) >= FLOOR * longer and sum(self.expected) >= rows * longer

    def extend(self, tokens: Sequence[_Token], costs: Costs) -> list[_Token]:
        """Add the tokens worth most, as many as make the rate greatest; returns the others. An
        answer's tokens are less and less likely, so none comes before the one it follows."""
        # Equals stay in order of rotation.
        queue = sorted(tokens, key=lambda token: -token.gain * self.weights[token.at])
        trial = replace(self, lengths=self.lengths.copy(), expected=self.expected.copy())
        best, best_rate = 0, self.rate(costs) if self.lengths else 0.0
        for count, token in enumerate(queue, start=1):
            trial.add(token)
            rate = trial.rate(costs)
            if rate > best_rate and trial.allowed(costs):
                best, best_rate = count, rate
        for token in queue[:best]:
            self.add(token)
        return queue[best:]
