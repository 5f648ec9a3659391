"""longstream itself, as its users run it: an operator, fed with segments, snapshots as it writes them.

The kit speaks in tokens and an operator takes text. So the tokenizer is one that writes every token as
one character: what is fed is exactly what the model reads, and whatever else the operator writes (a
line's end) is no token at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from operators.config import OperatorConfig
from operators.events import Segment, StreamSettings
from operators.model.loader import DecoderModel
from operators.model.tokenizer import Examples
from operators.stream_operator import StreamOperator
from operators.tasks.base import Answer as TaskAnswer
from operators.tasks.base import Ask, Due, Outcome, Progress, Steps, StreamView, Task
from pipelines.lab.conformance.engine import Answer, Setup
from pipelines.lab.conformance.material import Material

STREAM = "stream"
FIRST = 0x20000
"""The character of token 0. From here on Unicode has ideographs, and nothing that is white space."""


class TokensAsText:
    """Token i is the character ``FIRST + i``; all others are no tokens. No token ends an answer."""

    eos_ids = frozenset[int]()

    def __init__(self, size: int, sinks: Sequence[int]) -> None:
        self._size, self._sinks = size, list(sinks)

    def encode(self, text: str) -> list[int]:
        return [ord(char) - FIRST for char in text if ord(char) >= FIRST]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(FIRST + token) for token in ids)

    def vocabulary(self) -> dict[str, int]:
        return {str(at): at for at in range(self._size)}

    def first(self, word: str) -> int:
        return 0

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        return list(self._sinks), []


class Continuation(Task):
    """The most likely tokens behind a prompt, as often as one is set."""

    name = "continuation"
    prompt: Sequence[int] = ()
    count = 0
    answer: TaskAnswer | None = None

    def due(self, progress: Progress) -> Any:
        return "request" if self.prompt and self.answer is None else None

    def run(self, view: StreamView, occasion: Due) -> Steps:
        (self.answer,) = yield [Ask(self.prompt, self.count)]
        return Outcome()


class Ours:
    """See the module's docstring. Window and sinks are the operator's own."""

    name = "ours"
    version = metadata.version("longstream")

    def load(self, material: Material, setup: Setup) -> None:
        size = material.vocabulary

        def decoder(network: Any, name: str) -> DecoderModel:
            return DecoderModel(network, TokensAsText(size, setup.sinks), name=name)

        draft = decoder(material.draft, "draft") if setup.drafts == "model" else None
        drafter = {"none": "none", "lookup": "ngram", "model": "draft"}[setup.drafts]
        self._window, self._task, self._fed = setup.window, Continuation(), 0
        self._operator = StreamOperator(
            decoder(material.model, material.name),
            self._config(setup, drafter),
            draft=draft,
            tasks=(self._task,),
        )
        self._operator.open(STREAM)

    def _config(self, setup: Setup, drafter: str) -> OperatorConfig:
        return OperatorConfig(
            window=setup.window,
            update_tokens=setup.window,
            slack=max(8, setup.window // 4),
            branch_tokens=setup.answer_tokens,
            slots=1,
            branches=1,
            drafter=drafter,
            draft_model="draft" if drafter == "draft" else "",
            dtype_prefill="fp32",
            dtype_decode="fp32",
        )

    def feed(self, tokens: Sequence[int]) -> None:
        """In segments of a quarter of the window. Nothing summarises: all counts as covered at once."""
        size = max(1, self._window // 4)
        for at in range(0, len(tokens), size):
            text = self._tokenizer.decode(tokens[at : at + size])
            self._do(Segment(stream_id=STREAM, text=text, segment_id=f"s{self._fed}"))

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        found, accepted = list[int](), 0
        while len(found) < count:  # an answer that repeats itself ends early: ask on from there
            self._task.prompt, self._task.answer = [*prompt, *found], None
            self._task.count = count - len(found)
            settings = StreamSettings(title=f"answer {self._fed}")  # something to wake the stream
            self._do(Segment(stream_id=STREAM, type="session_update", settings=settings))
            answer = self._task.answer
            assert answer is not None
            assert answer.tokens
            found += answer.tokens
            accepted += answer.usage.accepted
        return Answer(found, accepted)

    def snapshot(self, folder: Path) -> None:
        (folder / STREAM).write_bytes(self._operator.snapshot(STREAM))

    def restore(self, folder: Path) -> None:
        self._operator.open(STREAM, snapshot=(folder / STREAM).read_bytes())
        self._fed = self._operator.cursor(STREAM) + 1

    def close(self) -> None:
        self._operator.close()

    @property
    def _tokenizer(self) -> Any:
        return self._operator.model.tokenizer

    def _do(self, segment: Segment) -> None:
        operator = self._operator
        operator.feed(segment, self._fed)
        self._fed += 1
        while operator.has_work():
            operator.step()
        session = operator._sessions[STREAM]
        session.cover(session.frontier)
        session.last_fork = session.frontier
