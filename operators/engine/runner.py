"""Runs what the scheduler planned: one forward per role, then every row's logits to its owner."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.decoding.draft_model import DraftModel
from operators.decoding.generation import Generation
from operators.engine.scheduler import StepPlan
from operators.engine.session import Session
from operators.model.loader import DecoderModel
from operators.observer import Observer


class Runner:
    """``ingested(session, row)`` is told of every stretch of transcript that is in the cache."""

    def __init__(
        self,
        model: DecoderModel,
        cache: KvCache,
        draft: DraftModel | None,
        ingested: Callable[[Session, Row], None],
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._cache, self._draft = model, cache, draft
        self._ingested, self._observer, self._clock = ingested, observer, clock

    def run(self, plan: StepPlan) -> None:
        """Forward the plan's rows. Mutates caches, generations and sessions."""
        if plan.prompts or plan.blocks:
            self._ingest(plan)
        if plan.verifies:
            self._verify(plan.verifies)
        rows = [row for row, _ in (*plan.prompts, *plan.blocks, *plan.verifies)]
        self._observer.observe("batch_tokens", sum(len(row.tokens) for row in rows))

    def _ingest(self, plan: StepPlan) -> None:
        began = self._clock()
        blocks = [row for row, _ in plan.blocks]
        rows = [row for row, _ in plan.prompts] + blocks
        logits = self._model.forward("ingest", self._cache, rows)
        self._observer.count("prompt_tokens", sum(len(row.tokens) for row in rows))
        self._observer.observe("prefill_seconds", self._clock() - began)
        at = 0
        for row, generation in plan.prompts:
            self._prompted(
                generation, len(row.tokens), logits[at : at + 1] if row.num_logits else None
            )
            at += row.num_logits
        if self._draft is not None:
            self._draft.ingest(blocks)
        for row, session in plan.blocks:
            self._ingested(session, row)

    def _prompted(self, generation: Generation, tokens: int, logits: Tensor | None) -> None:
        generated = generation.prompt_done(tokens, logits)
        if logits is not None:
            self._observer.count("generation_tokens", generated)
            generation.first_token_at = generation.last_token_at = self._clock()
            waited = generation.first_token_at - generation.due_at
            self._observer.observe("time_to_first_token_seconds", waited)
        _finish_if_done(generation)

    def _verify(self, verifies: list[tuple[Row, Generation]]) -> None:
        logits = self._model.forward("generation", self._cache, [row for row, _ in verifies])
        at = 0
        for row, generation in verifies:
            self._verified(generation, len(row.tokens) - 1, logits[at : at + row.num_logits])
            at += row.num_logits

    def _verified(self, generation: Generation, drafted: int, logits: Tensor) -> None:
        accepted, tokens = generation.verified(logits)
        now = self._clock()
        if generation.last_token_at is not None and tokens:
            each = (now - generation.last_token_at) / len(tokens)
            self._observer.observe("inter_token_latency_seconds", each)
        generation.last_token_at = now
        self._observer.count("generation_tokens", len(tokens))
        if drafted:
            self._count_drafts(generation.drafter_name, drafted, accepted)
        _finish_if_done(generation)

    def _count_drafts(self, drafter: str, drafted: int, accepted: int) -> None:
        self._observer.count("spec_decode_drafts")
        self._observer.count("spec_decode_draft_tokens", drafted)
        self._observer.count("spec_decode_accepted_tokens", accepted, drafter=drafter)
        for position in range(accepted):
            self._observer.count("spec_decode_accepted_tokens_per_pos", position=str(position))


def _finish_if_done(generation: Generation) -> None:
    if generation.finish_reason and generation.on_finish is not None:
        generation.on_finish(generation)
