"""Whether to draft, with which drafter and how many tokens: measured acceptance against measured cost.

A draft token is worth its place in the verify block when it saves more than it costs. With the
chance ``a`` that a draft is accepted given that those before it were, k drafts give
``E(k) = (1 - a^(k+1)) / (1 - a)`` tokens on average (Leviathan et al. 2023, arXiv 2211.17192,
section 3.1). The cost of a forward is the machine's own curve T(n), handed in as :class:`CostCurve`;
nothing here reads a clock. Acceptance is kept per stream, task and *arm*: a drafter, or a drafter in
one of several states of confidence (how long an n-gram matched).

Every choice here changes the time an answer takes, never its text.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from operators.errors import ConfigError

PROBE = 2
"""Tokens of a probe: a draft made only to see whether drafting has become worthwhile again."""
PROBE_SHARE = 0.01
"""Share of the time that may go into probing arms that do not pay, all together."""
MARGIN = 1.03
"""By how much the expected gain of drafts must exceed plain decoding: the largest of several estimates
is usually too large."""


RATE_MEMORY = 0.8
"""Weight of a verify in an answer's rate one verify later: about the last five count, since many answers
end after ten."""
PRIORS = {
    "ngram2": 0.45,
    "ngram3": 0.55,
    "suffix2": 0.45,
    "suffix3": 0.55,
    "previous": 0.6,
    "previous?": 0.4,
    "draft": 0.6,
    "head": 0.6,
}
PRIOR = 0.7
PRIOR_TRIALS = 2.0
"""Assumed acceptance of an arm that was never tried (PRIOR where PRIORS has no number), and how many
observations that assumption is worth."""
MEMORY = 0.97
"""Weight of an observation one observation later: about the last 33 count."""
SURE = 0.98
"""Upper bound of an acceptance estimate."""
CATCH_UP_TURNS = 16
"""Over how many verifies of an answer a draft model's late start is spread when judging its cost."""


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward by the number of its tokens: ``points`` of (tokens, seconds).

    Between points a straight line, beyond the last one its slope goes on. Any unit of time works:
    only ratios matter. Raises ConfigError when the points are not a curve.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        tokens = [n for n, _ in self.points]
        times = [t for _, t in self.points]
        rising = tokens == sorted(set(tokens)) and times == sorted(times)
        if not self.points or tokens[0] < 1 or not rising:
            raise ConfigError(f"cost curve {self.points}: tokens and seconds must rise")
        if not all(math.isfinite(t) and t > 0 for t in times):
            raise ConfigError(f"cost curve {self.points}: seconds must be above zero")

    @classmethod
    def measured(cls, points: Iterable[tuple[int, float]]) -> CostCurve:
        """A curve from raw measurements: where noise made a longer block look cheaper, it costs what
        the shorter one did."""
        rising: list[tuple[int, float]] = []
        for tokens, seconds in sorted(points):
            rising.append((tokens, max(seconds, rising[-1][1] if rising else 0.0)))
        return cls(tuple(rising))

    def times(self, factor: float) -> CostCurve:
        """The same curve with every time multiplied."""
        return CostCurve(tuple((tokens, factor * seconds) for tokens, seconds in self.points))

    def seconds(self, tokens: float) -> float:
        """Time of a forward of ``tokens`` tokens (0 for none)."""
        if tokens <= 0:
            return 0.0
        points = self.points
        if len(points) == 1 or tokens <= points[0][0]:
            return points[0][1]
        at = min(bisect_left(points, (tokens, 0.0)), len(points) - 1)
        (n0, t0), (n1, t1) = points[at - 1], points[at]
        return t0 + (t1 - t0) * (tokens - n0) / (n1 - n0)

    def least_slope(self, tokens: int) -> float:
        """The least that a further token costs anywhere beyond so many."""
        points = self.points
        if len(points) == 1 or tokens < points[0][0]:
            return 0.0
        pairs = list(pairwise(points))
        slopes = [(t1 - t0) / (n1 - n0) for (n0, t0), (n1, t1) in pairs if n1 > tokens]
        (n0, t0), (n1, t1) = pairs[-1]
        return min([*slopes, (t1 - t0) / (n1 - n0)])


TYPICAL = CostCurve(((1, 1.0), (2, 1.05), (4, 1.12), (8, 1.6), (16, 2.8), (32, 5.5)))
"""Shape assumed where nothing was measured: between bf16 and int8 weights on a CPU."""


@dataclass(frozen=True)
class Costs:
    """T(n) of the target's generation forward, and of the draft model's or head's where there is one."""

    verify: CostCurve = TYPICAL
    draft: CostCurve | None = None

    def drafting(self, steps: int, rows: int) -> float:
        """Time of ``steps`` forwards of the draft model with ``rows`` rows of one token each."""
        if steps == 0 or rows == 0:
            return 0.0
        # Unknown: a third of the target's, the ratio of a 0.5B draft to a 1.5B target.
        curve = self.draft
        return steps * (curve.seconds(rows) if curve else self.verify.seconds(rows) / 3)

    def catching_up(self, tokens: int) -> float:
        """Time of bringing the draft model up to date."""
        curve = self.draft
        return curve.seconds(tokens) if curve else self.verify.seconds(tokens) / 3


@dataclass(frozen=True)
class Candidate:
    """A drafter with a proposal of at most ``limit`` tokens. ``by_model``: they are made by
    forwards of the draft model, which first has to catch up ``lag`` tokens."""

    arm: str
    limit: int
    by_model: bool = False
    lag: int = 0


@dataclass(frozen=True)
class Choice:
    """The arm one answer drafts with this turn, if the step has room for it. ``owed``: tokens it
    drafts regardless of cost."""

    candidate: Candidate
    acceptance: float
    owed: int = 0


@dataclass
class Arm:
    """What is known of one way to draft: accepted among those judged, both fading; ``credit`` is the
    time saved up for a probe."""

    hits: float
    trials: float = PRIOR_TRIALS
    credit: float = 0.0

    @property
    def acceptance(self) -> float:
        return min(SURE, self.hits / self.trials)


@dataclass
class DraftControl:
    """Acceptance of every arm for one kind of answer of one stream; picks the arm of a turn.

    Bounded: one :class:`Arm` per kind of drafter.
    """

    arms: dict[str, Arm] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        if name not in self.arms:
            self.arms[name] = Arm(PRIORS.get(name, PRIOR) * PRIOR_TRIALS)
        return self.arms[name]

    @property
    def memory(self) -> dict[str, tuple[float, float, float]]:
        """(hits, trials, credit) of every arm: what a snapshot keeps."""
        return {name: (arm.hits, arm.trials, arm.credit) for name, arm in self.arms.items()}

    @classmethod
    def restored(cls, memory: dict[str, tuple[float, float, float]]) -> DraftControl:
        return cls({name: Arm(*kept) for name, kept in memory.items()})

    def update(self, name: str, drafted: int, accepted: int) -> None:
        """Record a verify: ``accepted`` of ``drafted`` tokens stood. Those behind the first
        wrong one were never judged."""
        arm = self.arm(name)
        judged = accepted + (accepted < drafted)
        fade = MEMORY**judged
        arm.hits = arm.hits * fade + accepted
        arm.trials = arm.trials * fade + judged

    def choose(self, candidates: Sequence[Candidate], rows: int, costs: Costs) -> Choice | None:
        """The candidate worth most in a step of ``rows`` answers, or one whose probe is due, or None
        when plain decoding is best. Mutates the probe credits of the arms not taken."""
        plain = costs.verify.seconds(rows)
        # The margin applies to this answer's token alone. Applied to all tokens of the step it would
        # grow with the number of answers, and 16 answers would almost never draft.
        best, taken = (rows - 1 + MARGIN) / plain, None
        for candidate in candidates:
            worth = self._worth(candidate, rows, costs)
            if worth > best:
                best, taken = worth, candidate
        for candidate in candidates:
            if candidate is taken:
                continue
            arm, k = self.arm(candidate.arm), min(PROBE, candidate.limit)
            arm.credit += PROBE_SHARE / len(candidates) * plain / rows
            # What a probe loses: its time, less what the same tokens take otherwise.
            tokens = rows + sum(arm.acceptance**j for j in range(1, k + 1))
            lost = plain + _extra(candidate, k, rows, costs, turns=1) - tokens / best
            if arm.credit >= lost:
                arm.credit = 0.0
                return Choice(candidate, arm.acceptance, k)
        return Choice(taken, self.arm(taken.arm).acceptance) if taken is not None else None

    def _worth(self, candidate: Candidate, rows: int, costs: Costs) -> float:
        """Tokens per second of the step with the best number of drafts from this candidate."""
        plain, gain, best = costs.verify.seconds(rows), 0.0, 0.0
        acceptance = self.arm(candidate.arm).acceptance
        for k in range(1, candidate.limit + 1):
            gain += acceptance**k
            best = max(best, (rows + gain) / (plain + _extra(candidate, k, rows, costs)))
        return best


def _extra(
    candidate: Candidate, k: int, rows: int, costs: Costs, turns: int = CATCH_UP_TURNS
) -> float:
    """What k drafts of this candidate add to the time of a step of ``rows`` answers. A draft model's
    forwards are shared by all answers that draft with it; here all are assumed to. Its catching up is
    spread over ``turns`` verifies: a probe may be the only one."""
    extra = costs.verify.seconds(rows + k) - costs.verify.seconds(rows)
    if candidate.by_model:
        extra += costs.drafting(k, rows) / rows + costs.catching_up(candidate.lag) / turns
    return extra


def smoothed_tokens_per_verify(rate: float, tokens: int) -> float:
    """The exponential average after a verify that gave ``tokens`` tokens."""
    return RATE_MEMORY * rate + (1 - RATE_MEMORY) * tokens
