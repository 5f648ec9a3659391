"""OpenVINO GenAI on the same answers, from the same GGUF file (extra: peers).

Its continuous batching gets all asks at once and shares a forward among them. What a prompt has in
common with earlier ones from its beginning is used again (its prefix cache). Before the clock starts it
has seen every stream's window once, and nothing of an earlier round, which had the same prompts. Its
cache eviction is for one long answer: here every prompt is as long as the window, so it has nothing to
evict.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.lab.benchmarks.meeting_job import Ask, Job
from pipelines.lab.benchmarks.peer_result import Took

NGRAM, DRAFTS = 3, 5
"""Of its prompt lookup: tokens that must match, and drafts; the values of its documentation."""
BATCH = 512
"""Tokens in one forward at most, as llama.cpp's."""


class OpenVino:
    """The file loaded once. ``lookup``: with drafts out of the prompt. Raises ImportError without the
    extra, RuntimeError for a file with weights that it does not know."""

    def __init__(self, file: Path, *, threads: int, cache_gb: int, lookup: bool = False) -> None:
        import openvino
        import openvino_genai

        self._tensor, self._api, self._lookup = openvino.Tensor, openvino_genai, lookup
        plan: Any = openvino_genai.SchedulerConfig()
        plan.enable_prefix_caching = True
        plan.cache_size = cache_gb
        plan.max_num_batched_tokens = BATCH
        plan.dynamic_split_fuse = True
        extra = {"prompt_lookup": True} if lookup else {}
        options = {"INFERENCE_NUM_THREADS": threads, **extra}
        self._open = partial(
            openvino_genai.ContinuousBatchingPipeline, str(file), plan, "CPU", options
        )
        self._pipe: Any = self._open()
        self._next = 0

    precision = "the file's own types as OpenVINO keeps them, KV of its default type (u8)"

    def run(self, job: Job) -> Took:
        """The whole job, each time from an empty cache."""
        self._pipe = self._pipe or self._open()
        for stream in job.streams:
            window = stream.transcript[: stream.warm][-job.window :]
            self._answer([([*job.prefix, *window], 1)])
        asks: Sequence[Ask] = job.asks
        began = time.perf_counter()
        generated = self._answer([(job.prompt(ask), ask.output) for ask in asks])
        seconds = time.perf_counter() - began
        self._pipe = None
        prefilled = sum(len(job.prompt(ask)) for ask in asks)
        return Took(seconds, len(asks), prefilled, generated)

    def _answer(self, prompts: Sequence[tuple[list[int], int]]) -> int:
        """Prompts with the length of their answers, all at once; how many tokens were made."""
        handles = []
        for prompt, length in prompts:
            config = self._api.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = length
            config.ignore_eos, config.do_sample = True, False
            if self._lookup:
                config.num_assistant_tokens, config.max_ngram_size = DRAFTS, NGRAM
            ids = self._tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipe.add_request(self._next, ids, config))
            self._next += 1
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        made = [len(output.generated_ids) for handle in handles for output in handle.read_all()]
        wanted = [length for _, length in prompts]
        if made != wanted:
            raise RuntimeError(f"OpenVINO generated {sum(made)} tokens instead of {sum(wanted)}")
        return sum(made)
