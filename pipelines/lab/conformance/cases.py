"""The questions, and what counts as an answer.

Each case loads an engine anew, so none depends on what another left behind. Tokens are compared, not
logits: every engine gives tokens. On a model whose most likely token depends on the context a wrong
key, position or mask shows within a few of them; the toy is made for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from operators.errors import ConfigError
from pipelines.lab.benchmarks.harness import TOY
from pipelines.lab.conformance.engine import Answer, Drafts, Engine, NotOffered, Setup
from pipelines.lab.conformance.material import Material, tokens
from pipelines.lab.conformance.reference import StreamReference

Result = Literal["passes", "differs", "unproven", "not offered", "fails"]
"""``unproven``: nothing was drafted or nothing accepted, so equal tokens say nothing. ``fails``: an
error of the engine."""


@dataclass(frozen=True)
class Verdict:
    result: Result
    detail: str = ""


@dataclass(frozen=True)
class Sizes:
    """In tokens. ``little`` leaves room in the window, ``much`` wraps it several times."""

    sinks: int
    window: int
    little: int
    much: int
    prompt: int = 4
    answer: int = 64

    @property
    def all(self) -> int:
        return self.sinks + 2 * self.much + 2 * self.prompt


SIZES = {True: Sizes(5, 48, 24, 160), False: Sizes(4, 96, 48, 260, prompt=6)}
"""Of the toy, and of a real model."""


class Kit:
    """One engine under test on one model. ``make`` gives a fresh one, not loaded. ``version``: the
    engine's, once it has been loaded."""

    def __init__(self, make: Callable[[], Engine], material: Material, sizes: Sizes | None = None):
        self.make, self.material, self.version = make, material, ""
        self.sizes = sizes or SIZES[material.name == TOY]
        heard = iter(tokens(material, self.sizes.all))
        self.sinks = tuple(islice(heard, self.sizes.sinks))
        self.first, self.second = (list(islice(heard, self.sizes.much)) for _ in range(2))
        self.prompts = [list(islice(heard, self.sizes.prompt)) for _ in range(2)]

    @property
    def little(self) -> Sequence[int]:
        return self.first[: self.sizes.little]

    def setup(self, drafts: Drafts = "none") -> Setup:
        room = 2 * self.sizes.prompt + self.sizes.answer
        return Setup(self.sinks, self.sizes.window, drafts, room)

    @contextmanager
    def loaded(self, drafts: Drafts = "none") -> Iterator[Engine]:
        engine = self.make()
        try:
            engine.load(self.material, self.setup(drafts))
            self.version = engine.version
            yield engine
        finally:
            engine.close()

    def answered(self, fed: Sequence[int], drafts: Drafts) -> Answer:
        """The answer of a fresh engine that was fed this."""
        with self.loaded(drafts) as engine:
            engine.feed(fed)
            return engine.generate(self.prompts[0], self.sizes.answer)

    @cached_property
    def expected(self) -> list[list[int]]:
        """By the reference: behind a little, behind much, behind twice as much."""
        stream = StreamReference(self.material.model, self.sinks, self.sizes.window)
        found = []
        pieces = (self.little, self.first[self.sizes.little :], self.second)
        for piece, prompt in zip(pieces, (0, 0, 1), strict=True):
            stream.ingest(piece)
            found.append(stream.fork().greedy(self.prompts[prompt], self.sizes.answer))
        return found


# --- the cases ------------------------------------------------------------------------------------


def before_wrap(kit: Kit) -> Verdict:
    return _same(kit.answered(kit.little, "none").tokens, kit.expected[0])


def after_wrap(kit: Kit) -> Verdict:
    with kit.loaded() as engine:
        engine.feed(kit.first)
        return _same(engine.generate(kit.prompts[0], kit.sizes.answer).tokens, kit.expected[1])


def no_trace(kit: Kit) -> Verdict:
    with kit.loaded() as engine:
        engine.feed(kit.first)
        engine.generate(kit.prompts[0], kit.sizes.answer)
        engine.feed(kit.second)
        return _same(engine.generate(kit.prompts[1], kit.sizes.answer).tokens, kit.expected[2])


def drafted(drafts: Drafts, *, wrapped: bool) -> Callable[[Kit], Verdict]:
    """Drafts on and off by the same engine."""

    def case(kit: Kit) -> Verdict:
        fed = kit.first if wrapped else kit.little
        with_drafts = kit.answered(fed, drafts)
        verdict = _same(with_drafts.tokens, kit.answered(fed, "none").tokens)
        if verdict.result == "passes" and with_drafts.accepted == 0:
            return Verdict("unproven", "no draft was accepted")
        if verdict.result == "passes" and with_drafts.accepted is not None:
            return Verdict("passes", f"{verdict.detail}, {with_drafts.accepted} by drafts")
        return verdict

    return case


def restored(drafts: Drafts) -> Callable[[Kit], Verdict]:
    """A snapshot taken into a fresh engine, against the engine that went on. Past the wrap where the
    engine gets there."""

    def case(kit: Kit) -> Verdict:
        try:
            return _restored(kit, kit.first, drafts)
        except NotOffered:
            verdict = _restored(kit, kit.little, drafts)
            return Verdict(verdict.result, f"{verdict.detail}, window not full")

    return case


def _restored(kit: Kit, fed: Sequence[int], drafts: Drafts) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        with kit.loaded(drafts) as engine:
            engine.feed(fed)
            engine.snapshot(Path(folder))
            here = engine.generate(kit.prompts[0], kit.sizes.answer)
        with kit.loaded(drafts) as engine:
            engine.restore(Path(folder))
            there = engine.generate(kit.prompts[0], kit.sizes.answer)
    verdict = _same(there.tokens, here.tokens)
    if verdict.result == "passes" and here.accepted != there.accepted:
        lost = f"same tokens, but {there.accepted} by drafts where {here.accepted} were"
        return Verdict("differs", lost)
    return verdict


def _same(found: Sequence[int], wanted: Sequence[int]) -> Verdict:
    pairs = zip(found, wanted, strict=False)
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), len(wanted))
    if same == len(wanted) == len(found):
        return Verdict("passes", f"{same} tokens")
    return Verdict("differs", f"from token {min(same, len(found)) + 1} of {len(wanted)}")


@dataclass(frozen=True)
class Case:
    name: str
    what: str
    run: Callable[[Kit], Verdict]


CASES = (
    Case("plain", "before the window is full: the reference's tokens", before_wrap),
    Case("window", "sinks and window after the wrap: the reference's tokens", after_wrap),
    Case("no-trace", "the stream after an answer: as if there had been none", no_trace),
    Case("lookup", "drafts from earlier text, before the wrap", drafted("lookup", wrapped=False)),
    Case("lookup-wrapped", "the same after the wrap", drafted("lookup", wrapped=True)),
    Case("draft-model", "drafts by a model, before the wrap", drafted("model", wrapped=False)),
    Case("draft-model-wrapped", "the same after the wrap", drafted("model", wrapped=True)),
    Case("snapshot", "restored elsewhere: the same next tokens", restored("none")),
    Case("snapshot-draft", "the same with the draft model's memory", restored("model")),
)


def check(case: Case, kit: Kit) -> Verdict:
    """One case; whatever an engine raises is its verdict, except that it is not installed (raises
    ConfigError)."""
    try:
        return case.run(kit)
    except NotOffered as reason:
        return Verdict("not offered", str(reason))
    except ConfigError:
        raise
    except Exception as error:
        return Verdict("fails", f"{type(error).__name__}: {error}")
