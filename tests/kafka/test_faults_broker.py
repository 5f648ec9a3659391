"""Kafka goes away or loses a node, and comes back: the worker waits and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.broker.cluster import Cluster
from pipelines.broker.process import ProcessBroker
from tests.worker_process import (
    Records,
    assert_all_reflected,
    assert_revisions_sound,
    producer,
    say,
    wait_until,
    workers,
)

TopicsAt = Callable[[str], Any]


def ids(stream: str, count: int, start: int = 0) -> list[str]:
    return [f"{stream}-{number}" for number in range(start, start + count)]


def check(seen: Records, stream: str, count: int) -> None:
    assert_revisions_sound(seen.events())
    assert_all_reflected(seen.summaries(), stream, ids(stream, count))


# --- away, and back ------------------------------------------------------------------------------


def outage(own_kafka: ProcessBroker, topics: Any, folder: Path, seconds: float) -> None:
    """The only broker is killed with work under way and comes back: same worker, nothing missing."""
    topics.create(2)
    with workers(topics, folder, commit_interval_s=0.05) as start:
        with producer(topics.bootstrap) as made:
            for number in range(40):
                say(made, topics.segments, "a", f"a-{number} SLEEP 0.05")
                say(made, topics.segments, "b", f"b-{number} SLEEP 0.05")
        worker = start()
        worker.wait_for_log("assigned partitions")
        time.sleep(1.5)  # a few transactions
        own_kafka.kill()
        time.sleep(seconds)
        assert worker.process.poll() is None, worker.log
        own_kafka.restart()
        back = time.monotonic()
        with (
            producer(topics.bootstrap) as made,
            Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
        ):
            for stream in "ab":
                say(made, topics.segments, stream, *ids(stream, 20, start=40))
            assert seen.covered("a") < 59, "nothing was left to do after the outage"
            wait_until(lambda: seen.covered("a") == seen.covered("b") == 59, 120, worker.log)
            print(f"all done {time.monotonic() - back:.1f} s after the broker was back")
            assert_revisions_sound(seen.events())
            for stream in "ab":
                texts = " ".join(e.items[-1].text for e in seen.summaries(stream))
                named = [word for word in texts.split() if word.startswith(f"{stream}-")]
                assert sorted(named) == sorted(ids(stream, 60))
        assert worker.stop() == 0, worker.log


@pytest.mark.slow
def test_a_broker_away_for_a_minute(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """Longer than a transaction may last: the broker ends it, and the worker begins anew."""
    outage(own_kafka, topics_at(own_kafka.bootstrap), tmp_path, 60)


@pytest.mark.slow
def test_one_of_three_brokers_after_the_other_is_killed(
    cluster: Cluster, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """Each node in turn: leaders of partitions and the group's and transactions' coordinators."""
    topics = topics_at(cluster.bootstrap).create(4)
    streams = [f"s{number}" for number in range(6)]
    with (
        workers(topics, tmp_path, commit_interval_s=0.1) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries) as seen,
    ):
        worker = start()
        count = 0
        for node in cluster.nodes:
            for stream in streams:
                say(made, topics.segments, stream, *ids(stream, 9, start=count))
            node.kill()
            killed = time.monotonic()
            for stream in streams:
                say(made, topics.segments, stream, *ids(stream, 9, start=count + 9))
            count += 18
            wait_until(
                lambda n=count: all(seen.covered(s) == n - 1 for s in streams),  # type: ignore[misc]
                120,
                worker.log,
            )
            print(f"all done {time.monotonic() - killed:.1f} s after {node.description} was killed")
            node.restart()
            time.sleep(8)  # until it is in sync again
        for stream in streams:
            check(seen, stream, count)
        assert worker.stop() == 0, worker.log
