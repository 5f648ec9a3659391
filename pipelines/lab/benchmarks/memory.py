"""Millions of tokens into one stream: does anything grow, does it become slower?

The whole operator runs, with summaries and draft indexes, and the offsets of the input are followed as
a worker follows them. Resident memory and every structure that could grow are looked at along the way.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import msgspec
import psutil

from operators.config import OperatorConfig
from operators.events import Segment
from operators.stream_operator import StreamOperator
from pipelines.kafka.offsets import OffsetTracker
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.talk import speech

MODEL, LONG_MODEL = TOY, "smollm2-135m"
STREAM = "talk"
TOY_TOKENS, TOKENS, QUICK_TOKENS = 4_000_000, 1_000_000, 4_000
CHARACTERS = 900
"""Of a segment: many short ones would measure the steps rather than the tokens."""
SAMPLES, QUICK_SAMPLES = 100, 20
"""Looks along the way. The first tenth of them is warm-up: the ring fills, buffers find their size."""


def run(run: Run) -> Result:
    """``growth`` (of resident memory, last tenth over second, less one), ``bytes_per_stream`` and the
    formula's, ``last_tenth_ratio`` (time of the last tenth over the first); the most of everything that
    was held in the first tenth and after it, and all ``samples``."""
    usual = QUICK_TOKENS if run.quick else TOY_TOKENS if run.model == TOY else TOKENS
    total = run.tokens or usual
    operator = StreamOperator(
        run.load("fp32" if run.quick else "bf16"), _config(run), clock=time.monotonic
    )
    gc.freeze()  # what was there before is neither counted nor looked through
    samples = feed(run, operator, total)
    gc.unfreeze()
    tenth = len(samples) // 10
    course = {name: [s[name] for s in samples] for name in samples[0]}
    return {
        "tokens": samples[-1]["tokens"],
        "growth": round(growth(course["rss"]), 5),
        "last_tenth_ratio": round(last_over_first(course["seconds"]), 3),
        "last_tenth_cpu_ratio": round(last_over_first(course["cpu_seconds"]), 3),
        "bytes_per_stream": operator.cache.nbytes // operator.config.slots,
        "bytes_formula": formula(operator),
        "window": operator.layout.window,
        "dtype": operator.model.dtypes["prefill"],
        "tokens_per_second": round(samples[-1]["tokens"] / course["seconds"][-1]),
        "most_before": {name: max(values[:tenth]) for name, values in course.items()},
        "most_after": {name: max(values[tenth:]) for name, values in course.items()},
        "samples": course,
    }


def growth(rss: list[float]) -> float:
    """Median of the last tenth over that of the second tenth (the first is warm-up), less one."""
    tenth = len(rss) // 10
    return statistics.median(rss[-tenth:]) / statistics.median(rss[tenth : 2 * tenth]) - 1


def last_over_first(clock: list[float]) -> float:
    """What the last tenth took over what the first took; ``clock`` is read at even spaces."""
    tenth = len(clock) // 10
    return (clock[-1] - clock[-1 - tenth]) / clock[tenth - 1]


def formula(operator: StreamOperator) -> int:
    """KV bytes of a stream by hand: keys and values of S + W + slack tokens and of its share of the
    branches' scratch, in every layer."""
    shape, layout, config = operator.model.shape, operator.layout, operator.config
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * operator.model.dtype.itemsize
    scratch = config.branches * layout.branch_tokens // config.slots
    return per_token * (layout.sinks + layout.window + layout.slack + scratch)


def feed(run: Run, operator: StreamOperator, total: int) -> list[dict[str, Any]]:
    """Feed until ``total`` tokens are in; evenly spaced looks at what is held."""
    operator.open(STREAM)
    session, offsets = operator._sessions[STREAM], OffsetTracker()
    looks = QUICK_SAMPLES if run.quick else SAMPLES
    samples: list[dict[str, Any]] = []
    began, cpu = time.perf_counter(), time.process_time()
    for segment in speech(STREAM, 0 if run.quick else CHARACTERS):
        _do(operator, segment, offsets)
        if session.tokens_total * looks >= total * (len(samples) + 1):
            samples.append(
                {
                    "tokens": session.tokens_total,
                    "seconds": round(time.perf_counter() - began, 3),
                    "cpu_seconds": round(time.process_time() - cpu, 3),
                    **_held(operator, offsets),
                }
            )
            if len(samples) % 10 == 0:
                run.say(f"{session.tokens_total:,} tokens, {samples[-1]['rss'] / 1e6:.1f} MB")
            if len(samples) == looks:
                break
    return samples


def _do(operator: StreamOperator, segment: Segment, offsets: OffsetTracker) -> None:
    """One segment in, and all that comes of it out."""
    assert segment.seq is not None
    offsets.read(segment.seq)
    operator.feed(segment, segment.seq)
    while operator.has_work():
        for emission in operator.step():
            for ticket in emission.done:
                offsets.finish(ticket)


def _held(operator: StreamOperator, offsets: OffsetTracker) -> dict[str, Any]:
    """Resident bytes, and the size of everything a stream keeps."""
    session = operator._sessions[STREAM]
    gc.collect()
    return {
        "rss": psutil.Process().memory_info().rss,
        "kv_bytes": operator.cache.nbytes,
        "index_tokens": len(session.index),
        "index_entries": session.index.entries,
        "window_parts": len(session.window),
        "window_text_bytes": sum(len(p.text.encode()) for p in session.window),
        "queued": len(session.queue) + len(session.works) + len(session.due),
        "recent_ids": len(session.known),
        "ledger_items": len(session.ledger.items),
        "state_bytes": len(msgspec.json.encode(session.state())),
        "draft_controls": len(session.draft_controls),
        "open_offsets": len(offsets),
        "free_regions": operator.cache.free_regions,
        "python_objects": len(gc.get_objects()),
    }


def _config(run: Run) -> OperatorConfig:
    """One stream. The toy reads bytes, so its instructions are cut to fit its scratch."""
    window = 128 if run.quick else 512 if run.model == TOY else 1024
    prompts = {}
    if run.model == TOY:
        prompts = {"summary": "Up to {limit} notes:{answer}", "compact": "{ledger}{limit}{answer}"}
    return OperatorConfig(
        window=window,
        slack=256,
        update_tokens=window,
        ledger_tokens=64 if run.model == TOY else 320,
        summary_tokens=8 if run.model == TOY else 32,
        slots=1,
        branches=1,
        drafter="combined",
        prompts=prompts,
    )
