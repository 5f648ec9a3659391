"""What a drafter would have done for an answer that is already known, for every draft length.

Greedy text does not depend on the drafts, so how many of them stand follows from the text alone; no
model is needed. Time is counted in forwards by a measured cost curve.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from operators.decoding.acceptance import CostCurve
from operators.decoding.drafters import Draft, Drafter


@dataclass
class Replayed:
    """``drafted`` and ``tokens`` of every verify; how many drafts were there and stood, by place."""

    drafted: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    there: Counter[int] = field(default_factory=Counter)
    stood: Counter[int] = field(default_factory=Counter)

    @property
    def tokens_per_verify(self) -> float:
        return round(statistics.mean(self.tokens), 2) if self.tokens else 0.0

    def speedup(self, curve: CostCurve) -> float:
        """Over plain decoding of the same tokens, by the curve."""
        spent = sum(curve.seconds(1 + k) for k in self.drafted)
        return round(sum(self.tokens) * curve.seconds(1) / spent, 2) if spent else 1.0

    def acceptance(self) -> list[float]:
        """Of drafts at places 1, 2, …: the share that stood."""
        return [round(self.stood[at] / self.there[at], 3) for at in sorted(self.there)]

    def note(self, drafted: int, accepted: int, tokens: int) -> None:
        self.drafted.append(drafted)
        self.tokens.append(tokens)
        self.there.update(range(drafted))
        self.stood.update(range(accepted))


def replay(answers: Iterable[tuple[Sequence[Drafter], Sequence[int]]], k: int) -> Replayed:
    """Every answer (its drafters, fresh; its tokens) decoded with always ``k`` drafts where the first
    drafter that has something to say has so many. The first token comes with the prompt."""
    found = Replayed()
    for drafters, answer in answers:
        for drafter in drafters:
            drafter.accept(answer[:1])
        at = 1
        while at < len(answer):
            offers = (drafter.propose(min(k, len(answer) - at)) for drafter in drafters)
            draft = next((offer for offer in offers if offer.tokens), Draft())
            accepted = _common(draft.tokens, answer[at:])
            new = answer[at : at + accepted + 1]
            found.note(len(draft.tokens), accepted, len(new))
            for drafter in drafters:
                drafter.accept(new)
            at += len(new)
    return found


def _common(drafts: Sequence[int], answer: Sequence[int]) -> int:
    for count, (drafted, token) in enumerate(zip(drafts, answer, strict=False)):
        if drafted != token:
            return count
    return min(len(drafts), len(answer))
