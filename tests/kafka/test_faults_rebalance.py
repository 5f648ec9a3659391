"""Workers join and leave while every partition is being spoken to."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.worker_process import (
    Records,
    WorkerProcess,
    assert_all_reflected,
    assert_revisions_sound,
    producer,
    wait_until,
    workers,
)

PARTITIONS = 4
STREAMS = {f"s{number}": number % PARTITIONS for number in range(8)}
"""Stream and its partition."""
MAX_STALL_SECONDS = 20.0


@contextmanager
def talk(topics: Any, said: dict[str, int]) -> Iterator[None]:
    """Every stream speaks ten times a second, until the end; ``said`` counts."""
    stop = threading.Event()

    def run() -> None:
        with producer(topics.bootstrap) as made:
            while not stop.wait(0.1):
                for stream, partition in STREAMS.items():
                    text = f"{stream}-{said[stream]}"
                    value = {"stream_id": stream, "text": text, "segment_id": text}
                    made.send(
                        topics.segments,
                        partition=partition,
                        key=stream.encode(),
                        value=json.dumps(value).encode(),
                    )
                    said[stream] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def writers(records: list[Any], partition: int) -> list[str]:
    """The device processes that wrote to the partition, in order, each run of one named once."""
    pids = [
        re.search(rb"pid (\d+)", record.value)[1].decode()  # type: ignore[index]
        for record in records
        if record.partition == partition
    ]
    return [pid for pid, _ in itertools.groupby(pids)]


def longest_gap(records: list[Any], partition: int) -> float:
    """Seconds between two results on a partition, by the broker's clock."""
    times = [record.timestamp / 1000 for record in records if record.partition == partition]
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def restores(worker: WorkerProcess) -> float:
    lines = worker.get("/metrics").splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if "longstream_kv_restores_total{" in line
    )


def assigned(worker: WorkerProcess) -> set[int]:
    """The partitions the worker said it was assigned last."""
    found = re.findall(r"assigned partitions \[([\d, ]*)\]", worker.log)
    return {int(number) for number in found[-1].split(",") if number.strip()} if found else set()


def test_partitions_move_with_workers_and_the_rest_keep_their_memory(
    topics: Any, tmp_path: Path
) -> None:
    """A second worker joins, then leaves in order: each partition has one writer at a time, a stream
    that stays is not opened again, and no partition is silent for long."""
    topics.create(PARTITIONS)
    said = dict.fromkeys(STREAMS, 0)
    with (
        workers(topics, tmp_path) as start,
        Records(topics.bootstrap, topics.summaries, partitions=PARTITIONS) as seen,
    ):
        with talk(topics, said):
            first = start("w1")
            wait_until(lambda: len(seen.summaries()) > 20, 40, first.log)
            second = start("w2")
            wait_until(lambda: len(assigned(first)) == len(assigned(second)) == 2, 60, first.log)
            moved, stayed = assigned(second), assigned(first)
            assert moved | stayed == set(range(PARTITIONS))
            records = seen.records[topics.summaries]
            wait_until(
                lambda: all(len(writers(list(records), number)) == 2 for number in moved), 40
            )
            time.sleep(2)
            assert restores(first) == 0, "what stayed kept its memory"
            assert restores(second) == sum(p in moved for p in STREAMS.values())
            assert second.stop() == 0, second.log
            wait_until(lambda: len(assigned(first)) == PARTITIONS, 60, first.log)
            wait_until(
                lambda: all(len(writers(list(records), number)) == 3 for number in moved), 40
            )
            # The device tells its counts once a second.
            back = sum(p in moved for p in STREAMS.values())
            wait_until(lambda: restores(first) == back, 10)
            assert restores(first) == back, "none was opened twice"
        wait_until(lambda: all(seen.covered(s) == n - 1 - n % 3 for s, n in said.items()), 40, said)
        found = list(seen.records[topics.summaries])
        for number in range(PARTITIONS):
            runs = writers(found, number)
            assert len(runs) == (3 if number in moved else 1), f"partition {number}: {runs}"
        gaps = {number: longest_gap(found, number) for number in range(PARTITIONS)}
        print(f"stayed {stayed}, moved {moved}, longest silence (s) {gaps}")
        assert max(gaps.values()) < MAX_STALL_SECONDS
        assert_revisions_sound(seen.events())
        for stream, count in said.items():
            ids = [f"{stream}-{number}" for number in range(count - count % 3)]
            assert_all_reflected(seen.summaries(), stream, ids)


def test_a_leaving_worker_waits_for_a_long_step_only_so_long(topics: Any, tmp_path: Path) -> None:
    """Its drain is bounded by stop_deadline_s; what was under way is done by the next worker."""
    topics.create(1)
    with (
        workers(topics, tmp_path, stop_deadline_s=3) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        for number in range(3):
            text = f"a-{number}" + (f" SLEEP 30 ONCE {tmp_path / 'x'}" if number == 1 else "")
            value = json.dumps({"stream_id": "a", "text": text, "segment_id": f"a-{number}"})
            made.send(topics.segments, key=b"a", value=value.encode())
        made.flush()
        first = start("w1")
        wait_until(lambda: (tmp_path / "x").exists(), 40, first.log)
        assert first.stop(timeout=15) == 0, first.log
        assert "not all segments in flight were finished" in first.log
        assert "Traceback" not in first.log
        assert "did not stop in time" not in first.log
        start("w2")
        wait_until(lambda: seen.covered("a") == 2, 40)
        assert_all_reflected(seen.summaries(), "a", ["a-0", "a-1", "a-2"])
