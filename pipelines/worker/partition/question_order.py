"""The order in which refused questions are committed.

A stream's state remembers which of its questions were answered, so an answer may be committed before the
questions ahead of it, and a restart skips it. Nobody remembers a refusal (an unknown stream, a dead
letter): committed ahead of an open question it would be read and refused again after a restart. So it
waits until every question before it is committed, or goes with it.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelines.worker.context import Entry


class QuestionOrder:
    """Passes entries of questions on to ``add``. Memory: one entry per open question."""

    def __init__(self, add: Callable[[Entry], None]) -> None:
        self._add = add
        self._open: dict[int, None] = {}  # rising offsets
        self._waiting: dict[int, Entry] = {}

    def read(self, offset: int) -> None:
        """A question was read: offsets rise."""
        self._open[offset] = None

    def remembered(self, entry: Entry) -> None:
        """An entry after which a restart knows of its questions, or finds nothing to do for them."""
        self._pass_on(entry)
        self._next()

    def refused(self, offset: int, entry: Entry) -> None:
        """An entry that nothing but the committed offset remembers."""
        self._waiting[offset] = entry
        self._next()

    def _pass_on(self, entry: Entry) -> None:
        for offset in entry.answered:
            self._open.pop(offset, None)
        self._add(entry)

    def _next(self) -> None:
        while self._waiting and (first := next(iter(self._open), None)) in self._waiting:
            assert first is not None
            self._pass_on(self._waiting.pop(first))
