"""Replay without a broker: the partition function, the timeline, the pacing, what is sent."""

import io
import math
import sys
from types import SimpleNamespace

import pytest

from operators.errors import ConfigError, LongstreamError
from operators.events import Segment
from pipelines.cli.replaying import Due, Pacer, Replay, Sent, merged, parse_speed, timeline
from pipelines.kafka.tools import KafkaError, partition_for
from pipelines.wire.codec import decode_segment, read_transcript


def said(text="one two three four five", stream="a", seq=None, start=None, end=None, **more):
    return Segment(stream_id=stream, text=text, seq=seq, start_ms=start, end_ms=end, **more)


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class FakeProducer:
    """Answers every send at once with the next offset, or with an error for one text."""

    def __init__(self, refuse=None):
        self.records = []
        self._refuse = refuse

    def send(self, topic, key, value, headers, partition):
        if self._refuse and self._refuse in value:
            return SimpleNamespace(is_done=True, get=self._fail)
        self.records.append((topic, key, value, partition))
        stored = SimpleNamespace(partition=partition, offset=len(self.records) - 1)
        return SimpleNamespace(is_done=True, get=lambda timeout: stored)

    def _fail(self, timeout):
        raise KafkaError("disk full")


@pytest.mark.parametrize("stream", ["", "a", "ami-es2006b", "Übung 7", "x" * 255, "会议"])
@pytest.mark.parametrize("partitions", [1, 4, 7, 1000])
def test_partition_is_kafka_pythons_default(stream, partitions):
    from kafka.partitioner.default import DefaultPartitioner

    cluster = SimpleNamespace(
        topics=lambda: {"t"},
        partitions_for_topic=lambda topic: set(range(partitions)),
        available_partitions_for_topic=lambda topic: set(range(partitions)),
    )
    key = stream.encode()
    theirs = DefaultPartitioner().partition("t", stream, key, None, None, cluster)
    assert partition_for(stream, partitions) == theirs


def test_partition_needs_partitions():
    with pytest.raises(ValueError, match="at least 1"):
        partition_for("a", 0)


@pytest.mark.parametrize(
    ("text", "speed"), [("20x", 20.0), ("0.5X", 0.5), ("3", 3.0), ("max", math.inf)]
)
def test_speed(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0x", "-1", "nan", "inf"])
def test_wrong_speed_is_refused(text):
    with pytest.raises(ConfigError, match="--speed"):
        parse_speed(text)


def test_given_times_count_from_the_first():
    dues = list(timeline([said(start=60_000, end=61_000), said(start=75_500)], end=False))
    assert [due.seconds for due in dues] == [0.0, 15.5]


def test_without_times_the_words_decide():
    """Five words at 150 a minute are two seconds."""
    dues = list(timeline([said(), said("one two three"), said()], end=False))
    assert [due.seconds for due in dues] == pytest.approx([0.0, 2.0, 3.2])


def test_time_never_goes_back():
    dues = list(timeline([said(start=5_000), said(start=9_000), said(start=6_000)], end=False))
    assert [due.seconds for due in dues] == [0.0, 4.0, 4.0]


def test_every_stream_is_ended_once():
    ended = said(stream="b", type="session_end", text="")
    segments = [said(stream="a", seq=6), said(stream="b"), ended]
    marks = [d.segment for d in timeline(segments) if d.segment.type == "session_end"]
    assert [(mark.stream_id, mark.seq) for mark in marks] == [("b", None), ("a", 7)]
    assert not [d for d in timeline([said()], end=False) if d.segment.type == "session_end"]


def test_files_are_merged_by_due_time():
    slow = timeline([said("one " * 5, "a"), said("two", "a")], end=False)
    quick = timeline([said("1", "b"), said("2", "b"), said("3", "b")], end=False)
    assert [due.segment.text.strip()[:3] for due in merged([slow, quick])] == [
        "one",
        "1",
        "2",
        "3",
        "two",
    ]


def test_pacing_is_measured_from_the_start():
    clock = Clock()
    pacer = Pacer(20.0, clock, clock.sleep)
    for due in (0.0, 20.0, 40.0):
        pacer.wait_until(due)
        clock.now += 0.25  # work between two segments must not add up
    assert clock.slept == pytest.approx([0.75, 0.75])


def test_max_speed_never_sleeps():
    clock = Clock()
    pacer = Pacer(math.inf, clock, clock.sleep)
    pacer.wait_until(0.0)
    pacer.wait_until(1e9)
    assert clock.slept == []


def test_what_is_sent_can_be_read_back_by_the_worker():
    producer, seen = FakeProducer(), []
    replay = Replay(producer, "in", 4, seen.append)
    segments = [said("hello", "ami", seq=0, segment_id="ami-0"), said("there", "ami", seq=1)]
    replay.run(timeline(segments), Pacer(math.inf))
    assert (replay.acked, replay.marks, replay.streams) == (2, 1, {"ami"})
    assert {partition for *_, partition in producer.records} == {partition_for("ami", 4)}
    back = [
        decode_segment(key, value, partition=0, offset=i, max_text_bytes=100)
        for i, (_, key, value, _) in enumerate(producer.records)
    ]
    assert [(s.text, s.seq, s.type) for s in back] == [
        ("hello", 0, "segment"),
        ("there", 1, "segment"),
        ("", 2, "session_end"),
    ]
    assert seen[1] == Sent(segments[1], partition_for("ami", 4), 1)


def test_a_refused_record_is_an_error_and_is_not_counted():
    replay = Replay(FakeProducer(refuse=b"poison"), "in", 4)
    with pytest.raises(LongstreamError, match=r"did not take s1: .*disk full"):
        replay.run(
            iter([Due(0, said("fine")), Due(0, said("poison", segment_id="s1"))]), Pacer(math.inf)
        )
    assert replay.acked == 1


def test_an_interrupted_replay_counts_what_arrived():
    class Interrupted(Pacer):
        def wait_until(self, seconds):
            if seconds > 0:
                raise KeyboardInterrupt

    replay = Replay(FakeProducer(), "in", 4)
    with pytest.raises(KeyboardInterrupt):
        replay.run(timeline([said(), said()]), Interrupted(1.0))
    assert replay.acked == 1


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"first\n\nsecond\n")))
    assert [s.text for s in read_transcript("-", "live")] == ["first", "second"]
