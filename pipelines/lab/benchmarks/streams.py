"""Many streams at once: tokens per second together, and what each one waits for a token.

Every stream has heard another length of a meeting and writes a summary of it; answers end where they
end. Only decoding counts, the prompts are through before. Every number of streams is run with every
kind of weights, plain and with drafts, and the best setting of each number counts: so is one stream's.
All kinds of weights are loaded at once, and every round goes through all numbers and settings, so that
a disturbance of the machine meets all alike. Speeds are medians of the rounds, ratios medians of the
rounds' ratios.

Fairness: eight streams, seven of which have perfect drafts and one only wrong ones; Jain's index over
the tokens per second of each until the first one is done.

Of the products: what the matrix products of all verifies take when they run alone, one after the other,
over what the answers took.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from torch import Tensor

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs
from operators.decoding.generation import Generation
from operators.engine.session import Session
from operators.engine.task_runner import make_drafters
from operators.model.loader import DecoderModel
from operators.model.quantization import runs_w8a8
from operators.tasks.base import Ask
from pipelines.dev.demo.plan import meeting_files
from pipelines.device.calibration import VERIFY, cost_curve
from pipelines.lab.benchmarks import TAKES
from pipelines.lab.benchmarks.desk import Answered, Desk, Place, ReadPrompt, Tasks
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.wire.codec import read_transcript

MODEL = "qwen2.5-coder-0.5b"
RATIO_AT = 16
FAIR_STREAMS = 8
DRAFTERS = ("none", "auto")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens; ``streams``: how many at once, ascending."""

    window: int = 512
    answer: int = 48
    streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    weights: tuple[str, ...] = ("bf16", "w8a8", "int4")
    rounds: int = 3


QUICK = Sizes(window=256, answer=16, streams=(1, 2, 16), weights=("fp32",), rounds=1)


@dataclasses.dataclass(frozen=True)
class _Side:
    """A model with one kind of weights for generation."""

    weights: str
    desk: Desk
    costs: Costs
    products: CostCurve
    """Seconds of all matrix products of a forward, alone, by its tokens."""


@dataclasses.dataclass(frozen=True)
class _Stream:
    """A stream at its place, and the prompt of its summary."""

    place: Place
    prompt: ReadPrompt


Cells = dict[int, dict[str, list[Result]]]
"""Number of streams → setting → the numbers of every round."""


def run(run: Run) -> Result:
    """``ratio_16``: tokens per second of 16 streams over those of one, each at its fastest setting;
    ``jain``; by number of streams the best setting's tokens/s and milliseconds per token."""
    sizes = QUICK if run.quick else Sizes()
    rounds = run.rounds or sizes.rounds
    if not run.quick:
        run.say(TAKES["streams"])
    sides = list(_sides(run, sizes))
    streams = list(_streams(sides[0].desk, sizes, run.say))
    resident = psutil.Process().memory_info().rss / 2**30
    run.say(f"all weights and streams are in: {resident:.1f} GiB")
    cells: Cells = {n: defaultdict(list) for n in sizes.streams}
    fairness: dict[str, list[Result]] = defaultdict(list)
    for turn in range(rounds):
        run.say(f"round {turn + 1} of {rounds}")
        for count in sizes.streams:
            for side in sides:
                for drafter in DRAFTERS:
                    numbers = _numbers(_together(side, streams[:count], drafter), side.products)
                    cells[count][f"{side.weights}, {drafter}"].append(numbers)
            run.say(_line(count, cells[count]))
        for side in sides:
            fairness[side.weights].append(_fairness(side, streams[:FAIR_STREAMS]))
    return {"rounds": rounds, **_summary(cells, fairness), "resident_gib": round(resident, 1)}


def _line(count: int, row: dict[str, list[Result]]) -> str:
    speeds = ", ".join(f"{setting} {found[-1]['tokens_s']}" for setting, found in row.items())
    return f"{count} streams, tokens/s: {speeds}"


def _summary(cells: Cells, fairness: dict[str, list[Result]]) -> Result:
    table = {n: {name: _median(found) for name, found in row.items()} for n, row in cells.items()}
    best = {n: max(row, key=lambda name: row[name]["tokens_s"]) for n, row in table.items()}
    plain = {
        n: max((k for k in row if k.endswith("none")), key=lambda name: row[name]["tokens_s"])
        for n, row in table.items()
    }
    at = best[RATIO_AT]
    ratios, plain_ratios = _ratios(cells, best), _ratios(cells, plain)
    usual = best[FAIR_STREAMS if FAIR_STREAMS in best else RATIO_AT].partition(",")[0]
    return {
        f"ratio_{RATIO_AT}": round(statistics.median(ratios), 2),
        f"ratio_{RATIO_AT}_rounds": ratios,
        f"ratio_{RATIO_AT}_plain": round(statistics.median(plain_ratios), 2),
        f"tokens_s_{RATIO_AT}": table[RATIO_AT][at]["tokens_s"],
        f"of_products_{RATIO_AT}": round(table[RATIO_AT][at]["of_products"], 2),
        "jain": statistics.median(found["jain"] for found in fairness[usual]),
        "jain_rounds": [found["jain"] for found in fairness[usual]],
        "best": {n: {"setting": name, **table[n][name]} for n, name in best.items()},
        "by_setting": table,
        "tokens_s_rounds": {
            n: {name: [f["tokens_s"] for f in found] for name, found in row.items()}
            for n, row in cells.items()
        },
        "fairness": {weights: _median(found) for weights, found in fairness.items()},
    }


def _ratios(cells: Cells, setting: dict[int, str]) -> list[float]:
    """Of every round: tokens per second of RATIO_AT streams over those of one."""
    many, one = (cells[n][setting[n]] for n in (RATIO_AT, 1))
    return [round(m["tokens_s"] / o["tokens_s"], 2) for m, o in zip(many, one, strict=True)]


def _median(rounds: Sequence[Result]) -> Result:
    """Field by field; of lists, place by place."""
    found: Result = {}
    for name, value in rounds[0].items():
        values = [numbers[name] for numbers in rounds]
        if isinstance(value, list):
            found[name] = [
                round(statistics.median(place), 1) for place in zip(*values, strict=True)
            ]
        else:
            found[name] = round(statistics.median(values), 3)
    return found


def _sides(run: Run, sizes: Sizes) -> Iterator[_Side]:
    config = _config(run, sizes)
    for weights in sizes.weights:
        if weights == "w8a8" and not runs_w8a8(torch.device("cpu")):
            continue
        model = run.load("fp32" if weights == "fp32" else "bf16", weights)
        with tempfile.TemporaryDirectory() as folder:
            costs = Costs(cost_curve(model, VERIFY, Path(folder), run.say))
        yield _Side(weights, Desk(model, config), costs, products_curve(model))


def products_curve(model: DecoderModel) -> CostCurve:
    """Seconds of a generation forward's matrix products alone: the least of three passes."""
    hidden = torch.randn(max(VERIFY), model.network("decode").embedding.shape[1]).to(model.dtype)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            _products(model, hidden[:tokens])
        return time.perf_counter() - began

    return CostCurve.measured((n, min(seconds(n) for _ in range(3))) for n in VERIFY)


def _products(model: DecoderModel, hidden: Tensor) -> None:
    network, kv_width = model.network("decode"), 2 * model.shape.kv_heads * model.shape.head_dim
    for layer in network.layers:
        layer.output(layer.qkv(hidden)[:, :-kv_width])
        layer.down(layer.gate_up(hidden).chunk(2, dim=-1)[0])
    network.head(hidden)


def _config(run: Run, sizes: Sizes) -> OperatorConfig:
    most = max(sizes.streams)
    return OperatorConfig(
        window=sizes.window,
        update_tokens=sizes.window // 2,
        slack=128,
        slots=most + 1,
        branches=most,
        branch_tokens=2048 if run.model == TOY else 384,  # the toy's tokens are bytes
        prefill_budget=512,
        summary_tokens=sizes.answer,
    )


def _streams(desk: Desk, sizes: Sizes, say: Callable[[str], None]) -> Iterator[_Stream]:
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
        place = desk.place(session)
        desk.residency.drop(session)
        update = desk.tasks(desk.config).update(desk.at(place, {}))
        yield _Stream(place, desk.read_prompt(place, update))


def _together(side: _Side, streams: Sequence[_Stream], drafter: str) -> list[Answered]:
    desk = side.desk
    config = dataclasses.replace(desk.config, drafter=drafter)
    tasks = desk.tasks(config)
    at = [desk.at(stream.place, {}) for stream in streams]
    asked = [(session, tasks.update(session)) for session in at]
    prompts = [stream.prompt for stream in streams]
    return desk.run(desk.scheduler(config, side.costs), asked, prompts)


def _numbers(found: Sequence[Answered], products: CostCurve) -> Result:
    """Of answers that ran together."""
    verified: dict[float, int] = defaultdict(int)
    for turn in (turn for a in found for turn in a.turns):
        verified[turn.at] += 1 + turn.drafted
    began = min(a.decoding_from for a in found)
    ended = max(a.turns[-1].at for a in found)
    tokens = sum(turn.tokens for a in found for turn in a.turns)
    waits = sorted(ms for a in found for ms in _waits(a))
    return {
        "tokens_s": round(tokens / (ended - began), 1),
        "p50_ms": round(waits[len(waits) // 2], 1),
        "p99_ms": round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 1),
        "tokens": tokens,
        "of_products": sum(map(products.seconds, verified.values())) / (ended - began),
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


def _fairness(side: _Side, streams: Sequence[_Stream]) -> Result:
    """All but the last stream are drafted for with their own future answer."""
    desk = side.desk
    plain = _together(side, streams, "none")
    config = dataclasses.replace(desk.config, drafter="previous")
    tasks = desk.tasks(config)
    asked = []
    for stream, alone in zip(streams, plain, strict=True):
        session, answer = desk.at(stream.place, {}), alone.generation.output
        drafts = [token ^ 1 for token in answer] if stream is streams[-1] else answer
        asked.append((session, _drafted(tasks, session, drafts)))
    prompts = [stream.prompt for stream in streams]
    found = desk.run(desk.scheduler(config, side.costs), asked, prompts)
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
        "plain_tokens_s": [round(_alone(a), 1) for a in plain],
    }


def _drafted(tasks: Tasks, session: Session, drafts: Sequence[int]) -> Generation:
    generation = tasks.update(session)
    ask = Ask(generation.prompt, generation.max_tokens, previous=drafts)
    drafters = partial(make_drafters, tasks.config, session.index, ask)
    generation.decoding = dataclasses.replace(generation.decoding, make_drafters=drafters)
    return generation


def _alone(answered: Answered) -> float:
    tokens = sum(turn.tokens for turn in answered.turns)
    return tokens / (answered.turns[-1].at - answered.decoding_from)


def jain(rates: Sequence[float]) -> float:
    """1 when all are equal, 1/n when one has all (Jain et al. 1984)."""
    return sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates))
