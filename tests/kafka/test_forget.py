"""Forgetting a stream, on a real broker: what is gone, what is said to stay, and its next life."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from pipelines.storage.snapshots import folder_of
from tests.kafka_settings import ENGINE, environment_of
from tests.worker_process import (
    Records,
    assert_revisions_sound,
    end,
    producer,
    say,
    wait_until,
    workers,
)

ROOT = Path(__file__).parents[2]


def forget(topics: Any, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "forget", *args],
        cwd=ROOT,
        env=environment_of(topics, **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def last_values(topics: Any, name: str) -> dict[bytes, bytes | None]:
    """The last value of every key of a topic of one partition."""
    reader = KafkaConsumer(
        bootstrap_servers=topics.bootstrap,
        isolation_level="read_committed",
        group_id=None,
        enable_auto_commit=False,
    )
    place = TopicPartition(name, 0)
    reader.assign([place])
    reader.seek_to_beginning(place)
    values: dict[bytes, bytes | None] = {}
    end_offset = reader.end_offsets([place])[place]
    while reader.position(place) < end_offset:
        for record in reader.poll(timeout_ms=500).get(place, ()):
            values[record.key] = record.value
    reader.close()
    return values


def first_offset(topics: Any, name: str) -> int:
    reader = KafkaConsumer(
        bootstrap_servers=topics.bootstrap, group_id=None, enable_auto_commit=False
    )
    try:
        place = TopicPartition(name, 0)
        return int(reader.beginning_offsets([place])[place])
    finally:
        reader.close()


def files_of(kept: Path, stream: str) -> list[Path]:
    found = kept.glob(f"app-*/{folder_of(stream)}/**/*")
    return [path for path in found if path.is_file()]


def test_marks_wait_for_a_worker_and_ended_streams_expire(topics: Any, tmp_path: Path) -> None:
    """Without transactions, and with a state retention of two seconds."""
    topics.create(1)
    with (
        workers(topics, tmp_path, delivery="at_least_once", state_retention_h=0.0006) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        say(made, topics.segments, "anna", *(f"anna-{number}" for number in range(4)))
        alone = forget(topics, "anna", "--yes", "--timeout", "1")
        assert alone.returncode == 1
        assert "no worker of app_id" in alone.stderr
        say(made, topics.segments, "bert", *(f"bert-{number}" for number in range(4)))
        end(made, topics.segments, "bert")
        say(made, topics.segments, "carl", *(f"carl-{number}" for number in range(4)))
        worker = start()
        wait_until(lambda: seen.covered("carl") >= 0, 40, worker.log)
        gone = {b"anna", b"bert"}
        wait_until(
            lambda: {k for k, v in last_values(topics, topics.sessions).items() if v} == {b"carl"},
            60,  # what was left of the two goes as well, in the same time again
            worker.log,
        )
        assert gone <= set(last_values(topics, topics.sessions))
        assert seen.covered("anna") == 2
        assert last_values(topics, topics.latest)[b"anna"] is None
        assert worker.stop() == 0, worker.log


def test_a_forgotten_stream_is_gone_and_may_start_anew(topics: Any, tmp_path: Path) -> None:
    topics.create(1)
    kept = tmp_path / "kept"
    settings = {**ENGINE, "snapshot_url": str(kept), "snapshot_interval_s": 0}
    with (
        workers(topics, tmp_path, **settings) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=1) as seen,
    ):
        worker = start("w1")
        for stream in ("anna", "bert"):
            for number in range(5):
                say(made, topics.segments, stream, f"{stream}-{number} has a secret to tell")
        wait_until(lambda: len(seen.translations()) == 10, 60, worker.log)
        wait_until(lambda: seen.covered("anna") >= 0 and seen.covered("bert") >= 0, 40, worker.log)
        wait_until(lambda: bool(files_of(kept, "anna") and files_of(kept, "bert")), 20, worker.log)

        looked = forget(topics, "anna", "--dry-run")
        assert f"{topics.segments}: 5 records of the stream" in looked.stdout, looked.stderr
        refused = forget(topics, "anna")
        assert refused.returncode == 2
        assert "say --yes" in refused.stderr
        assert last_values(topics, topics.sessions)[b"anna"] is not None

        done = forget(topics, "anna", "--yes")
        assert done.returncode == 0, done.stderr + worker.log
        # Her five stand at the start of the partition, so Kafka can delete them; the mark cannot go.
        assert f"{topics.segments}: 1 records left, gone within 14.0 days" in done.stdout
        assert first_offset(topics, topics.segments) == 5
        assert "anna: forgotten" in done.stdout
        sessions, latest = (last_values(topics, t) for t in (topics.sessions, topics.latest))
        assert sessions[b"anna"] is None
        assert latest[b"anna"] is None
        assert sessions[b"bert"] is not None
        assert b"secret" not in b"".join(v or b"" for k, v in sessions.items() if k != b"bert")
        assert not files_of(kept, "anna")
        assert files_of(kept, "bert")

        # A new worker does not know it either; its next life is another epoch, from revision 1.
        worker.kill()
        worker = start("w2")
        say(made, topics.segments, "anna", *(f"again {number} of my life" for number in range(5)))
        end(made, topics.segments, "anna")
        wait_until(lambda: any(e.status == "final" for e in seen.summaries("anna")), 60, worker.log)
        assert_revisions_sound(seen.events())
        new = [e for e in seen.summaries("anna") if e.epoch == 1]
        assert new[0].revision == 1
        assert new[-1].covers.to_seq == 4
        assert not any("anna-" in item.text for e in new for item in e.items)
