"""Verification of draft tokens against the target model's own choice.

One forward over ``[pending, d1 … dk]`` gives the target's logits at every place. The drafts that the
target would have chosen too are accepted, then its own next token follows as the bonus token: 1 to
k+1 tokens for one forward.

* Greedy: a draft stands while it equals the argmax; exactly the text of plain greedy decoding
  (Leviathan et al. 2023, arXiv 2211.17192, greedy case).
* Sampled, exact matching: the target draws its token at each place with that place's noise, and a
  draft stands while it equals it; exactly the text of plain sampling with that noise. So it is for
  every deterministic drafter, and with ``coupled`` acceptance also for a draft model, which draws
  with the same noise and so mostly the same token (Daliri et al. 2024, arXiv 2408.07978).
* Sampled, ``rejection`` of a draft model's tokens: accepted with the chance
  ``min(1, target_probs / draft_probs)``, else replaced by a draw from the residual distribution
  (Leviathan et al. 2023, algorithm 1). The distribution is the target's; the text depends on the drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from operators.decoding.sampling import ACCEPT, RESIDUAL, TOKEN, Sampler

BLOCKS = 64
"""Stretches that the vocabulary is cut into, where it can be."""


@dataclass(frozen=True)
class Verdict:
    """``tokens``: accepted drafts then the bonus token (cut behind an EOS); ``accepted``: how many of
    the drafts are among them; ``stopped``: an EOS was reached (it is not part of ``tokens``)."""

    tokens: list[int]
    accepted: int
    stopped: bool


NOTHING = -1
"""In place of a token where the model gave no finite numbers."""


def most_likely(logits: Tensor) -> list[int]:
    """The first of the most likely tokens of every row of ``[rows, vocab]``, or :data:`NOTHING` for a
    row with a NaN, +inf, or nothing above -inf.

    One pass over the logits as they are: the greatest of each of some stretches of the vocabulary, then
    the place within the winning stretch. Casting, checking and searching all of them apart takes 25
    times as long. One copy to the host for all rows.
    """
    rows, vocab = logits.shape
    if not rows:
        return []
    blocks = math.gcd(vocab, BLOCKS)
    stretches = logits.reshape(rows, blocks, -1)
    greatest = stretches.amax(dim=-1)
    block = greatest.argmax(dim=-1)
    within = stretches[torch.arange(rows, device=logits.device), block].argmax(dim=-1)
    token = block * (vocab // blocks) + within
    finite = torch.isfinite(greatest.amax(dim=-1))
    chosen: list[int] = torch.where(finite, token, NOTHING).tolist()
    return chosen


def accept_greedy(best: Sequence[int], drafts: Sequence[int], eos_ids: frozenset[int]) -> Verdict:
    """Judge ``drafts`` (k tokens) by the most likely tokens (k+1) of ``[pending, *drafts]``."""
    return accept_equal(best.__getitem__, drafts, eos_ids)


class Rows(Protocol):
    """Logits ``[vocab]`` of each place of a block: a tensor ``[k+1, vocab]``, or rows made on demand."""

    def __getitem__(self, at: int, /) -> Tensor: ...


def accept_sampled(
    logits: Rows,
    drafts: Sequence[int],
    eos_ids: frozenset[int],
    sampler: Sampler,
    answer: Sequence[int],
    draft_probs: Tensor | None = None,
) -> Verdict:
    """Judge ``drafts`` as :func:`accept_greedy` does, the target drawing its tokens with ``sampler``.

    ``answer``: the tokens before the first draft. ``draft_probs`` ``[k, vocab]``, float64: what each
    draft was drawn from, independently of the noise used here; given, drafts are accepted by
    rejection sampling, else by exact matching.
    """

    def target_probs(at: int) -> Tensor:
        return sampler.probs(logits[at], [*answer, *drafts[:at]])

    def matching(at: int) -> int:
        return sampler.pick(target_probs(at), len(answer) + at, TOKEN)

    def rejecting(at: int) -> int:
        if draft_probs is None or at == len(drafts):
            return matching(at)
        want, had, place = target_probs(at), draft_probs[at], len(answer) + at
        draft = drafts[at]
        if sampler.uniform(place, ACCEPT) * had[draft] < want[draft]:
            return draft
        left = torch.clamp(want - had, min=0)
        total = left.sum()
        # Equal distributions reject nothing: an empty residual comes from rounding only.
        left = left / total if total > 0 else want
        return sampler.pick(left, place, RESIDUAL)

    return accept_equal(matching if draft_probs is None else rejecting, drafts, eos_ids)


def accept_equal(
    choose: Callable[[int], int], drafts: Sequence[int], eos_ids: frozenset[int]
) -> Verdict:
    """Take the target's token at every place, ``choose(0)`` first, as long as it is the draft's; the
    first that is not (or the one behind the last draft) is the bonus token."""
    tokens: list[int] = []
    while True:
        at = len(tokens)
        token = choose(at)
        if token in eos_ids:
            return Verdict(tokens, at, stopped=True)
        tokens.append(token)
        if at == len(drafts) or token != drafts[at]:
            return Verdict(tokens, at, stopped=False)
