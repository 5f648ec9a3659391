"""The simulation's plots: lag over time, and what grows with the number of streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.lab.plan.arithmetic import Plan
from pipelines.lab.plan.simulate import Outcome


def draw(plans: Sequence[Plan], outcomes: Sequence[Outcome], folder: Path) -> None:
    """Writes ``lag.png`` and ``growth.png``. Raises ModuleNotFoundError without the extra plots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, rows = pyplot.subplots(len(plans), 1, figsize=(8, 2.4 * len(plans)), sharex=True)
    for axis, plan, outcome in zip(rows, plans, outcomes, strict=True):
        minutes = outcome.at / 60
        axis.plot(minutes, outcome.lag_p50, label="half of the streams", color="#3274a1")
        axis.plot(minutes, outcome.lag_p99, label="99 of 100", color="#e1812c")
        axis.axvline(outcome.failed_at / 60, color="#888", linestyle=":", label="a tenth fails")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(0, max(10.0, float(outcome.lag_max.max()) * 1.5))
        axis.set_ylabel("lag [s]")
        busy = axis.twinx()
        busy.plot(minutes, outcome.busy * 100, color="#3a923a", linewidth=0.7)
        busy.set_ylim(0, 100)
        busy.set_ylabel("busy [%]", color="#3a923a")
        axis.set_title(f"{plan.streams:,} streams, {plan.workers:,} workers", fontsize=10)
    rows[0].legend(loc="upper left", fontsize=8)
    rows[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(folder / "lag.png", dpi=80)
    pyplot.close(figure)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3))
    streams = [plan.streams for plan in plans]
    left.loglog(streams, [plan.workers for plan in plans], "o-", color="#3274a1")
    left.set_xlabel("streams")
    left.set_ylabel("workers")
    hours = [outcome.worker_hours / outcome.stream_hours for outcome in outcomes]
    right.semilogx(streams, hours, "o-", color="#e1812c")
    right.set_ylim(bottom=0)
    right.set_xlabel("streams")
    right.set_ylabel("worker hours per stream hour")
    figure.tight_layout()
    figure.savefig(folder / "growth.png", dpi=80)
    pyplot.close(figure)
