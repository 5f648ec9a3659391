"""``longstream soak`` on a real broker, short: all that goes in comes out, and it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def soak(kafka: str, path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "LONGSTREAM_BOOTSTRAP": kafka,
        "LONGSTREAM_TEST_OPERATOR": "tests.echo_device:make",
        "LONGSTREAM_COMMIT_INTERVAL_S": "0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "soak", str(path), "--every", "0.5", *args],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.slow
def test_a_short_soak_balances_and_one_with_a_refused_segment_does_not(
    kafka: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.jsonl"
    lines = [{"seq": n, "text": f"word {n}", "start_ms": n * 1000} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = soak(kafka, path, "--speed", "20x", "--streams", "2", "--max-growth", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["streams"], result["segments"]) == (2, 80)
    assert (result["lag_at_end"], result["uncovered_streams"]) == (0, [])
    assert {"soak", "worker", "device"} <= set(result["processes"])
    assert result["processes"]["worker"]["tasks"]["max"] > 1

    lines[10]["text"] = "FAIL"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = soak(kafka, path, "--speed", "max", "--max-growth", "1")
    assert done.returncode == 1
    assert "FAILED: dead letters: 1 asked_for" in done.stderr
