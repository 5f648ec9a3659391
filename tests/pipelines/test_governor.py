"""Threads on a shared machine: limits read from the system, fewer in a stall, more after it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from pipelines.config.cpu import CpuLimit, affinity, cpu_limit
from pipelines.device.governor import LONGEST_S, SHORTEST_S, STALLED, Governor, Starved
from tests.engine import assert_same_logits, toy_decoder


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> CpuLimit:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return cpu_limit(tmp_path / "cgroup", tmp_path / "own")


V1 = "4:memory:/other\n1:cpu,cpuacct:/pod/box\n"
CASES = {
    "version 2": ("0::/pod/box\n", {"pod/box/cpu.max": "150000 100000"}, 1.5),
    "no limit": ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000"}, None),
    "a tighter limit above": (
        "0::/pod/box\n",
        {"pod/box/cpu.max": "400000 100000", "pod/cpu.max": "50000 100000"},
        0.5,
    ),
    "inside a container": ("0::/pod/box\n", {"cpu.max": "200000 100000"}, 2.0),
    "version 1": (
        V1,
        {
            "cpu,cpuacct/pod/box/cpu.cfs_quota_us": "50000\n",
            "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "version 1, no limit": (
        V1,
        {
            "cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "garbage": ("0::/pod/box\nwhat\n", {"pod/box/cpu.max": "a lot"}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_quota_of_the_control_group_is_read(tmp_path: Path, name: str) -> None:
    own, files, quota = CASES[name]
    assert groups(tmp_path, own, files).quota == quota


def test_threads_follow_quota_and_affinity(tmp_path: Path) -> None:
    assert CpuLimit(64, 2.0).threads == 2
    assert CpuLimit(64, 2.9).threads == 2
    assert CpuLimit(64, 0.5).threads == 1
    assert CpuLimit(4, 16.0).threads == 4
    assert CpuLimit(64).threads == 16
    assert cpu_limit(tmp_path / "none", tmp_path / "nothing") == CpuLimit(affinity())
    assert "quota" in str(CpuLimit(64, 2.0))
    assert "affinity" in str(CpuLimit(2, 4.0))


class Machine:
    """Clocks of a process whose steps take ``wall`` seconds and use ``use`` cores, ``waiting`` of the
    time without one."""

    def __init__(self, threads: int) -> None:
        self.time = self.cpu = self.starved = 0.0
        self.set: list[int] = []
        self.governor = Governor(
            threads,
            self.set.append,
            wall=lambda: self.time,
            cpu=lambda: self.cpu,
            starved=lambda: self.starved,
        )

    def steps(self, count: int, use: float, waiting: float = 0.0, wall: float = 0.5) -> None:
        for _ in range(count):
            with self.governor.step():
                self.time += wall
                self.cpu += wall * use
                self.starved += wall * waiting


def test_a_stall_ends_in_one_thread_and_quiet_brings_the_others_back() -> None:
    machine = Machine(2)
    machine.steps(20, use=1.9)
    machine.steps(1, use=0.3)
    machine.steps(5, use=1.8)  # a single slow step is no stall
    assert machine.set == []
    machine.steps(STALLED, use=0.3)
    assert (machine.set, machine.governor.threads, machine.governor.stalls) == ([1], 1, 1)
    machine.steps(60, use=0.4)  # its one thread does not get its core: no attempt
    assert machine.set == [1]
    machine.steps(2, use=0.95)
    assert machine.set == [1, 2]
    machine.steps(20, use=1.9)
    assert machine.governor.threads == 2


def test_attempts_in_vain_become_rare() -> None:
    machine, tried = Machine(2), []
    machine.steps(STALLED, use=0.3)
    for _ in range(2000):
        one = machine.governor.threads == 1
        machine.steps(1, use=1.0 if one else 0.5, wall=0.1)  # the other core is taken
        if one and machine.governor.threads == 2:
            tried.append(machine.time)
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[0] > SHORTEST_S
    assert gaps[-1] > LONGEST_S
    assert len(tried) < 8


def test_many_threads_are_halved_only_where_they_wait() -> None:
    machine = Machine(16)
    machine.steps(20, use=3.0)  # a small model: its steps are mostly serial
    assert machine.set == []
    machine.steps(STALLED, use=6.0, waiting=0.5)
    assert machine.set == [8]
    machine.steps(STALLED, use=0.5, waiting=0.9)
    assert machine.set == [8, 1]


def test_waiting_for_a_core_is_told_by_the_system(tmp_path: Path) -> None:
    for task, ns in (("1", 5_000_000_000), ("2", 0)):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(f"7 {ns} 3\n")
    starved = Starved(str(tmp_path))
    (tmp_path / "1" / "schedstat").write_text("7 6000000000 3\n")
    (tmp_path / "2" / "schedstat").write_text("7 250000000 3\n")
    assert starved() == pytest.approx(1.0)
    assert starved() == pytest.approx(1.0)
    assert Starved(str(tmp_path / "nowhere"))() == 0.0


def test_the_number_of_threads_changes_no_text() -> None:
    """It may change the last bits of a sum, as other rows in the batch may."""
    layout = KvLayout(sinks=4, window=64, slack=32, branch_tokens=32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            model = toy_decoder()
            cache = model.new_cache(layout, slots=2, branches=2)
            slots = [cache.allocate(), cache.allocate()]
            for at in range(0, 96, 32):
                model.forward(
                    "prefill", cache, [Row(s, [at + i for i in range(32)]) for s in slots]
                )
            rows = [Row(s, [1, 2, 3], cache.fork(s), num_logits=3) for s in slots]
            found.append(model.forward("decode", cache, rows))
        finally:
            torch.set_num_threads(1)
    assert_same_logits(*found)
