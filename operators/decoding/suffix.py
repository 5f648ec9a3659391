"""What followed the longest earlier occurrence of a text's tail, however long it is.

A suffix automaton (Blumer et al. 1985) holds every stretch of a text in at most twice as many states as
the text has tokens, and finds the longest suffix of a query in time linear in the query. For drafting it
replaces a table of n-grams: a match of twenty tokens predicts better than one of four (SuffixDecoding,
arXiv 2411.04975).

An automaton cannot forget its oldest tokens. So there are two, each of at most ``window`` tokens: when
the newer is full the older one is dropped and a new one begun. What a lookup finds is at most two
windows old; the last window's tokens are always there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

LONGEST = 32
"""Tokens of a match that are told apart; also how many of the last ones a new automaton begins with."""
SHORTEST = 2
"""A match of one token predicts next to nothing."""


class SuffixIndex:
    """Bounded: at most ``2 * window + LONGEST`` tokens and two states for each. ``extend`` takes
    constant time per token on average, ``lookup`` time linear in the tail."""

    kind: ClassVar[str] = "suffix"

    def __init__(self, window: int) -> None:
        self.window = window
        self._older, self._newer = _Automaton(), _Automaton()
        self._borrowed = 0  # tokens at the newer one's start that the older one has, too

    def __len__(self) -> int:
        return len(self._older.text) + len(self._newer.text) - self._borrowed

    @property
    def tokens(self) -> list[int]:
        """The last ``window`` tokens, oldest first: extending an empty index by them gives an index that
        knows them all."""
        text = [*self._older.text, *self._newer.text[self._borrowed :]]
        return text[-self.window :]

    @property
    def entries(self) -> int:
        """States held, for the memory bound's test."""
        return self._older.states + self._newer.states

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            if len(self._newer.text) - self._borrowed >= self.window:
                last = self._newer.text[-min(LONGEST, self.window) :]
                self._older, self._newer = self._newer, _Automaton()
                self._borrowed = len(last)
                for kept in last:
                    self._newer.add(kept)
            self._newer.add(token)

    def lookup(self, tail: Sequence[int], k: int) -> tuple[int, list[int]]:
        """(match length, up to ``k`` tokens) that followed the longest match of ``tail``'s end; of
        equals the newest. The match is at most LONGEST tokens; (0, []) below SHORTEST."""
        tail = tail[-LONGEST:]
        newer, older = self._newer.follow(tail), self._older.follow(tail)
        (length, end), text = max(
            ((newer, self._newer.text), (older, self._older.text)), key=lambda found: found[0][0]
        )
        return (length, text[end : end + k]) if length >= SHORTEST and end < len(text) else (0, [])

    @staticmethod
    def arm(length: int) -> str:
        """Matches of 2, 3, 4 to 7, 8 to 15 tokens and longer ones are told apart."""
        return f"suffix{min(length if length < 4 else 1 << length.bit_length() - 1, 16)}"


class _Automaton:
    """``_next[s]``: transitions of state ``s`` by token; ``_link``: its longest suffix that is another
    state; ``_length``: its longest stretch; ``_end``: behind which token that last occurred with another
    one behind it."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [0]
        self._last = 0

    @property
    def states(self) -> int:
        return len(self._next)

    def add(self, token: int) -> None:
        # What ends here is followed by this token from now on.
        end, state = len(self.text), self._last
        for _ in range(LONGEST):
            if state <= 0:
                break
            self._end[state] = end
            state = self._link[state]
        self.text.append(token)
        new = self._new({}, self._length[self._last] + 1)
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = self._target(state, token) if state >= 0 else 0
        self._last = new

    def _target(self, state: int, token: int) -> int:
        """The state of which all stretches end where the new one's suffixes do: split off if need be."""
        found = self._next[state][token]
        if self._length[found] == self._length[state] + 1:
            return found
        copy = self._new(dict(self._next[found]), self._length[state] + 1)
        self._end[copy], self._link[copy] = self._end[found], self._link[found]
        self._link[found] = copy
        while state >= 0 and self._next[state].get(token) == found:
            self._next[state][token] = copy
            state = self._link[state]
        return copy

    def _new(self, transitions: dict[int, int], length: int) -> int:
        self._next.append(transitions)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(len(self.text))
        return len(self._next) - 1

    def follow(self, tail: Sequence[int]) -> tuple[int, int]:
        """Length of the longest end of ``tail`` that occurs with a token behind it, and the place of the
        newest such token."""
        state, length = 0, 0
        for token in tail:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state, length = self._next[state][token], length + 1
        while state and self._end[state] >= len(self.text):  # nothing has followed this one yet
            state = self._link[state]
            length = self._length[state]
        return length, self._end[state] if state else 0
