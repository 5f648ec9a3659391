"""Drafts of a head (operators.model.head), which reads the features that the target leaves.

The head attends to an answer's own tokens only: the prompt's stretch that was run for it, and the
output. Its keys and values lie in a region of their own, one per branch, and go with the answer; a
stream has nothing here. Features wait with the answer until the head is first asked, and are then read
at once. Behind them it goes on from its own guesses; after the verify the target's features take their
place, so what it wrote for a draft is always undone.

Its drafts are accepted by exact matching, so what it guesses never changes the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from operators.cache.batch import ForwardBatch, Row
from operators.cache.kv_cache import Branch, KvCache, KvLayout, KvShape, StreamSlot
from operators.decoding.acceptance import Candidate, Costs
from operators.decoding.draft_model import ModelDrafter
from operators.decoding.drafters import Draft
from operators.decoding.generation import Generation
from operators.decoding.sampling import TOKEN
from operators.decoding.verify import NOTHING, most_likely
from operators.model.head import Head
from operators.model.loader import DecoderModel

NAME = "head"


@dataclass(eq=False)
class HeadDrafter(ModelDrafter):
    """One answer's region. ``features``: those of the target that the head has not read, in the
    generation's own list; the last of them stands before the last of ``tokens``."""

    features: list[Tensor] = field(default_factory=list)

    @property
    def lag(self) -> int:
        return sum(map(len, self.features))

    def accept(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)


class DraftHead:
    """A head, with regions for as many answers as there are ``branches`` of ``tokens`` tokens."""

    def __init__(
        self, head: Head, target: DecoderModel, *, slots: int, branches: int, tokens: int
    ) -> None:
        self.head, self._target, self._slots = head, target, slots
        self.cache = KvCache(
            KvShape(1, target.shape.kv_heads, target.shape.head_dim),
            KvLayout(sinks=0, window=1, slack=0, branch_tokens=tokens),  # no stream is ever read
            slots=branches,
            branches=branches,
            dtype=target.dtype,
            device=target.device,
        )

    @property
    def bytes_per_stream(self) -> int:
        """A stream's share of all regions, and of the features that may wait."""
        layout, fc = self.cache.layout, self.head.fc
        waiting = self.cache.branches * layout.branch_tokens * fc.out_features
        return -(-(self.cache.nbytes + waiting * fc.weight.element_size()) // self._slots)

    def costs(self, costs: Costs) -> Costs:
        """With the head's own cost, if unknown by its share of the weights that the target reads."""
        if costs.draft is not None:
            return costs
        output = self._target.vocab_size * self.head.fc.out_features
        layer = self.head.numbers - self.head.fc.weight.numel()
        whole = output + self._target.shape.layers * layer
        return replace(costs, draft=costs.verify.times((output + self.head.numbers) / whole))

    def open(self, generation: Generation) -> HeadDrafter:
        """An empty region for the answer."""
        branch, prompt, features = generation.branch, generation.prompt, generation.features
        assert branch is not None
        assert features is not None
        self.cache.wipe_region(branch.region)
        own = Branch(StreamSlot(branch.region), branch.region, fork=0)
        tokens, sampler = [*prompt, *generation.output], generation.decoding.sampler
        return HeadDrafter(own, tokens, len(prompt), sampler, features=features)

    def candidate(self, drafter: ModelDrafter, limit: int) -> Candidate:
        return Candidate(NAME, limit, by_model=True, lag=drafter.lag - 1)

    @torch.inference_mode()
    def draft(self, wanted: Sequence[tuple[ModelDrafter, int]]) -> list[Draft]:
        """Up to k tokens for every (drafter, k ≥ 1), in one forward per token. Mutates the regions."""
        drafters = [cast(HeadDrafter, drafter) for drafter, _ in wanted]
        drafts: list[list[int]] = [[] for _ in wanted]
        active = list(range(len(wanted)))
        rows = [_row(drafter, drafter.tokens[-drafter.lag :]) for drafter in drafters]
        read = [drafter.branch.length + drafter.lag for drafter in drafters]
        features = torch.cat([tensor for drafter in drafters for tensor in drafter.features])
        for drafter in drafters:
            drafter.features.clear()
        while active:
            features, logits = self._run(rows, features)
            going = []
            for place, (at, best) in enumerate(zip(active, most_likely(logits), strict=True)):
                token = _chosen(drafters[at], drafts[at], logits[place], best)
                if token != NOTHING:
                    drafts[at].append(token)
                    if len(drafts[at]) < wanted[at][1]:
                        going.append(place)
            features, active = features[going], [active[place] for place in going]
            rows = [_row(drafters[at], drafts[at][-1:]) for at in active]
        for drafter, length in zip(drafters, read, strict=True):
            drafter.branch.length = length
        return [Draft(tokens, NAME, NAME) for tokens in drafts]

    def _run(self, rows: list[Row], features: Tensor) -> tuple[Tensor, Tensor]:
        """Feature ``[rows, hidden]`` and logits ``[rows, vocab]`` behind every row."""
        batch = ForwardBatch(self.cache, rows, self._target.rope, self._target.attention)
        found = self.head.forward(batch, features, self._target.network("decode"))
        batch.commit()
        return found


def _row(drafter: HeadDrafter, tokens: Sequence[int]) -> Row:
    return Row(drafter.branch.stream, tokens, drafter.branch, num_logits=1)


def _chosen(drafter: HeadDrafter, drafted: Sequence[int], logits: Tensor, best: int) -> int:
    """The next draft; where the target samples, with its noise of that place."""
    if drafter.sampler is None or best == NOTHING:
        return best
    answer = [*drafter.tokens[drafter.prompt :], *drafted]
    return drafter.sampler.pick(drafter.sampler.probs(logits, answer), len(answer), TOKEN)
