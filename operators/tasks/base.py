"""The interface between the engine and its tasks.

A task says when it is due and what to ask of the model. One *run* of a task is a Python generator: it
reads a view of the stream, yields the asks it needs, is sent their answers, may yield again, and
returns an outcome. All asks of a run see the stream as of one place, the run's fork, whatever is
ingested meanwhile. The whole of a small task::

    class Keywords(Task):
        name = "keywords"

        def due(self, progress):
            return "tokens" if progress.tokens >= 200 else None

        def run(self, view, occasion):
            (answer,) = yield [self.tools.ask("Name three keywords of the transcript.", max_tokens=24)]
            return Outcome(events=(self.tools.result(self.name, view, answer),))

The built-in tasks (summary, translation, answer) use this interface and nothing else of the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from operators.commit import Held
from operators.config import OperatorConfig
from operators.decoding.constraints import Grammar
from operators.events import (
    NO_SETTINGS,
    AnswerEvent,
    AnyEvent,
    Event,
    Evidence,
    KvInfo,
    LedgerItem,
    ModelInfo,
    ResultEvent,
    Segment,
    Source,
    StreamSettings,
    Trigger,
    Usage,
)
from operators.model.tokenizer import Tokenizer
from operators.tasks.prompts import Prompts

# --- what starts a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """The task's own rhythm, a request for an update, or the end of the stream. ``rule``: what the
    trigger was measured against."""

    trigger: Trigger
    rule: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spoken:
    """A final segment, or one part of a long one, has entered the window. ``text`` has no speaker.
    ``index``: which piece of the segment it is (:meth:`Task.cut`). ``held``: what was published of its
    partial hypotheses, by language."""

    segment: Segment
    text: str
    index: int = 0
    held: Mapping[str, Held] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A caller's request; ``request`` is what the task itself defined for it."""

    request: Any


@dataclass(frozen=True)
class Partial:
    """A partial hypothesis is to be shown; ``held``: what was published of those before it. The run's
    outcome has what is held after it as ``part``."""

    segment: Segment
    language: str
    held: Held


Occasion = Due | Spoken | Asked | Partial

# --- what a run sees ------------------------------------------------------------------------------


class SeenSegment(NamedTuple):
    """A segment (or a part of one) whose tokens the run's branches see. ``new``: no update has
    covered it yet."""

    evidence: Evidence
    text: str
    new: bool


@dataclass
class Ledger:
    """A stream's durable notes and the number of the next one. Replaced by outcomes only. ``archived``:
    notes that had no room; they answer questions, and no event shows them."""

    items: tuple[LedgerItem, ...] = ()
    next_item: int = 1
    archived: tuple[LedgerItem, ...] = ()


@dataclass(frozen=True)
class StreamView:
    """What a task sees of a stream: the window as of the fork. ``ledger`` alone is live, so that an
    outcome is built on the notes as they are when it is applied. A task must not change what it sees."""

    stream_id: str
    epoch: int
    segments: tuple[SeenSegment, ...]
    ledger: Ledger
    last_output: Mapping[str, str]
    revision: int
    """The number that the task's next event will get, for tasks that number one kind of event."""
    source: Source
    kv: KvInfo
    settings: StreamSettings = NO_SETTINGS
    """What the stream asks for, already within the operator's limits."""


@dataclass(frozen=True)
class Progress:
    """How far a stream has come since the last fork of a task. Tokens of transcript; seconds."""

    tokens: int
    seconds: float
    uncovered: int
    """Tokens in the window that no update has covered."""
    silent: float = 0.0
    """Seconds since text last entered the window."""
    shift: float = 0.0
    """How little the newest turns share with those before them, 0 to 1."""
    factor: int = 1
    """How many times as many tokens an update is due after (``update_adaptive``)."""


# --- what a run asks and returns ------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One answer wanted from the model, on a branch of its own.

    ``prompt``: tokens behind the transcript. ``previous``: tokens of an earlier answer, a draft for
    this one (speed only). ``ends``: whether an output is complete, asked after every token, besides
    the model's own end token. ``choices``: first tokens to be weighed; nothing is generated then.
    ``alone``: the branch sees nothing but the prompt, which is then a whole conversation of its own
    (:meth:`Prompts.alone`); the asks of one run are either all alone or none.
    """

    prompt: Sequence[int]
    max_tokens: int
    kind: str = ""
    """What acceptance statistics and sampling settings go by; the task's name if empty."""
    previous: Sequence[int] = ()
    ends: Callable[[Sequence[int]], bool] | None = None
    grammar: Grammar | None = None
    max_copy: int = 0
    first_copy: int = 0
    """The limits of :class:`~operators.decoding.constraints.NoCopy` (0: none, and the same)."""
    sources: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    choices: tuple[int, ...] = ()
    alone: bool = False
    watched: tuple[int, int] | None = None
    """Begin and end of a stretch of the prompt: for every token the answer says which of its tokens the
    operator's alignment heads attend to most."""


@dataclass(frozen=True)
class Answer:
    """``finish_reason``: stop, length or repetition. ``weights``: the probabilities of the ask's
    ``choices``, normalised over them."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    usage: Usage
    weights: tuple[float, ...] = ()
    alignment: tuple[int, ...] = ()
    """Of an ask that watches: by token a place in the stretch, -1 where it is not known."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. The engine numbers the events and fills in what they cover.

    ``items``: the new ledger, None for no change; ``archived``: likewise. ``covers``: everything up to
    the fork is now in the ledger (the summary alone may say so). ``remember``: outputs to be seen again
    by later runs, by name. ``part``: what :meth:`Task.join` is given for one part of a segment.
    ``failed``: the run came to nothing and must leave no trace; the reason.
    """

    events: tuple[AnyEvent, ...] = ()
    items: tuple[LedgerItem, ...] | None = None
    next_item: int | None = None
    archived: tuple[LedgerItem, ...] | None = None
    covers: bool = False
    remember: Mapping[str, str] = field(default_factory=dict)
    part: Any = None
    text: str = ""
    failed: str = ""


Steps = Generator[Sequence[Ask], Sequence[Answer], Outcome]


@dataclass(frozen=True)
class Tools:
    """What a task works with; given to it before its first run."""

    config: OperatorConfig
    prompts: Prompts
    tokenizer: Tokenizer
    model: ModelInfo

    def ask(self, text: str, *, max_tokens: int, **options: Any) -> Ask:
        """An ask with an instruction in plain words; ``options`` are those of :class:`Ask`. Text from
        the stream may stand in it: nothing it spells acts as a special token."""
        prompt = self.prompts.instruction(text)
        room = self.config.branch_tokens - len(prompt)
        return Ask(prompt, min(max_tokens, room), **options)

    def result(self, task: str, view: StreamView, answer: Answer) -> ResultEvent:
        """A plain event with the answer's text."""
        return ResultEvent(
            stream_id=view.stream_id,
            epoch=view.epoch,
            revision=0,
            task=task,
            text=answer.text.strip(),
            source=view.source,
            model=self.model,
            usage=answer.usage,
            kv=view.kv,
            degraded=flags([answer]),
        )


class Task(ABC):
    """Base of all tasks. Override :meth:`run`, and :meth:`due` or :meth:`wants`."""

    name = ""
    """Names the task in events, revisions and metrics; letters, digits, ``_``."""
    tools: Tools

    def due(self, progress: Progress) -> Trigger | None:
        """Whether a run should start now, and why. Asked at every place where a fork may happen while
        none of the task's runs is under way. Changes nothing."""
        return None

    def seconds_left(self, progress: Progress) -> float | None:
        """Seconds until the task is due by time alone; None: never."""
        return None

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        """Whether a run should start for this final segment of a stream with these settings. Changes
        nothing."""
        return False

    early = False
    """Whether :meth:`join` is also called before all runs of a segment are done."""

    def cut(self, segment: Segment, text: str) -> Sequence[str]:
        """The pieces of a final segment (or of one part of a long one) that get a run each."""
        return [text]

    @abstractmethod
    def run(self, view: StreamView, occasion: Any) -> Steps:
        """One run. The engine closes the generator when the model gives no finite numbers."""

    def join(
        self,
        segment: Segment,
        outcomes: Sequence[Outcome],
        held: Mapping[str, Held],
        published: int = 0,
        complete: bool = True,
    ) -> Sequence[Event]:
        """The events of a segment from the outcomes of its pieces, in order. ``held``: what was
        published of its partial hypotheses, by language. Of a task with ``early`` also when only the
        first pieces are done (not ``complete``), ``published`` of which were joined before."""
        events = (event for outcome in outcomes for event in outcome.events)
        return [event for event in events if not isinstance(event, AnswerEvent)]


EMPTY, TOO_LONG = "empty_answer", "prompt_too_long"
"""In ``degraded`` and as reasons: the model wrote nothing; a prompt does not fit a branch."""


def flags(answers: Sequence[Answer]) -> tuple[str, ...]:
    """What is not as it should be with the answers of one text, for ``degraded``."""
    cut = sorted({answer.finish_reason for answer in answers} - {"stop"})
    empty = answers and not any(answer.text.strip() for answer in answers)
    return (*((EMPTY,) if empty else ()), *(f"cut_by_{reason}" for reason in cut))


def total(usages: Sequence[Usage], finish_reason: str = "stop") -> Usage:
    """The tokens spent by several answers together."""
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in usages),
        output_tokens=sum(u.output_tokens for u in usages),
        drafted=sum(u.drafted for u in usages),
        accepted=sum(u.accepted for u in usages),
        verifies=sum(u.verifies for u in usages),
        finish_reason=finish_reason,
    )
