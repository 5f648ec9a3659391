"""llama.cpp's server on the same answers (``xllamacpp``; extra: peers).

Every stream has a slot for its window, where one answer follows the other, and there are as many slots,
eight at least, for answers that see nothing but their instruction; all slots share a forward (continuous
batching). What a slot has in memory is used again in one of two ways:

* ``prefix``: the tokens that the old and the new prompt begin with (the pinned prefix, once the window
  rolls): exact;
* ``shift``: besides, stretches of the window are moved to where the new prompt has them (the server's
  ``n_cache_reuse``). The kept keys and values remember what was evicted, as ours do.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import httpx

from pipelines.lab.benchmarks.meeting_job import Ask, Job
from pipelines.lab.benchmarks.peer_result import Took
from pipelines.lab.llamacpp_server import serve, stop

ALONE = 8
"""Slots for answers that see nothing but their instruction, at least: as many as ours has branches."""
ROOM = 640
"""Tokens of instruction and answer behind the window."""
PATIENCE_S = 3600.0
STRETCH = 32
"""Shortest stretch of tokens that a shifted cache moves."""


class LlamaCpp:
    """One server for ``streams`` windows of ``window`` tokens behind ``prefix`` pinned ones. ``url``: of
    a server that runs, in place of one of its own. Raises ConfigError without the extra."""

    precision = "the file's own types, KV f16"

    def __init__(
        self,
        file: Path,
        *,
        streams: int,
        window: int,
        prefix: int,
        threads: int,
        url: str = "",
    ) -> None:
        context = -(-(prefix + window + ROOM) // 256) * 256
        self._streams, self._alone = streams, max(streams, ALONE)
        parallel = self._streams + self._alone
        self._url = url or serve(file, parallel=parallel, context=context, threads=threads)
        if not url:
            weakref.finalize(self, stop, self._url)

    def run(self, job: Job, shift: bool) -> Took:
        """The whole job. Before the clock starts each stream has its window in memory."""
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:

            def ask(slot: int, prompt: Sequence[int], length: int) -> tuple[int, int]:
                return _complete(client, slot, prompt, length, STRETCH if shift else 0)

            for slot, stream in enumerate(job.streams):
                ask(slot, [*job.prefix, *stream.transcript[: stream.warm]], 1)
            began = perf_counter()
            done = self._all(job, ask)
            seconds = perf_counter() - began
        prefilled, generated = (sum(counts) for counts in zip(*done, strict=True))
        return Took(seconds, len(job.asks), prefilled, generated)

    def _all(
        self, job: Job, ask: Callable[[int, Sequence[int], int], tuple[int, int]]
    ) -> list[tuple[int, int]]:
        alone: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        for one in job.asks:
            if one.alone:
                alone.put(one)

        def of_stream(slot: int) -> list[tuple[int, int]]:
            asks = [one for one in job.streams[slot].asks if not one.alone]
            return [ask(slot, job.prompt(one), one.output) for one in asks]

        def of_all(slot: int) -> list[tuple[int, int]]:
            done: list[tuple[int, int]] = []
            while True:
                try:
                    one = alone.get_nowait()
                except queue.Empty:
                    return done
                done.append(ask(slot, job.prompt(one), one.output))

        with ThreadPoolExecutor(self._streams + self._alone) as pool:
            running = [pool.submit(of_stream, slot) for slot in range(self._streams)]
            running += [pool.submit(of_all, self._streams + at) for at in range(self._alone)]
            return [pair for each in running for pair in each.result()]


def _complete(
    client: httpx.Client, slot: int, prompt: Sequence[int], length: int, reuse: int
) -> tuple[int, int]:
    """Tokens run as a prompt, and generated."""
    reply = client.post(
        "/completion",
        json={
            "prompt": list(prompt),
            "n_predict": length,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": True,
            "n_cache_reuse": reuse,
            "id_slot": slot,
        },
    )
    reply.raise_for_status()
    said = reply.json()
    made, timings = int(said["tokens_predicted"]), said["timings"]
    if made != length:
        raise RuntimeError(f"llama.cpp generated {made} tokens instead of {length}")
    return int(timings["prompt_n"]), made
