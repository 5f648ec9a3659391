"""One run of a task: its generator, its answers in progress, and the branches that hold its fork."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from operators.cache.kv_cache import Branch, KvCache, StreamSlot
from operators.decoding.generation import Generation
from operators.tasks.base import TOO_LONG, Answer, Ask, Occasion, Outcome, Steps, Task

MIN_SHARED = 8
"""Fewer common tokens are run again rather than copied."""
CUT = ("length", "repetition")
"""Reasons to finish that may come in the middle of a character."""
MakeGeneration = Callable[[Ask], Generation]


@dataclass(eq=False)
class TaskRun:
    """From the place where the task became due until ``outcome`` is set.

    While it has asks under way it holds at least one branch. A later ask forks beside that one, so
    every ask of the run sees the stream as of the same frontier, however far ingest has advanced
    since (an open branch bounds how far it may).
    """

    task: Task
    occasion: Occasion
    fork: int = -1
    """The stream's frontier where the run started: what its branches see ends here."""
    steps: Steps | None = None
    make: MakeGeneration | None = None
    decode: Callable[[Sequence[int]], str] = lambda tokens: ""
    room: int = sys.maxsize
    """Tokens of a branch: prompt and answer together."""
    asked: list[Generation] = field(default_factory=list)
    """Of the generator's last step, in the order of its asks."""
    waiting: deque[Generation] = field(default_factory=deque)
    """Those of them that have no branch yet."""
    shared: int = 0
    """Prompt tokens that all answers of the step begin with. They are run once: the others take them
    over from one that has them, in its own region or as a copy."""
    outcome: Outcome | None = None

    @property
    def can_open(self) -> bool:
        """Whether a waiting ask could start now: the first at once, the others when the tokens that all
        begin with have been run."""
        if not self.waiting:
            return False
        return not self.shared or not self.open or self._donor() is not None

    @property
    def open(self) -> list[Generation]:
        return [g for g in self.asked if g.branch is not None and not g.finish_reason]

    def start(self) -> None:
        """Run the generator up to its first asks, or to its outcome."""
        self._resume(None)

    def open_next(self, slot: StreamSlot, cache: KvCache) -> None:
        """Fork for the next waiting ask; a region must be free."""
        generation, donor = self.waiting.popleft(), self._donor()
        branch = cache.fork(slot, beside=self._held(), alone=generation.alone)
        if donor is not None and donor.branch is not None:
            cache.copy_branch(donor.branch, branch, self.shared)
            generation.prefilled = self.shared
        elif generation.alone:
            generation.prefilled = cache.begin(branch, generation.prompt)
        generation.start(branch)

    def advance(self, cache: KvCache) -> None:
        """Pass on the branches of finished answers; when all answers are complete, resume the generator.
        Mutates the run; drops branches that are not needed."""
        for generation in self.asked:
            if generation.alone and generation.branch is not None:
                cache.keep_beginning(generation.branch)
            if generation.finish_reason and generation.branch is not None:
                self._pass_on(generation, cache)
        if not self.asked or self.waiting or self.open:
            return
        held, failed = self._held(), next((g for g in self.asked if g.failure), None)
        for generation in self.asked:
            generation.branch = None
        try:
            if failed is not None:
                self._fail(failed.failure, failed.problem)
            else:
                self._resume([self._answer(g) for g in self.asked])
        except BaseException:  # a task's own fault: nobody else knows this branch any more
            if held is not None:
                cache.drop(held)
            raise
        if held is not None:
            if self.waiting:
                held.length = 0  # these asks begin with tokens of their own
                following = self.waiting.popleft()
                if following.alone:
                    following.prefilled = cache.begin(held, following.prompt)
                following.start(held)
            else:
                cache.drop(held)

    def close(self, cache: KvCache) -> None:
        """Cancel the run: drop its branches, close its generator. The stream is not affected."""
        for generation in self.asked:
            if generation.branch is not None:
                cache.drop(generation.branch)
                generation.branch = None
        self.waiting.clear()
        if self.steps is not None:
            self.steps.close()

    # --- inside ------------------------------------------------------------------------------

    def _resume(self, answers: Sequence[Answer] | None) -> None:
        assert self.steps is not None
        assert self.make is not None
        asks: Sequence[Ask] = ()
        try:
            while not asks:
                asks = next(self.steps) if answers is None else self.steps.send(answers)
                answers = ()
        except StopIteration as end:
            self.outcome, self.asked = end.value, []
            return
        if len({ask.alone for ask in asks} | {g.alone for g in self.asked}) > 1:
            raise ValueError(f"task {self.task.name}: asks of one run are all alone, or none is")
        if any(len(ask.prompt) >= self.room for ask in asks):
            self._fail(TOO_LONG, "a prompt has no room in a branch")
            return
        self.asked = [self.make(ask) for ask in asks]
        self.shared = shared_tokens([ask.prompt for ask in asks])
        self.waiting.extend(self.asked)

    def _fail(self, reason: str, problem: str) -> None:
        if self.steps is not None:
            self.steps.close()
        self.outcome, self.asked = Outcome(failed=reason, text=problem), []

    def _held(self) -> Branch | None:
        return next((g.branch for g in self.asked if g.branch is not None), None)

    def _pass_on(self, finished: Generation, cache: KvCache) -> None:
        """Its branch to a waiting ask; else drop it, unless it is the last and holds the fork."""
        branch = finished.branch
        assert branch is not None
        others = any(g.branch is not None for g in self.asked if g is not finished)
        if self.waiting:
            finished.branch = None
            self._reuse(branch)
        elif others:
            finished.branch = None
            cache.drop(branch)

    def _reuse(self, branch: Branch) -> None:
        """Use the region again, from behind the tokens that the next ask begins with too."""
        generation = self.waiting.popleft()
        branch.length = generation.prefilled = self.shared
        generation.start(branch)

    def _donor(self) -> Generation | None:
        """An answer of the step whose branch has the shared tokens."""
        return next(
            (g for g in self.asked if g.branch is not None and 0 < self.shared <= g.prefilled), None
        )

    def _answer(self, generation: Generation) -> Answer:
        text = self.decode(generation.output)
        if generation.finish_reason in CUT:
            text = text.rstrip("\ufffd")  # the last character is not complete
        return Answer(
            tokens=tuple(generation.output),
            text=text,
            finish_reason=generation.finish_reason,
            usage=generation.usage(),
            weights=generation.weights,
            alignment=tuple(generation.alignment),
        )


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, leaving at least one to each; 0 for a single prompt and
    where it would be hardly worth a copy."""
    if len(prompts) < 2:
        return 0
    first, length = prompts[0], min(map(len, prompts)) - 1
    for prompt in prompts[1:]:
        same = (at for at in range(length) if first[at] != prompt[at])
        length = next(same, length)
    return length if length >= MIN_SHARED else 0
