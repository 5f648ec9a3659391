"""Summaries of the product beside the same model used otherwise, on meetings with references."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.lab.eval import summary_sides as sides
from pipelines.lab.eval.engine import Engine
from pipelines.lab.eval.kept import Kept
from pipelines.lab.eval.meetings import Meeting
from pipelines.lab.eval.summary_meters import Summarised, meter
from pipelines.lab.eval.summary_sides import Bounds, Say, Side

OURS, LAST_WINDOW, REFINE, TRUNCATED, LEAD = "ours", "last_window", "refine", "truncated", "lead"
ALL = (OURS, LAST_WINDOW, REFINE, TRUNCATED, LEAD)
HEADLINE = (
    "points",
    "precision",
    "evidence_valid",
    "false_notes",
    "repeated",
    "verbatim",
    "erasure",
)
AVERAGED = (
    "rouge1",
    "rouge2",
    "rougeLsum",
    "r1_auc",
    "points",
    "points_anywhere",
    "points_noted",
    "point_delay_lines",
    "precision",
    "evidence_valid",
    "false_notes",
    "repeated",
    "verbatim",
    "erasure",
    "compression",
    "words",
    "revisions",
    "notes",
)
SUMMED = ("prefilled", "generated", "seconds")


@dataclass(frozen=True)
class Job:
    meetings: Sequence[Meeting]
    sides: Sequence[str] = ALL
    checkpoints: int = 10
    bounds: Bounds = field(default_factory=Bounds)
    resume: Path | None = None
    """Where finished parts are kept, and taken from."""


def run(engine: Engine, job: Job, say: Say) -> dict[str, Any]:
    """All figures: ``sides`` over all meetings, ``meetings`` one by one, and the headline ones."""
    made = summarised(engine, job, say, lambda meeting: ours(engine, meeting, say))
    measured = {
        name: {
            m.name: meter(made[name][m.name], m, m.checkpoints(job.checkpoints))
            for m in job.meetings
        }
        for name in made
    }
    over = {name: averaged(list(found.values())) for name, found in measured.items()}
    return {
        **headline(over),
        "weights": engine.weights,
        "window": job.bounds.window,
        "sides": over,
        "meetings": measured,
        "texts": {
            name: {meeting: run.last.text for meeting, run in found.items()}
            for name, found in made.items()
        },
        "degraded": sorted({d for run in made.get(OURS, {}).values() for d in run.degraded}),
    }


def ours(engine: Engine, meeting: Meeting, say: Say) -> Summarised:
    """The product on one meeting, from the first line to the stream's end."""
    made = Summarised()
    began = time.perf_counter()
    with engine.operator() as (operator, spent):
        stream = operator.open(meeting.name)
        sides.listen(stream, meeting, made, say)
        stream.close()
        sides.collect(stream, made, meeting.lines[-1].seq)
    made.seconds = time.perf_counter() - began
    made.prefilled, made.generated = spent.prefilled, spent.generated
    return made


def summarised(
    engine: Engine, job: Job, say: Say, own: Callable[[Meeting], Summarised]
) -> dict[str, dict[str, Summarised]]:
    """Every side of the job on every meeting; ``own`` runs the product. Raises ConfigError for a side
    nobody knows."""
    unknown = set(job.sides) - set(ALL)
    if unknown:
        raise ConfigError(f"--sides: any of {', '.join(ALL)}; not {', '.join(sorted(unknown))}")
    plain = plain_sides(engine, job, say)
    kept, model = Kept(job.resume, Summarised), [engine.name, engine.weights, engine.settings]
    made: dict[str, dict[str, Summarised]] = {name: {} for name in job.sides}
    for meeting in job.meetings:
        checkpoints = meeting.checkpoints(job.checkpoints)
        said = [(line.speaker, line.text) for line in meeting.lines]
        for name in job.sides:
            bounds = [] if name == OURS else [asdict(job.bounds), job.checkpoints]
            of = [model, bounds, meeting.language, said]
            found = kept.get(name, meeting.name, of)
            if found is None:
                side = plain.get(name)
                found = own(meeting) if side is None else side(meeting, checkpoints)
                kept.put(name, meeting.name, of, found)
            made[name][meeting.name] = found
    return made


def plain_sides(engine: Engine, job: Job, say: Say) -> dict[str, Side]:
    """The chosen sides that are not the product. All share one backend."""
    if not set(job.sides) - {OURS, LEAD}:
        return {LEAD: sides.lead()}
    backend, bounds = engine.backend(job.bounds.context), job.bounds
    return {
        LAST_WINDOW: sides.last_window(backend, bounds, say),
        REFINE: sides.refine(backend, bounds, say),
        TRUNCATED: sides.truncated(backend, bounds, say),
        LEAD: sides.lead(),
    }


def averaged(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One side's figures over all meetings: means, and sums of what was spent."""
    figures: dict[str, Any] = {}
    for name in AVERAGED:
        values = [float(f[name]) for f in found if f.get(name) is not None]
        figures[name] = round(sum(values) / len(values), 4) if values else None
    for name in SUMMED:
        figures[name] = round(sum(f[name] for f in found), 1)
    return figures


def headline(over: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The product's figures, and for ROUGE-1 and R1-AUC the best other side's."""
    own = over.get(OURS, {})
    others = {name: figures for name, figures in over.items() if name != OURS}
    figures: dict[str, Any] = {name: own.get(name) for name in HEADLINE}
    for name in ("rouge1", "r1_auc"):
        known = {side: f[name] for side, f in others.items() if f.get(name) is not None}
        figures[name] = own.get(name)
        figures[f"{name}_best_baseline"] = max(known.values(), default=None)
        figures[f"{name}_best_baseline_side"] = (
            max(known, key=lambda s: known[s]) if known else None
        )
    spent = over.get(REFINE, {}).get("generated")
    figures["tokens_vs_refine"] = (
        round(own["generated"] / spent, 3) if spent and own.get("generated") is not None else None
    )
    return figures
