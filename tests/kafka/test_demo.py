"""The demo as its user runs it, on a real broker with a device that only echoes (no model)."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(kafka) -> Iterator:
    """Starts ``longstream demo`` on the session's broker; what is left of it is killed."""
    started: list[subprocess.Popen] = []

    def go(*args: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen:
        environment = {
            **os.environ,
            "LONGSTREAM_BOOTSTRAP": kafka,
            "LONGSTREAM_TEST_OPERATOR": "tests.echo_device:make",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", "demo", *args],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment,
            # A suite started in the background of a shell inherits "ignore SIGINT".
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def until_said(process: subprocess.Popen, text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the demo ended without saying {text!r}")


def test_everything_sent_is_counted_back(start, tmp_path):
    file = tmp_path / "run.md"
    options = ("--segments", "5", "--translate", "fr,de", "--transcript-out", str(file), "--json")
    process = start(*options, stderr=subprocess.PIPE)
    output, said = process.communicate(timeout=120)
    numbers = json.loads(output)  # and nothing else
    assert (numbers["streams"], numbers["segments_in"], numbers["segments_covered"]) == (3, 14, 14)
    assert (numbers["translations_out"], numbers["dead_letters"]) == (28, 0)
    assert numbers["answers_out"] == 3  # each meeting was asked something
    assert said.count("asked: ") == 3
    # The echo has no cache to evict from and generates nothing: exactly that is held against it.
    assert process.returncode == 1
    failed = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert sum("nothing was evicted" in line for line in failed) == 3
    assert sum("the worker's metrics did not give" in line for line in failed) == len(failed) - 3
    assert json.dumps(numbers, ensure_ascii=False) in file.read_text()


@pytest.mark.slow
def test_without_java_and_docker_it_runs_and_says_what_is_not_promised(tmp_path):
    """On the embedded broker, which is fetched on first use."""
    (tmp_path / "bin").mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("LONGSTREAM_", "JAVA_"))},
        "PATH": str(tmp_path / "bin"),
        "LONGSTREAM_TEST_OPERATOR": "tests.echo_device:make",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "demo", "--segments", "5", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )
    numbers = json.loads(done.stdout)
    assert (numbers["segments_covered"], numbers["answers_out"]) == (14, 3)
    assert "has no transactions" in done.stderr
    assert "nothing is guaranteed here about lost, repeated or reordered results" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_demo(start, how):
    process = start("--segments", "30", "--speed", "1x")
    until_said(process, "ami-es2016c")
    children = family(process)
    assert any("worker" in child.cmdline() for child in children)
    process.send_signal(how)
    process.communicate(timeout=40)  # reads on: a full pipe must not be what keeps it
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(children, timeout=40)
    assert alive == []


def test_a_worker_that_cannot_start_ends_the_demo_with_its_reason(start):
    process = start("--translate", "french")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "'french'" in output
    assert "Traceback" not in output


def test_the_page_stays_until_ctrl_c_at_a_terminal(kafka, tmp_path):
    """At a terminal only: the tests above have none, and end by themselves."""
    master, slave = pty.openpty()
    environment = {
        **os.environ,
        "LONGSTREAM_BOOTSTRAP": kafka,
        "LONGSTREAM_TEST_OPERATOR": "tests.echo_device:make",
    }
    process = subprocess.Popen(
        [*[sys.executable, "-m", "pipelines.cli.main", "demo"], "--segments", "3", "--plain"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(slave)
    said = ""
    try:
        with open(master, encoding="utf-8", errors="replace") as terminal:
            for line in terminal:
                said += line
                if "until Ctrl-C" in line:
                    break
            assert "until Ctrl-C" in said, said  # in one line, however narrow the terminal is
            address = re.search(r"http://127\.0\.0\.1:\d+/", said)
            assert address is not None
            with urllib.request.urlopen(address[0] + "v1/streams", timeout=30) as answer:
                streams = json.loads(answer.read())["streams"]
            assert len(streams) >= 3
            children = family(process)
            process.send_signal(signal.SIGINT)
            process.wait(60)
            assert process.returncode == 1  # the echo's run has its usual complaints
            _, alive = psutil.wait_procs(children, timeout=40)
            assert alive == []
    finally:
        process.kill()
        process.wait()
