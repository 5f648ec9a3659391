"""Hugging Face ``generate`` on the window, sent again for every answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.lab.benchmarks.meeting_job import Ask, Job
from pipelines.lab.benchmarks.peer_result import Took

LOOKUPS = (3, 10)
"""Draft tokens of prompt lookup, to choose the better of."""


class Transformers:
    """``network``: the stock model with its own attention. ``batch``: answers in one call (padded on
    the left); ``lookup``: draft tokens out of the prompt, which ``generate`` offers for one answer at
    a time only."""

    def __init__(self, network: Any, *, batch: int = 1, lookup: int | None = None) -> None:
        self._network, self._batch, self._lookup = network, batch, lookup

    def run(self, job: Job) -> Took:
        # Answers of about equal length go together: a batch runs on until its longest is done.
        asks = sorted(job.asks, key=lambda ask: ask.output)
        self._generate(job, [dataclasses.replace(asks[0], output=2)])  # warms up
        began = time.perf_counter()
        for at in range(0, len(asks), self._batch):
            self._generate(job, asks[at : at + self._batch])
        seconds = time.perf_counter() - began
        return Took(
            seconds,
            answers=len(asks),
            prefilled=sum(len(job.prompt(ask)) for ask in asks),
            generated=sum(ask.output for ask in asks),
        )

    @torch.inference_mode()
    def _generate(self, job: Job, asks: Sequence[Ask]) -> None:
        prompts = [job.prompt(ask) for ask in asks]
        width, count = max(map(len, prompts)), max(ask.output for ask in asks)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        extra = {} if self._lookup is None else {"prompt_lookup_num_tokens": self._lookup}
        out = self._network.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **extra,
        )
        made = out.shape[1] - width
        if made != count:
            raise RuntimeError(f"transformers generated {made} tokens instead of {count}")
