"""Grammars of answers at a server: as much of one as it understands, and the rest checked here.

Every answer is held to its grammar where it is read: it ends before the first letter that does not fit
(:class:`Limit`). A server that understands the grammar writes only what fits in the first place.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from operators.errors import ConfigError
from operators.model.served import Form

_REGEX_PIECE = re.compile(
    r"(?P<group>\[(?:\\.|[^\]\\])+\])|(?P<repeat>\{\d+(?:,\d*)?\}|[?*+])|(?P<sign>[|()])"
    r"|(?P<plain>\\[nrt\\.\-\[\](){}*+?|\"]|[^\\.^$\[\](){}*+?|])",
    re.DOTALL,
)


class Limit:
    """Follows one answer letter by letter. Raises ConfigError for a grammar that cannot be compiled."""

    def __init__(self, form: Form) -> None:
        self._matcher = _compiled(form).deep_copy()

    def take(self, letter: str) -> bool:
        """Whether the letter may follow; if so, it is taken."""
        data = list(letter.encode("utf-8", "replace"))
        return int(self._matcher.try_consume_tokens(data)) == len(data)

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())


def within(text: str, form: Form | None) -> str:
    """The beginning of an answer that fits its form."""
    if form is None:
        return text
    limit, text = Limit(form), text.lstrip()
    for at, letter in enumerate(text):
        if limit.complete or not limit.take(letter):
            return text[:at]
    return text


@lru_cache(maxsize=256)
def _compiled(form: Form) -> Any:
    from llguidance import LLMatcher, LLTokenizer, grammar_from

    kind: Any = form.kind
    matcher = LLMatcher(LLTokenizer("byte"), grammar_from(kind, form.text), log_level=0)
    if matcher.is_error():
        raise ConfigError(f"a grammar cannot be used: {matcher.get_error().splitlines()[0][:200]}")
    return matcher


def fields(form: Form, server: str) -> dict[str, Any]:
    """What a request says of its answer's form, as the server (``owned_by``) takes it; nothing where it
    would not understand."""
    if form.kind == "json":
        named = {"name": "answer", "schema": json.loads(form.text)}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if form.kind != "regex":
        return {}
    if server == "vllm":
        return {"structured_outputs": {"regex": form.text}}
    if server == "sglang":
        return {"regex": form.text}
    if server == "llamacpp" and (grammar := gbnf(form.text)):
        return {"grammar": grammar}
    return {}


def gbnf(pattern: str) -> str:
    """A regular expression as llama.cpp's grammar; empty for what goes beyond letters, classes, groups,
    alternatives and repetition."""
    pieces: list[str] = []
    at = 0
    while at < len(pattern):
        match = _REGEX_PIECE.match(pattern, at)
        if match is None or pattern.startswith("(?", at):
            return ""
        text = match.group()
        if match.lastgroup == "plain":
            bare = text[1:] if len(text) == 2 and text[1] not in "nrt\\" else text
            text = f'"{bare}"' if bare != '"' else '"\\""'
        if match.lastgroup == "repeat":
            pieces[-1:] = [pieces[-1] + text] if pieces else []
        else:
            pieces.append(text)
        at = match.end()
    return f"root ::= {' '.join(pieces)}" if pieces else ""
