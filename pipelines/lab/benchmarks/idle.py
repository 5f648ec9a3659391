"""What open streams without work cost the others: a step with ten of them, and with a thousand.

One stream speaks; the others are open, have said something before, and are silent. Processor time per
step, both interleaved; the engine is the same object in each, so slots and memory are equal.
"""

from __future__ import annotations

import statistics
import time

from operators.config import OperatorConfig
from operators.events import Segment
from operators.stream_operator import StreamOperator
from pipelines.lab.benchmarks.harness import Result, Run
from pipelines.lab.benchmarks.toy import toy_decoder

MODEL = "toy"
FEW, MANY = 10, 1000
TEXT = "We meet on Friday at ten and look at the budget again. "


def make(streams: int) -> StreamOperator:
    """An engine with so many open streams, all silent after their first sentence."""
    config = OperatorConfig(
        window=256, slack=64, update_tokens=256, slots=8, branches=4, host_streams=streams,
        branch_tokens=2000, summary_method="lines", summary_tokens=16,
    )  # fmt: skip
    operator = StreamOperator(toy_decoder(), config, clock=time.monotonic)
    for number in range(streams):
        operator.open(f"idle-{number}")
        segment = Segment(stream_id=f"idle-{number}", text=TEXT, segment_id="0", seq=0)
        operator.feed(segment, ticket=0)
    while operator.has_work():
        operator.step()
    operator.open("speaks")
    return operator


def steps(operator: StreamOperator, sentences: int, first: int) -> list[float]:
    """Processor seconds of every turn of a caller's loop (has_work and step) while one stream speaks."""
    times = []
    for number in range(first, first + sentences):
        segment = Segment(stream_id="speaks", text=TEXT, segment_id=str(number), seq=number)
        operator.feed(segment, ticket=number)
        while True:
            began = time.process_time()
            if not operator.has_work():
                break
            operator.step()
            times.append(time.process_time() - began)
    return times


def run(run: Run) -> Result:
    few, many = (3, 30) if run.quick else (FEW, MANY)
    sentences, rounds = (2, 2) if run.quick else (6, run.rounds or 7)
    operators = {}
    for streams in (few, many):
        run.say(f"opening {streams} streams")
        operators[streams] = make(streams)
    found: dict[int, list[float]] = {few: [], many: []}
    for turn in range(rounds):
        for streams, operator in operators.items():
            run.say(f"round {turn + 1}: {streams} idle streams")
            found[streams].append(statistics.mean(steps(operator, sentences, turn * sentences)))
    ms = {streams: statistics.median(times) * 1000 for streams, times in found.items()}
    return {
        "idle_few": few,
        "idle_many": many,
        "step_ms_few": round(ms[few], 3),
        "step_ms_many": round(ms[many], 3),
        "ratio_idle": round(ms[many] / ms[few], 3),
    }
