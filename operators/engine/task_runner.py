"""Starts runs of tasks: the view a run sees, and how its asks are decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from operators.cache.attention import Heads
from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.acceptance import DraftControl
from operators.decoding.constraints import Constraint, Grammars, NoCopy
from operators.decoding.drafters import (
    CombinedDrafter,
    Drafter,
    NgramDrafter,
    NgramIndex,
    PreviousOutputDrafter,
    TextIndex,
)
from operators.decoding.generation import Decoding, Generation
from operators.decoding.sampling import Sampler, sampler_key
from operators.decoding.suffix import SuffixIndex
from operators.engine.session import Session
from operators.engine.task_run import MakeGeneration, TaskRun
from operators.events import Source
from operators.model.tokenizer import Tokenizer
from operators.tasks.base import Ask, Occasion, StreamView, Task


class TaskRunner:
    """One for all streams of an operator."""

    def __init__(
        self,
        config: OperatorConfig,
        cache: KvCache,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        vocab: int,
        heads: Mapping[str, Heads] | None = None,
    ) -> None:
        """``vocab``: width of the model's logits. ``heads``: alignment heads by target language."""
        self._heads = heads or {}
        self._config, self._cache = config, cache
        self._tokenizer, self._clock = tokenizer, clock
        self._grammars = Grammars(tokenizer, vocab)

    def start(self, session: Session, task: Task, occasion: Occasion) -> TaskRun:
        """Start a run at the session's frontier. Ingest waits until it has its first branch."""
        run = TaskRun(task, occasion)
        self.start_run(session, run)
        return run

    def start_run(self, session: Session, run: TaskRun) -> None:
        """Start a run that was made before, such as a caller's request. Mutates the session."""
        self.begin(session, run)
        if run.outcome is None:
            session.due.append(run)
        else:
            session.runs.append(run)  # it needed no answer

    def begin(self, session: Session, run: TaskRun) -> None:
        """Create the run's view and its first asks; the caller opens its branches."""
        run.fork = session.frontier
        run.steps = run.task.run(view_of(session, run.task), run.occasion)
        run.make = self._maker(session, run.task.name)
        run.decode, run.room = self._tokenizer.decode, self._config.branch_tokens
        run.start()

    def _maker(self, session: Session, name: str) -> MakeGeneration:
        """What makes generations of a run's asks, at the fork."""
        return partial(self._generation, session, name, session.tokens_total)

    def _generation(self, session: Session, name: str, position: int, ask: Ask) -> Generation:
        """``position``: transcript tokens of the stream at the run's fork, by which samples are
        seeded: slots and replays do not change it."""
        kind, by_model = ask.kind or name, self._config.drafter in ("auto", "draft")
        return Generation(
            task=kind,
            prompt=ask.prompt,
            max_tokens=max(1, min(ask.max_tokens, self._config.branch_tokens - len(ask.prompt))),
            eos_ids=self._tokenizer.eos_ids,
            decoding=Decoding(
                control=session.draft_controls.setdefault(kind, DraftControl()),
                make_drafters=partial(make_drafters, self._config, session.index, ask),
                by_model=by_model,
                sampler=self._sampler(session, kind, position, ask),
            ),
            ends=ask.ends,
            constraints=self._constraints(ask),
            choices=ask.choices,
            alone=ask.alone,
            watched=ask.watched,
            heads=self._heads_for(kind) if ask.watched else {},
            features=[] if self._config.draft_head and by_model and not ask.choices else None,
            due_at=self._clock(),
        )

    def _constraints(self, ask: Ask) -> list[Constraint]:
        made: list[Constraint] = []
        if ask.grammar is not None:
            made.append(self._grammars.mask(ask.grammar))
        if ask.max_copy:
            limits = (ask.max_copy, ask.free, ask.first_copy)
            made.append(NoCopy(self._tokenizer, ask.sources, *limits))
        return made

    def _heads_for(self, kind: str) -> Heads:
        """The alignment heads of a translation's language (``translation:fr``); of another one where
        these were not measured."""
        tag = kind.partition(":")[2]
        return self._heads.get(tag) or next(iter(self._heads.values()), {})

    def _sampler(self, session: Session, kind: str, position: int, ask: Ask) -> Sampler | None:
        sampling = self._config.sampling(kind)
        if sampling.plain:
            return None
        key = sampler_key(session.stream_id, session.epoch, kind, sampling.seed, ask.prompt)
        return Sampler(sampling, key, start=position + len(ask.prompt))


def make_index(config: OperatorConfig) -> TextIndex:
    """An empty index of a window's text."""
    return (SuffixIndex if config.drafter == "suffix" else NgramIndex)(config.window)


def make_drafters(config: OperatorConfig, index: TextIndex, ask: Ask) -> list[Drafter]:
    """The drafters that need no model, best first."""
    kinds = {
        "auto": ("previous", "ngram"),
        "combined": ("previous", "ngram"),
        "previous": ("previous",),
        "ngram": ("ngram",),
        "suffix": ("previous", "ngram"),
    }.get(config.drafter, ())
    made: list[Drafter] = []
    if "previous" in kinds and ask.previous:
        made.append(PreviousOutputDrafter(ask.previous))
    if "ngram" in kinds:
        made.append(NgramDrafter(index, ask.prompt, config.branch_tokens))
    return [CombinedDrafter(made)] if config.drafter == "combined" else made


def view_of(session: Session, task: Task) -> StreamView:
    """The stream as a task sees it now."""
    new = [p.info.offset for p in session.window if p.end > session.covered]
    return StreamView(
        stream_id=session.stream_id,
        epoch=session.epoch,
        segments=tuple(session.seen_segments()),
        ledger=session.ledger,
        last_output=session.last_output,
        revision=session.revisions.get(task.name, 0) + 1,
        source=Source(first_offset=min(new, default=-1), last_offset=max(new, default=-1)),
        kv=session.kv_info(),
        settings=session.settings,
    )
