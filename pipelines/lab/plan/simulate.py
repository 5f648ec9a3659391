"""A simulation of many streams on many workers, in steps of some seconds.

What it is made of, and all it assumes, is in :data:`ASSUMPTIONS`. Work arrives as seconds of a device's
time per second of speech; a worker does one second of it per second and the rest waits. The seconds of
work that wait are the lag of the worker's streams: what is said now is looked at when that is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.lab.plan.arithmetic import Plan, Speech

ASSUMPTIONS = (
    "half of the meetings begin at the full hour, a quarter at the half, the rest at any time;"
    " people join within about a minute",
    "a meeting lasts 30 minutes in the median (lognormal, sigma 0.6, at most 4 hours)",
    "the named number of streams is the mean number open at once; the peak is higher",
    "speech comes in turns of 20 s with pauses of 5 s in the mean, at the planned words per minute while"
    " somebody speaks (the pauses are taken from `speaking`)",
    "an update's work is spread over its interval; drafts gain nothing",
    "a stream's partition is a hash of its name; partitions are dealt to workers in turn",
    "a tenth of the workers dies at two thirds of the time; after session_timeout_s their partitions go"
    " to the others, which read each stream's window again (restore by replay, no snapshot)",
    "replacements take over after 3 minutes (a container, then the model), again reading every window",
    "Kafka, network and the event loop cost nothing",
)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """One run. ``each``: seconds of a device per second of a stream's speech while it is spoken;
    ``restore``: seconds to read a window again."""

    streams: int
    workers: int
    partitions: int
    each: float
    restore: float
    speaking: float = 1.0
    hours: float = 3.0
    step_s: float = 10.0
    takeover_s: float = 12.0
    replacement_s: float = 180.0
    fail: float = 0.1
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """``at``: seconds; ``open``: streams; ``busy``: share of all workers' time; ``lag_*``: seconds, over
    open streams. Arrays over the steps."""

    at: FloatArray
    open: FloatArray
    busy: FloatArray
    lag_p50: FloatArray
    lag_p99: FloatArray
    lag_max: FloatArray
    failed_at: float
    recovered_s: float | None
    worker_hours: float
    stream_hours: float

    def summary(self) -> dict[str, float | None]:
        """Numbers for a table: the time before the failure, and what the failure did."""
        before = self.at < self.failed_at
        return {
            "peak_open": float(self.open.max()),
            "busy_mean": round(float(self.busy[before].mean()), 3),
            "lag_p50_s": round(float(np.median(self.lag_p50[before])), 2),
            "lag_p99_s": round(float(np.quantile(self.lag_p99[before], 0.99)), 2),
            "lag_max_after_failure_s": round(float(self.lag_max[~before].max()), 1),
            "recovered_after_s": self.recovered_s,
            "worker_hours_per_stream_hour": round(self.worker_hours / self.stream_hours, 5),
        }


def scenario_of(plan: Plan, speech: Speech, restore: float, **changes: float) -> Scenario:
    """The plan's own numbers as a scenario. ``changes``: of its fields."""
    return Scenario(
        streams=plan.streams,
        workers=plan.workers,
        partitions=plan.partitions,
        each=plan.seconds_per_stream_second / speech.speaking,
        restore=restore,
        speaking=min(1.0, speech.speaking) * 0.8,
        **changes,  # type: ignore[arg-type]
    )


def simulate(scenario: Scenario) -> Outcome:
    """Run it. Deterministic for a seed; takes seconds for 100,000 streams."""
    rng = np.random.default_rng(scenario.seed)
    begin, end = _meetings(scenario, rng)
    partition = rng.integers(0, scenario.partitions, len(begin))
    home = np.arange(scenario.partitions) % scenario.workers
    speaks = rng.random(len(begin)) < scenario.speaking
    steps = int(scenario.hours * 3600 / scenario.step_s)
    lost = max(1, round(scenario.fail * scenario.workers)) if scenario.fail else 0
    crash = (2 * steps // 3) * scenario.step_s
    alive_from = crash + scenario.replacement_s
    moved_at = crash + scenario.takeover_s
    backlog = np.zeros(scenario.workers)
    owner, moved, returned = home.copy(), False, False
    rows: list[tuple[float, float, float, float, float]] = []
    stream_seconds = 0.0
    for n in range(steps):
        now = n * scenario.step_s
        if lost and not moved and now >= moved_at and scenario.workers > lost:
            owner, moved = _deal(home, lost, scenario.workers), True
            _move(backlog, home, owner, partition, (begin <= now) & (end > now), scenario.restore)
        if lost and not returned and now >= alive_from:
            _move(backlog, owner, home, partition, (begin <= now) & (end > now), scenario.restore)
            owner, returned = home.copy(), True
        down = lost if crash <= now < alive_from else 0
        live = (begin <= now) & (end > now)
        speaks = _turns(speaks, scenario, rng)
        per_worker = np.bincount(owner[partition[live & speaks]], minlength=scenario.workers)
        backlog += per_worker * scenario.each * scenario.step_s
        capacity = np.full(scenario.workers, scenario.step_s)
        capacity[:down] = 0.0
        done = np.minimum(backlog, capacity)
        backlog -= done
        if down and moved:
            backlog[:down] = 0.0
        lag = backlog[owner[partition[live]]] if live.any() else np.zeros(1)
        stream_seconds += live.sum() * scenario.step_s
        p50, p99 = np.quantile(lag, (0.5, 0.99))
        busy = done.sum() / max(1e-9, capacity.sum())
        rows.append((float(live.sum()), float(busy), float(p50), float(p99), float(lag.max())))
    columns: FloatArray = np.array(rows, dtype=np.float64).T
    at: FloatArray = np.arange(steps, dtype=np.float64) * scenario.step_s
    return Outcome(
        at=at,
        open=columns[0],
        busy=columns[1],
        lag_p50=columns[2],
        lag_p99=columns[3],
        lag_max=columns[4],
        failed_at=crash,
        recovered_s=_recovery(at, columns[3], crash),
        worker_hours=scenario.workers * scenario.hours,
        stream_hours=float(stream_seconds) / 3600,
    )


def _meetings(scenario: Scenario, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """(begin, end) seconds of all meetings; two hours before the run begins are simulated too."""
    median, sigma, lead = 1800.0, 0.6, 7200.0
    mean = median * float(np.exp(sigma**2 / 2))
    span = scenario.hours * 3600 + lead
    count = rng.poisson(scenario.streams * span / mean)
    kind = rng.random(count)
    hour = np.floor(rng.random(count) * span / 3600) * 3600
    begin = np.where(
        kind < 0.5, hour, np.where(kind < 0.75, hour + 1800, hour + rng.random(count) * 3600)
    )
    begin = begin + rng.exponential(60.0, count) - lead
    length = np.minimum(median * np.exp(sigma * rng.standard_normal(count)), 4 * 3600.0)
    return begin, begin + length


def _turns(
    speaks: NDArray[np.bool_], scenario: Scenario, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Who speaks in the next step: a two-state chain with turns of 20 s in the mean."""
    stop = 1 - np.exp(-scenario.step_s / 20.0)
    share = scenario.speaking
    start = min(1.0, stop * share / max(1e-9, 1 - share))
    if start >= 1.0:  # pauses shorter than a step: drawn anew each time
        return rng.random(len(speaks)) < share
    draw = rng.random(len(speaks))
    after: NDArray[np.bool_] = np.where(speaks, draw >= stop, draw < start)
    return after


def _deal(home: NDArray[np.int64], lost: int, workers: int) -> NDArray[np.int64]:
    """The partitions of workers 0…lost-1 in turn to the others."""
    owner = home.copy()
    orphans = np.flatnonzero(home < lost)
    owner[orphans] = lost + np.arange(len(orphans)) % (workers - lost)
    return owner


def _move(
    backlog: FloatArray, old: NDArray[np.int64], new: NDArray[np.int64],
    partition: NDArray[np.int64], live: NDArray[np.bool_], restore: float,
) -> None:  # fmt: skip
    """Hand partitions over: their share of the waiting work, and reading each stream's window again."""
    changed = old != new
    counts = np.bincount(partition[live], minlength=len(old)).astype(float)
    held = np.bincount(old, weights=counts, minlength=len(backlog))
    share = np.divide(counts, held[old], out=np.zeros_like(counts), where=held[old] > 0)
    waiting = backlog[old] * share * changed
    np.subtract.at(backlog, old, waiting)
    np.add.at(backlog, new, waiting + counts * restore * changed)
    np.maximum(backlog, 0.0, out=backlog)


def _recovery(at: FloatArray, p99: FloatArray, crash: float) -> float | None:
    """Seconds from the failure until lag is again what it was in nine of ten steps before."""
    usual = max(1.0, float(np.quantile(p99[at < crash], 0.9)))
    worse = np.flatnonzero((at >= crash) & (p99 > usual))
    if not len(worse):
        return 0.0
    last = int(worse[-1]) + 1
    return float(at[last] - crash) if last < len(at) else None
