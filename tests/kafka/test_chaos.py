"""A short chaos run: every kind of accident once, on a broker of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ("--kills", "3", "--between", "1,3", "--session-timeout", "6", "--rate", "15")


@pytest.mark.parametrize(
    ("delivery", "restarts"),
    [("exactly_once", 1), pytest.param("at_least_once", 0, marks=pytest.mark.slow)],
)
def test_nothing_is_lost(tmp_path: Path, delivery: str, restarts: int) -> None:
    command = [sys.executable, "-m", "pipelines.cli.main", "chaos", "--model", "echo", *SHORT]
    command += ["--delivery", delivery, "--broker-restarts", str(restarts)]
    command += ["--max-stall", "120"]  # how long anything takes here says nothing
    command += ["--idle-timeout", "20"]
    done = subprocess.run(
        [*command, "--keep", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if "no Kafka could be started" in done.stderr:
        if os.environ.get("LONGSTREAM_REQUIRE_KAFKA") == "1":
            pytest.fail(done.stderr, pytrace=False)
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["kills"], summary["broker_restarts"]) == (3, restarts)
    assert summary["segments"] > 50
    assert (summary["silent_streams"], summary["not_ended"]) == (3 + 30, 0)
    assert summary["questions"] > 5
    assert summary["partitions"] == [6, 8]
    assert (summary["stranger_exit_code"], summary["growth_refused"]) == (2, True)
    # The first assignment, and what the accidents caused: those close together count as one.
    assert summary["rebalances"] > 1
    assert summary["lost"] == summary["reordered"] == summary["duplicates_after_dedupe"] == 0
