"""When the translation of a text that still grows is committed: published as what will never change.

Every policy is a rule on one hypothesis and those before it; each says how many tokens of the newest may
be committed. What is committed is put before every later answer of the unit, the final's too, so that
no later answer can contradict it. The policies:

* ``finals``: nothing is committed before the final.
* ``local-agreement-N`` (Liu et al. 2020): what the last N hypotheses have in common.
* ``wait-K`` (Ma et al. 2019): as many words as the source has, less K.
* ``alignatt`` or ``alignatt-F`` (Papi et al. 2023): as long as the attention of each token lies on
  source that is older than the last F tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex

from operators import languages
from operators.errors import ConfigError

FINALS, AGREEMENT, WAIT, ALIGNATT = "finals", "local-agreement", "wait", "alignatt"
_NAMES = regex.compile(
    rf"(?P<kind>{FINALS}|{ALIGNATT})|(?P<kind>{AGREEMENT}|{WAIT}|{ALIGNATT})-(?P<n>[0-9]{{1,2}})"
)
Decode = Callable[[Sequence[int]], str]
BORDER = 4
"""F of alignatt without a number, in tokens of the source."""


@dataclass(frozen=True)
class Policy:
    """A policy by its parts. ``n``: N, K or F of the docstring above."""

    name: str
    kind: str
    n: int = 0

    @property
    def commits(self) -> bool:
        return self.kind != FINALS


def policy(name: str) -> Policy:
    """The policy of a name. Raises ConfigError for a name nobody knows."""
    found = _NAMES.fullmatch(name)
    if found is None or (found["kind"] == AGREEMENT and int(found["n"] or 0) < 2):
        raise ConfigError(
            f"translation_policy={name!r}: finals, local-agreement-N (N from 2), wait-K, alignatt"
            " or alignatt-F"
        )
    return Policy(name, found["kind"], int(found["n"]) if found["n"] else BORDER)


@dataclass(frozen=True)
class Held:
    """What was published of a unit in one language. ``shown``: all of it. ``clauses``: pieces of the
    source that are done; ``opening``: committed tokens of the piece behind them; ``before``: its latest
    hypotheses, tokens with the opening, newest last."""

    shown: str = ""
    clauses: tuple[str, ...] = ()
    opening: tuple[int, ...] = ()
    before: tuple[tuple[int, ...], ...] = ()

    def text(self, decode: Decode) -> str:
        """All that is committed."""
        return languages.join([*self.clauses, decode(self.opening).lstrip()])


NOTHING_HELD = Held()


@dataclass(frozen=True)
class Hypothesis:
    """A translation of the newest piece of a source that may grow. ``tokens``: with the opening;
    ``alignment``: by token, the source token it looks at most, -1 where it is not known."""

    source: str
    source_tokens: int
    tokens: tuple[int, ...]
    alignment: tuple[int, ...] = ()


def committed(rule: Policy, held: Held, made: Hypothesis, decode: Decode) -> tuple[int, ...]:
    """The tokens that are committed after this hypothesis; they begin with those of ``held``."""
    wanted = max(len(held.opening), _wanted(rule, held, made, decode))
    return made.tokens[: _whole_words(made.tokens, len(held.opening), wanted, decode)]


def _wanted(rule: Policy, held: Held, made: Hypothesis, decode: Decode) -> int:
    """How many tokens the rule would commit."""
    if rule.kind == AGREEMENT:
        earlier = held.before[-(rule.n - 1) :]
        if len(earlier) < rule.n - 1:
            return 0
        return min(_common(made.tokens, tokens) for tokens in earlier)
    if rule.kind == WAIT:
        room = len(languages.words(made.source)) - rule.n
        counts = (
            len(languages.words(decode(made.tokens[:end])))
            for end in range(1, len(made.tokens) + 1)
        )
        return sum(1 for _ in itertools.takewhile(lambda words: words <= room, counts))
    if rule.kind == ALIGNATT:
        limit = made.source_tokens - rule.n
        for at, place in enumerate(made.alignment):
            if place >= limit:
                return at
        return len(made.tokens) if made.alignment else 0
    return 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs)


def _whole_words(tokens: Sequence[int], least: int, most: int, decode: Decode) -> int:
    """The largest number of tokens up to ``most`` that ends where a word ends. The last word is left
    out: more may belong to it, and a mark that ends the sentence must not come before its end."""
    text = decode(tokens)
    for count in range(min(most, len(tokens) - 1), least, -1):
        begin = decode(tokens[:count])
        if not begin.strip() or not text.startswith(begin):
            continue  # a character of several tokens is cut in two
        rest = text[len(begin) :]
        if rest[:1].isspace() or languages.unspaced(begin[-1]):
            return count
    return least
