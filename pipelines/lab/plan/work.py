"""Measures what a plan rests on: the cost curves of this device, and what a model's tasks read and
write. A run's time is processor time, which neighbours on the machine disturb little."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.config import OperatorConfig
from operators.events import Segment, SummaryEvent, TranslationEvent
from operators.model.loader import DecoderModel
from operators.stream_operator import StreamOperator
from pipelines.device import calibration
from pipelines.lab.benchmarks.talk import speech
from pipelines.lab.plan.arithmetic import PREFILL_BLOCK, Costs, Work

PREFILL: dict[int, Any] = {32: "prefill", PREFILL_BLOCK: "prefill"}


def device_costs(model: DecoderModel, cache: Path, say: Callable[[str], None]) -> Costs:
    """The curves of the worker's own calibration (the same file), and those of ingest."""
    decode = calibration.cost_curve(model, calibration.VERIFY, cache, say)
    return Costs(decode, calibration.cost_curve(model, PREFILL, cache, say))


@dataclass(frozen=True)
class Run:
    """What a run of the engine took and did."""

    transcript: int
    seconds: float
    work: Work
    steps: int


def run_engine(model: DecoderModel, config: OperatorConfig, *, streams: int, tokens: int) -> Run:
    """Read about ``tokens`` tokens of a real meeting in each of ``streams`` streams, all at once."""
    operator = StreamOperator(model, config, clock=time.monotonic)
    used = {SummaryEvent: [0, 0], TranslationEvent: [0, 0]}
    encode = model.tokenizer.encode
    names = [f"stream-{n}" for n in range(streams)]
    for name in names:
        operator.open(name)
    sources = [speech(name) for name in names]
    waiting: list[list[Segment]] = [[] for _ in sources]
    transcript = 0
    for source, queue in zip(sources, waiting, strict=True):
        left = tokens
        while left > 0:
            segment = next(source)
            size = len(encode(segment.text))
            left, transcript = left - size, transcript + size
            queue.append(segment)
    began, steps, ticket = time.process_time(), 0, 0
    while any(waiting) or operator.has_work():
        for queue in waiting:
            if queue and not operator.busy(queue[0].stream_id):
                operator.feed(queue.pop(0), ticket=ticket)
                ticket += 1
        for event in itertools.chain.from_iterable(e.events for e in operator.step()):
            if (sums := used.get(type(event))) is not None:
                sums[0] += event.usage.prompt_tokens
                sums[1] += event.usage.output_tokens
        steps += 1
    seconds = time.process_time() - began
    summary, translation = used[SummaryEvent], used[TranslationEvent]
    each = transcript * max(1, len(config.targets))
    work = Work(
        summary[0] / transcript,
        summary[1] / transcript,
        translation[0] / each,
        translation[1] / each,
    )
    return Run(transcript, seconds, work, steps)
