"""Prompts are plain files (``prompts/*.txt``), each replaceable by a setting of the same name.

Placeholders in braces are filled with *tokens*, encoded as ordinary text: nothing a speaker says can
act as a special token. All tokens around the transcript come from the model's own chat template.
``{answer}`` marks where the assistant's turn begins; what follows it opens the answer, which holds a
small model to the form asked for.

A prompt whose examples matter has forms for some languages (``judge.de.txt``), for turns in that
language; :meth:`Prompts.form` names the one to use.
"""

from __future__ import annotations

import re
from importlib import resources

from operators import languages
from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.model.tokenizer import Tokenizer

NAMES = (
    *("system", "user", "summary", "compact", "translate", "answer"),
    *("judge", "note", "owner", "due", "relation", "answered"),
)
BY_LANGUAGE = ("judge",)
"""Prompts that may have forms for languages."""
_FIELDS = {
    "system": set[str](),
    "user": {"window"},
    "summary": {"limit"},
    "compact": {"ledger", "limit"},
    "translate": {"language", "text"},
    "answer": {"excerpts", "question"},
    "judge": {"turn"},
    "note": {"turn"},
    "owner": {"turn"},
    "due": {"turn"},
    "relation": {"note", "turn"},
    "answered": {"question", "reply"},
}
_OPTIONAL = {
    "summary": {"ledger", "since"},
    "answer": {"language"},
    "translate": {"hint"},
    "note": {"hint", "language", "speaker", "what"},
    "owner": {"speaker"},
}
"""``ledger``: the notes so far. The default prompt leaves it out: a 1.5B model that sees its notes
writes them down again instead of new ones. ``since``: the first words that no update has covered."""
_DIVIDER = re.compile(r"^---\n", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Prompts:
    """All prompts of one operator, tokenised for one model.

    ``prefix``: the tokens pinned as attention sinks at the start of every stream. ``render``: the
    tokens of a branch, up to and including the assistant's header.
    """

    def __init__(self, tokenizer: Tokenizer, overrides: dict[str, str] | None = None) -> None:
        self._tokenizer = tokenizer
        changed = overrides or {}
        for name, text in changed.items():
            _check(name, text)
        # Who changes a prompt changes it for all languages.
        kept = {name: text for name, text in packaged().items() if _of(name) not in changed}
        self._texts = kept | changed
        self._frames: dict[tuple[str, bool], tuple[str, list[int], list[int]]] = {}
        self.prefix, self._suffix = tokenizer.chat(
            self._texts["system"].strip(), self._texts["user"].strip()
        )

    def form(self, name: str, language: str | None) -> str:
        """The name of the prompt's form for a language (a BCP 47 tag): ``judge.de`` for German, the
        prompt's own name where it has none."""
        form = f"{name}.{(language or '').partition('-')[0]}"
        return form if form in self._texts else name

    def render(self, name: str, **fields: str) -> list[int]:
        """Tokens of prompt ``name`` with its placeholders filled by ``fields``, up to and including
        the opening of the answer."""
        question, _, opening = self._texts[name].rstrip("\n").partition("{answer}")
        encode = self._tokenizer.encode
        opened = encode(_fill(opening, fields)) if opening else []
        return encode(_fill(question.rstrip("\n"), fields)) + self._suffix + opened

    def alone(self, name: str, **fields: str) -> list[int]:
        """Tokens of a whole conversation, for asks that see nothing else. ``---`` on a line divides the
        prompt: the system message, turns of user and assistant as examples, the user's message."""
        return self._conversation(name, fields, with_examples=True)

    def without_examples(self, name: str, **fields: str) -> list[int]:
        """The same conversation without its examples."""
        return self._conversation(name, fields, with_examples=False)

    def _conversation(self, name: str, fields: dict[str, str], *, with_examples: bool) -> list[int]:
        user, before, after = self._frame(name, with_examples)
        user, _, opening = user.partition("{answer}")
        opened = self._tokenizer.encode(_fill(opening, fields)) if opening else []
        return before + self._tokenizer.encode(_fill(user, fields).rstrip("\n")) + after + opened

    def _frame(self, name: str, with_examples: bool) -> tuple[str, list[int], list[int]]:
        """The user's message of such a prompt, and the tokens before and after it."""
        key = name, with_examples
        if key not in self._frames:
            system, *said = _DIVIDER.split(self._texts[name].strip("\n"))
            if not said:
                system, said = "", [system]
            *examples, user = said
            said = [text.strip() for text in examples]
            pairs = list(zip(said[::2], said[1::2], strict=True)) if with_examples else []
            frame = self._tokenizer.chat(system.strip(), "{window}", pairs)
            self._frames[key] = (user, *frame)
        return self._frames[key]

    def has(self, name: str, field: str) -> bool:
        """Whether the prompt has a place for ``field``."""
        return f"{{{field}}}" in self._texts[name]

    def instruction(self, text: str) -> list[int]:
        """Tokens of an instruction in plain words, up to and including the assistant's header."""
        return self._tokenizer.encode(f"\n{text.strip()}") + self._suffix

    def opening(self, name: str, **fields: str) -> str:
        """The words the answer to prompt ``name`` is made to begin with; often empty."""
        return _fill(self._texts[name].rstrip("\n").partition("{answer}")[2], fields)


def _fill(text: str, fields: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: fields[match.group(1)], text)


def _of(name: str) -> str:
    """The prompt that ``name`` is a form of."""
    return name.partition(".")[0]


def _check(name: str, text: str) -> None:
    """Refuse a text that cannot serve as the prompt: ConfigError."""
    prompt, _, language = name.partition(".")
    of_language = prompt in BY_LANGUAGE and languages.known(language) == language
    if prompt not in _FIELDS or (language and not of_language):
        raise ConfigError(f"prompts: no prompt {name!r}; there are {', '.join(NAMES)}")
    found = set(_PLACEHOLDER.findall(text)) - {"answer"}
    if not _FIELDS[prompt] <= found <= _FIELDS[prompt] | _OPTIONAL.get(prompt, set()):
        want = ", ".join(f"{{{f}}}" for f in sorted(_FIELDS[prompt])) or "no placeholder"
        raise ConfigError(f"prompts: {name!r} must contain {want} and no other placeholder")
    parts = len(_DIVIDER.split(text))
    if parts > 2 and parts % 2:
        raise ConfigError(f"prompts: {name!r} has an example without an answer")


def packaged() -> dict[str, str]:
    """The files of this folder by their names without suffix."""
    folder = resources.files("operators.tasks") / "prompts"
    files = (file for file in folder.iterdir() if file.name.endswith(".txt"))
    return {file.name.removesuffix(".txt"): file.read_text("utf-8") for file in files}


def check_branch_size(config: OperatorConfig, prompts: Prompts) -> None:
    """Refuse sizes with which an update or a translation would not fit a branch: ConfigError."""
    b = config.branch_tokens
    by_lines = config.summary_method == "lines"
    empty = len(prompts.render("summary", ledger="", limit="4", since="x" * 80)) if by_lines else 0
    need = empty + config.ledger_tokens + config.summary_tokens
    if by_lines and need > b:
        raise ConfigError(
            f"branch_tokens={b}: a summary update needs {need} (instruction {empty} + "
            f"ledger_tokens {config.ledger_tokens} + summary_tokens {config.summary_tokens})"
        )
    need = translation_size(config, prompts)
    if config.targets and need > b:
        raise ConfigError(
            f"branch_tokens={b}: a translation needs {need} (its instruction + "
            f"4 x translation_unit_tokens {config.translation_unit_tokens} + 24)"
        )


def translation_size(config: OperatorConfig, prompts: Prompts) -> int:
    """Tokens of a branch that the translation of one piece may take."""
    empty = len(prompts.alone("translate", language="", text="", hint=""))
    return empty + 4 * config.translation_unit_tokens + 24
