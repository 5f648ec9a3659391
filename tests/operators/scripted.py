"""A stand-in for a model that can translate: it answers what a function of its prompt says, token by
token, through the engine's own rows, caches and branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operators.cache.kv_cache import KvCache
from operators.cache.prompts import PromptCache
from operators.model.loader import DecoderModel
from tests.engine import ToyTokenizer
from tests.toy import ByteTokenizer, toy_model


class Scripted(DecoderModel):
    """``answer``: the text for a prompt. ``prompts``: those met, in the order of their end."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__(toy_model(), ToyTokenizer(), name="scripted")
        self._answer = answer
        self._held: dict[int, list[int]] = {}
        self._answers: dict[int, tuple[int, list[int]]] = {}
        self.prompts: list[str] = []

    def new_cache(self, *args: Any, **options: Any) -> KvCache:
        """Of prompts it keeps nothing: what is copied into a branch is not met in a row."""
        cache = super().new_cache(*args, **options)
        cache._prompts = PromptCache(0)
        return cache

    def script(self, prompt: str) -> str:
        return self._answer(prompt)

    def forward(self, role: Any, cache: Any, rows: Any) -> Tensor:
        places = [(row.branch, row.branch.length if row.branch is not None else 0) for row in rows]
        logits = super().forward(role, cache, rows).clone()
        at = 0
        for row, (branch, length) in zip(rows, places, strict=True):
            if branch is not None:
                self._write(role, row, branch.region, length, logits[at : at + row.num_logits])
            at += row.num_logits
        return logits

    def _write(self, role: str, row: Any, region: int, length: int, logits: Tensor) -> None:
        held = [*self._held.get(region, [])[:length], *row.tokens]
        self._held[region] = held
        if role == "prefill" and row.num_logits:
            prompt = self.tokenizer.decode(held)
            self.prompts.append(prompt)
            answer = [*self.tokenizer.encode(self.script(prompt)), ByteTokenizer.eos_id]
            self._answers[region] = len(held), answer
        if region not in self._answers:
            return
        begun, answer = self._answers[region]
        for i in range(len(logits)):
            said = len(held) - len(logits) + i + 1 - begun
            right = held[begun : begun + said] == answer[:said] and said < len(answer)
            logits[i] = torch.full_like(logits[i], -1.0)
            logits[i, answer[said] if right else 0] = 1.0
