"""The real engine, on a toy model, behind the real broker: killed once on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.kafka_settings import ENGINE
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
COUNT = 8


def test_the_engine_covers_everything_through_a_kill(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    with (
        workers(topics, tmp_path, **ENGINE) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=2) as seen,
    ):
        for number in range(COUNT):
            for stream in STREAMS:
                say(made, topics.segments, stream, f"{stream}-{number} is what was said")
        end(made, topics.segments, *STREAMS)
        worker = start("w1")
        wait_until(lambda: len(seen.translations()) >= 6, 40, worker.log)
        worker.kill()
        start("w2")
        finals = {"final"}
        wait_until(
            lambda: {e.stream_id for e in seen.summaries() if e.status in finals} == {*STREAMS}, 40
        )
        assert_revisions_sound(seen.events())
        for stream in STREAMS:
            assert seen.covered(stream) == COUNT - 1
            units = [e.unit_id for e in seen.translations() if e.stream_id == stream]
            assert sorted(units) == sorted(
                f"{stream}-{number} is what was said" for number in range(COUNT)
            )


def test_a_killed_workers_streams_go_on_from_their_snapshots(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    kept = {"snapshot_url": str(tmp_path / "kept"), "snapshot_interval_s": 0}
    half = COUNT // 2
    with (
        workers(topics, tmp_path, **ENGINE, **kept) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=2) as seen,
    ):
        worker = start("w1")
        for number in range(half):
            for stream in STREAMS:
                say(made, topics.segments, stream, f"{stream}-{number} is what was said")
        made.flush()
        wait_until(lambda: len(seen.translations()) == half * len(STREAMS), 60, worker.log)
        worker.kill()
        for number in range(half, COUNT):
            for stream in STREAMS:
                say(made, topics.segments, stream, f"{stream}-{number} is what was said")
        end(made, topics.segments, *STREAMS)
        start("w2")
        wait_until(lambda: sum(e.status == "final" for e in seen.summaries()) == len(STREAMS), 60)
        assert_revisions_sound(seen.events())
        assert {e.kv.restored for e in seen.summaries() if e.status == "final"} == {"snapshot"}
        assert {seen.covered(stream) for stream in STREAMS} == {COUNT - 1}
        assert not [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]


def test_a_silent_stream_gets_its_summary_from_the_next_worker(topics: Any, tmp_path: Path) -> None:
    """Said and committed; killed while an update by time is still to come. Nobody speaks again."""
    topics.create(1)
    with (
        workers(topics, tmp_path, **ENGINE) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=1) as seen,
    ):
        worker = start("w1", operator__update_interval_s=600)
        say(made, topics.segments, "a", "a-0 is what was said")
        wait_until(lambda: len(seen.translations()) == 1, 40, worker.log)
        worker.kill()
        assert not seen.summaries()
        heir = start("heir", operator__update_interval_s=1)
        wait_until(lambda: seen.covered("a") == 0, 40, heir.log)
        (summary,) = seen.summaries()
        assert (summary.trigger, summary.kv.restored) == ("interval", "replay")
