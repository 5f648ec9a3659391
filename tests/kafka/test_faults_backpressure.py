"""Input far faster than the model: it waits in Kafka, not in memory, and is worked off in the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaProducer

from tests.worker_process import (
    Records,
    WorkerProcess,
    assert_revisions_sound,
    wait_until,
    workers,
)

PARTITIONS = 2
STREAMS = [f"s{number}" for number in range(10)]
PADDING = "x" * 25_000
GROWTH_BYTES = 96 << 20
"""What both processes may grow: Kafka's fetch buffers, 64 records a partition, commit groups. The
long run's input is several times as large."""


@dataclass
class Watch:
    """What was seen of a worker while it was under pressure."""

    rss: dict[str, list[int]] = field(default_factory=lambda: {"worker": [], "device": []})
    lag: list[float] = field(default_factory=list)
    depth: list[float] = field(default_factory=list)

    def growth(self, name: str) -> int:
        return max(self.rss[name]) - self.rss[name][0]


def series(page: str, name: str) -> float:
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextmanager
def watched(worker: WorkerProcess) -> Iterator[Watch]:
    """Memory, lag and queue twice a second."""
    watch, stop = Watch(), threading.Event()
    processes = {"worker": psutil.Process(worker.process.pid), "device": worker.device()}

    def look() -> None:
        for name, process in processes.items():
            watch.rss[name].append(process.memory_info().rss)
        page = worker.get("/metrics")
        watch.lag.append(series(page, "longstream_consumer_lag_messages"))
        watch.depth.append(series(page, "longstream_queue_depth"))

    def run() -> None:
        while not stop.wait(0.5):
            look()

    look()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def pour(topics: Any, count: int, step: float, start: int = 0) -> float:
    """``count`` segments of every stream as fast as they go; segments per second."""
    began = time.monotonic()
    made = KafkaProducer(bootstrap_servers=topics.bootstrap, batch_size=1 << 20, linger_ms=20)
    sent = []
    for number in range(start, start + count):
        for at, stream in enumerate(STREAMS):
            value = {
                "stream_id": stream,
                "text": f"{stream}-{number} SLEEP {step}",
                "segment_id": f"{stream}-{number}",
                "padding": PADDING,
            }
            sent.append(
                made.send(
                    topics.segments,
                    partition=at % PARTITIONS,
                    key=stream.encode(),
                    value=json.dumps(value).encode(),
                )
            )
    made.flush()
    took = time.monotonic() - began
    for future in sent:
        future.get(timeout=60)  # raises for one that Kafka did not take
    made.close()
    return count * len(STREAMS) / took


def run(
    topics: Any, folder: Path, count: int, step: float, seconds: float, held: int, poll: int
) -> None:
    """``count`` segments per stream of ``step`` seconds' work each, all sent before the model has done
    half of them. Read ahead of a partition are at most ``held`` and what one ``poll`` brought with
    them."""
    topics.create(PARTITIONS)
    total = count * len(STREAMS)
    with (
        workers(
            topics, folder, in_flight_per_partition=held, broker_max_poll_records=poll
        ) as start,
        Records(topics.bootstrap, topics.summaries, partitions=PARTITIONS) as seen,
    ):
        worker = start()
        pour(topics, 3, step)
        wait_until(lambda: all(seen.covered(s) == 2 for s in STREAMS), 40, worker.log)
        with watched(worker) as watch:
            began = time.monotonic()
            rate = pour(topics, count - 3, step, start=3)
            done = sum(seen.covered(stream) + 1 for stream in STREAMS)
            left = total - done
            assert left > total / 2, "the model kept up: no pressure at all"
            while min(seen.covered(stream) for stream in STREAMS) < count // 2:
                assert time.monotonic() - began < seconds, worker.log
                time.sleep(0.2)
            spread = [
                [seen.covered(s) for at, s in enumerate(STREAMS) if at % PARTITIONS == number]
                for number in range(PARTITIONS)
            ]
            last = count - 1 - count % 3
            wait_until(lambda: all(seen.covered(s) == last for s in STREAMS), seconds, worker.log)
            took = time.monotonic() - began
            wait_until(lambda: watch.lag[-1] == 0 == watch.depth[-1], 10, watch.lag)
        growth = {name: watch.growth(name) for name in watch.rss}
        page = worker.get("/metrics")
        print(
            f"{total} segments, {total * len(PADDING) / 1e6:.0f} MB, sent at {rate:.0f}/s, done at "
            f"{total / took:.0f}/s; lag up to {max(watch.lag):.0f}, in flight up to "
            f"{max(watch.depth):.0f}; growth (MB) "
            + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in growth.items())
        )
        assert max(watch.lag) > left / 2, "the lag was not to be seen"
        assert max(watch.depth) <= (held + poll) * PARTITIONS
        assert max(growth.values()) < GROWTH_BYTES
        assert series(page, "longstream_rebalances_total") == 1, "kicked out of the group"
        for covered in spread:  # oldest first: no stream of a partition runs away from the others
            assert max(covered) - min(covered) <= 12, covered
        assert_revisions_sound(seen.events())
        for stream in STREAMS:
            texts = " ".join(e.items[-1].text for e in seen.summaries(stream))
            named = [word for word in texts.split() if word.startswith(f"{stream}-")]
            assert sorted(named) == sorted(f"{stream}-{number}" for number in range(last + 1))


def test_input_faster_than_the_model_waits_in_kafka(topics: Any, tmp_path: Path) -> None:
    run(topics, tmp_path, 30, 0.05, 90, held=16, poll=20)


@pytest.mark.slow
def test_memory_stays_flat_under_much_more_input(topics: Any, tmp_path: Path) -> None:
    run(topics, tmp_path, 450, 0.03, 400, held=64, poll=100)
