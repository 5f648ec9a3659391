"""How many draft tokens every answer of a step gets: proportional fairness under the step's cost."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

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
    step = _Step(weights)
    free: list[tuple[int, Choice]] = []
    for at, choice in enumerate(choices):
        if choice is not None and choice.owed:
            for j in range(1, choice.owed + 1):
                step.add(_Token(at, choice.acceptance**j, choice.candidate.by_model))
        elif choice is not None:
            free.append((at, choice))
    if not free:
        return step.lengths
    # A token worth less per second than the step already gives can only lower that.
    least = step.rate(costs) * costs.verify.least_slope(len(choices) + step.drafted)
    ones: list[_Token] = []
    rest: list[_Token] = []
    for at, choice in free:
        gain = 1.0
        for j in range(choice.candidate.limit):
            gain *= choice.acceptance
            if gain * weights[at] < least:
                break
            (rest if j else ones).append(_Token(at, gain, choice.candidate.by_model))
    left = step.extend(ones, costs)
    step.extend([*left, *rest], costs)
    return step.lengths


@dataclass(frozen=True)
class _Token:
    """One draft token of answer ``at``, and the chance that it is accepted."""

    at: int
    gain: float
    by_model: bool


class _Step:
    """Draft lengths under construction. ``weights``: what a token is worth to each answer; ``expected``:
    tokens of every answer; ``drafted``: in all; ``steps``, ``modelled``: forwards of the draft model,
    and how many answers they serve. Sums are kept up to date, so that a token costs the same however
    many answers there are."""

    def __init__(self, weights: Sequence[float]) -> None:
        rows = len(weights)
        self.weights = weights
        self.lengths, self.expected = [0] * rows, [1.0] * rows
        self.drafted = self.steps = self.modelled = 0
        self.worth, self.tokens = float(sum(weights)), float(rows)
        self._least = [(1.0, at) for at in range(rows)]  # a heap; entries go out of date

    def copy(self) -> _Step:
        other = copy.copy(self)
        other.lengths, other.expected = self.lengths.copy(), self.expected.copy()
        other._least = self._least.copy()
        return other

    def add(self, token: _Token) -> None:
        self.lengths[token.at] += 1
        self.expected[token.at] += token.gain
        self.worth += self.weights[token.at] * token.gain
        self.tokens += token.gain
        heapq.heappush(self._least, (self.expected[token.at], token.at))
        self.drafted += 1
        if token.by_model:
            self.modelled += self.lengths[token.at] == 1
            self.steps = max(self.steps, self.lengths[token.at])

    def least(self) -> float:
        """Expected tokens of the answer that gets fewest."""
        while self._least[0][0] != self.expected[self._least[0][1]]:
            heapq.heappop(self._least)
        return self._least[0][0]

    def seconds(self, costs: Costs) -> float:
        verify = costs.verify.seconds(len(self.lengths) + self.drafted)
        return verify + costs.drafting(self.steps, self.modelled)

    def rate(self, costs: Costs) -> float:
        """What the expected tokens are worth, per second."""
        return self.worth / self.seconds(costs)

    def allowed(self, costs: Costs) -> bool:
        """Whether each answer keeps FLOOR of its speed in plain decoding, and all together their
        sum."""
        rows = len(self.lengths)
        longer = self.seconds(costs) / costs.verify.seconds(rows)
        return self.least() >= FLOOR * longer and self.tokens >= rows * longer

    def extend(self, tokens: Sequence[_Token], costs: Costs) -> list[_Token]:
        """Add the tokens worth most, as many as make the rate greatest; returns the others. An
        answer's tokens are less and less likely, so none comes before the one it follows."""
        # Equals stay in order of rotation.
        queue = sorted(tokens, key=lambda token: -token.gain * self.weights[token.at])
        trial = self.copy()
        best, best_rate = 0, self.rate(costs) if self.lengths else 0.0
        for count, token in enumerate(queue, start=1):
            trial.add(token)
            rate = trial.rate(costs)
            if rate > best_rate and trial.allowed(costs):
                best, best_rate = count, rate
        for token in queue[:best]:
            self.add(token)
        return queue[best:]
