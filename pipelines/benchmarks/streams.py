"""Many streams at once: tokens per second together, and what each one waits for a token.

Every stream has heard another length of a meeting and writes a summary of it; answers end where they
end. Only decoding counts, the prompts are through before. Every number of streams is run with every
kind of weights, plain and with drafts, and the best setting of each number counts: so is one stream's.

Fairness: eight streams, seven of which have perfect drafts and one only wrong ones; Jain's index over
the tokens per second of each until the first one is done.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from operators.config import OperatorConfig
from operators.draft_control import Costs
from operators.generation import Generation
from operators.quantization import runs_w8a8
from operators.session import Session
from operators.tasks.drafts import decoding
from pipelines.benchmarks.desk import Answered, Desk, Tasks, ignore
from pipelines.benchmarks.harness import TOY, Result, Run
from pipelines.calibration import VERIFY, cost_curve
from pipelines.codec import read_transcript
from pipelines.demo.plan import meeting_files

MODEL = "qwen2.5-coder-0.5b"
RATIO_AT = 16
FAIR_STREAMS = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens; ``streams``: how many at once, ascending."""

    window: int = 512
    answer: int = 48
    streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    weights: tuple[str, ...] = ("bf16", "w8a8", "int4")


QUICK = Sizes(window=256, answer=16, streams=(1, 2, 16), weights=("fp32",))


def run(run: Run) -> Result:
    """``ratio_16``: tokens per second of 16 streams over those of one, each at its fastest setting;
    ``jain``; by number of streams the best setting's tokens/s and milliseconds per token."""
    sizes = QUICK if run.quick else Sizes()
    config = _config(run, sizes)
    places: list[Session] = []
    table: dict[int, dict[str, Result]] = {n: {} for n in sizes.streams}
    jain: dict[str, Result] = {}
    for weights in sizes.weights:
        if weights == "w8a8" and not runs_w8a8(torch.device("cpu")):
            continue
        model = run.load("fp32" if weights == "fp32" else "bf16", weights)
        with tempfile.TemporaryDirectory() as folder:
            costs = Costs(cost_curve(model, VERIFY, Path(folder), run.say))
        desk = Desk(model, config)
        places = places or list(_places(desk, sizes, run.say))
        for count in sizes.streams:
            for drafter in ("none", "auto"):
                found = _together(desk, places[:count], drafter, costs)
                table[count][f"{weights}, {drafter}"] = numbers = _numbers(found)
                run.say(f"{count} streams, {weights}, {drafter}: {numbers['tokens_s']} tokens/s")
        jain[weights] = _fairness(desk, places[:FAIR_STREAMS], costs)
    best = {n: max(row.items(), key=lambda item: item[1]["tokens_s"]) for n, row in table.items()}
    name = best[FAIR_STREAMS if FAIR_STREAMS in best else RATIO_AT][0]
    plain = {
        n: max(v["tokens_s"] for k, v in row.items() if k.endswith("none"))
        for n, row in table.items()
    }
    return {
        f"ratio_{RATIO_AT}": round(best[RATIO_AT][1]["tokens_s"] / best[1][1]["tokens_s"], 2),
        f"ratio_{RATIO_AT}_plain": round(plain[RATIO_AT] / plain[1], 2),
        "jain": jain[name.partition(",")[0]]["jain"],
        "best": {n: {"setting": setting, **row} for n, (setting, row) in best.items()},
        "by_setting": table,
        "fairness": jain,
    }


def _config(run: Run, sizes: Sizes) -> OperatorConfig:
    most = max(sizes.streams)
    return OperatorConfig(
        window=sizes.window,
        update_tokens=sizes.window // 2,
        slack=128,
        slots=most + 1,
        branches=most,
        branch_tokens=2048 if run.model == TOY else 384,  # the toy's tokens are bytes
        ingest_budget=512,
        summary_tokens=sizes.answer,
    )


def _places(desk: Desk, sizes: Sizes, say: Callable[[str], None]) -> Iterator[Session]:
    """Streams that have heard between an eighth of a window and two windows."""
    meetings = [list(read_transcript(file)) for file in meeting_files()]
    for number in range(max(sizes.streams)):
        meeting = [s for s in meetings[number % len(meetings)] if len(s.text.split()) > 3]
        start = (number * 5) % (len(meeting) // 2)
        session = desk.open(f"stream-{number}")
        most = sizes.window * (2 if number % 4 == 0 else 1)
        heard = sizes.window // 8 + number * 151 % most
        desk.listen(session, meeting[start:], heard)
        if number % 8 == 0:
            say(f"filling the windows: {number + 1} of {max(sizes.streams)}")
        yield desk.place(session)
        assert session.slot is not None
        desk.cache.release(session.slot)


def _together(desk: Desk, places: Sequence[Session], drafter: str, costs: Costs) -> list[Answered]:
    config = dataclasses.replace(desk.config, drafter=drafter)
    tasks = desk.tasks(config)
    at = [desk.at(place, {}) for place in places]
    asked = [(session, tasks.summary.update(session, ignore)) for session in at]
    return desk.run(desk.scheduler(config, costs), asked)


def _numbers(found: Sequence[Answered]) -> Result:
    """Of answers that ran together."""
    began = min(a.decoding_from for a in found)
    ended = max(a.turns[-1].at for a in found)
    tokens = sum(turn.tokens for a in found for turn in a.turns)
    waits = sorted(ms for a in found for ms in _waits(a))
    return {
        "tokens_s": round(tokens / (ended - began), 1),
        "p50_ms": round(waits[len(waits) // 2], 1),
        "p99_ms": round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 1),
        "tokens": tokens,
        "tokens_per_verify": round(
            statistics.mean(turn.tokens for a in found for turn in a.turns), 2
        ),
    }


def _waits(answered: Answered) -> Iterator[float]:
    """Milliseconds each token was waited for: a verify's time, divided among the tokens it gave."""
    times = [answered.decoding_from, *(turn.at for turn in answered.turns)]
    for (before, after), turn in zip(pairwise(times), answered.turns, strict=True):
        yield from [(after - before) * 1000 / turn.tokens] * turn.tokens


# --- fairness ------------------------------------------------------------------------------------


def _fairness(desk: Desk, places: Sequence[Session], costs: Costs) -> Result:
    """All but the last stream are drafted for with their own future answer."""
    plain = [a.generation.output for a in _together(desk, places, "none", costs)]
    config = dataclasses.replace(desk.config, drafter="previous")
    tasks = desk.tasks(config)
    asked = []
    for place, answer in zip(places, plain, strict=True):
        session = desk.at(place, {})
        wrong = [token ^ 1 for token in answer]
        asked.append((session, _drafted(tasks, session, wrong if place is places[-1] else answer)))
    found = desk.run(desk.scheduler(config, costs), asked)
    began, first_done = (
        min(a.decoding_from for a in found),
        min(a.turns[-1].at for a in found),
    )
    rates = [
        sum(turn.tokens for turn in a.turns if turn.at <= first_done) / (first_done - began)
        for a in found
    ]
    return {
        "jain": round(jain(rates), 3),
        "tokens_s": [round(rate, 1) for rate in rates],
        "plain_tokens_s": [round(_alone(a), 1) for a in _together(desk, places, "none", costs)],
    }


def _drafted(tasks: Tasks, session: Session, drafts: Sequence[int]) -> Generation:
    generation = tasks.summary.update(session, ignore)
    generation.decoding = decoding(tasks.config, session, "summary", generation.prompt, drafts)
    return generation


def _alone(answered: Answered) -> float:
    tokens = sum(turn.tokens for turn in answered.turns)
    return tokens / (answered.turns[-1].at - answered.decoding_from)


def jain(rates: Sequence[float]) -> float:
    """1 when all are equal, 1/n when one has all (Jain et al. 1984)."""
    return sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates))
