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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from operators.decoding.sampling import ACCEPT, RESIDUAL, TOKEN, Sampler


@dataclass(frozen=True)
class Verdict:
    """``tokens``: accepted drafts then the bonus token (cut behind an EOS); ``accepted``: how many of
    the drafts are among them; ``stopped``: an EOS was reached (it is not part of ``tokens``)."""

    tokens: list[int]
    accepted: int
    stopped: bool


def accept_greedy(logits: Tensor, drafts: Sequence[int], eos_ids: frozenset[int]) -> Verdict:
    """Judge ``drafts`` (k tokens) by ``logits`` ``[k+1, vocab]`` of the block ``[pending, *drafts]``."""
    choice: list[int] = logits.argmax(dim=-1).tolist()
    return accept_equal(choice.__getitem__, drafts, eos_ids)


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
