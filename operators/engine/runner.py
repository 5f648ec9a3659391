"""Runs what the scheduler planned: drafts, one forward per kind of weights, then every row's logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.decoding.draft_head import DraftHead
from operators.decoding.draft_model import DraftModel, ModelDrafter
from operators.decoding.generation import Generation
from operators.decoding.verify import most_likely
from operators.engine.scheduler import Planned, StepPlan
from operators.model.loader import DecoderModel
from operators.observer import Observer

TRANSCRIPT = "transcript"
"""Label of prompt tokens that are no task's: the streams' own text."""


class StepRunner(Protocol):
    """Does a step's work."""

    def run(self, plan: StepPlan) -> None: ...


class Runner:
    """Holds no state of streams."""

    def __init__(
        self,
        model: DecoderModel,
        cache: KvCache,
        draft: DraftModel | DraftHead | None,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._cache, self._draft = model, cache, draft
        self._observer, self._clock = observer, clock

    def run(self, plan: StepPlan) -> None:
        """Forward the plan's rows. Mutates caches and generations."""
        reading = [row for row, _ in plan.prompts] + [block.row for block in plan.blocks]
        apart = isinstance(self._draft, DraftModel) or not self._model.one_forward
        if reading and plan.decoding and not apart:
            writing = self._verify_rows(plan.decoding)
            began = self._clock()
            logits = self._model.forward("decode", self._cache, [*reading, *writing])
            read = sum(row.num_logits for row in reading)
            self._note_reading(plan, logits[:read], began)
            self._note_writing(plan.decoding, writing, logits[read:])
        else:
            writing = self._apart(plan, reading)
        tokens = sum(len(row.tokens) for row in (*reading, *writing))
        self._observer.observe("batch_tokens", tokens)

    def _apart(self, plan: StepPlan, reading: list[Row]) -> list[Row]:
        """A forward per role; returns the rows of generation."""
        if reading:
            began = self._clock()
            self._note_reading(plan, self._model.forward("prefill", self._cache, reading), began)
            if isinstance(self._draft, DraftModel):
                self._draft.ingest([block.row for block in plan.blocks])
        if not plan.decoding:
            return []
        writing = self._verify_rows(plan.decoding)
        logits = self._model.forward("decode", self._cache, writing)
        self._note_writing(plan.decoding, writing, logits)
        return writing

    def _note_reading(self, plan: StepPlan, logits: Tensor, began: float) -> None:
        self._count_prompts(plan)
        self._observer.observe("prefill_seconds", self._clock() - began)
        best = most_likely(logits)
        at = 0
        for row, generation in plan.prompts:
            end = at + row.num_logits
            own = logits[at:end] if row.num_logits else None
            self._note_prompt(generation, len(row.tokens), own, best[at:end])
            at = end

    def _count_prompts(self, plan: StepPlan) -> None:
        """Tokens of this forward by the task they were read for; a stream's own are the transcript's."""
        read = Counter({TRANSCRIPT: sum(len(block.row.tokens) for block in plan.blocks)})
        for row, generation in plan.prompts:
            read[generation.task] += len(row.tokens)
        for task, tokens in read.items():
            if tokens:
                self._observer.count("prompt_tokens", tokens, task=task)

    def _note_prompt(
        self, generation: Generation, tokens: int, logits: Tensor | None, best: Sequence[int]
    ) -> None:
        generated = generation.prompt_done(tokens, logits, best)
        if logits is None:
            return
        self._observer.count("generation_tokens", generated, task=generation.task)
        generation.first_token_at = generation.last_token_at = self._clock()
        waited = generation.first_token_at - generation.due_at
        self._observer.observe("time_to_first_token_seconds", waited, task=generation.task)

    def _verify_rows(self, decoding: Sequence[Planned]) -> list[Row]:
        self.make_drafts(decoding)
        return [planned.generation.verify_row(planned.draft) for planned in decoding]

    def _note_writing(
        self, decoding: Sequence[Planned], rows: Sequence[Row], logits: Tensor
    ) -> None:
        best = most_likely(logits)  # of all rows at once: one pass, one copy from the device
        at = 0
        for row, planned in zip(rows, decoding, strict=True):
            end = at + row.num_logits
            drafted = len(row.tokens) - 1
            self._note_verify(planned.generation, drafted, logits[at:end], best[at:end])
            at = end

    def make_drafts(self, decoding: Sequence[Planned]) -> None:
        """Make the drafts that were left to a draft model or head, in one forward per token for all."""
        wanted: list[tuple[Planned, ModelDrafter]] = [
            (planned, planned.by_model) for planned in decoding if planned.by_model is not None
        ]
        if not wanted or self._draft is None:
            return
        drafts = self._draft.draft([(drafter, planned.length) for planned, drafter in wanted])
        for (planned, _), draft in zip(wanted, drafts, strict=True):
            planned.draft = draft

    def _note_verify(
        self, generation: Generation, drafted: int, logits: Tensor, best: Sequence[int]
    ) -> None:
        accepted, tokens = generation.verified(logits, best)
        now = self._clock()
        if generation.last_token_at is not None and tokens:
            each = (now - generation.last_token_at) / len(tokens)
            self._observer.observe("inter_token_latency_seconds", each, task=generation.task)
        generation.last_token_at = now
        self._observer.count("generation_tokens", len(tokens), task=generation.task)
        if drafted:
            self._count_drafts(generation, drafted, accepted)

    def _count_drafts(self, generation: Generation, drafted: int, accepted: int) -> None:
        observer, task, drafter = self._observer, generation.task, generation.drafter_name
        observer.count("spec_decode_drafts", task=task)
        observer.count("spec_decode_draft_tokens", drafted, task=task)
        observer.count("spec_decode_accepted_tokens", accepted, task=task, drafter=drafter)
        for position in range(accepted):
            observer.count("spec_decode_accepted_tokens_per_pos", position=str(position))
