"""One answer in progress: its branch, prompt, drafts and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from operators.cache.attention import Heads, Watch
from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvCache
from operators.decoding.acceptance import Candidate, DraftControl, smoothed_tokens_per_verify
from operators.decoding.constraints import Constraint
from operators.decoding.drafters import Draft, Drafter
from operators.decoding.sampling import Sampler
from operators.decoding.verify import (
    NOTHING,
    Verdict,
    accept_equal,
    accept_greedy,
    accept_sampled,
    most_likely,
)
from operators.events import Usage

_LOOP_TOKENS = 24
NO_DRAFT = Draft()
NONFINITE = "nonfinite"
"""``finish_reason`` of an answer for which the model gave no finite numbers."""
NONFINITE_PROBLEM = "the model gave no finite numbers: try dtype fp32, or another model"


@dataclass(frozen=True)
class Decoding:
    """How an answer's tokens are chosen and drafted. ``sampler`` None: the most likely token.
    ``by_model``: a draft model may be used. Only ``sampler`` affects the text."""

    control: DraftControl = field(default_factory=DraftControl)
    make_drafters: Callable[[], list[Drafter]] = list
    by_model: bool = False
    sampler: Sampler | None = None


@dataclass(eq=False)
class Generation:
    """An answer on a branch; lives from the fork until ``finish_reason`` is set.

    Each step runs either a stretch of prompt (role prefill) or a verify block ``[pending, *drafts]``
    (role decode). ``output`` never holds a token the target model did not choose itself.
    """

    task: str
    prompt: Sequence[int]
    max_tokens: int
    eos_ids: frozenset[int]
    decoding: Decoding = field(default_factory=Decoding)
    ends: Callable[[Sequence[int]], bool] | None = None
    """Whether the answer is complete with this output, asked after every token (besides EOS)."""
    choices: tuple[int, ...] = ()
    """First tokens to be weighed instead of an answer: ``weights`` are their probabilities."""
    constraints: Sequence[Constraint] = ()
    """What the answer may be: masks on the logits before a token is chosen."""
    alone: bool = False
    """Its branch sees no transcript."""
    watched: tuple[int, int] | None = None
    heads: Heads = field(default_factory=dict)
    """For every token: to which place of the prompt's stretch ``watched`` these heads attend."""
    due_at: float = 0.0

    branch: Branch | None = None
    prefilled: int = 0
    pending: int | None = None
    output: list[int] = field(default_factory=list)
    finish_reason: str = ""
    failure: str = ""
    """Why there is no answer, in a word; ``problem`` is the sentence."""
    problem: str = ""
    first_token_at: float | None = None
    last_token_at: float | None = None
    weights: tuple[float, ...] = ()
    drafted: int = 0
    accepted: int = 0
    verifies: int = 0
    tokens_per_verify: float = 0.0
    """Tokens per verify, fading; 0 before the first. Affects how drafts are shared, never the text."""
    drafters: list[Drafter] = field(default_factory=list)
    features: list[Tensor] | None = None
    """Where a draft head is in use, the target's features ``[n, hidden]`` of the answer's own tokens
    that the head has not read."""
    alignment: list[int] = field(default_factory=list)
    _watch: Watch | None = None
    _row: Row | None = None
    _draft: Draft = NO_DRAFT

    @property
    def drafter_name(self) -> str:
        """The drafter of the last verify block."""
        return self._draft.drafter

    @property
    def prefilling(self) -> bool:
        return self.prefilled < len(self.prompt)

    def start(self, branch: Branch) -> None:
        self.branch = branch
        self.drafters = self.decoding.make_drafters()

    def prompt_row(self, budget: int) -> Row:
        """The next stretch of prompt; asks for logits only when it is the last."""
        assert self.branch is not None
        tokens = self.prompt[self.prefilled : self.prefilled + budget]
        last = self.prefilled + len(tokens) == len(self.prompt)
        row = Row(self.branch.stream, tokens, self.branch, num_logits=1 if last else 0)
        row.watch = self._watch = self._new_watch() if last else None
        return self._asking_for_features(row)

    def _asking_for_features(self, row: Row) -> Row:
        if self.features is not None:
            row.num_features, self._row = len(row.tokens), row
        return row

    def _keep_features(self, count: int) -> None:
        """Those of the row's first tokens. A copy: the others would be held with them."""
        if self.features is not None and self._row is not None and self._row.features is not None:
            self.features.append(self._row.features[:count].clone())
            self._row = None

    def _new_watch(self) -> Watch | None:
        return Watch(self.heads, *self.watched) if self.watched and self.heads else None

    def draft_room(self, cache: KvCache) -> int:
        """How many draft tokens the branch and the answer still have room for."""
        assert self.branch is not None
        return max(0, min(cache.branch_room(self.branch), self.max_tokens - len(self.output)) - 1)

    def candidates(self, limit: int) -> dict[Candidate, Draft]:
        """What the drafters would propose now, at most ``limit`` tokens each."""
        found = {}
        for drafter in self.drafters if limit > 0 else ():
            draft = drafter.propose(limit)
            if draft.tokens:
                found[Candidate(draft.arm, len(draft.tokens))] = draft
        return found

    def verify_row(self, draft: Draft = NO_DRAFT) -> Row:
        """``[pending, *drafts]`` with logits at every place. Remembers the draft for judging.
        ``draft`` must fit :meth:`draft_room`."""
        assert self.branch is not None
        assert self.pending is not None
        self._draft = draft
        tokens = [self.pending, *draft.tokens]
        row = Row(self.branch.stream, tokens, self.branch, num_logits=len(tokens))
        row.watch = self._watch = self._new_watch()
        return self._asking_for_features(row)

    def prompt_done(
        self, tokens: int, logits: Tensor | None, best: Sequence[int] | None = None
    ) -> int:
        """Record a prefilled stretch; its logits ``[1, vocab]`` give the first token. ``best`` as in
        :meth:`verified`. Returns how many tokens were generated (0 or 1)."""
        self.prefilled += tokens
        self._keep_features(tokens)
        if logits is None:
            return 0
        if self.choices:
            self._weigh(logits[0])
            return 0
        made = self._judge(NO_DRAFT, logits, best)
        self._align(made, first=-1)
        return len(made)

    def _align(self, tokens: Sequence[int], first: int) -> None:
        """Note where each new token looks; the first was predicted at row position ``first``."""
        if self._watch is None:
            return
        places = self._watch.places()
        found = places[first:][: len(tokens)] if places else []
        self.alignment += found + [-1] * (len(tokens) - len(found))

    def _weigh(self, logits: Tensor) -> None:
        """Finish with the probabilities of the choices, given that one of them comes."""
        scores = logits[list(self.choices)].float()
        finite = bool(torch.isfinite(scores).all())
        self.weights = tuple(torch.softmax(scores, dim=0).tolist()) if finite else ()
        self.finish_reason = "stop"
        if not finite:
            self._fail()

    def _fail(self) -> None:
        self.finish_reason, self.failure = NONFINITE, "nonfinite_logits"
        self.problem = NONFINITE_PROBLEM

    def verified(self, logits: Tensor, best: Sequence[int] | None = None) -> tuple[int, list[int]]:
        """Judge the last verify block by ``logits`` ``[k+1, vocab]``: roll the rejected part of the
        branch back, extend the output. ``best``: their :func:`most_likely`, where that was found for all
        rows of a step at once. Returns (accepted drafts, new tokens)."""
        assert self.branch is not None
        draft, before = self._draft, self.accepted
        tokens = self._judge(draft, logits, best)
        accepted = self.accepted - before
        self._align(tokens, first=0)
        self._keep_features(len(tokens))
        self.tokens_per_verify = smoothed_tokens_per_verify(
            self.tokens_per_verify or 1.0, len(tokens)
        )
        # Rollback: the block wrote pending + k tokens, pending + accepted of them stand.
        self.branch.length -= len(draft.tokens) - accepted
        if draft.tokens and self.finish_reason != NONFINITE:
            self.decoding.control.update(draft.arm, len(draft.tokens), accepted)
        return accepted, tokens

    def _judge(self, draft: Draft, logits: Tensor, best: Sequence[int] | None) -> list[int]:
        best = most_likely(logits) if best is None else best
        if NOTHING in best:
            self._fail()
            return []
        verdict = self._verdict(draft, logits, best)
        self.verifies += 1
        self.drafted += len(draft.tokens)
        self.accepted += verdict.accepted
        tokens, self.finish_reason = self._extend(verdict.tokens)
        if verdict.stopped and not self.finish_reason:
            self.finish_reason = "stop"
        for drafter in self.drafters:
            drafter.accept(tokens)
        self.pending = tokens[-1] if tokens else None
        return tokens

    def _verdict(self, draft: Draft, logits: Tensor, best: Sequence[int]) -> Verdict:
        sampler = self.decoding.sampler
        if sampler is None and not self.constraints:
            return accept_greedy(best, draft.tokens, self.eos_ids)
        scores = ConstrainedLogits(logits, self.constraints, [*self.output, *draft.tokens])
        if sampler is None:
            return accept_equal(lambda at: int(scores[at].argmax()), draft.tokens, self.eos_ids)
        return accept_sampled(scores, draft.tokens, self.eos_ids, sampler, self.output, draft.probs)

    def _extend(self, tokens: list[int]) -> tuple[list[int], str]:
        """Append tokens one by one until the answer is complete; returns those appended, and why it
        ended, if it did. Checking after each token ends the answer exactly where plain decoding
        would."""
        for count, token in enumerate(tokens, start=1):
            self.output.append(token)
            reason = self._why_complete()
            if reason:
                return tokens[:count], reason
        return tokens, ""

    def _why_complete(self) -> str:
        if self.ends is not None and self.ends(self.output):
            return "stop"
        if any(constraint.complete(self.output) for constraint in self.constraints):
            return "stop"
        if len(self.output) >= self.max_tokens:
            return "length"
        return "repetition" if is_looping(self.output) else ""

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt),
            output_tokens=len(self.output),
            drafted=self.drafted,
            accepted=self.accepted,
            verifies=self.verifies,
            finish_reason=self.finish_reason,
        )


class ConstrainedLogits:
    """The rows of a verify block as the constraints leave them, each made when it is asked for."""

    def __init__(
        self, logits: Tensor, constraints: Sequence[Constraint], answer: Sequence[int]
    ) -> None:
        """``answer``: the output so far and the drafts behind it."""
        self._logits, self._constraints, self._answer = logits, constraints, answer
        self._before = len(answer) + 1 - len(logits)

    def __getitem__(self, at: int) -> Tensor:
        """Logits ``[vocab]`` of place ``at``."""
        scores = self._logits[at].float()
        for constraint in self._constraints:
            scores = constraint.apply(scores, self._answer[: self._before + at])
        return scores


def is_looping(output: Sequence[int]) -> bool:
    """Whether the output ends in a stretch of ``_LOOP_TOKENS`` tokens that repeats with a period of
    at most half of it: greedy decoding never leaves such a loop."""
    if len(output) < _LOOP_TOKENS:
        return False
    tail = output[-_LOOP_TOKENS:]
    return any(tail[p:] == tail[:-p] for p in range(1, _LOOP_TOKENS // 2 + 1))
