"""Milliseconds of one generation forward of n tokens behind a full window, per weight type."""

from __future__ import annotations

from collections.abc import Callable

import torch

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.model.loader import DecoderModel
from operators.model.quantization import runs_w8a8
from pipelines import models
from pipelines.lab.benchmarks.harness import TOY, Result, Run, interleaved, medians

MODEL = "qwen2.5-coder-1.5b"
ROUNDS = 5
BLOCKS = (1, 2, 4, 8, 16, 24)
KINDS = ("bf16", "int8", "w8a8", "int4", "q4")


def run(run: Run) -> Result:
    """``ms_per_forward`` by n and weights, and ``int8_speedup`` (over bf16) by n."""
    layout = KvLayout(sinks=4, window=64 if run.quick else 512, slack=128, branch_tokens=64)
    blocks = BLOCKS[:2] if run.quick else BLOCKS
    steps: dict[str, Callable[[], None]] = {}
    kinds = [kind for kind in KINDS if kind != "w8a8" or runs_w8a8(torch.device("cpu"))]
    if run.model == TOY or not models.ensure_four_bits(run.model, run.folder()):
        kinds.remove("q4")
    for kind in kinds:
        step = _block_step(run.load("bf16", kind), layout)
        steps |= {f"{kind} {n}": _of(step, n) for n in blocks}
    rounds = run.rounds or (2 if run.quick else ROUNDS)
    times = medians(interleaved(steps, rounds, run.say))
    rows = {n: {k: times[f"{k} {n}"] * 1000 for k in kinds} for n in blocks}
    return {
        "ms_per_forward": {
            str(n): {kind: round(ms, 1) for kind, ms in row.items()} for n, row in rows.items()
        },
        "int8_speedup": {str(n): round(row["bf16"] / row["int8"], 2) for n, row in rows.items()},
    }


def _of(step: Callable[[int], None], n: int) -> Callable[[], None]:
    return lambda: step(n)


def _block_step(model: DecoderModel, layout: KvLayout) -> Callable[[int], None]:
    cache = model.new_cache(layout, slots=1, branches=1)
    slot = cache.allocate()
    while slot.length < layout.slot_tokens:
        model.forward("prefill", cache, [Row(slot, [7] * layout.slack)])
    branch = cache.fork(slot)

    def step(n: int) -> None:
        model.forward("decode", cache, [Row(slot, [7] * n, branch, num_logits=n)])
        branch.length -= n

    return step
