"""Tokens per second beside busy neighbours and under a quota, as a share of the fair share of CPU.

With ``n`` cores and ``k`` neighbours that each keep one core busy, a process has a fair share of
``n / (k + 1)`` cores, at most all; under a quota of half a core, half of one. A side's *fair share* is
its speed there over that part of its own speed alone: 1 where it loses nothing but the CPU time that
others take. Both sides run in processes of their own, one after the other, and alone again before every
case, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from operators.errors import ConfigError
from pipelines import models
from pipelines.config.cpu import affinity
from pipelines.lab.benchmarks.harness import TOY, Result, Run

MODEL = "smollm2-135m"
NEIGHBOURS = (1, 2, 4)
HALF = 0.5
SECONDS = 12.0
BUSY = "while True: pass"
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))


def run(run: Run) -> Result:
    """``worst_fair_share`` of ours and ``worst_fair_share_llamacpp``; ``cases``: tokens/s and share of
    every side in every case; ``quota_by``: whether the half core is a control group's quota or one core
    shared with a neighbour."""
    seconds, neighbours = (0.5, (1,)) if run.quick else (SECONDS, NEIGHBOURS)
    sides = {"longstream": run.model if run.model == TOY else str(run.folder())}
    missing = {}
    if run.model == TOY:
        missing["llama.cpp"] = "the toy model has no GGUF file"
    elif find_spec("xllamacpp") is None:
        missing["llama.cpp"] = "not installed: pip install longstream[peers]"
    else:
        sides["llama.cpp"] = str(models.gguf_file(run.model))
    cases: dict[str, Result] = {}
    with quota(HALF) as group:
        for side, model in sides.items():
            cases[side] = _cases(run, side, model, neighbours, seconds, group)
    return {
        "worst_fair_share": _worst(cases["longstream"]),
        "worst_fair_share_llamacpp": _worst(cases["llama.cpp"]) if "llama.cpp" in cases else None,
        "quota_by": "control group" if group else "affinity: one core shared with one neighbour",
        "seconds_per_case": seconds,
        "missing": missing,
        "cases": cases,
    }


def _cases(
    run: Run, side: str, model: str, neighbours: Sequence[int], seconds: float, group: Path | None
) -> Result:
    found: Result = {}
    cores = affinity()
    with Contender(side, model) as process:
        for count in neighbours:
            alone = process.speed(seconds)
            with busy(count):
                beside = process.speed(seconds)
            found[f"{count} busy"] = _case(alone, beside, fair_cores(cores, count) / cores)
            run.say(f"{side}, {count} busy neighbours: {found[f'{count} busy']}")
        alone = process.speed(seconds)
    core = None if group else {0}
    with Contender(side, model, group, core) as process, busy(0 if group else 1, core):
        half = process.speed(seconds)
    found["half a core"] = _case(alone, half, HALF / cores)
    run.say(f"{side}, half a core: {found['half a core']}")
    return found


def fair_cores(cores: int, neighbours: int) -> float:
    """Cores' worth of time that a process is owed beside so many busy ones."""
    return min(float(cores), cores / (neighbours + 1)) if neighbours >= 0 else float(cores)


def _case(alone: float, here: float, part: float) -> Result:
    share = here / (alone * part) if alone else 0.0
    return {"alone": round(alone, 2), "here": round(here, 2), "fair_share": round(share, 2)}


def _worst(cases: Result) -> float:
    return min(float(case["fair_share"]) for case in cases.values())


class Contender:
    """A side in its own process: a context manager."""

    def __init__(
        self, side: str, model: str, group: Path | None = None, cores: set[int] | None = None
    ) -> None:
        module = "pipelines.lab.benchmarks.contender"
        command = [sys.executable, "-m", module, side, model, "0", *([str(group)] if group else [])]
        self._process = subprocess.Popen(  # noqa: S603
            _pinned(command, cores),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.threads = int(self._answer()["threads"])

    def speed(self, seconds: float) -> float:
        """Tokens per second over so many seconds from now."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return float(answer["tokens"] / answer["s"])

    def _answer(self) -> Result:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # the libraries print, too
                found: Result = json.loads(line)
                return found
        raise ConfigError(
            f"a side ended with code {self._process.wait()}; run it by hand to see why"
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes, too


@contextlib.contextmanager
def busy(count: int, cores: set[int] | None = None) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    command = _pinned([sys.executable, "-c", BUSY], cores)
    neighbours = [subprocess.Popen(command) for _ in range(count)]  # noqa: S603
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@contextlib.contextmanager
def quota(cpus: float) -> Iterator[Path | None]:
    """A control group that may use so many CPUs; None where none can be made."""
    folder = _make_group(cpus)
    try:
        yield folder
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make_group(cpus: float) -> Path | None:
    for top in GROUPS:
        folder = top / "longstream-bench"
        try:
            if not (top / "cgroup.procs").exists():
                continue
            folder.mkdir(exist_ok=True)
            if (folder / "cpu.max").exists():
                (folder / "cpu.max").write_text(f"{int(cpus * 100_000)} 100000")
            else:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text(str(int(cpus * 100_000)))
            return folder
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return None


def _pinned(command: list[str], cores: set[int] | None) -> list[str]:
    """The command limited to these cores (Linux)."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command
