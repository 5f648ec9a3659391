"""The model's process dies, hangs, runs out of memory, or is killed by what it is given."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.models import digest
from tests.worker_process import (
    Records,
    assert_revisions_sound,
    end,
    producer,
    say,
    wait_until,
    workers,
)

STREAMS = ("a", "b", "c")


def named(seen: Records, stream: str) -> list[str]:
    """The segments the stream's summaries name, by the first word of their text."""
    texts = " ".join(e.items[-1].text for e in seen.summaries(stream))
    return sorted(word for word in texts.split() if word.startswith(f"{stream}-"))


def ids(stream: str, count: int) -> list[str]:
    return sorted(f"{stream}-{number}" for number in range(count))


def headers(letter: Any) -> dict[str, str]:
    return {k: v.decode() for k, v in letter.headers}


def finals(seen: Records) -> set[str]:
    return {e.stream_id for e in seen.summaries() if e.status == "final"}


def metric(page: str, name: str) -> float:
    """The sum of a metric's series."""
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_killed_device_is_started_again_and_nothing_is_lost(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=2) as dead,
    ):
        worker = start()
        for number in range(120):
            for stream in STREAMS:
                say(made, topics.segments, stream, f"{stream}-{number} SLEEP 0.01")
        end(made, topics.segments, *STREAMS)
        for kill in range(3):
            before = len(seen.summaries())
            wait_until(lambda n=before: len(seen.summaries()) > n + 6, 30, worker.log)  # type: ignore[misc]
            device = worker.device()
            device.kill()
            assert "final" not in {e.status for e in seen.summaries()}, "killed too late"
            wait_until(lambda n=kill: worker.log.count("model echo on") == n + 2, 20, worker.log)  # type: ignore[misc]
        wait_until(lambda: finals(seen) == {*STREAMS}, 60, worker.log)
        assert_revisions_sound(seen.events())
        for stream in STREAMS:
            assert named(seen, stream) == ids(stream, 120)
        assert not dead.records[topics.dlq]
        assert metric(worker.get("/metrics"), "longstream_device_restarts_total") == 3
        assert metric(worker.get("/metrics"), "longstream_rebalances_total") == 1, "others saw it"
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("HANG", "made no step in 1 s"),
        pytest.param("MEMORY", "MemoryError", marks=pytest.mark.slow),
        pytest.param("CRASH", "said CRASH", marks=pytest.mark.slow),
        pytest.param("EXIT", "exit code 9", marks=pytest.mark.slow),
    ],
)
def test_a_passing_fault_costs_nothing(topics: Any, tmp_path: Path, fault: str, said: str) -> None:
    """Hung, out of memory, crashed or gone: once, in the middle of a stream."""
    topics.create(1)
    texts = [f"a-{number}" for number in range(9)]
    texts[4] = f"a-4 {fault} ONCE {tmp_path / 'happened'}"
    with (
        workers(topics, tmp_path, device_stall_s=1) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        worker = start()
        say(made, topics.segments, "a", *texts)
        wait_until(lambda: seen.covered("a") == 8, 40, worker.log)
        assert (tmp_path / "happened").exists()
        assert said in worker.log
        assert_revisions_sound(seen.events())
        assert named(seen, "a") == ids("a", 9)
        assert not dead.records[topics.dlq]


def test_a_segment_that_kills_the_device_is_left_out(topics: Any, tmp_path: Path) -> None:
    """Three times with it, the last time alone: a dead letter, and everything else goes on."""
    topics.create(2)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=2) as dead,
    ):
        for number in range(12):
            for stream in STREAMS:
                poison = " EXIT" if (stream, number) == ("b", 4) else ""
                say(made, topics.segments, stream, f"{stream}-{number}{poison}")
        end(made, topics.segments, *STREAMS)
        worker = start()
        wait_until(lambda: finals(seen) == {*STREAMS}, 60, worker.log)
        assert_revisions_sound(seen.events())
        (letter,) = dead.records[topics.dlq]
        told = headers(letter)
        assert told["longstream.dlq.stage"] == "device"
        assert told["longstream.dlq.attempts"] == "3"
        assert told["longstream.dlq.retryable"] == "true"
        assert b"b-4 EXIT" in letter.value
        assert named(seen, "b") == sorted(set(ids("b", 12)) - {"b-4"})
        assert [named(seen, s) for s in "ac"] == [ids(s, 12) for s in "ac"]
        flagged = {e.stream_id for e in seen.summaries() if "segment_lost" in e.degraded}
        assert flagged == {"b"}
        assert metric(worker.get("/metrics"), "longstream_device_restarts_total") == 3


@pytest.mark.slow
def test_a_group_of_deadly_segments_is_left_out(topics: Any, tmp_path: Path) -> None:
    """Ten in a row, more than the device may be restarted: each a dead letter with its cause, and the
    same worker does what stands behind them."""
    topics.create(1)
    texts = [f"a-{n} EXIT" if 2 <= n < 12 else f"a-{n}" for n in range(18)]
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        worker = start()
        say(made, topics.segments, "a", *texts)
        end(made, topics.segments, "a")
        wait_until(lambda: finals(seen) == {"a"}, 120, worker.log)
        assert_revisions_sound(seen.events())
        assert named(seen, "a") == sorted({*ids("a", 18)} - {t.split()[0] for t in texts[2:12]})
        letters = dead.records[topics.dlq]
        assert [json.loads(letter.value)["text"] for letter in letters] == texts[2:12]
        for told in map(headers, letters):
            assert told["longstream.dlq.attempts"] == "3"
            assert "exit code 9" in told["__streams.errors.message"]
        assert worker.stop() == 0, worker.log


def test_a_broken_device_ends_the_worker_and_dooms_no_segment(topics: Any, tmp_path: Path) -> None:
    """It dies of everything: exit code 4, no dead letter, and a worker with a good one goes on."""
    topics.create(1)
    with (
        workers(topics, tmp_path, device_restarts=3) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        say(made, topics.segments, "a", *ids("a", 6))
        broken = start("broken", model="broken")
        assert broken.process.wait(40) == 4, broken.log
        assert "failed 4 times in a row without finishing anything" in broken.log
        assert not seen.events()
        start("good")
        wait_until(lambda: seen.covered("a") == 5, 30)
        assert named(seen, "a") == ids("a", 6)
        assert not dead.records[topics.dlq]


@pytest.mark.slow
def test_a_device_that_hangs_for_good_is_killed(topics: Any, tmp_path: Path) -> None:
    """SIGSTOP: it neither works nor beats, and does not hear SIGTERM."""
    topics.create(1)
    with (
        workers(topics, tmp_path, device_stall_s=1) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        worker = start()
        say(made, topics.segments, "a", "a-0", "a-1", "a-2 SLEEP 0.5")
        wait_until(lambda: seen.covered("a") == 2, 30, worker.log)
        device = worker.device()
        device.send_signal(signal.SIGSTOP)
        say(made, topics.segments, "a", "a-3", "a-4", "a-5")
        wait_until(lambda: seen.covered("a") == 5, 50, worker.log)
        assert not device.is_running()
        assert named(seen, "a") == ids("a", 6)


def test_a_missing_model_is_named(topics: Any, tmp_path: Path) -> None:
    topics.create(1)
    with workers(topics, tmp_path, model="none") as start:
        worker = start()
        assert worker.process.wait(30) == 3
        assert "no such model: none" in worker.log
        assert "Traceback (most recent call last)" not in worker.log.split("longstream worker:")[1]


@pytest.mark.slow
def test_a_corrupt_model_is_named_and_another_than_the_pinned_one_not_read(
    topics: Any, tmp_path: Path
) -> None:
    """A folder with torn weights, read by the real loader, if the pin lets it."""
    topics.create(1)
    model = tmp_path / "half"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{torn")
    with workers(topics, tmp_path, model=str(model), test_operator="") as start:
        worker = start(model_sha256=digest(model))
        assert worker.process.wait(90) == 3, worker.log
        assert "cannot load a model" in worker.log.split("longstream worker:")[1]
        for pin, words in (("", "is not pinned"), ("0" * 64, "nothing was loaded")):
            refused = start("refused", model_sha256=pin)
            assert refused.process.wait(90) == 3, refused.log
            assert words in refused.log.split("longstream worker:")[1]
            assert f"loading {model}" not in refused.log
