"""Ways to put a plain prompt to a model: the seam for other engines.

A backend answers one user message, through the model's own chat template, greedily. The sides that
are not the product itself are written against :class:`Backend` only, so that another engine (a
server, say) is one more class here.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.errors import ConfigError
from operators.model.loader import DecoderModel
from operators.model.served import Message, TextModel, TextRequest, TextTokenizer

SINKS, BLOCK = 4, 256
Template = Callable[[str], list[int]]
"""A user message → the tokens of the conversation up to where the answer begins."""


@dataclass(frozen=True)
class Reply:
    """``prefilled``: prompt tokens that had to be run; ``generated``: tokens of the answer."""

    text: str
    prefilled: int
    generated: int
    seconds: float


class Backend(Protocol):
    """``name`` stands in the tables."""

    name: str

    def reply(self, message: str, max_tokens: int) -> Reply:
        """The answer to one user message; no memory of earlier ones."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...


class EngineBackend:
    """Plain greedy decoding with the engine's own forward: same weights, same speed per forward.

    What a prompt has in common with the beginning of the one before is not run again. Prompt and
    answer must fit ``context`` tokens (ConfigError).
    """

    def __init__(self, model: DecoderModel, template: Template, context: int) -> None:
        self.name = "engine"
        self._model, self._template = model, template
        rope = getattr(model, "rope", None)
        self._room = min(context, model.max_context - SINKS - 1)
        layout = KvLayout(SINKS, self._room, BLOCK, branch_tokens=1)
        self._cache = model.new_cache(layout, slots=1, branches=1)
        self._rope = model.rope
        if rope is not None:  # of the operator that shares the model
            model.rope = rope
        self._slot = self._cache.allocate()
        self._held: list[int] = []

    def count(self, text: str) -> int:
        return len(self._model.tokenizer.encode(text))

    def reply(self, message: str, max_tokens: int) -> Reply:
        began = time.perf_counter()
        prompt = self._template(message)
        if len(prompt) + max_tokens > self._room:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} for its answer do not fit "
                f"{self._room}: raise --context"
            )
        others, self._model.rope = getattr(self._model, "rope", self._rope), self._rope
        try:
            prefilled, output = self._run(prompt, max_tokens)
        finally:
            self._model.rope = others
        text = self._model.tokenizer.decode(output)
        return Reply(text.strip(), prefilled, len(output), time.perf_counter() - began)

    def _run(self, prompt: list[int], max_tokens: int) -> tuple[int, list[int]]:
        model, slot = self._model, self._slot
        kept = min(_common(self._held, prompt), len(prompt) - 1)
        slot.length = kept
        self._held = prompt
        while slot.length < len(prompt):
            block = prompt[slot.length : slot.length + BLOCK]
            logits = model.forward("prefill", self._cache, [Row(slot, block, num_logits=1)])
        output: list[int] = []
        while True:
            token = int(logits[-1].argmax())
            if token in model.tokenizer.eos_ids:
                break
            output.append(token)
            if len(output) == max_tokens:
                break
            logits = model.forward("decode", self._cache, [Row(slot, [token], num_logits=1)])
        return len(prompt) - kept, output


class ServedBackend:
    """A model that runs elsewhere, or in transformers: one message, one answer."""

    def __init__(self, text: TextModel) -> None:
        self.name, self._text = text.name, text
        self._tokenizer = TextTokenizer()

    def count(self, text: str) -> int:
        """Estimated: the server's tokenizer is not known."""
        return len(self._tokenizer.encode(text))

    def reply(self, message: str, max_tokens: int) -> Reply:
        began = time.perf_counter()
        answer = self._text.submit(
            TextRequest((Message("user", message),), "", max_tokens)
        ).result()
        took = time.perf_counter() - began
        return Reply(answer.text.strip(), answer.prompt_tokens, answer.output_tokens, took)


class LlamaCppBackend:
    """The same GGUF file in llama.cpp's own server (``xllamacpp``), which applies the template.

    Raises ConfigError where the package is missing.
    """

    def __init__(self, file: Path, context: int, threads: int) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError("llama.cpp is not installed: pip install 'longstream[peers]'")
        import xllamacpp

        self.name = "llama.cpp"
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = 0
        self._server: Any = xllamacpp.Server(params)

    def count(self, text: str) -> int:
        raise NotImplementedError("only ever asked of the engine's backend")

    def reply(self, message: str, max_tokens: int) -> Reply:
        began = time.perf_counter()
        answer = self._server.handle_chat_completions(
            {
                "messages": [{"role": "user", "content": message}],
                "max_tokens": max_tokens,
                "temperature": 0.0,
            }
        )
        found: Any = json.loads(answer) if isinstance(answer, str | bytes) else answer
        if "choices" not in found:
            raise ConfigError(f"llama.cpp refused a prompt: {found}")
        usage = found.get("usage", {})
        return Reply(
            str(found["choices"][0]["message"]["content"]).strip(),
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 0)),
            time.perf_counter() - began,
        )


def hub_template(folder: Path) -> Template:
    """The model's own chat template with nothing but the user's message."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def render(message: str) -> list[int]:
        if not tokenizer.chat_template:
            return list(tokenizer.encode(f"{message}\n"))
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return list(tokenizer.encode(text, add_special_tokens=False))

    return render


def _common(held: list[int], wanted: list[int]) -> int:
    """Length of the common beginning."""
    for at, (mine, its) in enumerate(zip(held, wanted, strict=False)):
        if mine != its:
            return at
    return min(len(held), len(wanted))
