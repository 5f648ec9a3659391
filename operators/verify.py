"""Verification of draft tokens against the target model's own choice (greedy).

One forward over ``[pending, d1 … dk]`` gives the target's logits at every place. The longest prefix of
drafts that equals the target's argmax is accepted, then the target's own next token follows as the
bonus token: 1 to k+1 tokens for one forward, and exactly the text plain greedy decoding would give
(Leviathan et al. 2023, arXiv 2211.17192, greedy case).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == choice[accepted]:
        accepted += 1
    tokens = choice[: accepted + 1]
    for at, token in enumerate(tokens):
        if token in eos_ids:
            return Verdict(tokens[:at], min(accepted, at), stopped=True)
    return Verdict(tokens, accepted, stopped=False)
