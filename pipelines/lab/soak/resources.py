"""What processes use over time: samples, whether they stay flat, and a plot.

A sample is one look at one process: resident memory, open files, threads, and for the worker the
tasks of its event loop. Flat means: the middle of the last sixth of the run is no higher than that
of the time between a third and a half of it (before that, caches and thread pools still fill).
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from operators.errors import ConfigError

MIB = 1 << 20
WARM = (1 / 3, 1 / 2)
LAST = (5 / 6, 1.0)
MEASURES = ("rss_mb", "files", "threads", "tasks")


@dataclass(frozen=True)
class Sample:
    """One look at one process, ``seconds`` after the start. ``tasks``: None where there are none."""

    seconds: float
    process: str
    rss_mb: float
    files: int
    threads: int
    tasks: int | None = None
    lag: int | None = None
    """Messages of the input not committed yet; on the worker's samples."""


def look(seconds: float, name: str, pid: int, **more: int | None) -> Sample | None:
    """A sample of a process, None if there is none."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            rss = process.memory_info().rss / MIB
            return Sample(seconds, name, rss, process.num_fds(), process.num_threads(), **more)
    except psutil.NoSuchProcess:
        return None


class Sampler:
    """Takes samples of ``pids()`` (name to process id) every ``every`` seconds, when it is called.

    ``numbers()`` gives what only the worker knows: its tasks and its lag. Samples are also written
    to ``path`` as they come, so that a run which is cut short leaves them.
    """

    def __init__(
        self,
        pids: Callable[[], Mapping[str, int]],
        numbers: Callable[[], Mapping[str, float]],
        every: float,
        path: Path | None = None,
    ) -> None:
        self.samples: list[Sample] = []
        self._pids, self._numbers = pids, numbers
        self._every = every
        self._started = time.monotonic()
        self._next = 0.0
        self._file = path.open("w", newline="") if path is not None else None
        self._csv = csv.writer(self._file) if self._file is not None else None
        if self._csv is not None:
            self._csv.writerow(Sample.__dataclass_fields__)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def __call__(self) -> bool:
        """Sample if it is time; whether it was."""
        now = self.seconds
        if now < self._next:
            return False
        self._next = now + self._every
        numbers = self._numbers()
        for name, pid in self._pids().items():
            worker = name == "worker"
            tasks = numbers.get("longstream_event_loop_tasks") if worker else None
            lag = numbers.get("longstream_consumer_lag_messages") if worker else None
            found = look(now, name, pid, tasks=_whole(tasks), lag=_whole(lag))
            if found is not None:
                self._keep(found)
        return True

    def _keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        if self._csv is not None and self._file is not None:
            self._csv.writerow(vars(sample).values())
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def read_samples(path: Path) -> list[Sample]:
    """Samples written by a :class:`Sampler`."""
    with path.open(newline="") as file:
        return [
            Sample(
                float(row["seconds"]),
                row["process"],
                float(row["rss_mb"]),
                int(row["files"]),
                int(row["threads"]),
                int(row["tasks"]) if row["tasks"] else None,
                int(row["lag"]) if row["lag"] else None,
            )
            for row in csv.DictReader(file)
        ]


def summary(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Per process and measure: its level when warm, at the end, its highest, and for memory the
    growth as a fraction of the warm level."""
    end = max((s.seconds for s in samples), default=0.0)
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(s.process for s in samples):
        mine = [s for s in samples if s.process == name]
        row: dict[str, Any] = {}
        for measure in MEASURES:
            values = [(s.seconds, getattr(s, measure)) for s in mine]
            values = [(at, value) for at, value in values if value is not None]
            if values:
                row[measure] = _levels(values, end)
        memory = row["rss_mb"]
        row["growth"] = round(memory["end"] / memory["warm"] - 1, 4)
        found[name] = row
    return found


def _levels(values: Sequence[tuple[float, float]], end: float) -> dict[str, float]:
    def middle(part: tuple[float, float]) -> float:
        chosen = [v for at, v in values if part[0] * end <= at <= part[1] * end]
        return statistics.median(chosen or [v for _, v in values])

    levels = {"warm": middle(WARM), "end": middle(LAST), "max": max(v for _, v in values)}
    return {name: round(value, 1) for name, value in levels.items()}


def plot(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Memory, open files, threads, tasks and lag over time, one line per process, as an image.

    Raises ConfigError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install 'longstream[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("rss_mb", "files", "threads", "tasks", "lag")
    titles = ("resident memory, MiB", "open files", "threads", "asyncio tasks", "lag, messages")
    figure, panels = pyplot.subplots(len(names), 1, figsize=(9, 12), sharex=True)
    for panel, name, label in zip(panels, names, titles, strict=True):
        for process in dict.fromkeys(s.process for s in samples):
            mine = [s for s in samples if s.process == process]
            points = [(s.seconds / 60, getattr(s, name)) for s in mine]
            points = [(at, value) for at, value in points if value is not None]
            if points:
                panel.plot(*zip(*points, strict=True), label=process, linewidth=1)
        panel.set_title(label, loc="left", fontsize=10)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8, ncols=4)
    panels[-1].set_xlabel("minutes")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
