"""What speculative decoding is worth: the engine's own kinds of answer, over plain decoding.

A meeting is followed; at places of it the model writes a first summary, an update, a compaction of
its notes, translations, and translations of one utterance that is still growing (each with the one
before as a draft). Every answer is run plain and with drafts, one after the other, from the same
place. Times are those of the tokens behind the first: the prompt costs the same either way, and
``whole_speedup`` says what is left of the gain with it.

Two passes. In fp32 the texts must be equal, whatever drafts; whether they are is part of the result.
Times are taken with the number types the worker would choose here (see pipelines.device.calibration),
for that is what a user waits for.

Every draft length of the drafters that need no model is gone through without running the target
(:mod:`pipelines.lab.benchmarks.replay`); ``--long`` runs them all.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs, DraftControl
from operators.model.loader import DecoderModel
from pipelines import models
from pipelines.device.calibration import DRAFT, VERIFY, cost_curve, load_calibrated
from pipelines.lab.benchmarks.desk import Answered, Desk
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.replay import Replayed, replay
from pipelines.lab.benchmarks.speculation_jobs import LONG, QUICK, Job, Sizes
from pipelines.lab.benchmarks.speculation_jobs import jobs as jobs_of
from pipelines.lab.benchmarks.toy import toy_decoder

MODEL = "qwen2.5-coder-1.5b"
DRAFT_MODELS = {"qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b", TOY: TOY}
"""Target → a smaller model of the same vocabulary."""
SUMMARIES = ("update", "compaction")
FREE = Costs(CostCurve(((1, 1.0),)), CostCurve(((1, 1e-9),)))
"""Nothing costs anything: drafts are always made, as long as allowed."""
REPLAYED = ("ngram", "previous", "combined")
LONGEST = 16
EXACT = Sizes(answer=24, most_updates=2, translations=1, utterances=1, growing=(8, 16))
"""What is compared in fp32, which takes a while."""


def run(run: Run) -> Result:
    """``best_summary_speedup``, ``retranslation_speedup``, ``worst_speedup`` (with ``auto``, over
    plain decoding), ``identical_text``; times and tokens by task; speed-up with drafts of fixed
    lengths as measured (``fixed``) and, for every length, by the cost curve (``by_drafter``);
    ``acceptance_by_position``."""
    sizes = QUICK if run.quick else LONG if run.long else Sizes()
    sizes = dataclasses.replace(sizes, rounds=run.rounds or sizes.rounds)
    result = _timed(run, sizes)
    gc.collect()  # one pass's weights at a time
    return {**result, "identical_text": _exact(run, sizes if run.quick else EXACT)}


def _exact(run: Run, sizes: Sizes) -> bool:
    """Whether no draft changes a text, in fp32."""
    draft = _load(run, DRAFT_MODELS.get(run.model), "fp32")
    model = _load(run, run.model, "fp32")
    assert model is not None
    runner = _Runner(model, draft, sizes, run, Costs())
    run.say("fp32, plain and auto")
    runner.compare(Costs())
    for drafter in runner.fixed_drafters:
        run.say(f"fp32, {drafter}, {sizes.lengths[0]} drafts")
        runner.fixed(drafter, sizes.lengths[0])
    return runner.identical


def _timed(run: Run, sizes: Sizes) -> Result:
    kind = "fp32" if run.model == TOY else "auto"
    model, draft = _load(run, run.model, kind), _load(run, DRAFT_MODELS.get(run.model), kind)
    assert model is not None
    costs = _costs(run, model, draft)
    runner = _Runner(model, draft, sizes, run, costs)
    for turn in range(sizes.rounds):
        run.say(f"plain and auto, round {turn + 1} of {sizes.rounds}")
        runner.compare(costs)
    for drafter in runner.fixed_drafters:
        for k in sizes.lengths:
            run.say(f"{drafter}, {k} drafts")
            runner.fixed(drafter, k)
    return {
        **runner.result(),
        "draft_model": draft.name if draft is not None else None,
        "dtypes": dict(model.dtypes),
        "identical_as_timed": runner.identical,
        "cost_curve_ms": {n: round(seconds * 1000, 1) for n, seconds in costs.verify.points},
        "draft_curve_ms": {n: round(seconds * 1000, 1) for n, seconds in costs.draft.points}
        if costs.draft is not None
        else None,
        "fixed": runner.fixed_lengths(),
        "by_drafter": runner.replayed(costs.verify),
        "acceptance_by_position": runner.positions(),
    }


def _load(run: Run, name: str | None, kind: str) -> DecoderModel | None:
    """``kind``: fp32, or auto for what a worker takes for one answer at a time."""
    if name is None:
        return None
    run.say(f"loading {name} ({kind})")
    if name == TOY:
        return toy_decoder()
    folder = models.resolve(name)
    config = OperatorConfig(branches=1, dtype_prefill=kind, dtype_decode=kind)
    cache = models.default_cache()
    return load_calibrated(folder, config, cache, name=name, device="cpu", say=run.say)


def _config(run: Run, sizes: Sizes) -> OperatorConfig:
    return OperatorConfig(
        window=sizes.window,
        update_tokens=sizes.window // 2,
        slack=128,
        slots=2,  # the meeting's own, and the place an answer is run at
        branches=1,
        summary_tokens=sizes.answer,
        branch_tokens=2048 if run.model == TOY else 768,  # the toy's tokens are bytes
        ledger_tokens=sizes.ledger,
        draft_model=DRAFT_MODELS.get(run.model, ""),
    )


def _costs(run: Run, model: DecoderModel, draft: DecoderModel | None) -> Costs:
    """Measured here and now, not taken from an earlier day."""
    with tempfile.TemporaryDirectory() as folder:
        verify = cost_curve(model, VERIFY, Path(folder), run.say)
        late = cost_curve(draft, DRAFT, Path(folder), run.say) if draft is not None else None
    return Costs(verify, late)


# --- running it ----------------------------------------------------------------------------------

Controls = dict[str, DraftControl]


class _Runner:
    """Runs the jobs under one setting after the other and keeps what came out."""

    def __init__(
        self,
        model: DecoderModel,
        draft: DecoderModel | None,
        sizes: Sizes,
        run: Run,
        costs: Costs,
    ) -> None:
        self._desk, self._say = Desk(model, _config(run, sizes), draft), run.say
        run.say("following the meeting")
        self._jobs = list(jobs_of(self._desk, sizes, costs))
        self.fixed_drafters = [*sizes.drafters, *(["draft"] if draft is not None else [])]
        self._rounds: list[dict[str, list[Answered]]] = []  # plain, auto
        self._fixed: dict[tuple[str, int], list[Answered]] = {}
        self._tasks = list(dict.fromkeys(job.task for job in self._jobs))
        self.identical = True

    def compare(self, costs: Costs) -> None:
        """Every job plain, then with ``auto``, which starts knowing nothing and learns on the way."""
        found: dict[str, list[Answered]] = {"plain": [], "auto": []}
        learned: Controls = {}
        for job in self._jobs:
            plain = self._answer(job, "none", 0, {}, costs)
            auto = self._answer(job, "auto", LONGEST, learned, costs)
            found["plain"].append(plain)
            found["auto"].append(auto)
            count = len(plain.generation.output)
            self._say(
                f"{job.task}, {count} tokens: {plain.decode_s:.1f} s plain, {auto.decode_s:.1f} s "
                f"with {len(auto.turns)} verifies"
            )
        self._rounds.append(found)
        self._check(found["plain"])
        self._check(found["auto"])

    def fixed(self, drafter: str, k: int) -> None:
        """Every job with always ``k`` drafts."""
        learned: Controls = {}
        found = [self._answer(job, drafter, k, learned, FREE) for job in self._jobs]
        self._fixed[drafter, k] = found
        self._check(found)

    def _answer(self, job: Job, drafter: str, k: int, controls: Controls, costs: Costs) -> Answered:
        config = dataclasses.replace(self._desk.config, drafter=drafter, max_draft=k)
        at = self._desk.at(job.place, controls)
        generation = job.make(self._desk.tasks(config), at)
        (answered,) = self._desk.run(self._desk.scheduler(config, costs), [(at, generation)])
        return answered

    def _check(self, found: Sequence[Answered]) -> None:
        plain = self._rounds[0]["plain"]
        for job, mine, its in zip(self._jobs, found, plain, strict=True):
            if mine.generation.output != its.generation.output:
                self.identical = False
                self._say(f"{job.task}: another text than plain decoding gives")

    # --- numbers -----------------------------------------------------------------------------

    def result(self) -> Result:
        tasks = {task: self._task(task) for task in self._tasks}
        speedups = {task: numbers["speedup"] for task, numbers in tasks.items()}
        return {
            "best_summary_speedup": max(speedups[task] for task in SUMMARIES),
            "retranslation_speedup": speedups["retranslation"],
            "worst_speedup": min(speedups.values()),
            "tasks": tasks,
        }

    def _task(self, task: str) -> Result:
        plain = [self._of(task, found["plain"]) for found in self._rounds]
        auto = [self._of(task, found["auto"]) for found in self._rounds]
        decode = [_ratio(_seconds(p), _seconds(a)) for p, a in zip(plain, auto, strict=True)]
        whole = [_ratio(_whole(p), _whole(a)) for p, a in zip(plain, auto, strict=True)]
        turns = [turn for a in auto for answered in a for turn in answered.turns]
        return {
            "answers": len(plain[0]),
            "tokens": sum(len(a.generation.output) for a in plain[0]),
            "plain_s": round(statistics.median(map(_seconds, plain)), 2),
            "auto_s": round(statistics.median(map(_seconds, auto)), 2),
            "speedup": round(statistics.median(decode), 3),
            "whole_speedup": round(statistics.median(whole), 3),
            "tokens_per_verify": _mean([t.tokens for t in turns]),
            "drafted_per_verify": _mean([t.drafted for t in turns]),
        }

    def _of(self, task: str, found: Sequence[Answered]) -> list[Answered]:
        return [a for job, a in zip(self._jobs, found, strict=True) if job.task == task]

    def fixed_lengths(self) -> Result:
        """Measured speed-up over plain decoding and tokens per verify, by drafter, length, task."""
        table: dict[str, dict[int, Result]] = defaultdict(dict)
        for (drafter, k), found in self._fixed.items():
            table[drafter][k] = {
                task: {
                    "speedup": round(_ratio(self._plain(task), _seconds(self._of(task, found))), 2),
                    "tokens_per_verify": _mean(
                        [turn.tokens for a in self._of(task, found) for turn in a.turns]
                    ),
                }
                for task in self._tasks
            }
        return dict(table)

    def _plain(self, task: str) -> float:
        return statistics.median(_seconds(self._of(task, r["plain"])) for r in self._rounds)

    def replayed(self, curve: CostCurve) -> Result:
        """Tokens per verify and speed-up by the cost curve, by drafter, task and length 1 to 16."""
        return {
            drafter: {
                task: {
                    k: {
                        "tokens_per_verify": (
                            found := self._replay(drafter, task, k)
                        ).tokens_per_verify,
                        "speedup": found.speedup(curve),
                    }
                    for k in range(1, LONGEST + 1)
                }
                for task in self._tasks
            }
            for drafter in REPLAYED
        }

    def positions(self) -> Result:
        """By drafter and task: the share of drafts that stood at places 1, 2, … of a block."""
        table: dict[str, dict[str, list[float]]] = {
            drafter: {t: self._replay(drafter, t, LONGEST).acceptance() for t in self._tasks}
            for drafter in REPLAYED
        }
        by_model = [found for (drafter, _), found in self._fixed.items() if drafter == "draft"]
        if by_model:
            table["draft"] = {}
            for task in self._tasks:
                noted = Replayed()
                for answered in self._of(task, by_model[-1]):
                    for turn in answered.turns:
                        noted.note(turn.drafted, turn.accepted, turn.tokens)
                table["draft"][task] = noted.acceptance()
        return table

    def _replay(self, drafter: str, task: str, k: int) -> Replayed:
        tasks = self._desk.tasks(dataclasses.replace(self._desk.config, drafter=drafter))
        known = []
        for job, plain in zip(self._jobs, self._rounds[0]["plain"], strict=True):
            if job.task == task:
                made = job.make(tasks, self._desk.at(job.place, {}))
                known.append((made.decoding.make_drafters(), plain.generation.output))
        return replay(known, k)


def _seconds(found: Sequence[Answered]) -> float:
    """Time of the tokens behind the first of each answer."""
    return sum(a.decode_s for a in found)


def _whole(found: Sequence[Answered]) -> float:
    return sum(a.decode_s + a.prompt_s for a in found)


def _mean(numbers: Sequence[int]) -> float:
    return round(statistics.mean(numbers), 2) if numbers else 0.0


def _ratio(plain: float, other: float) -> float:
    """1 where nothing was decoded (an answer of one token)."""
    return plain / other if plain and other else 1.0
