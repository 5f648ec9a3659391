"""From words a minute to workers and partitions. Pure arithmetic; memory is that of admission
(:mod:`pipelines.device.memory`), time that of the measured cost curves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve
from pipelines.device.memory import Footprint, Memory

PREFILL_BLOCK = 128
"""Tokens of the block whose cost stands for all ingest."""
HEADROOM = 0.7
"""Share of a device's time that is planned for: meetings start together and people talk in turns."""
SPREAD = 3.0
"""Standard deviations of the fullest partition over the mean that a worker must still hold."""
PARTITIONS = (
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    2048,
    4096,
    8192,
)
"""Numbers of partitions with many divisors, so that workers get equal shares."""


@dataclass(frozen=True)
class Work:
    """Tokens a task reads and writes per token of transcript. Summaries: all updates. Translations: of
    one target language. The defaults were measured on SmolLM2-135M with two streams of a meeting (3,056
    tokens); ``longstream plan --check`` measures another model."""

    summary_prompt: float = 3.85
    summary_output: float = 0.05
    translation_prompt: float = 2.18
    translation_output: float = 0.99


@dataclass(frozen=True)
class Speech:
    """What one stream says. ``speaking``: share of the time in which anybody speaks."""

    words_per_minute: float = 150.0
    tokens_per_word: float = 1.35
    speaking: float = 1.0

    @property
    def tokens_per_s(self) -> float:
        return self.words_per_minute * self.tokens_per_word * self.speaking / 60.0


@dataclass(frozen=True)
class Costs:
    """Seconds on this device. ``decode``: of a forward by its tokens; ``prefill``: of ingest."""

    decode: CostCurve
    prefill: CostCurve

    @property
    def read(self) -> float:
        """Of one token read, in a large block."""
        return self.prefill.seconds(PREFILL_BLOCK) / PREFILL_BLOCK

    def write(self, answers: int) -> float:
        """Of one token generated while so many answers are generated together. Without drafts, which
        can only make it less."""
        return self.decode.seconds(answers) / answers


@dataclass(frozen=True)
class Plan:
    """What to choose for ``streams`` open streams, and what it rests on."""

    streams: int
    bytes_per_stream: int
    streams_by_memory: int
    streams_by_time: float
    streams_per_worker: int
    workers: int
    partitions: int
    busy: float
    """Share of the fullest worker's time that its streams take: names are spread by a hash."""
    read_per_s: float
    """Tokens per second and worker that must be read, and that the device reads when it does nothing
    else."""
    read_there: float
    write_per_s: float
    write_there: float
    seconds_per_stream_second: float
    waiting: int
    """Streams of a worker that wait in host memory or the store."""
    wrong: tuple[str, ...]


def seconds_per_second(
    speech: Speech, work: Work, costs: Costs, config: OperatorConfig, targets: int
) -> float:
    """Seconds of the device's time that one second of one stream takes."""
    read, write = tokens(work, targets)
    return speech.tokens_per_s * (read * costs.read + write * costs.write(config.branches))


def tokens(work: Work, targets: int) -> tuple[float, float]:
    """(read, written) per token of transcript."""
    read = 1.0 + work.summary_prompt + targets * work.translation_prompt
    return read, work.summary_output + targets * work.translation_output


def make_plan(
    streams: int,
    speech: Speech,
    work: Work,
    costs: Costs,
    config: OperatorConfig,
    need: Footprint,
    there: Memory,
    *,
    targets: int,
    stored: bool = False,
) -> Plan:
    """``stored``: an offload_url takes idle streams, so memory holds any number of them."""
    each = seconds_per_second(speech, work, costs, config, targets)
    by_time = HEADROOM / each
    by_memory = need.slots_in(there.total) + (10**9 if stored else 0)
    per_worker = max(1, min(int(by_time), by_memory))
    workers = math.ceil(streams / per_worker)
    while workers > 1 and fullest(streams, workers) * each > 1.0:
        workers += max(1, workers // 50)
    share = fullest(streams, workers)
    read, write = tokens(work, targets)
    rate = speech.tokens_per_s * share
    plan = Plan(
        streams=streams,
        bytes_per_stream=need.slot + -(-need.scratch // need.slots),
        streams_by_memory=by_memory if not stored else -1,
        streams_by_time=by_time,
        streams_per_worker=per_worker,
        workers=workers,
        partitions=partitions_for(workers),
        busy=share * each,
        read_per_s=rate * read,
        read_there=1.0 / costs.read,
        write_per_s=rate * write,
        write_there=1.0 / costs.write(config.branches),
        seconds_per_stream_second=each,
        waiting=max(0, math.ceil(share) - config.slots),
        wrong=(),
    )
    return replace(plan, wrong=tuple(cost_of_error(plan, by_memory)))


def fullest(streams: int, workers: int) -> float:
    """Streams of the fullest worker: they are spread by a hash of their names."""
    mean = streams / workers
    return mean if workers == 1 else min(float(streams), mean + SPREAD * math.sqrt(mean) / 2)


def partitions_for(workers: int) -> int:
    """Room to double the workers, each with two partitions at least."""
    return next((n for n in PARTITIONS if n >= 4 * workers), 4 * workers)


def cost_of_error(plan: Plan, by_memory: int) -> list[str]:
    """What it costs when a number given to the plan was wrong, a sentence each."""
    lines = []
    for factor, what in ((1.5, "half as many words again"), (2.0, "twice the words")):
        busy = plan.busy * factor
        if busy < 1:
            lines.append(
                f"{what}: workers are {busy:.0%} busy instead of {plan.busy:.0%}; they keep up"
            )
        else:
            grows = 3600 * (1 - 1 / busy)
            more = math.ceil(plan.workers * busy / HEADROOM)
            lines.append(
                f"{what}: lag grows by {grows:.0f} s an hour until there are {more} workers"
            )
    if plan.workers > 1:
        busy = plan.busy * plan.workers / (plan.workers - 1)
        then = "keep up" if busy < 1 else "fall behind"
        lines.append(f"one worker less: the others are {busy:.0%} busy and {then}")
    lines.append(
        f"too few partitions: {plan.partitions} let {plan.partitions} workers run; more streams than"
        f" {plan.partitions * plan.streams_per_worker:,} need new topics, for keys would change place"
    )
    lines.append("too many partitions: each is a transaction of its own per commit interval")
    if 0 <= plan.streams_by_memory < plan.streams_per_worker * 2:
        lines.append(
            f"more streams than {by_memory:,} open on a worker: set offload_url, or the worker runs out"
            " of memory"
        )
    return lines
