"""What the kit asks of an engine: five methods. An adapter for another engine implements them.

The stream is what StreamingLLM makes of it: pinned sink tokens, then a rolling window of the last
``window`` tokens, positions counted inside the cache. An answer is a throw-away continuation: it sees
the window as it was when it was asked for, and the stream goes on as if it had never been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from pipelines.lab.conformance.material import Material

Drafts = Literal["none", "lookup", "model"]
"""Where draft tokens come from: nowhere, earlier text, a draft model."""


class NotOffered(Exception):
    """The engine has no such thing; the message says what it has instead, in a sentence."""


@dataclass(frozen=True)
class Setup:
    """One stream. ``answer_tokens``: prompt and answer together, at most."""

    sinks: tuple[int, ...]
    window: int
    drafts: Drafts = "none"
    answer_tokens: int = 128


class Answer(NamedTuple):
    """``accepted``: draft tokens that were accepted; None where the engine does not say."""

    tokens: list[int]
    accepted: int | None = None


class Engine(Protocol):
    """One engine with one stream, in fp32. Every method may raise :class:`NotOffered`."""

    name: str
    version: str

    def load(self, material: Material, setup: Setup) -> None:
        """Load the model and begin an empty stream. Called once, before all others."""
        ...

    def feed(self, tokens: Sequence[int]) -> None:
        """Append tokens to the stream."""
        ...

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        """The ``count`` most likely tokens behind stream and ``prompt`` (at least one token), whatever
        they are: no end token ends them. The stream does not change."""
        ...

    def snapshot(self, folder: Path) -> None:
        """Write all that the stream needs to go on into an empty folder. The stream does not change."""
        ...

    def restore(self, folder: Path) -> None:
        """In a freshly loaded engine, in place of :meth:`feed`: continue from such a folder."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
