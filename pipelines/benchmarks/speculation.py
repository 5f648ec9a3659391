"""Wall clock of the same work per drafter, over plain decoding; fp32, so the texts must be equal."""

from __future__ import annotations

import statistics
import time

from operators.config import OperatorConfig
from operators.model import DecoderModel
from operators.stream_operator import StreamOperator
from operators.types import Event, Segment
from pipelines.benchmarks.harness import Result, Run, interleaved
from pipelines.codec import read_transcript
from pipelines.demo.plan import meeting_files

MODEL = "smollm2-135m"
DRAFTERS = ("none", "ngram", "previous", "combined")


def run(run: Run) -> Result:
    """``seconds``, ``speedup`` and ``tokens_per_verify`` by drafter, ``identical_text``."""
    model = run.load("fp32")
    segments = list(read_transcript(meeting_files()[0]))[: 2 if run.quick else 16]
    scratch = 640 if not run.quick else 1600  # a byte tokenizer's instructions are long
    events: dict[str, list[Event]] = {}

    def work(drafter: str) -> None:
        events[drafter] = _events(model, drafter, segments, scratch)

    steps = {drafter: (lambda drafter=drafter: work(drafter)) for drafter in DRAFTERS}
    times = interleaved(steps, 1 if run.quick else 3, run.say, warm_up=0)
    seconds = {drafter: statistics.median(t) for drafter, t in times.items()}
    texts = {
        d: [getattr(e, "committed", getattr(e, "text", "")) for e in events[d]] for d in events
    }
    return {
        "seconds": {d: round(t, 1) for d, t in seconds.items()},
        "speedup": {d: round(seconds["none"] / t, 2) for d, t in seconds.items()},
        "tokens_per_verify": {
            d: round(sum(e.usage.output_tokens for e in of) / sum(e.usage.verifies for e in of), 2)
            for d, of in events.items()
        },
        "identical_text": all(t == texts["none"] for t in texts.values()),
    }


def _events(
    model: DecoderModel, drafter: str, segments: list[Segment], scratch: int
) -> list[Event]:
    config = OperatorConfig(
        window=256,
        slack=64,
        branch_tokens=scratch,
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
