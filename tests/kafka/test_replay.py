"""Replay against a real broker: what arrives, where, in which order, and what happens without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from pipelines.dev.demo.plan import meeting_files
from pipelines.kafka.tools import partition_for
from pipelines.wire.codec import decode_segment, read_transcript
from pipelines.worker.exit_codes import BROKER

ROOT = Path(__file__).parents[2]


def longstream(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
    )


def records(bootstrap: str, topic: str, partitions: int) -> list:
    """All records of a topic, each partition in its order."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        consumer.seek_to_beginning(*places)
        found: list = []
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=1000).values():
                found.extend(batch)
        return found
    finally:
        consumer.close()


def test_a_meeting_arrives_whole_in_order_on_its_partition(topics):
    topics.create(partitions=4)
    file = meeting_files()[0]
    done = longstream(
        "replay", str(file), "--bootstrap", topics.bootstrap, "--topic", topics.segments
    )
    assert done.returncode == 0, done.stderr
    sent = list(read_transcript(file))
    assert f"{len(sent)} segments of 1 streams acknowledged" in done.stdout
    got = records(topics.bootstrap, topics.segments, 4)
    stream_id = sent[0].stream_id
    assert {(r.key.decode(), r.partition) for r in got} == {
        (stream_id, partition_for(stream_id, 4))
    }
    assert dict(got[0].headers)["schema"] == b"transcript.segment.v1"
    back = [
        decode_segment(
            r.key,
            r.value,
            r.headers,
            partition=r.partition,
            offset=r.offset,
            max_text_bytes=1 << 20,
        )
        for r in got
    ]
    assert back[:-1] == sent
    assert (back[-1].type, back[-1].seq) == ("session_end", len(sent))


def test_standard_input_as_plain_text_without_an_end(topics):
    topics.create(partitions=2)
    done = longstream(
        *("replay", "-", "--stream", "live", "--no-end"),
        *("--bootstrap", topics.bootstrap, "--topic", topics.segments),
        stdin="hello there\n\nhow are you\n",
    )
    assert done.returncode == 0, done.stderr
    got = records(topics.bootstrap, topics.segments, 2)
    assert [(r.key, b"how are you" in r.value) for r in got] == [(b"live", False), (b"live", True)]


def test_a_broken_line_is_found_before_anything_is_sent(topics, tmp_path):
    topics.create(partitions=2)
    file = tmp_path / "broken.jsonl"
    file.write_text('{"text": "fine"}\n{"text": [7]}\n')
    done = longstream(
        "replay", str(file), "--bootstrap", topics.bootstrap, "--topic", topics.segments
    )
    assert done.returncode == 1
    assert "broken.jsonl, line 2" in done.stderr
    assert records(topics.bootstrap, topics.segments, 2) == []


def test_a_missing_topic_is_named(topics):
    done = longstream(
        "replay", str(meeting_files()[0]), "--bootstrap", topics.bootstrap, "--topic", "not.there"
    )
    assert done.returncode == 1
    assert "there is no topic not.there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("replay", "-"), ("watch", "a")])
def test_no_broker_is_a_sentence(command):
    done = longstream(*command, "--bootstrap", "127.0.0.1:1", stdin="x\n")
    assert done.returncode == BROKER
    assert "no Kafka answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
