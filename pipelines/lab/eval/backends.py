"""Ways to put a plain prompt to a model: the seam for other engines.

A backend answers one user message, through the model's own chat template, greedily. The sides that
are not the product itself are written against :class:`Backend` only, so that another engine (a
server, say) is one more class here.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvLayout
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

    def replies(self, asked: Sequence[tuple[str, int]]) -> list[Reply]:
        """The answers to several, some of them beside each other where the backend was made so."""
        ...


class EngineBackend:
    """Plain greedy decoding with the engine's own forward: same weights, same speed per forward.

    What a prompt has in common with the beginning of the one before is not run again. Prompt and
    answer must fit ``context`` tokens (ConfigError). ``at_once``: answers decoded in one forward by
    :meth:`replies`.
    """

    def __init__(
        self, model: DecoderModel, template: Template, context: int, at_once: int = 1
    ) -> None:
        self.name = "engine"
        self._model, self._template, self._at_once = model, template, at_once
        rope = getattr(model, "rope", None)
        self._room = min(context, model.max_context - SINKS - 1)
        branch = self._room if at_once > 1 else 1
        layout = KvLayout(SINKS, self._room, BLOCK, branch_tokens=branch)
        self._cache = model.new_cache(layout, slots=1, branches=at_once)
        self._rope = model.rope
        if rope is not None:  # of the operator that shares the model
            model.rope = rope
        self._slot = self._cache.allocate()
        self._held: list[int] = []

    def count(self, text: str) -> int:
        return len(self._model.tokenizer.encode(text))

    def reply(self, message: str, max_tokens: int) -> Reply:
        began = time.perf_counter()
        prompt = self._prompt(message, max_tokens)
        with self._own_rope():
            prefilled, output = self._run(prompt, max_tokens)
        text = self._model.tokenizer.decode(output)
        return Reply(text.strip(), prefilled, len(output), time.perf_counter() - began)

    def replies(self, asked: Sequence[tuple[str, int]]) -> list[Reply]:
        """What all prompts begin with is run once. Every answer has an equal share of the time."""
        if self._at_once == 1 or len(asked) < 2:
            return [self.reply(message, most) for message, most in asked]
        began = time.perf_counter()
        runs = [_Run(self._prompt(message, most), most) for message, most in asked]
        shared = min(min(_common(runs[0].prompt, r.prompt), len(r.prompt) - 1) for r in runs)
        with self._own_rope():
            prefilled, _ = self._read(runs[0].prompt[:shared])
            self._decode(runs, shared)
        took = (time.perf_counter() - began) / len(runs)
        replies = []
        for run in runs:
            text = self._model.tokenizer.decode(run.output).strip()
            read = len(run.prompt) - shared + (prefilled if run is runs[0] else 0)
            replies.append(Reply(text, read, len(run.output), took))
        return replies

    def _decode(self, runs: Sequence[_Run], shared: int) -> None:
        """All answers on branches of what is read, as many at a time as there are branches."""
        waiting, running = deque(runs), list[_Run]()
        while waiting or running:
            while waiting and len(running) < self._at_once:
                run = waiting.popleft()
                run.branch = branch = self._cache.fork(self._slot)
                while branch.length < len(run.prompt) - shared:
                    block = run.prompt[shared + branch.length :][:BLOCK]
                    row = Row(self._slot, block, branch, num_logits=1)
                    logits = self._model.forward("prefill", self._cache, [row])
                running += self._goes_on(run, int(logits[-1].argmax()))
            rows = [Row(self._slot, run.output[-1:], run.branch, num_logits=1) for run in running]
            if rows:
                tokens = self._model.forward("decode", self._cache, rows).argmax(dim=-1).tolist()
                pairs = zip(running, tokens, strict=True)
                running = [r for run, token in pairs for r in self._goes_on(run, int(token))]

    def _goes_on(self, run: _Run, token: int) -> list[_Run]:
        """The run with its next token if there is more to come."""
        ended = token in self._model.tokenizer.eos_ids
        if not ended:
            run.output.append(token)
        if (ended or len(run.output) == run.most) and run.branch is not None:
            self._cache.drop(run.branch)
            return []
        return [run]

    def _prompt(self, message: str, max_tokens: int) -> list[int]:
        prompt = self._template(message)
        if len(prompt) + max_tokens > self._room:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} for its answer do not fit "
                f"{self._room}: raise --context"
            )
        return prompt

    @contextmanager
    def _own_rope(self) -> Iterator[None]:
        """The operator that shares the model has another cache."""
        others, self._model.rope = getattr(self._model, "rope", self._rope), self._rope
        try:
            yield
        finally:
            self._model.rope = others

    def _read(self, tokens: list[int]) -> tuple[int, Any]:
        """The slot holds just these tokens: how many had to be run, and the logits behind the last."""
        slot, logits = self._slot, None
        kept = min(_common(self._held, tokens), max(0, len(tokens) - 1))
        slot.length = kept
        self._held = tokens
        while slot.length < len(tokens):
            block = tokens[slot.length : slot.length + BLOCK]
            row = Row(slot, block, num_logits=1)
            logits = self._model.forward("prefill", self._cache, [row])
        return len(tokens) - kept, logits

    def _run(self, prompt: list[int], max_tokens: int) -> tuple[int, list[int]]:
        model, slot = self._model, self._slot
        prefilled, logits = self._read(prompt)
        output: list[int] = []
        while True:
            token = int(logits[-1].argmax())
            if token in model.tokenizer.eos_ids:
                break
            output.append(token)
            if len(output) == max_tokens:
                break
            logits = model.forward("decode", self._cache, [Row(slot, [token], num_logits=1)])
        return prefilled, output


@dataclass
class _Run:
    """One of several answers in the making."""

    prompt: list[int]
    most: int
    output: list[int] = field(default_factory=list)
    branch: Branch | None = None


class ServedBackend:
    """A model that runs elsewhere, or in transformers: one message, one answer."""

    def __init__(self, text: TextModel, at_once: int = 1) -> None:
        self.name, self._text, self._at_once = text.name, text, at_once
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

    def replies(self, asked: Sequence[tuple[str, int]]) -> list[Reply]:
        return _beside(self, asked, self._at_once)


class LlamaCppBackend:
    """The same GGUF file in llama.cpp's own server (``xllamacpp``), which applies the template.

    Raises ConfigError where the package is missing.
    """

    def __init__(self, file: Path, context: int, threads: int, at_once: int = 1) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError("llama.cpp is not installed: pip install 'longstream[peers]'")
        import xllamacpp

        self.name, self._at_once = "llama.cpp", at_once
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = context * at_once, at_once
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

    def replies(self, asked: Sequence[tuple[str, int]]) -> list[Reply]:
        return _beside(self, asked, self._at_once)


def _beside(backend: Backend, asked: Sequence[tuple[str, int]], at_once: int) -> list[Reply]:
    """Answers of a backend that takes calls from several threads."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda one: backend.reply(*one), asked))


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
