"""A smaller model that drafts for the target, with a sink + window cache of its own kept in step.

The draft's cache has the target's layout, slot for slot and region for region:

* what the target ingests into a stream the draft ingests in the same step, at the same positions;
* a branch of the target has a twin in the draft's scratch, filled only when it is first drafted on;
* after a verify the twin's length falls back to what was accepted; after full acceptance it lacks the
  last draft, which was not run through the draft model. Tokens that the twin lacks are fed first the
  next time.

Drafts are made token by token, for all streams of a step in one forward. What the draft model sees
changes how often it is right, never the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvLayout, StreamSlot, bytes_per_stream
from operators.decoding.acceptance import Candidate
from operators.decoding.drafters import Draft
from operators.decoding.generation import Generation
from operators.decoding.sampling import DRAFT, TOKEN, Sampler
from operators.decoding.verify import NOTHING, most_likely
from operators.errors import ModelError
from operators.model.loader import DecoderModel, Role

NAME = "draft"
FEW = 8
"""Up to this many tokens of one row the generation weights are used, beyond them those for ingest."""


@dataclass
class DraftMemory:
    """A stream's KV in the draft's cache, moved to host memory. ``origin`` as in StreamSlot."""

    kv: Tensor
    origin: int


@dataclass(eq=False)
class ModelDrafter:
    """One answer's twin branch. ``tokens``: prompt and answer so far; the twin holds KV of the first
    ``branch.length`` of them."""

    branch: Branch
    tokens: list[int]
    prompt: int
    sampler: Sampler | None = None
    _drafted: list[int] = field(default_factory=list)

    @property
    def lag(self) -> int:
        """Tokens to be fed before the first draft comes out."""
        return len(self.tokens) - self.branch.length

    def propose(self, k: int) -> Draft:
        """Nothing: its drafts are made by :meth:`DraftModel.draft`, for many answers at once."""
        return Draft()

    def accept(self, tokens: Sequence[int]) -> None:
        """Keep the twin's KV of those drafts that were accepted."""
        stands = 0
        for drafted, token in zip(self._drafted, tokens, strict=False):
            if drafted != token:
                break
            stands += 1
        self.branch.length = min(self.branch.length, len(self.tokens) + stands)
        self.tokens.extend(tokens)
        self._drafted = []


class DraftModel:
    """The draft model and its cache. Raises ModelError when its vocabulary is not the target's, or
    its trained context is too short for the layout."""

    def __init__(
        self,
        model: DecoderModel,
        target: DecoderModel,
        layout: KvLayout,
        prefix: Sequence[int],
        *,
        slots: int,
        branches: int,
        block: int,
    ) -> None:
        check_same_vocabulary(model, target)
        self.model, self.layout = model, layout
        self._vocab, self._block = target.vocab_size, block
        self._slots, self._branches = slots, branches
        self.cache = model.new_cache(layout, slots=slots, branches=branches)
        self._twins: WeakKeyDictionary[StreamSlot, StreamSlot] = WeakKeyDictionary()
        slot = self.cache.claim(0)
        while slot.length < len(prefix):
            end = slot.length + layout.slack
            model.forward("prefill", self.cache, [Row(slot, prefix[slot.length : end])])
        self._prefix = self.cache.export(slot)
        self.cache.release(slot)

    @property
    def bytes_per_stream(self) -> int:
        """KV bytes of one stream in the draft's cache: same layout, the draft model's shape."""
        return bytes_per_stream(
            self.model.shape,
            self.layout,
            self.model.dtype,
            slots=self._slots,
            branches=self._branches,
        )

    # --- in step with the target -------------------------------------------------------------

    def adopt(self, slot: StreamSlot, memory: DraftMemory | None = None) -> None:
        """Give the target's freshly filled ``slot`` its twin: from ``memory``, or new. Without memory, a
        stream that continues has KV in the draft's cache from this position on only."""
        twin = self.cache.claim(slot.index)
        if memory is not None:
            self.cache.restore(twin, memory.kv, slot.length)
            twin.origin = memory.origin
        else:
            self.cache.restore(twin, self._prefix, self.layout.sinks)
            twin.length = slot.length
            twin.origin = slot.length if slot.length > self.layout.sinks else slot.origin
        self._twins[slot] = twin

    def export(self, slot: StreamSlot) -> DraftMemory:
        """The stream's KV in host memory; the twin stays."""
        twin = self._twins[slot]
        return DraftMemory(self.cache.export(twin), twin.origin)

    def ingest(self, rows: Sequence[Row]) -> None:
        """Append what the target has appended to its streams (rows without a branch)."""
        mine = [Row(self._twins[row.stream], row.tokens) for row in rows]
        if mine:
            self._run("prefill", mine)

    def open(self, generation: Generation) -> ModelDrafter:
        """A twin for the answer's branch, empty until it is drafted on."""
        branch, prompt = generation.branch, generation.prompt
        assert branch is not None
        twin = Branch(self._twins[branch.stream], branch.region, branch.fork)
        self.cache.wipe_region(branch.region)
        tokens = [*prompt, *generation.output]
        return ModelDrafter(twin, tokens, len(prompt), generation.decoding.sampler)

    # --- drafting ----------------------------------------------------------------------------

    def candidate(self, drafter: ModelDrafter, limit: int) -> Candidate:
        return Candidate(NAME, limit, by_model=True, lag=drafter.lag - 1)

    def draft(self, wanted: Sequence[tuple[ModelDrafter, int]]) -> list[Draft]:
        """Up to k tokens for every (drafter, k ≥ 1), in one forward per token.

        A twin far behind catches up by one block and drafts nothing this time. Mutates the twins.
        """
        drafts: list[list[int]] = [[] for _ in wanted]
        probs: list[list[Tensor]] = [[] for _ in wanted]
        active = list(range(len(wanted)))
        while active:
            rows = [self._row(wanted[at][0], drafts[at]) for at in active]
            going = []
            for at, logits in zip(active, self._each(rows), strict=True):
                drafter, k = wanted[at]
                if logits is None:
                    continue
                token, chances = self._choose(drafter, logits, drafts[at])
                if token is None:
                    continue
                drafts[at].append(token)
                if chances is not None:
                    probs[at].append(chances)
                if len(drafts[at]) < k:
                    going.append(at)
            active = going
        for (drafter, _), tokens in zip(wanted, drafts, strict=True):
            drafter._drafted = tokens
        return [
            Draft(tokens, NAME, NAME, torch.stack(chances) if chances else None)
            for tokens, chances in zip(drafts, probs, strict=True)
        ]

    def _each(self, rows: list[Row]) -> list[Tensor | None]:
        """Logits ``[vocab]`` of every row that asks for them. A row's weights depend on that row alone:
        where the text depends on drafts it must not depend on other rows."""
        found: list[Tensor | None] = [None] * len(rows)
        few = [at for at, row in enumerate(rows) if len(row.tokens) <= FEW]
        many = [at for at, row in enumerate(rows) if len(row.tokens) > FEW]
        roles: tuple[tuple[Role, list[int]], ...] = (("decode", few), ("prefill", many))
        for role, places in roles:
            if places:
                logits = iter(self._run(role, [rows[at] for at in places]))
                for at in places:
                    found[at] = next(logits) if rows[at].num_logits else None
        return found

    def _row(self, drafter: ModelDrafter, drafted: list[int]) -> Row:
        branch = drafter.branch
        tokens = [*drafter.tokens, *drafted][branch.length :]
        block = tokens[: self._block]
        return Row(branch.stream, block, branch, num_logits=int(len(block) == len(tokens)))

    def _choose(
        self, drafter: ModelDrafter, logits: Tensor, drafted: list[int]
    ) -> tuple[int | None, Tensor | None]:
        """The next draft token, and for rejection sampling the distribution it was drawn from."""
        best = most_likely(logits[None])[0]
        if best == NOTHING:
            return None, None
        sampler = drafter.sampler
        if sampler is None:
            return best, None
        answer = [*drafter.tokens[drafter.prompt :], *drafted]
        chances = sampler.probs(logits, answer)
        if sampler.sampling.acceptance == "rejection":
            return sampler.pick(chances, len(answer), DRAFT), chances
        return sampler.pick(chances, len(answer), TOKEN), None

    def _run(self, role: Role, rows: list[Row]) -> Tensor:
        """Logits over the target's vocabulary: padding rows of the two models may differ in number."""
        logits = self.model.forward(role, self.cache, rows)
        missing = self._vocab - logits.shape[-1]
        if missing > 0:
            least = torch.finfo(logits.dtype).min
            return torch.nn.functional.pad(logits, (0, missing), value=least)
        return logits[:, : self._vocab]


def check_same_vocabulary(draft: DecoderModel, target: DecoderModel) -> None:
    """Refuse a draft model whose token ids mean something else (raises ModelError)."""
    ours, theirs = target.tokenizer.vocabulary(), draft.tokenizer.vocabulary()
    unlike = [token for token, at in ours.items() if theirs.get(token, at) != at]
    shared = sum(token in theirs for token in ours)
    if unlike or shared < 0.99 * len(ours):
        example = f", for example {unlike[0]!r}" if unlike else ""
        raise ModelError(
            f"{draft.name} cannot draft for {target.name}: their vocabularies differ in "
            f"{len(unlike) + len(ours) - shared} tokens{example}; choose a draft model of the same "
            "family"
        )
