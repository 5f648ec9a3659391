"""What the soak measures and how it judges: stretches, growth, the balance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.events import Segment
from pipelines.lab.soak.plan import dealt, stretches
from pipelines.lab.soak.report import problems
from pipelines.lab.soak.resources import Sample, Sampler, plot, read_samples, summary


def talk(count: int, every_ms: int = 1000) -> list[Segment]:
    return [
        Segment(stream_id="t", text=f"word {n}", seq=n, start_ms=n * every_ms) for n in range(count)
    ]


def test_stretches_are_spread_over_the_transcript_and_streams_of_their_own() -> None:
    parts = stretches(talk(101), 3, seconds=20)
    assert [(part[0].seq, part[-1].seq) for part in parts] == [(0, 20), (40, 60), (80, 100)]
    assert [{s.stream_id for s in part} for part in parts] == [{"t-0"}, {"t-1"}, {"t-2"}]


def test_without_a_length_every_stream_gets_the_whole() -> None:
    assert [len(part) for part in stretches(talk(30), 2, None)] == [30, 30]
    assert [len(part) for part in stretches(talk(30), 1, 1e6)] == [30]


def test_minutes_of_a_transcript_without_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="no start times"):
        stretches([Segment(stream_id="t", text="x")], 1, 60)


def test_speech_is_dealt_out_to_streams_that_all_live_to_the_end() -> None:
    lines = [Segment(stream_id="t", text="one two three four five", seq=n) for n in range(60)]
    parts = dealt(lines, 7, 60)
    assert {(part[0].type, part[-1].type) for part in parts} == {("session_start", "session_end")}
    said = [line for part in parts for line in part[1:-1]]
    assert len(said) == 30, "two seconds each"
    assert sorted(line.start_ms for line in said) == list(range(0, 60_000, 2000))
    assert {part[-1].start_ms for part in parts} == {60_000}
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1
    with pytest.raises(ConfigError, match="2 minutes of speech"):
        dealt(lines, 7, 600)


def samples(rss: list[float], files: int = 10, name: str = "worker") -> list[Sample]:
    return [
        Sample(float(at), name, value, files, threads=3, tasks=5, lag=0)
        for at, value in enumerate(rss)
    ]


def test_warming_up_is_no_growth_but_a_leak_is() -> None:
    warming = summary(samples([50 + min(n, 20) for n in range(100)]))["worker"]
    assert warming["growth"] == 0
    leaking = summary(samples([100 + n for n in range(101)]))["worker"]
    # Warm: the middle of 34…50 s; the end: the middle of 84…100 s.
    assert leaking["rss_mb"] == {"warm": 142, "end": 192, "max": 200}
    assert leaking["growth"] == pytest.approx(192 / 142 - 1, abs=1e-4)


def result(found: list[Sample], **more: object) -> dict[str, object]:
    outcome = {"lag_at_end": 0, "dead_letters": {}, "uncovered_streams": []}
    return {**outcome, "processes": summary(found), **more}


def test_each_way_to_fail_is_named() -> None:
    flat = samples([100.0] * 60)
    assert problems(result(flat), 0.05) == []
    grown = samples([100.0 + n for n in range(60)])
    assert "memory of worker grew" in problems(result(grown), 0.05)[0]
    assert problems(result(samples([100.0 + n for n in range(60)], name="kafka")), 0.05) == []
    opened = [*samples([100.0] * 50), *samples([100.0] * 60, files=11)[50:]]
    assert "files of worker grew" in problems(result(opened), 0.05)[0]
    host = {"host_kv_bytes": 2.0, "host_kv_limit_bytes": 1.0}
    assert len(problems(result(flat, checked={"lost": 1, "reordered": 0}, kv=host), 0.05)) == 2
    bad = {"lag_at_end": 3, "dead_letters": {"wrong_type": 1}, "uncovered_streams": ["a"]}
    assert len(problems(result(flat, **bad), 0.05)) == 3


def test_samples_are_kept_on_disk_as_they_come_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    numbers = {"longstream_event_loop_tasks": 7.0, "longstream_consumer_lag_messages": 2.0}
    sampler = Sampler(lambda: {"worker": os.getpid(), "gone": 2**22 + 1}, lambda: numbers, 0, path)
    assert sampler()
    assert sampler()
    assert read_samples(path) == sampler.samples, "before it is closed"
    sampler.close()
    assert [(s.process, s.tasks, s.lag) for s in sampler.samples] == [("worker", 7, 2)] * 2
    plot(sampler.samples, tmp_path / "samples.png", "two looks")
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
