"""What all benchmarks share: their input, fair timing, and the facts a number depends on.

Importing this needs no torch, so that ``--help`` stays quick.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.config.cpu import cpu_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from operators.model.loader import DecoderModel

Result = dict[str, Any]
TOY = "toy"
"""The name of the tiny random model, which is built and not fetched."""


@dataclass(frozen=True)
class Run:
    """What the command line asked for.

    ``model``: an alias, folder, file or hub name, or ``toy``. ``quick``: the smallest sizes at which
    every number is still computed; says nothing about speed. ``text``: a book to read.
    ``tokens``: another length of the stream or text. ``places``: at how many tokens of the text two
    sides are compared. ``rounds``: another number of them. ``rows``: numbers of rows of a
    step.
    """

    model: str
    say: Callable[[str], None]
    quick: bool = False
    long: bool = False
    text: Path | None = None
    tokens: int | None = None
    places: int | None = None
    rounds: int | None = None
    backend: str = "local"
    """What else the job is run on (peers): openai or transformers; ``server_url`` and ``server_model``
    are the former's."""
    server_url: str = ""
    server_model: str = ""
    draft_model: str = ""
    """What drafts for transformers, as its ``assistant_model`` (peers)."""
    sides: tuple[str, ...] = ()
    """Only sides whose names begin so (peers); ours always runs."""
    streams: tuple[int, ...] = ()
    """Other numbers of streams (peers)."""
    rows: tuple[int, ...] = ()
    vllm: Path | None = None
    """The folder that vLLM lies in (peers)."""
    dtype: str = "auto"
    """Weights of generation (retranslation); auto: bf16."""

    def folder(self) -> Path:
        """Where the model lies (not for the toy); fetched on first use. Raises ModelError."""
        from pipelines import models

        return models.resolve(self.model)

    def load(self, dtype: str = "bf16", generation: str | None = None) -> DecoderModel:
        """The model in our engine, on the CPU: ``dtype`` for ingest, ``generation`` if it differs."""
        from operators.model.loader import load_model
        from pipelines.lab.benchmarks.toy import toy_decoder

        self.say(f"loading {self.model} as {generation or dtype}")
        if self.model == TOY:
            return toy_decoder(dtype, generation or dtype)
        if generation == "q4":
            from pipelines import models

            models.ensure_four_bits(self.model, self.folder())
        return load_model(
            self.folder(),
            name=self.model,
            device="cpu",
            dtype_prefill=dtype,
            dtype_decode=generation or dtype,
        )

    def stock(self, dtype: str = "bf16") -> PreTrainedModel:
        """The same model as transformers runs it, with its own attention (SDPA)."""
        from transformers import AutoModelForCausalLM

        from operators.model.loader import DTYPES
        from pipelines.lab.benchmarks.toy import toy_network

        self.say(f"loading {self.model} in transformers as {dtype}")
        if self.model == TOY:
            return toy_network().to(DTYPES[dtype])
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.folder(), dtype=DTYPES[dtype], use_safetensors=True
        ).eval()
        return network.requires_grad_(False)


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every step in every round. All steps run in every round, one after the other, so
    that a disturbance of the machine meets all alike; the first rounds warm up and do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-warm_up, rounds):
        say(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up")
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if turn >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def cores() -> int:
    """CPUs this process may use, by affinity and by the quota of its control group."""
    return cpu_limit().threads


def set_threads(wanted: int) -> int:
    """Use at most ``wanted`` torch threads, never more than there are cores."""
    import torch

    torch.set_num_threads(max(1, min(wanted, cores())))
    return torch.get_num_threads()


def load_average() -> list[float]:
    """Processes that wanted a core, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in psutil.getloadavg()]


def machine() -> Result:
    """What the numbers depend on besides the code under test."""
    import torch

    versions = {
        name: importlib.metadata.version(name) for name in ("longstream", "torch", "transformers")
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "processor": processor(),
        "cores": cores(),
        "cpu_limit": str(cpu_limit()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "versions": {**versions, "python": platform.python_version()},
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure(name: str, benchmark: Callable[[Run], Result], run: Run) -> Result:
    """Run one benchmark; its numbers with the facts they depend on, as one flat object."""
    facts = machine()
    before, began = load_average(), time.perf_counter()
    numbers = benchmark(run)
    return {
        "benchmark": name,
        "model": run.model,
        "quick": run.quick,
        **numbers,
        **facts,
        "load_before": before,
        "load_after": load_average(),
        "took_s": round(time.perf_counter() - began, 1),
    }
