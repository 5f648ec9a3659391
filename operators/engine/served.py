"""Runs and answers where the model runs elsewhere: requests take the place of forwards.

Everything else is the engine's: when a run is due, what it sees, coverage, order, state. Ingest costs
nothing here. An answer is one request; what its branch would see goes with it as text, as of the fork.
The text begins at a place that moves in strides, so that the server finds most of a prompt in its
prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from functools import partial

from operators.cache.kv_cache import Branch
from operators.decoding.generation import Generation
from operators.engine.scheduler import Planned, Scheduler, StepPlan, Transcript
from operators.engine.session import Session
from operators.engine.task_run import MakeGeneration
from operators.engine.task_runner import TaskRunner
from operators.errors import SegmentError
from operators.events import Usage
from operators.model.served import Form, ServedModel, TextAnswer, TextRequest, conversation
from operators.observer import Observer
from operators.tasks.base import Ask

STRIDES = 4
"""The shown window begins at multiples of a quarter of its size."""
POLL_S = 0.02
"""A step without anything else to do waits so long for an answer."""


@dataclass(eq=False)
class ServedGeneration(Generation):
    """An answer asked of a server. ``request`` holds all it is given; ``output`` is set at once when
    the answer is there."""

    request: TextRequest | None = None
    answer: TextAnswer | None = None

    def start(self, branch: Branch) -> None:
        # The whole prompt counts as run: asks that share its beginning need not wait for it.
        self.branch = branch
        branch.length = self.prefilled = len(self.prompt)

    def finish(self, answer: TextAnswer, output: list[int]) -> None:
        """Take the answer; ``output``: its text in tokens."""
        self.answer, self.output, self.weights = answer, output, answer.weights
        self.finish_reason = answer.finish_reason

    def fail(self, reason: str, message: str) -> None:
        self.finish_reason = self.failure = reason
        self.problem = message

    def usage(self) -> Usage:
        answer = self.answer or TextAnswer()
        return Usage(
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            drafted=answer.drafted,
            accepted=answer.accepted,
            finish_reason=self.finish_reason,
        )


def shown_text(session: Session) -> str:
    """The transcript a prompt shows: at most the window. It begins a quarter of a window later only
    when that much has left, and never behind the first text that no update has covered."""
    stride = max(1, session.layout.window // STRIDES)
    oldest = session.frontier - session.layout.window
    start = -(-oldest // stride) * stride
    whole = [part for part in session.window if part is not session.current]
    uncovered = min((p.start for p in whole if p.end > session.covered), default=start)
    return "".join(part.text for part in whole if part.start >= min(start, uncovered))


class ServedTaskRunner(TaskRunner):
    """Makes requests of asks. ``prefix``: the pinned tokens before every window."""

    prefix: Sequence[int] = ()

    def _maker(self, session: Session, name: str) -> MakeGeneration:
        window = self._tokenizer.encode(shown_text(session))
        return partial(self._request, name, [*self.prefix, *window])

    def _request(self, name: str, before: Sequence[int], ask: Ask) -> Generation:
        """``before``: what a branch sees of the stream."""
        tokenizer, ends, kind = self._tokenizer, ask.ends, ask.kind or name
        messages, opening = conversation([*(() if ask.alone else before), *ask.prompt])
        request = TextRequest(
            messages=messages,
            opening=opening,
            max_tokens=ask.max_tokens,
            form=Form(ask.grammar.kind, ask.grammar.text) if ask.grammar is not None else None,
            choices=tuple(tokenizer.decode([token]) for token in ask.choices),
            sampling=self._config.sampling(kind),
        )
        if ends is not None:
            request = replace(request, ends=lambda text: ends(tokenizer.encode(text)))
        return ServedGeneration(
            task=kind,
            prompt=ask.prompt,
            max_tokens=ask.max_tokens,
            eos_ids=tokenizer.eos_ids,
            choices=ask.choices,
            alone=ask.alone,
            due_at=self._clock(),
            request=request,
        )


class ServedScheduler(Scheduler):
    """Rows for transcript only; every answer with a branch is in the plan."""

    def plan(self, sessions: list[Session], transcript: Transcript) -> StepPlan:
        plan = StepPlan()
        order = self._oldest_first([s for s in sessions if s.slot is not None])
        self._turn += 1
        for session in order:
            if not session.idle or session.partials:
                session.last_used = self._turn
            plan.decoding += [Planned(g) for g in (*session.running, *session.partials.running)]
        self._blocks(plan, order, self._config.prefill_budget, transcript)
        return plan


class ServedRunner:
    """Sends what the scheduler planned, and takes the answers that have come. At most as many requests
    are under way as there are branches."""

    def __init__(self, model: ServedModel, observer: Observer) -> None:
        self._model, self._observer = model, observer
        self._under_way: dict[ServedGeneration, futures.Future[TextAnswer]] = {}

    def run(self, plan: StepPlan) -> None:
        """Mutates the rows' frontiers and finished generations. Raises DeviceError when the model cannot
        be had, ConfigError when the server takes none of our requests; what is asked stays asked for:
        the next step sends it again."""
        for block in plan.blocks:
            block.row.stream.length += len(block.row.tokens)
        for planned in plan.decoding:
            generation = planned.generation
            assert isinstance(generation, ServedGeneration)
            if generation not in self._under_way:
                assert generation.request is not None
                self._under_way[generation] = self._model.text.submit(generation.request)
        if not plan.blocks:
            futures.wait(self._under_way.values(), POLL_S, futures.FIRST_COMPLETED)
        self._collect()

    def sweep(self) -> None:
        """Give up requests whose branches are gone."""
        for generation in [g for g in self._under_way if g.branch is None]:
            self._under_way.pop(generation).cancel()
        self._model.text.measure(self._observer)

    def _collect(self) -> None:
        for generation, future in list(self._under_way.items()):
            if not future.done():
                continue
            del self._under_way[generation]
            try:
                answer = future.result()
            except SegmentError as error:
                generation.fail(error.reason, str(error))
            else:
                self._take(generation, answer)

    def _take(self, generation: ServedGeneration, answer: TextAnswer) -> None:
        generation.finish(answer, self._model.tokenizer.encode(answer.text))
        observer, task = self._observer, generation.task
        observer.count("prompt_tokens", answer.prompt_tokens, task=task)
        observer.count("generation_tokens", answer.output_tokens, task=task)
        observer.observe("time_to_first_token_seconds", answer.first_token_s, task=task)
        if answer.output_tokens > 1:
            each = (answer.seconds - answer.first_token_s) / (answer.output_tokens - 1)
            observer.observe("inter_token_latency_seconds", max(0.0, each), task=task)
        if answer.drafted:
            accepted = answer.accepted
            observer.count("spec_decode_draft_tokens", answer.drafted, task=task)
            observer.count("spec_decode_accepted_tokens", accepted, task=task, drafter="server")
