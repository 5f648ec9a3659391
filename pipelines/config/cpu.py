"""How much CPU this process may use: its affinity, and the quota of its control group.

A container limited to two CPUs on a host with 64 still sees 64 cores. Threads beyond the quota do not
add speed: the kernel stops all of them for the rest of each period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")
MOST_THREADS = 16
"""More threads than this were never measured to help a model of a few billion weights."""


@dataclass(frozen=True)
class CpuLimit:
    """``affinity``: cores the process may run on; ``quota``: CPUs its control group may use, None
    where there is no limit or it cannot be read."""

    affinity: int
    quota: float | None = None

    @property
    def cpus(self) -> float:
        """CPUs' worth of time per second that the process can get at most."""
        return min(self.affinity, self.quota) if self.quota is not None else float(self.affinity)

    @property
    def threads(self) -> int:
        """Threads that can all run at once, at least 1."""
        return max(1, min(int(self.cpus), MOST_THREADS))

    def __str__(self) -> str:
        if self.quota is not None and self.quota < self.affinity:
            return f"{self.quota:g} CPUs by the control group's quota"
        return f"{self.affinity} cores by affinity"


def cpu_limit(root: Path = ROOT, own: Path = SELF) -> CpuLimit:
    """The limit of this process. ``root``: where control groups are mounted; ``own``: the file that
    names this process's groups."""
    quotas = [quota for folder in _folders(root, own) if (quota := _quota(folder)) is not None]
    return CpuLimit(affinity(), min(quotas, default=None))


def affinity() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """The process's CPU groups and those above them: a limit above holds as well. Inside a container
    the path may not exist; its own group is then the root of what is mounted."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2
            tops = [root, root / "unified"]
        elif "cpu" in controllers.split(","):  # version 1
            tops = [root / controllers, root / "cpu"]
        else:
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    """CPUs that this group may use; None without a limit."""
    try:
        if (both := folder / "cpu.max").is_file():
            quota, _, period = both.read_text().partition(" ")
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        allowed = float(quota) / float(period or 100_000)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
    return allowed if allowed > 0 else None
