"""How many threads the model computes with, step by step, on a machine that others use as well.

The threads of a forward meet at a barrier some hundred times per token. Where one of them has to wait
for a core, all wait with it: with other work on two cores two threads were seen to do half of what one
does. Such stalls show in a step's CPU time: two threads that use less than one core's worth do no more
than one would.

So: after :data:`STALLED` such steps in a row the governor goes to one thread. (Of more than two threads
it takes half away where they use less than half of their cores *and* wait for them: a step's serial part
looks the same otherwise.) While it is not itself kept from its cores it tries more threads after a
while, and stays there if nothing stalls; each attempt in vain doubles the time to the next, up to
:data:`LONGEST_S`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STALLED = 3
"""Steps in a row with a low use of CPU before the threads become fewer."""
SHORTEST_S, LONGEST_S = 5.0, 80.0
"""Seconds until more threads are tried, after the first stall and after many."""
MEASURABLE_S = 0.002
"""Shorter steps say nothing about cores."""
PROVEN_S = 5.0
"""After so many seconds without a stall an attempt with more threads has not been in vain."""
WAITED = 0.2
"""Share of a step that its threads have to wait for cores for a low use of CPU to be a stall."""
FREE = 0.7
"""Use of each thread's core from which on more threads are worth an attempt."""


class Starved:
    """Seconds that this process was ready to run and had no core: in each interval between two calls,
    those of the thread that waited longest. Always 0 where the system does not tell (not Linux)."""

    def __init__(self, folder: str = "/proc/self/task") -> None:
        self._folder, self._before = folder, self._read(folder)
        self._seconds = 0.0

    def __call__(self) -> float:
        """The sum so far."""
        now = self._read(self._folder)
        waits = [ns - self._before[task] for task, ns in now.items() if task in self._before]
        self._seconds += max(0, max(waits, default=0)) / 1e9
        self._before = now
        return self._seconds

    @staticmethod
    def _read(folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            for task in os.listdir(folder):
                with open(f"{folder}/{task}/schedstat") as file:
                    found[task] = int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            pass  # a thread that has just ended, or a system without such files
        return found


class Governor:
    """Chooses a number of threads from 1 to ``most``. ``set_threads`` applies it. The clocks, in
    seconds: ``wall``, ``cpu`` of the process with all its threads, ``starved`` as in Starved."""

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None],
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
        starved: Callable[[], float] | None = None,
    ) -> None:
        self.most, self.threads = most, most
        self.stalls = 0
        """Times that threads were taken away."""
        self._set, self._wall, self._cpu = set_threads, wall, cpu
        self._starved = starved or Starved()
        self._low = 0
        self._pause = SHORTEST_S
        self._since = wall()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step of the model's work. Mutates ``threads``."""
        many = self.threads > 2  # for two threads and one the clocks of CPU time say enough
        wall, cpu, starved = self._wall(), self._cpu(), self._starved() if many else 0.0
        yield
        took = self._wall() - wall
        self._note(took, self._cpu() - cpu, self._starved() - starved if many else 0.0)

    def _note(self, wall: float, cpu: float, starved: float) -> None:
        if wall < MEASURABLE_S:
            return
        now, used, threads = self._wall(), cpu / wall, self.threads
        waits = starved > WAITED * wall and 2 * used < threads
        if threads > 1 and (used < 1 or waits):
            self._low += 1
            if self._low >= STALLED:
                self.stalls += 1
                self._use(1 if used < 1 else threads // 2, now)
                self._pause = min(LONGEST_S, 2 * self._pause)
            return
        self._low = 0
        quiet = now - self._since
        if threads < self.most and quiet >= self._pause and used >= FREE * threads:
            self._use(min(self.most, 2 * threads), now)
        elif threads == self.most and quiet >= PROVEN_S:
            self._pause = SHORTEST_S

    def _use(self, threads: int, now: float) -> None:
        self.threads, self._since, self._low = threads, now, 0
        self._set(threads)
