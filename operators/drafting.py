"""Drafters: cheap guesses at the next tokens. A bad guess costs time, never correctness.

* n-gram: what followed the longest recent match of the text's tail, in the transcript window, the
  prompt and the output so far (prompt lookup, Saxena 2023);
* previous output: the last answer of the same kind as a draft for this one.

How many tokens to draft is decided by :class:`DraftLength` from what was accepted lately.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol


class NgramIndex:
    """Where each n-gram of the last ``window`` tokens last began; expires with the window.

    An n-gram enters the index once a token follows it, so every hit has something to draft.
    Memory is bounded: at most ``window`` tokens and, per n, ``window`` entries. ``extend`` and
    ``lookup`` cost O(sizes) per token.
    """

    def __init__(self, window: int, sizes: Sequence[int] = (4, 3, 2)) -> None:
        self.window = window
        self.sizes = tuple(sorted(sizes, reverse=True))
        self._tokens: deque[int] = deque()
        self._first = 0  # absolute position of _tokens[0]
        self._last_seen: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in self.sizes}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens it knows, oldest first: extending an empty index by them gives it back."""
        return list(self._tokens)

    @property
    def entries(self) -> int:
        """Stored n-grams, for the memory bound's test."""
        return sum(len(table) for table in self._last_seen.values())

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            end = self._first + len(self._tokens)
            for n, table in self._last_seen.items():
                if len(self._tokens) >= n:
                    table[self._slice(end - n, end)] = end - n
            self._tokens.append(token)
            if len(self._tokens) > self.window:
                self._expire()

    def _expire(self) -> None:
        """Forget the oldest token and the n-grams that began with it and did not recur."""
        for n, table in self._last_seen.items():
            if len(self._tokens) <= n:
                continue
            gram = self._slice(self._first, self._first + n)
            if table.get(gram) == self._first:
                del table[gram]
        self._tokens.popleft()
        self._first += 1

    def _slice(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens at absolute positions ``[start, stop)``; both ends are near one end of the deque."""
        base = self._first
        return tuple(self._tokens[i - base] for i in range(start, stop))

    def lookup(self, tail: Sequence[int], k: int) -> tuple[int, list[int]]:
        """(match length, up to ``k`` tokens) that followed the most recent longest match of ``tail``."""
        end = self._first + len(self._tokens)
        for n in self.sizes:
            if len(tail) < n:
                continue
            start = self._last_seen[n].get(tuple(tail[-n:]))
            if start is not None:
                return n, list(self._slice(start + n, min(end, start + n + k)))
        return 0, []


class Drafter(Protocol):
    """Proposes up to ``k`` tokens to follow; told of every token that became final."""

    name: str

    def propose(self, k: int) -> list[int]: ...
    def accept(self, tokens: Sequence[int]) -> None: ...


class NgramDrafter:
    """Longest match over the stream's window (shared, read only), this prompt and this output."""

    name = "ngram"

    def __init__(self, window: NgramIndex, prompt: Sequence[int], room: int) -> None:
        self._window = window
        self._own = NgramIndex(max(1, room))
        self._own.extend(prompt)
        self._tail: deque[int] = deque(prompt[-8:], maxlen=8)

    def propose(self, k: int) -> list[int]:
        tail = list(self._tail)
        own_length, own = self._own.lookup(tail, k)
        window_length, window = self._window.lookup(tail, k)
        return own if own_length >= window_length else window

    def accept(self, tokens: Sequence[int]) -> None:
        self._own.extend(tokens)
        self._tail.extend(tokens)


class PreviousOutputDrafter:
    """Follows the previous answer of the same kind; finds its place again after a divergence."""

    name = "previous"

    def __init__(self, previous: Sequence[int], resync: int = 2) -> None:
        self._previous = list(previous)
        self._resync = resync
        self._at: int | None = 0
        self._recent: deque[int] = deque(maxlen=resync)

    def propose(self, k: int) -> list[int]:
        if self._at is None:
            return []
        return self._previous[self._at : self._at + k]

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._recent.append(token)
            at = self._at
            if at is not None and at < len(self._previous) and self._previous[at] == token:
                self._at = at + 1
            else:
                self._at = self._find(at or 0)

    def _find(self, near: int) -> int | None:
        """Place behind the match of the recent tokens closest to where we were, if any."""
        want = list(self._recent)
        if len(want) < self._resync:
            return None
        places = [
            i + len(want)
            for i in range(len(self._previous) - len(want) + 1)
            if self._previous[i : i + len(want)] == want
        ]
        return min(places, key=lambda i: abs(i - near), default=None)


class CombinedDrafter:
    """The first of several drafters that has something to say."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = list(drafters)
        self.name = drafters[0].name if drafters else "none"

    def propose(self, k: int) -> list[int]:
        for drafter in self._drafters:
            draft = drafter.propose(k)
            if draft:
                self.name = drafter.name
                return draft
        return []

    def accept(self, tokens: Sequence[int]) -> None:
        for drafter in self._drafters:
            drafter.accept(tokens)


class DraftLength:
    """Adapts k: doubles on full acceptance, halves on a rejection, 0 = off, then probes again.

    Kept per stream and kind of answer, since acceptance differs by both.
    """

    def __init__(self, maximum: int, *, start: int = 4, probe_after: int = 12) -> None:
        self.maximum = maximum
        self._k = min(start, maximum)
        self._probe_after = probe_after
        self._idle = 0

    @property
    def memory(self) -> tuple[int, int]:
        """(k, idle turns): what a snapshot keeps."""
        return self._k, self._idle

    def recall(self, memory: tuple[int, int]) -> None:
        self._k, self._idle = min(memory[0], self.maximum), memory[1]

    def next(self) -> int:
        """How many tokens to draft now. Counts idle turns while switched off."""
        if self._k == 0 and self.maximum > 0:
            self._idle += 1
            if self._idle >= self._probe_after:
                self._idle = 0
                self._k = min(2, self.maximum)
        return self._k

    def update(self, drafted: int, accepted: int) -> None:
        """Tell what came of a verify; ``drafted`` 0 (nothing to propose) changes nothing."""
        if drafted == 0:
            return
        if accepted == drafted:
            self._k = min(self.maximum, max(2, self._k * 2))
        elif accepted == 0:
            self._k //= 2
        else:
            self._k = max(1, min(self._k, accepted + 1))
