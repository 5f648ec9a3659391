"""What speculative decoding is worth: the engine's own kinds of answer, over plain decoding.

A meeting is followed; at places of it the model writes a first summary, an update, a compaction of
its notes, translations, and translations of one utterance that is still growing (each with the one
before as a draft). Every answer is run plain and with drafts, one after the other, from the same
place. Times are those of the tokens behind the first: the prompt costs the same either way, and
``whole_speedup`` says what is left of the gain with it.

In fp32 the texts must be equal, whatever drafts; whether they are is part of the result.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from operators.config import OperatorConfig
from operators.draft_control import CostCurve, Costs, DraftControl
from operators.model import DecoderModel, load_model
from pipelines import model_store
from pipelines.benchmarks.desk import Answered, Desk
from pipelines.benchmarks.harness import TOY, Result, Run
from pipelines.benchmarks.speculation_jobs import LONG, QUICK, Job, Sizes
from pipelines.benchmarks.speculation_jobs import jobs as jobs_of
from pipelines.benchmarks.toy import toy_decoder
from pipelines.calibration import DRAFT, VERIFY, cost_curve

MODEL = "qwen2.5-coder-1.5b"
DRAFT_MODELS = {"qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b", TOY: TOY}
"""Target → a smaller model of the same vocabulary."""
SUMMARIES = ("update", "compaction")
FREE = Costs(CostCurve(((1, 1.0),)), CostCurve(((1, 1e-9),)))
"""Nothing costs anything: drafts are always made, as long as allowed."""


def run(run: Run) -> Result:
    """``best_summary_speedup``, ``retranslation_speedup``, ``worst_speedup`` (with ``auto``, over
    plain decoding), ``identical_text``; times and tokens by task; speed-up by drafter and length;
    ``acceptance_by_position`` of drafts of the greatest length."""
    sizes = QUICK if run.quick else LONG if run.long else Sizes()
    model, draft = run.load("fp32"), _draft(run)
    costs = _costs(run, model, draft)
    config = OperatorConfig(
        window=sizes.window,
        update_tokens=sizes.window // 2,
        slack=128,
        slots=2,  # the meeting's own, and the place an answer is run at
        branches=1,
        summary_tokens=sizes.answer,
        branch_tokens=2048 if run.model == TOY else 640,  # the toy's tokens are bytes
        draft_model=DRAFT_MODELS.get(run.model, ""),
    )
    desk = Desk(model, config, draft)
    run.say("following the meeting")
    jobs = list(jobs_of(desk, sizes, costs))
    runner = _Runner(desk, jobs, run.say)
    for turn in range(sizes.rounds):
        run.say(f"plain and auto, round {turn + 1} of {sizes.rounds}")
        runner.compare(costs)
    drafters = ["ngram", "previous", "combined", *(["draft"] if draft is not None else [])]
    for drafter in drafters:
        for k in sizes.lengths:
            run.say(f"{drafter}, {k} drafts")
            runner.fixed(drafter, k)
    return {
        **runner.result(),
        "draft_model": draft.name if draft is not None else None,
        "dtype": "fp32",
        "cost_curve_ms": {
            n: round(seconds * 1000, 1) for n, seconds in (costs.verify.points if costs else ())
        },
        "by_drafter": runner.by_drafter(drafters, sizes.lengths),
        "acceptance_by_position": runner.positions(drafters, max(sizes.lengths)),
    }


def _draft(run: Run) -> DecoderModel | None:
    name = DRAFT_MODELS.get(run.model)
    if name is None:
        return None
    run.say(f"loading the draft model {name}")
    if name == TOY:
        return toy_decoder()
    folder = model_store.resolve(name)
    return load_model(folder, name=name, device="cpu", dtype_ingest="fp32", dtype_generation="fp32")


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

    def __init__(self, desk: Desk, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        self._desk, self._jobs, self._say = desk, jobs, say
        self._rounds: list[dict[str, list[Answered]]] = []  # plain, auto
        self._fixed: dict[tuple[str, int], list[Answered]] = {}
        self.identical = True

    def compare(self, costs: Costs) -> None:
        """Every job plain, then with ``auto``, which starts knowing nothing and learns on the way."""
        found: dict[str, list[Answered]] = {"plain": [], "auto": []}
        learned: Controls = {}
        for job in self._jobs:
            found["plain"].append(self._answer(job, "none", 0, {}, costs))
            found["auto"].append(self._answer(job, "auto", 16, learned, costs))
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
        tasks = {task: self._task(task) for task in dict.fromkeys(j.task for j in self._jobs)}
        speedups = {task: numbers["speedup"] for task, numbers in tasks.items()}
        return {
            "best_summary_speedup": max(speedups[task] for task in SUMMARIES),
            "retranslation_speedup": speedups["retranslation"],
            "worst_speedup": min(speedups.values()),
            "identical_text": self.identical,
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

    def by_drafter(self, drafters: Sequence[str], lengths: Sequence[int]) -> Result:
        """Speed-up over plain decoding and tokens per verify, by drafter, length and task."""
        plain = {t: self._median_plain(t) for t in dict.fromkeys(j.task for j in self._jobs)}
        table: dict[str, dict[int, Result]] = {d: {} for d in drafters}
        for drafter in drafters:
            for k in lengths:
                found = self._fixed[drafter, k]
                table[drafter][k] = {
                    task: {
                        "speedup": round(_ratio(seconds, _seconds(self._of(task, found))), 2),
                        "tokens_per_verify": _per_verify(self._of(task, found)),
                    }
                    for task, seconds in plain.items()
                }
        return table

    def _median_plain(self, task: str) -> float:
        return statistics.median(_seconds(self._of(task, r["plain"])) for r in self._rounds)

    def positions(self, drafters: Sequence[str], k: int) -> Result:
        """By drafter and task: how often the draft at places 1, 2, … of a block stood, of all times
        one was there."""
        table: dict[str, dict[str, list[float]]] = {}
        for drafter in drafters:
            by_task: dict[str, tuple[Counter[int], Counter[int]]] = defaultdict(
                lambda: (Counter(), Counter())
            )
            for job, answered in zip(self._jobs, self._fixed[drafter, k], strict=True):
                stood, there = by_task[job.task]
                for turn in answered.turns:
                    there.update(range(turn.drafted))
                    stood.update(range(turn.accepted))
            table[drafter] = {
                task: [round(stood[i] / there[i], 3) for i in sorted(there)]
                for task, (stood, there) in by_task.items()
            }
        return table


def _seconds(found: Sequence[Answered]) -> float:
    """Time of the tokens behind the first of each answer."""
    return sum(a.decode_s for a in found)


def _whole(found: Sequence[Answered]) -> float:
    return sum(a.decode_s + a.prompt_s for a in found)


def _per_verify(found: Sequence[Answered]) -> float:
    return _mean([turn.tokens for answered in found for turn in answered.turns])


def _mean(numbers: Sequence[int]) -> float:
    return round(statistics.mean(numbers), 2) if numbers else 0.0


def _ratio(plain: float, other: float) -> float:
    """1 where nothing was decoded (an answer of one token)."""
    return plain / other if plain and other else 1.0
