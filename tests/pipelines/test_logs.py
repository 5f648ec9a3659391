"""What a worker's log leaves out."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from pipelines.config.logs import MANY, Repeats


def record(text: str, *args: object, name: str = "aiokafka.client") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, text, args, None)


def test_a_clients_complaint_is_heard_once_in_a_while_and_counted() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    heard = []
    for tenths in range(250):
        now[0] = tenths / 10
        one = record("cannot reach node %s", 1)
        if repeats.filter(one):
            heard.append((now[0], one.getMessage()))
    assert heard == [
        (0.0, "cannot reach node 1"),
        (10.0, "cannot reach node 1 (and 99 more like it before)"),
        (20.0, "cannot reach node 1 (and 99 more like it before)"),
    ]


def test_other_complaints_and_other_voices_are_not_held_back() -> None:
    repeats = Repeats(lambda: 0.0)
    assert repeats.filter(record("one"))
    assert repeats.filter(record("another"))
    assert repeats.filter(record("cannot reach node %s", 1))
    assert repeats.filter(record("cannot reach node %s", 2)), "another broker is another complaint"
    assert not repeats.filter(record("one"))
    for _ in range(3):
        assert repeats.filter(record("one", name="pipelines.worker.app"))


def test_what_is_remembered_is_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for number in range(10 * MANY):
        assert repeats.filter(record(f"stream {number}"))
    assert len(repeats._seen) <= MANY


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    """They hold what people said, and passwords."""
    code = f"""
import logging
from pipelines.config.logs import configure_logging
configure_logging({log_format!r}, "info")
def publish(word):
    raise ValueError("refused")
try:
    publish("hun" + "ter2")
except ValueError:
    logging.getLogger("asyncio").exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ValueError" in done.stderr
    assert "refused" in done.stderr
    assert "hunter2" not in done.stderr
