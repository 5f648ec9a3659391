"""The tokenizer interface, and its implementation on a transformers tokenizer."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Sequence
from typing import Any, Protocol

from operators.errors import ModelError
from operators.model.families import AUTO, family_of

Examples = Sequence[tuple[str, str]]


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer.

    ``encode`` treats its text as ordinary text, whatever it spells: a speaker who says ``<|im_end|>``
    must not end a turn. ``chat`` alone honours special tokens: it gives the tokens
    around the last user message of a conversation.
    """

    eos_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def vocabulary(self) -> dict[str, int]:
        """Id of every token, by its name."""
        ...

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        """Tokens before and after what stands at ``{window}`` in ``user``. ``examples``: what a user
        asked before, each with its answer."""
        ...

    def first(self, word: str) -> int:
        """The token with which an answer begins that begins with ``word``."""
        ...


A_DAY = datetime.date(2024, 7, 26)
"""What a chat template is told when it asks for the date (the one in Llama 3's own template)."""
_MARK = "\N{SYMBOL FOR NULL}WINDOW\N{SYMBOL FOR NULL}"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""A space, in the tokens of SentencePiece."""
_THINK, _THOUGHT = "<think>", "\n\n</think>\n\n"


class HubTokenizer:
    """A transformers (fast) tokenizer behind the :class:`Tokenizer` interface. ``family``: see
    :mod:`operators.model.families`; raises ConfigError for one that is not known."""

    def __init__(
        self, tokenizer: Any, config: Any, generation_config: Any = None, family: str = AUTO
    ) -> None:
        self.hub = self._tokenizer = tokenizer
        self._lead: list[int] = []
        self.family = family_of(tokenizer.chat_template, family)
        ids: set[int] = set()
        for source in (tokenizer, config, generation_config):
            value = getattr(source, "eos_token_id", None)
            ids.update([value] if isinstance(value, int) else value or [])
        vocab = tokenizer.get_vocab()
        ids.update(vocab[token] for token in self.family.ends if token in vocab)
        self.eos_ids = frozenset(ids)
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        # "Unknown" stands for a character the model has no token for, which is ordinary text.
        self._reserved = frozenset(added) - ({tokenizer.unk_token_id} - self.eos_ids)
        names = sorted((name for name in added.values() if name), key=len, reverse=True)
        self._reserved_name = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        letter = tokenizer.convert_ids_to_tokens(self._split("x")[:1])
        if letter and letter[0].startswith(_SPACE):
            self._lead = self._split("\n")

    def encode(self, text: str) -> list[int]:
        ids = self._split(text)
        if self._reserved.isdisjoint(ids):
            return ids
        # Added tokens that are not marked as special, such as <tool_call>, are found in a text all the
        # same: cut their names in two.
        cuts = [match.start() + 1 for match in self._reserved_name.finditer(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        ids = [i for piece in pieces for i in self._split(piece)]
        return [i for i in ids if i not in self._reserved]

    def _split(self, text: str) -> list[int]:
        """Tokens of ``text`` with the names of special tokens split up. Of tokenizers that put a space
        before every text, without that space: ours stand inside others."""

        def split(text: str) -> list[int]:
            return list(
                self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            )

        if self._lead:
            ids, lead = split(f"\n{text}"), len(self._lead)
            if ids[:lead] == self._lead:
                return ids[lead:]
        return split(text)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def vocabulary(self) -> dict[str, int]:
        ids: dict[str, int] = self._tokenizer.get_vocab()
        return ids

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        framed = self._framed(system, user.replace("{window}", _MARK), examples)
        before, after = framed.split(_MARK)
        if after.rstrip().endswith(_THINK):  # a template that knows no other answer than thinking
            after = after.rstrip() + _THOUGHT
        encode = self._tokenizer.encode
        lead = len(self._lead)
        behind = encode("\n" + after if lead else after, add_special_tokens=False)
        return encode(before, add_special_tokens=False), behind[lead:]

    def first(self, word: str) -> int:
        """See :meth:`Tokenizer.first`: behind a frame some templates write a space."""
        frame = answered = ""
        if self._tokenizer.chat_template:
            try:
                frame = self._apply([("user", "x")])
                answered = self._apply([("user", "x"), ("assistant", _MARK)]).partition(_MARK)[0]
            except Exception:  # as in _framed: whatever a template raises
                answered = ""
        return self._split(f" {word}" if answered == f"{frame} " else word)[0]

    def _framed(self, system: str, user: str, examples: Examples) -> str:
        """The conversation as the model's template writes it. Where that refuses a system message, or
        leaves it out, the system's words begin the first user's. Raises ModelError."""
        said = [*(text for example in examples for text in example), user]
        if not self._tokenizer.chat_template:
            return "\n\n".join([system, *said]) + "\n"
        turns = [(("user", "assistant")[at % 2], text) for at, text in enumerate(said)]
        try:
            text = self._apply([("system", system), *turns])
        except Exception:  # whatever a template raises: jinja2's own errors, TypeError …
            text = ""
        if system in text and text.count(_MARK) == 1:
            return text
        turns[0] = ("user", f"{system}\n\n{said[0]}")
        try:
            text = self._apply(turns)
        except Exception as error:
            raise ModelError(
                "the model's chat template takes neither a system message nor a plain user message "
                f"({type(error).__name__}: {error})"
            ) from error
        if system not in text or text.count(_MARK) != 1:
            raise ModelError("the model's chat template does not write the user's message as given")
        return text

    def _apply(self, messages: Sequence[tuple[str, str]]) -> str:
        """The same text on every day: some templates write the date, and a prefix that changes with it
        would make yesterday's snapshots those of another prompt."""
        text: str = self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=A_DAY.strftime,
            date_string=A_DAY.strftime("%d %b %Y"),
            **self.family.variables,
        )
        return text
