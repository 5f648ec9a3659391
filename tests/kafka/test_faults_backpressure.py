"""Input far faster than the model: it waits in Kafka, not in memory, and is worked off in the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipelines.wire.codec import decode_event
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
"""What both processes may grow: Kafka's fetch buffers, 64 records a partition, commit groups."""
SUMMED = 3
"""Segments that one summary of the echo covers."""


@dataclass
class Watch:
    """What was seen of a worker while it was under pressure."""

    rss: dict[str, list[int]] = field(default_factory=lambda: {"worker": [], "device": []})
    lag: list[float] = field(default_factory=list)
    lag_seconds: list[float] = field(default_factory=list)
    depth: list[float] = field(default_factory=list)
    rebalances: list[float] = field(default_factory=list)

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
        watch.lag_seconds.append(series(page, "longstream_consumer_lag_seconds"))
        watch.depth.append(series(page, "longstream_queue_depth"))
        watch.rebalances.append(series(page, "longstream_rebalances_total"))

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


@contextmanager
def speaker(topics: Any) -> Iterator[Callable[[int, str], None]]:
    """A function that sends one segment of every stream; at the end Kafka has taken them all."""
    made = KafkaProducer(bootstrap_servers=topics.bootstrap, batch_size=1 << 20, linger_ms=20)
    sent = []

    def speak(number: int, command: str) -> None:
        for at, stream in enumerate(STREAMS):
            name = f"{stream}-{number}"
            value = {"stream_id": stream, "text": f"{name} {command}", "segment_id": name}
            sent.append(
                made.send(
                    topics.segments,
                    partition=at % PARTITIONS,
                    key=stream.encode(),
                    value=json.dumps({**value, "padding": PADDING}).encode(),
                )
            )

    yield speak
    made.flush()
    for future in sent:
        future.get(timeout=60)  # raises for one that Kafka did not take
    made.close()


def pour(topics: Any, count: int, step: float, start: int = 0) -> float:
    """``count`` segments of every stream as fast as they go; segments per second."""
    began = time.monotonic()
    with speaker(topics) as speak:
        for number in range(start, start + count):
            speak(number, f"SLEEP {step}")
    return count * len(STREAMS) / (time.monotonic() - began)


def flood(topics: Any, command: str, rate: float, seconds: float, start: int) -> int:
    """Segments of every stream at ``rate`` a second in all for so long; the number of the next."""
    began = time.monotonic()
    number = start
    with speaker(topics) as speak:
        while (now := time.monotonic() - began) < seconds:
            while (number - start) * len(STREAMS) < now * rate:
                speak(number, command)
                number += 1
            time.sleep(0.02)
    return number


def members(topics: Any) -> set[str]:
    """Ids of the consumer group's members: one that was thrown out comes back under another."""
    admin = KafkaAdminClient(bootstrap_servers=topics.bootstrap)
    try:
        group = topics.prefix.rstrip(".")
        return {member["member_id"] for member in admin.describe_groups([group])[group]["members"]}
    finally:
        admin.close()


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
    run(topics, tmp_path, 30, 0.1, 120, held=16, poll=20)


@dataclass(frozen=True)
class Flood:
    """What was sent while the model was slow, and what it did meanwhile."""

    sent: int
    done: int
    seconds: float
    caught_up_s: float
    samples: int
    """How many of the watch's samples fall into it."""


@pytest.mark.slow
def test_a_hundred_times_faster_than_the_model_for_a_minute(topics: Any, tmp_path: Path) -> None:
    """A model that takes half a second for a segment gets a hundred times as many as it can do. Then
    the flood ends, the model is quick, and all is worked off."""
    topics.create(PARTITIONS)
    slow = tmp_path / "slow"
    slow.touch()
    command = f"SLEEP 0.5 WHILE {slow}"
    with (
        workers(topics, tmp_path, operator__targets="fr") as start,
        Records(
            topics.bootstrap, topics.summaries, topics.translations, partitions=PARTITIONS
        ) as seen,
    ):
        worker = start()
        worker.wait_for_log("serving ")
        translations = seen.records[topics.translations]
        with speaker(topics) as speak:
            for number in range(SUMMED):
                speak(number, command)
        wait_until(lambda: bool(translations), 30, worker.log)
        began, first = time.monotonic(), len(translations)
        wait_until(lambda: len(translations) == SUMMED * len(STREAMS), 60, worker.log)
        speed = (len(translations) - first) / (time.monotonic() - began)
        group = members(topics)
        with watched(worker) as watch:
            before, began = len(translations), time.monotonic()
            count = flood(topics, command, 110 * speed, 62, start=SUMMED)
            flooded, done = time.monotonic() - began, len(translations) - before
            samples = len(watch.lag)
            assert members(topics) == group, "kicked out of the group"
            slow.unlink()
            began = time.monotonic()
            wait_until(lambda: watch.lag[-1] == 0 == watch.depth[-1], 400, watch.lag)
            caught_up = time.monotonic() - began
        assert members(topics) == group, "kicked out of the group"
        sent = (count - SUMMED) * len(STREAMS)
        assert_pressed(watch, Flood(sent, done, flooded, caught_up, samples))
        assert_all_told(seen, topics, count)


def assert_pressed(watch: Watch, flood: Flood) -> None:
    """Memory flat, lag growing and told, the group as it was."""
    size = flood.sent * len(PADDING)
    growth = {name: watch.growth(name) for name in watch.rss}
    lag = watch.lag[: flood.samples]
    print(
        f"{flood.sent} segments, {size / 1e6:.0f} MB, sent at {flood.sent / flood.seconds:.0f}/s for "
        f"{flood.seconds:.0f} s, done at {flood.done / flood.seconds:.2f}/s meanwhile: "
        f"{flood.sent / flood.done:.0f} times; lag up to {max(watch.lag):.0f} messages and "
        f"{max(watch.lag_seconds) / PARTITIONS:.0f} s, in flight up to {max(watch.depth):.0f}; "
        f"caught up in {flood.caught_up_s:.0f} s; "
        + ", ".join(
            f"{name} {watch.rss[name][0] / 1e6:.0f} MB, in the flood up to "
            f"{max(watch.rss[name][: flood.samples]) / 1e6:.0f}, in all {max(watch.rss[name]) / 1e6:.0f}"
            for name in watch.rss
        )
    )
    assert flood.seconds >= 60
    assert flood.sent >= 100 * flood.done
    assert max(growth.values()) < size / 5, growth
    quarters = [lag[len(lag) * part // 4 - 1] for part in (1, 2, 3, 4)]
    assert sorted(set(quarters)) == quarters, f"the lag did not grow: {quarters}"
    assert max(watch.lag) > 0.95 * (flood.sent - flood.done)
    assert max(watch.lag_seconds) > flood.seconds / 2
    assert set(watch.rebalances) == {1}, "kicked out of the group"


def assert_all_told(seen: Records, topics: Any, count: int) -> None:
    """Every segment is in one translation and one summary, in order, and no revision is missing."""
    summaries, translations = seen.records[topics.summaries], seen.records[topics.translations]
    wait_until(lambda: len(translations) == count * len(STREAMS), 30, len(translations))
    wait_until(lambda: len(summaries) == count // SUMMED * len(STREAMS), 30, len(summaries))
    told = [decode_event(r.value) for r in translations]
    summed = [decode_event(r.value) for r in summaries]
    assert_revisions_sound([*told, *summed])
    for stream in STREAMS:
        ids = [f"{stream}-{number}" for number in range(count)]
        assert [e.unit_id for e in told if e.stream_id == stream] == ids
        texts = " ".join(e.items[-1].text for e in summed if e.stream_id == stream)
        named = [word for word in texts.split() if word.startswith(f"{stream}-")]
        assert named == ids[: count // SUMMED * SUMMED]
