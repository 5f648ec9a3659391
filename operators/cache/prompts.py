"""Beginnings of prompts that come again and again, with the keys and values they had.

An instruction with its examples is the same for every sentence and every stream. A branch that sees
nothing but its own prompt begins at position 0, so what a token of such a beginning has in the cache
depends on the tokens before it alone: it is run once, and copied from then on. Nobody says where a
beginning ends: it is as far as a new prompt is like one before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 16
"""Fewer tokens are run again rather than kept: of a beginning, and of what would be new in a longer one.
Prompts that go on alike for a word or two would else push out the others."""
RECENT = 8
"""Prompts that a new one is compared with."""
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Beginning:
    """Keys and values of its tokens, of every layer ``[kv_heads, tokens, head_dim]``."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(layer).all()) for layer in (*self.keys, *self.values))


class PromptCache:
    """Keeps at most ``room`` tokens; what was not used for longest goes first. Owners are branches."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: OrderedDict[Tokens, Beginning] = OrderedDict()
        self._recent: deque[Tokens] = deque(maxlen=RECENT)
        self._wanted: dict[Hashable, Tokens] = {}

    @property
    def tokens(self) -> int:
        """How many are kept."""
        return sum(map(len, self._kept))

    def find(self, owner: Hashable, prompt: Sequence[int]) -> tuple[Beginning | None, int]:
        """What is kept of the prompt, and how many of its tokens that serves: all but one at most. Notes
        what is to be kept of it when ``owner`` has run it."""
        tokens = tuple(prompt)[:-1]
        usual = max((common(recent, tokens) for recent in self._recent), default=0)
        self._recent.append(tokens)
        counts = {kept: common(kept, tokens) for kept in self._kept}
        best = max(counts, key=counts.__getitem__, default=())
        count = counts.get(best, 0)
        if count + LEAST <= usual <= self._room:
            self._wanted[owner] = tokens[:usual]
        if count < LEAST:
            return None, 0
        self._kept.move_to_end(best)
        return self._kept[best], count

    def wanted(self, owner: Hashable) -> int:
        """How many of its first tokens are to be kept; 0 for none."""
        return len(self._wanted.get(owner, ()))

    def keep(self, owner: Hashable, beginning: Beginning) -> None:
        """Keep what :meth:`wanted` said, unless a fault is in it."""
        tokens = self._wanted.pop(owner)
        if not beginning.finite:
            return
        for shorter in [kept for kept in self._kept if tokens[: len(kept)] == kept]:
            del self._kept[shorter]
        self._kept[tokens] = beginning
        while self.tokens > self._room:
            self._kept.popitem(last=False)

    def forget(self, owner: Hashable) -> None:
        """The branch is given up, or begins anew."""
        self._wanted.pop(owner, None)


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    return bisect_left(range(min(len(a), len(b))), True, key=lambda n: a[: n + 1] != b[: n + 1])
