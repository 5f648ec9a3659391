"""Drafters: cheap guesses at the next tokens. A bad guess costs time, never correctness.

* suffix: the same with matches of any length (operators.decoding.suffix);
* n-gram: what followed the longest recent match of the text's tail, in the transcript window, the
  prompt and the output so far (prompt lookup, Saxena 2023);
* previous output: the last answer of the same kind as a draft for this one.

How many tokens are drafted, and by which drafter, is decided in :mod:`operators.decoding.acceptance`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Protocol

from torch import Tensor


class TextIndex(Protocol):
    """Tokens of a text, and what followed the longest earlier match of a tail; bounded. Made by the
    number of tokens that it knows at least. ``kind`` names the drafter, ``arm`` the state of confidence
    under which the acceptance of a match of that length is counted."""

    kind: ClassVar[str]

    def __init__(self, window: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    def extend(self, tokens: Iterable[int]) -> None: ...
    def lookup(self, tail: Sequence[int], k: int) -> tuple[int, list[int]]: ...
    @staticmethod
    def arm(length: int) -> str: ...


class NgramIndex:
    """Where each n-gram of the last ``window`` tokens last began; expires with the window.

    An n-gram enters the index once a token follows it, so every hit has something to draft.
    Memory is bounded: at most ``window`` tokens and, per n, ``window`` entries. ``extend`` and
    ``lookup`` cost O(sizes) per token.
    """

    kind: ClassVar[str] = "ngram"

    def __init__(self, window: int, sizes: Sequence[int] = (4, 3, 2)) -> None:
        self.window = window
        self.sizes = tuple(sorted((n for n in sizes if n < window), reverse=True))
        self._tokens: deque[int] = deque()
        self._first = 0  # absolute position of _tokens[0]
        self._recent: tuple[int, ...] = ()  # the last ones, as many as the longest n-gram has
        self._longest = max(self.sizes, default=1)
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
            recent = self._recent
            for n, table in self._last_seen.items():
                if len(recent) >= n:
                    table[recent[-n:]] = end - n
            self._recent = (*recent, token)[-self._longest :]
            self._tokens.append(token)
            if len(self._tokens) > self.window:
                self._expire()

    def _expire(self) -> None:
        """Remove the oldest token and the n-grams that began with it and did not recur."""
        for n, table in self._last_seen.items():
            if len(self._tokens) <= n:
                continue
            gram = tuple(islice(self._tokens, n))
            if table.get(gram) == self._first:
                del table[gram]
        self._tokens.popleft()
        self._first += 1

    def lookup(self, tail: Sequence[int], k: int) -> tuple[int, list[int]]:
        """(match length, up to ``k`` tokens) that followed the most recent longest match of ``tail``."""
        end = self._first + len(self._tokens)
        for n in self.sizes:
            if len(tail) < n:
                continue
            start = self._last_seen[n].get(tuple(tail[-n:]))
            if start is not None:
                base = start + n - self._first
                return n, [self._tokens[i] for i in range(base, min(end - self._first, base + k))]
        return 0, []

    @staticmethod
    def arm(length: int) -> str:
        return f"ngram{length}"


@dataclass(frozen=True, eq=False)
class Draft:
    """Draft tokens with their drafter and the ``arm`` under which acceptance is counted (the drafter,
    or one of its states of confidence). ``probs`` ``[k, vocab]`` float64: the distribution each token
    was sampled from; None where drafts are accepted by exact matching."""

    tokens: list[int] = field(default_factory=list)
    drafter: str = "none"
    arm: str = ""
    probs: Tensor | None = None

    def cut(self, k: int) -> Draft:
        """Its first ``k`` tokens."""
        if k >= len(self.tokens):
            return self
        probs = self.probs[:k] if self.probs is not None else None
        return Draft(self.tokens[:k], self.drafter, self.arm, probs)


class Drafter(Protocol):
    """Proposes up to ``k`` next tokens (or none); ``accept`` is called with every final token."""

    def propose(self, k: int) -> Draft: ...
    def accept(self, tokens: Sequence[int]) -> None: ...


class NgramDrafter:
    """Longest match over the stream's window (shared, read only), this prompt and this output, by the
    kind of index that the window has."""

    def __init__(self, window: TextIndex, prompt: Sequence[int], room: int) -> None:
        self._window = window
        self._own = type(window)(max(1, room))
        self._own.extend(prompt)
        self._tail: deque[int] = deque(prompt[-TAIL:], maxlen=TAIL)

    def propose(self, k: int) -> Draft:
        tail = list(self._tail)
        own_length, own = self._own.lookup(tail, k)
        window_length, window = self._window.lookup(tail, k)
        length, tokens = max((own_length, own), (window_length, window), key=lambda hit: hit[0])
        return Draft(tokens, self._window.kind, self._window.arm(length))

    def accept(self, tokens: Sequence[int]) -> None:
        self._own.extend(tokens)
        self._tail.extend(tokens)


TAIL = 32
"""Tokens at the end of an answer that a match may cover."""
STEADY = 4
"""Tokens in a row after which following the previous answer counts as steady."""
NEAR = 8
"""How far from where it was a single token of the previous answer is looked for."""


class PreviousOutputDrafter:
    """Follows the previous answer of the same kind; finds its place again after a divergence: behind
    the tokens just written if they stand in it, else behind the last of them nearby, else behind the
    token that was to come, as if it had been replaced. The latter two are guesses, counted apart."""

    def __init__(self, previous: Sequence[int], resync: int = 2) -> None:
        self._previous = list(previous)
        self._resync = resync
        self._at, self._guessed = 0, False
        self._followed = 0  # tokens in a row that were the previous answer's
        self._recent: deque[int] = deque(maxlen=resync)

    def propose(self, k: int) -> Draft:
        arm = "previous" if self._followed < STEADY else "previous+"
        arm = "previous?" if self._guessed else arm
        return Draft(self._previous[self._at : self._at + k], "previous", arm)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._recent.append(token)
            if self._at < len(self._previous) and self._previous[self._at] == token:
                self._at, self._guessed = self._at + 1, False
                self._followed += 1
            else:
                self._find(self._at)
                self._followed = 0

    def _find(self, near: int) -> None:
        """Stand behind the match of the recent tokens closest to where we were, else guess."""
        recent = list(self._recent)
        place = self._behind(recent, near) if len(recent) == self._resync else None
        self._guessed = place is None
        if place is None:
            place = self._behind(recent[-1:], near)
            if place is None or abs(place - near) > NEAR:
                place = near + 1
        self._at = place

    def _behind(self, want: list[int], near: int) -> int | None:
        places = [
            i + len(want)
            for i in range(len(self._previous) - len(want) + 1)
            if self._previous[i : i + len(want)] == want
        ]
        return min(places, key=lambda i: abs(i - near), default=None)


class CombinedDrafter:
    """The first of several drafters that has a proposal."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = list(drafters)

    def propose(self, k: int) -> Draft:
        for drafter in self._drafters:
            draft = drafter.propose(k)
            if draft.tokens:
                return draft
        return Draft()

    def accept(self, tokens: Sequence[int]) -> None:
        for drafter in self._drafters:
            drafter.accept(tokens)
