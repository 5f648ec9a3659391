"""What ``longstream bench`` measures: one module per benchmark, named as on the command line.

A module offers ``MODEL`` (the default model) and ``run(run: Run) -> Result``. What it returns becomes
the benchmark's JSON line, together with the facts about machine and versions that the harness adds.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from pipelines.lab.benchmarks.harness import Result, Run

BENCHMARKS: dict[str, str] = {
    "forward": "One generation forward of n tokens, by type of weights.",
    "weights": "What weights of fewer bits cost in perplexity, against bf16.",
    "window": "A token of an endless stream, against recomputing and re-rotating the window.",
    "perplexity": "A book far longer than the window: is it read as well as with every window anew?",
    "memory": "Millions of tokens into one stream: what grows, what slows down?",
    "restore": "A stream restored from its snapshot, against reading its window again.",
    "speculation": "Every kind of answer with every drafter and draft length, over plain decoding.",
    "retranslation": "A growing utterance translated anew, with the last translation as a draft.",
    "streams": "Tokens per second and per-token waits of 1 to 32 streams at once; fairness.",
    "idle": "A step with 1,000 open streams that are silent, against one with ten.",
    "pipeline": "A no-op operator from Kafka to Kafka, beside plain Faust and plain aiokafka.",
    "step-cost": "What a step costs besides products and attention: planning, choosing tokens.",
    "gpu": "On a GPU: invariants, tokens per second of up to 256 streams, beside transformers.",
    "contention": "Tokens per second beside busy neighbours and under a quota, over the fair share.",
    "plain": "One stream, a token a forward, no drafts: our types of weights beside llama.cpp.",
    "peers": "The whole job beside llama.cpp, OpenVINO, vLLM and transformers (extra: peers).",
}
"""Name → one line of help."""
TAKES = {
    "streams": "Takes about 2 minutes, and 4 for each of its rounds (usually 3), on two cores."
}
"""Name → how long a run is, where that is known beforehand."""


class Benchmark(Protocol):
    MODEL: str

    def run(self, run: Run, /) -> Result: ...


def find(name: str) -> Benchmark:
    """The module of that benchmark; imports torch. Raises ModuleNotFoundError for a missing extra."""
    module = name.replace("-", "_")
    return cast(Benchmark, importlib.import_module(f"pipelines.lab.benchmarks.{module}"))
