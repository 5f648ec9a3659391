"""A real Prometheus watches two real workers, of which one is stopped: alerts fire, and clear."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.dev.broker.base import free_ports
from tests.prometheus_process import RULES, Prometheus, hurried
from tests.test_dashboards import program
from tests.worker_process import WorkerProcess, producer, say, wait_until, workers

HURRY = 60
"""Ten minutes of the rules are ten seconds here."""
WATCHED = {"WorkerDown", "WorkersMissing", "LagGrowing"}


def test_hurried_rules_differ_in_their_times_only() -> None:
    rule = {"alert": "A 10m", "expr": "x[10m] offset 2h > 5", "for": "90s", "labels": {"b": "5m"}}
    assert hurried([rule], 60) == [rule | {"expr": "x[10s] offset 120s > 5", "for": "1s"}]


@pytest.mark.slow
def test_alerts_fire_when_a_worker_stops_and_clear_when_it_is_back(
    kafka: str, topics: Any, tmp_path: Path
) -> None:
    topics.create()
    rules = {
        name: hurried(yaml.safe_load((RULES / name).read_text()), HURRY)
        for name in ("rules.yml", "alerts.yml")
    }
    ports = free_ports(2)
    targets = [f"127.0.0.1:{port}" for port in ports]
    fired: dict[str, float] = {}
    with (
        workers(topics, tmp_path, in_flight_per_partition=16) as start,
        producer(kafka) as made,
        Prometheus(program("prometheus"), tmp_path / "prometheus", targets, rules) as prometheus,
    ):

        def begin(number: int) -> WorkerProcess:
            return start(f"w{number}", http_port=ports[number])

        def up() -> bool:
            return len(prometheus.query("longstream_device_up == 1")) == 2

        def note() -> set[str]:
            firing = prometheus.firing()
            for name in firing:
                fired.setdefault(name, time.monotonic())
            return firing

        first = begin(0)
        first.wait_for_log("assigned partitions", 60)
        begin(1)
        wait_until(up, 90)
        # The comparison with ten (hurried) minutes ago must see two workers.
        wait_until(lambda: len(prometheus.query("longstream:workers:up offset 12s == 2")) == 1, 60)
        assert not note() & WATCHED
        began = time.monotonic()
        first.kill()
        number = 0
        while not set(fired) >= WATCHED and time.monotonic() < began + 120:
            for stream in range(16):  # 40 a second; one worker does five
                say(made, topics.segments, f"s{stream}", f"{number} SLEEP 0.2")
            number += 1
            time.sleep(0.4)
            note()
        assert set(fired) >= WATCHED, fired
        begin(0)
        wait_until(up, 90)
        wait_until(lambda: not note() & {"WorkerDown", "WorkersMissing"}, 90, fired)
        # Nothing new comes: what waits is worked off, so the lag grows no more.
        wait_until(lambda: "LagGrowing" not in note(), 120, fired)
