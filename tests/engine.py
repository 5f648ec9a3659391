"""Helpers shared by the engine's tests: a toy DecoderModel and a driver for bare cache rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvCache, KvLayout, StreamSlot
from operators.decoding.generation import Generation
from operators.engine.task_run import TaskRun
from operators.model.loader import DecoderModel
from operators.model.tokenizer import Examples
from operators.tasks.base import Due, Outcome, Steps, StreamView, Task
from tests.toy import ByteTokenizer, toy_model

SINKS = [3, 1, 4, 1, 5]
_USED = {"device": "cpu", "dtype": "fp32"}


@contextmanager
def toys(**used: str) -> Iterator[None]:
    """Toy decoders made inside are of this ``device`` or ``dtype`` unless asked otherwise."""
    before = dict(_USED)
    _USED.update(used)
    try:
        yield
    finally:
        _USED.update(before)


class ToyTokenizer(ByteTokenizer):
    """The byte tokenizer behind the engine's tokenizer seam; a plain-text chat frame."""

    eos_ids = frozenset({ByteTokenizer.eos_id})

    def vocabulary(self) -> dict[str, int]:
        return {str(i): i for i in range(self.vocab_size)}

    def first(self, word: str) -> int:
        return self.encode(word)[0]

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        before, after = f"{system[:4]}|{user}".split("{window}")
        return self.encode(before[:6]), self.encode(after + "\n>")


def toy_decoder(
    arch: str = "llama", *, device: str = "", dtype: str = "", compile: bool = False, **kw: Any
) -> DecoderModel:
    """A fresh toy model (its own weights object, so tests may patch it), fp32 on the CPU unless
    :func:`toys` or the arguments say otherwise."""
    dtype = dtype or _USED["dtype"]
    return DecoderModel(
        toy_model(arch, **kw),
        ToyTokenizer(),
        name=f"toy-{arch}",
        dtype_prefill=dtype,
        dtype_decode=dtype,
        device=device or _USED["device"],
        compile=compile,
    )


class OneAnswer(Task):
    """Stands for whatever asked for an answer that a test makes by hand."""

    name = "by_hand"

    def run(self, view: StreamView, occasion: Any) -> Steps:
        yield []
        return Outcome()


def run_of(generation: Generation) -> TaskRun:
    """A run whose one answer was made by hand, with its branch."""
    return TaskRun(OneAnswer(), Due("request"), asked=[generation])


def layout(window: int = 24, slack: int = 8, branch: int = 24, sinks: int = 5) -> KvLayout:
    return KvLayout(sinks=sinks, window=window, slack=slack, branch_tokens=branch)


class Driver:
    """Appends tokens to streams and branches row by row and returns logits ``[n, vocab]`` of each."""

    def __init__(self, model: DecoderModel, shape: KvLayout, slots: int = 4, branches: int = 4):
        self.model, self.layout = model, shape
        self.cache: KvCache = model.new_cache(shape, slots=slots, branches=branches)

    def stream(self, sinks: Sequence[int], offset: int = 0) -> StreamSlot:
        slot = self.cache.allocate()
        for at in range(0, len(sinks), self.layout.slack):
            self.run([Row(slot, sinks[at : at + self.layout.slack])])
        slot.length += offset
        slot.origin = slot.length if offset else 0
        return slot

    def run(self, rows: list[Row]) -> list[Tensor]:
        for row in rows:
            row.num_logits = len(row.tokens)
        logits = self.model.forward("prefill", self.cache, rows)
        if logits.device.type == "cuda":  # compared with what the reference says on the CPU
            logits = logits.cpu()
        return list(torch.split(logits, [len(r.tokens) for r in rows]))

    def feed(
        self, slot: StreamSlot, tokens: Sequence[int], rng: random.Random | None = None
    ) -> Tensor:
        """Append ``tokens`` in blocks: random sizes with ``rng``, one by one without."""
        out, at = [], 0
        while at < len(tokens):
            room = self.cache.ingest_room(slot)
            n = rng.randint(1, room) if rng else 1
            out += self.run([Row(slot, tokens[at : at + n])])
            at += n
        return torch.cat(out)

    def append(self, branch: Branch, tokens: Sequence[int]) -> Tensor:
        return self.run([Row(branch.stream, tokens, branch)])[0]


def random_tokens(count: int, seed: int, vocab: int = 256) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(count)]


def assert_same_logits(got: Tensor, want: Tensor) -> None:
    """Invariant 1's bar: no argmax mismatch and max |Δlogit| ≤ 1e-3 (fp32)."""
    assert got.shape == want.shape
    worst = (got - want).abs().max().item()
    assert worst <= 1e-3, f"max |Δlogit| = {worst:.2e}"
    assert torch.equal(got.argmax(-1), want.argmax(-1))
