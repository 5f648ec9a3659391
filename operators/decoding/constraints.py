"""What may be generated: masks on the logits, applied before a token is chosen.

A constraint is a pure function of the answer so far. So every place of a verify block gets the mask
that plain decoding would have there, a draft that is not allowed never equals the token chosen, and the
text does not depend on drafts.

* :class:`GrammarMask`: the answer matches a grammar (a regular expression, a Lark grammar or a JSON
  schema), by llguidance.
* :class:`NoCopy`: the answer does not repeat a run of the source's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor

from operators.errors import ConfigError
from operators.model.tokenizer import Tokenizer
from operators.text import units

CACHED = 256
"""Compiled grammars that are kept."""
Kind = Literal["regex", "lark", "json"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Grammar:
    """The form of an answer, as plain data. ``kind``: ``regex`` (Rust's syntax), ``lark``
    (llguidance's dialect) or ``json`` (a JSON schema)."""

    kind: Kind
    text: str

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        return cls("regex", pattern)

    @classmethod
    def schema(cls, schema: Mapping[str, Any]) -> Grammar:
        return cls("json", json.dumps(schema))

    @classmethod
    def one_line(cls, most: int = 400) -> Grammar:
        """One line of at most ``most`` characters; its line break ends the answer."""
        return cls("regex", rf"[^\n]{{1,{most}}}\n?")

    @classmethod
    def part_of(cls, text: str, otherwise: str = "-") -> Grammar:
        """A stretch of the words of ``text`` (characters, where it has no spaces), or ``otherwise``."""
        pieces = "substring_words" if " " in text.strip() else "substring_chars"
        words = json.dumps({pieces: text}, ensure_ascii=False)
        return cls(
            "lark",
            f"start: {json.dumps(otherwise, ensure_ascii=False)} | part\npart: %regex {words}\n",
        )


class Constraint(Protocol):
    """Limits one answer."""

    def apply(self, scores: Tensor, output: Sequence[int]) -> Tensor:
        """``scores`` ``[vocab]`` with every token that must not follow ``output`` at minus infinity.
        Does not change ``scores``."""
        ...

    def complete(self, output: Sequence[int]) -> bool:
        """Whether nothing may follow ``output``."""
        ...


class Grammars:
    """Compiles grammars for one tokenizer. ``vocab``: the width of the model's logits."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._tokens: Any = None
        self._compiled = lru_cache(maxsize=CACHED)(self._compile)

    def mask(self, grammar: Grammar) -> GrammarMask:
        """A mask for one answer. Raises ConfigError for a grammar that cannot be compiled."""
        return GrammarMask(self._compiled(grammar).deep_copy(), self._vocab)

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher, grammar_from

        if self._tokens is None:
            self._tokens = _vocabulary(self._tokenizer, self._vocab)
        if grammar.kind not in KINDS:
            raise ConfigError(f"grammar kind {grammar.kind!r}: one of {', '.join(KINDS)}")
        form = grammar_from(grammar.kind, grammar.text)
        matcher = LLMatcher(self._tokens, form, log_level=0)
        if matcher.is_error():
            why = matcher.get_error().splitlines()[0][:200]
            raise ConfigError(f"a grammar cannot be used: {why}")
        return matcher


class GrammarMask:
    """A grammar along one answer. Keeps the matcher at the last place asked about, and goes back or
    forward from there."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab
        self._at: list[int] = []

    def apply(self, scores: Tensor, output: Sequence[int]) -> Tensor:
        if not self._move(output):
            return scores  # the output left the grammar before: the answer's end is near or wrong
        bits = np.zeros((self._vocab + 31) // 32, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocab]
        keep = torch.from_numpy(allowed.view(np.bool_)).to(scores.device)
        return scores.masked_fill(~keep, -torch.inf)

    def complete(self, output: Sequence[int]) -> bool:
        return not self._move(output) or bool(self._matcher.is_stopped())

    def _move(self, output: Sequence[int]) -> bool:
        """Put the matcher behind ``output``; False where the grammar does not allow it."""
        same = 0
        for mine, its in zip(self._at, output, strict=False):
            if mine != its:
                break
            same += 1
        if same < len(self._at):
            self._matcher.rollback(len(self._at) - same)
            del self._at[same:]
        rest = list(output[same:])
        if rest:
            taken = self._matcher.try_consume_tokens(rest)
            self._at += rest[:taken]
            return int(taken) == len(rest)
        return True


class NoCopy:
    """Forbids the token with which a run of the answer would copy ``most`` units in a row of one of
    the sources, or ``first`` units from the answer's beginning on. Numbers may be copied, and so may
    what stands in ``free``, such as names."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sources: Sequence[str],
        most: int,
        free: Sequence[str] = (),
        first: int = 0,
    ) -> None:
        self._encode, self._decode = tokenizer.encode, tokenizer.decode
        self._most, self._first = most, first or most
        self._sources = [
            tuple(tokenizer.encode(form)) for text in sources for form in {text, f" {text}"} if text
        ]
        self._free = {
            token
            for name in free
            for form in (name, f" {name}")
            for token in tokenizer.encode(form)
        }

    def apply(self, scores: Tensor, output: Sequence[int]) -> Tensor:
        banned = sorted(self._banned(output))
        if not banned:
            return scores
        return scores.index_fill(0, torch.tensor(banned, device=scores.device), -torch.inf)

    def complete(self, output: Sequence[int]) -> bool:
        return False

    def _banned(self, output: Sequence[int]) -> set[int]:
        banned: set[int] = set()
        if len(output) + 1 < min(self._most, self._first) // 2:
            return banned
        for source in self._sources:
            for at in range(1, len(source)):
                length = 0
                while (
                    length < min(at, len(output)) and source[at - 1 - length] == output[-1 - length]
                ):
                    length += 1
                most = self._first if length == len(output) else self._most
                if length and source[at] not in self._free:
                    run = self._decode(source[at - length : at + 1])
                    if self._too_long(run, most):
                        banned.add(source[at])
        stuck = {other for token in banned for other in self._without_space(token)}
        return banned | (stuck - self._free)

    def _without_space(self, token: int) -> list[int]:
        """The token of the same word without the space before it: stuck to the word before it
        ("recognitionremote") it would be the same copy."""
        text = self._decode([token])
        word = text.lstrip()
        found = self._encode(word) if word and word != text else []
        return found if len(found) == 1 else []

    @staticmethod
    def _too_long(run: str, most: int) -> bool:
        if len(run) < most:
            return False
        found = units(run)
        return len(found) >= most and not any(char.isdigit() for char in found[-1])  # also "21st"


def _vocabulary(tokenizer: Tokenizer, size: int) -> Any:
    """The tokenizer as llguidance knows it."""
    from llguidance import LLTokenizer

    hub = getattr(tokenizer, "hub", None)
    ends = sorted(tokenizer.eos_ids)
    if hub is not None:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(hub, n_vocab=size, eos_token=ends)
    return LLTokenizer(cast(Any, _Bytes(tokenizer, size)), n_vocab=size, eos_token=ends)


class _Bytes:
    """A tokenizer of bytes, such as a toy's, in the form llguidance asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.tokens = [bytes([i]) if i < 256 else b"" for i in range(size)]
        self.special_token_ids = list(range(256, size))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
