"""What ``longstream bench`` measures: runs interleaved, medians and ratios of one run.

``forward``: milliseconds of one generation forward of n tokens, bf16 weights against int8.
``speculation``: one meeting summarised and translated with each drafter against plain decoding; in
fp32, so that the texts must be equal, and whether they are is part of the result.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from operators.attention import Row
from operators.config import OperatorConfig
from operators.kv_cache import KvLayout
from operators.model import DecoderModel, load_model
from operators.stream_operator import StreamOperator
from operators.types import Event, Segment
from pipelines.codec import read_transcript
from pipelines.demo_plan import meeting_files

Result = dict[str, Any]
ROUNDS = 5
BLOCKS = (1, 2, 4, 8, 16)


def machine() -> Result:
    """What the numbers depend on: load before the run, threads, library version."""
    return {
        "load_1m": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def forward(path: Path, say: Callable[[str], None]) -> Result:
    """Cost curve T(n) of a verify block behind a full window of 512, per weight type."""
    layout = KvLayout(sinks=4, window=512, slack=128, branch_tokens=64)
    steps: dict[str, Callable[[int], None]] = {}
    for kind in ("bf16", "int8"):
        say(f"loading {path.name} as {kind}")
        model = load_model(path, device="cpu", dtype_ingest="bf16", dtype_generation=kind)
        steps[kind] = _block_step(model, layout)
    times: dict[str, dict[int, list[float]]] = {k: {n: [] for n in BLOCKS} for k in steps}
    for turn in range(ROUNDS + 1):
        say(f"round {turn} of {ROUNDS}")
        for n in BLOCKS:
            for kind, step in steps.items():
                began = time.perf_counter()
                step(n)
                if turn:  # the first round warms up
                    times[kind][n].append((time.perf_counter() - began) * 1000)
    rows = {
        n: {kind: round(statistics.median(times[kind][n]), 1) for kind in steps} for n in BLOCKS
    }
    return {
        "ms_per_forward": {str(n): row for n, row in rows.items()},
        "int8_speedup": {str(n): round(row["bf16"] / row["int8"], 2) for n, row in rows.items()},
    }


def _block_step(model: DecoderModel, layout: KvLayout) -> Callable[[int], None]:
    cache = model.new_cache(layout, slots=1, branches=1)
    slot = cache.allocate()
    for _ in range(5):
        model.forward("ingest", cache, [Row(slot, [7] * layout.slack)])
    branch = cache.fork(slot)

    def step(n: int) -> None:
        model.forward("generation", cache, [Row(slot, [7] * n, branch, want=n)])
        branch.length -= n

    return step


def speculation(path: Path, say: Callable[[str], None]) -> Result:
    """Wall clock of the same work per drafter, over plain decoding."""
    model = load_model(path, device="cpu", dtype_ingest="fp32", dtype_generation="fp32")
    segments = list(read_transcript(meeting_files()[0]))[:16]
    times: dict[str, list[float]] = {d: [] for d in ("none", "ngram", "previous", "combined")}
    texts: dict[str, list[str]] = {}
    accepted: dict[str, float] = {}
    for turn in range(3):
        for drafter in times:
            say(f"round {turn + 1} of 3: {drafter}")
            began = time.perf_counter()
            events = _run(model, drafter, segments)
            times[drafter].append(time.perf_counter() - began)
            texts[drafter] = [getattr(e, "committed", getattr(e, "text", "")) for e in events]
            verifies = sum(e.usage.verifies for e in events)
            accepted[drafter] = round(sum(e.usage.output_tokens for e in events) / verifies, 2)
    plain = statistics.median(times["none"])
    return {
        "seconds": {d: round(statistics.median(t), 1) for d, t in times.items()},
        "speedup": {d: round(plain / statistics.median(t), 2) for d, t in times.items()},
        "tokens_per_verify": accepted,
        "identical_text": all(t == texts["none"] for t in texts.values()),
    }


def _run(model: DecoderModel, drafter: str, segments: list[Segment]) -> list[Event]:
    config = OperatorConfig(
        window=256,
        slack=64,
        update_tokens=120,
        slots=1,
        branches=4,
        targets=("fr",),
        drafter=drafter,
    )
    operator = StreamOperator(model, config, clock=time.monotonic)
    operator.open(segments[0].stream_id)
    for ticket, segment in enumerate(segments):
        operator.feed(segment, ticket)
    events: list[Event] = []
    while operator.has_work():
        events += [event for emission in operator.step() for event in emission.events]
    return sorted(events, key=lambda e: (str(type(e)), e.revision))


BENCHMARKS: dict[str, tuple[str, Callable[[Path, Callable[[str], None]], Result]]] = {
    "forward": ("qwen2.5-coder-1.5b", forward),
    "speculation": ("smollm2-135m", speculation),
}
"""Name → default model, function."""
