"""Milliseconds of one generation forward of n tokens behind a full window, per weight type."""

from __future__ import annotations

from collections.abc import Callable

from operators.attention import Row
from operators.kv_cache import KvLayout
from operators.model import DecoderModel
from pipelines.benchmarks.harness import Result, Run, interleaved, medians

MODEL = "qwen2.5-coder-1.5b"
ROUNDS = 5
BLOCKS = (1, 2, 4, 8, 16)


def run(run: Run) -> Result:
    """``ms_per_forward`` and ``int8_speedup`` by n."""
    layout = KvLayout(sinks=4, window=64 if run.quick else 512, slack=128, branch_tokens=64)
    blocks = BLOCKS[:2] if run.quick else BLOCKS
    steps: dict[str, Callable[[], None]] = {}
    for kind in ("bf16", "int8"):
        step = _block_step(run.load("bf16", kind), layout)
        steps |= {f"{kind} {n}": _of(step, n) for n in blocks}
    times = medians(interleaved(steps, 2 if run.quick else ROUNDS, run.say))
    rows = {n: {k: times[f"{k} {n}"] * 1000 for k in ("bf16", "int8")} for n in blocks}
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
        model.forward("ingest", cache, [Row(slot, [7] * layout.slack)])
    branch = cache.fork(slot)

    def step(n: int) -> None:
        model.forward("generation", cache, [Row(slot, [7] * n, branch, want=n)])
        branch.length -= n

    return step
