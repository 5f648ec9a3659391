"""The worker end to end on a real broker, with the echo operator in place of a model."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from pipelines.kafka.topics import TopicSpec, create_topics
from tests.worker_process import (
    Records,
    assert_all_reflected,
    assert_revisions_sound,
    end,
    producer,
    say,
    wait_until,
    workers,
)


def ids(stream: str, count: int, start: int = 0) -> list[str]:
    return [f"{stream}-{number}" for number in range(start, start + count)]


def test_results_arrive_with_key_headers_and_partition(topics: Any, tmp_path: Path) -> None:
    topics.create()
    outputs = (topics.summaries, topics.translations, topics.latest)
    with (
        workers(topics, tmp_path, operator__targets="fr,de") as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, *outputs) as seen,
    ):
        start()
        value = {"text": "bonjour", "segment_id": "x-0"}
        sent = made.send(
            topics.segments,
            key=b"x",
            value=json.dumps(value).encode(),
            headers=[("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
        ).get(10)
        say(made, topics.segments, "x", *ids("x", 5, start=1))
        for stream in ("a", "b", "c"):
            say(made, topics.segments, stream, *ids(stream, 6))
        wait_until(lambda: len(seen.records[topics.summaries]) == 8, 30, seen.records)
        wait_until(lambda: len(seen.records[topics.translations]) == 48, 10, seen.records)
        wait_until(lambda: len(seen.records[topics.latest]) >= 4, 10)

        first = next(r for r in seen.records[topics.translations] if b"bonjour" in r.value)
        assert first.key == b"x"
        assert first.partition == sent.partition
        assert dict(first.headers) == {
            "content-type": b"application/json",
            "schema": b"insight.translation.v1",
            "source-offset": str(sent.offset).encode(),
            "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        event = seen.translations()[0]
        assert event.event_id
        assert abs(event.emitted_at_ms - time.time() * 1000) < 60_000
        for record in seen.records[topics.summaries]:
            body = json.loads(record.value)
            assert body["source"]["topic"] == topics.segments
            assert body["source"]["partition"] == record.partition
        only = [e for e in seen.events() if e not in seen.records[topics.latest]]
        revisions = {(e.stream_id, e.revision) for e in only if e.stream_id == "a"}
        assert {r for _, r in revisions} >= {1, 2}
        for stream in "abc":
            names = [r for r in seen.records[topics.summaries] if r.key == stream.encode()]
            assert [json.loads(r.value)["revision"] for r in names] == [1, 2]


def send_poison(made: KafkaProducer, topic: str) -> None:
    """Five records nobody can use, between good ones of the same stream."""
    say(made, topic, "s", "s-0")
    made.send(topic, key=b"s", value=b'{"text": "unclosed')
    made.send(topic, key=b"s", value=None, headers=[("mine", b"kept")])
    made.send(topic, key=b"s", value=b'{"text": [17]}')
    made.send(topic, key=b"s", value=json.dumps({"text": "x" * (5 << 20)}).encode())
    made.send(topic, key=b"s", value=b"caf\xe9")
    say(made, topic, "s", "s-1", "FAIL", "s-2")


def test_poison_ends_as_dead_letters_and_the_stream_goes_on(topics: Any, tmp_path: Path) -> None:
    specs = [
        TopicSpec(spec.name, spec.compact, spec.retention_ms, max_message_bytes=8 << 20)
        for spec in topics.specs
    ]
    create_topics(topics.bootstrap, specs, 1)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        start()
        send_poison(made, topics.segments)
        wait_until(lambda: len(dead.records[topics.dlq]) == 6, 30, dead.records)
        wait_until(lambda: seen.covered("s") == 2, 10, seen.records)
        assert_all_reflected(seen.summaries(), "s", ["s-0", "s-1", "s-2"])
        letters = {
            dict(r.headers)["__streams.errors.exception"].decode(): r
            for r in dead.records[topics.dlq]
        }
        assert sorted(letters) == [
            "asked_for",
            "invalid_utf8",
            "malformed_json",
            "null_value",
            "text_too_large",
            "wrong_type",
        ]
        assert letters["invalid_utf8"].value == b"caf\xe9"
        assert letters["null_value"].value is None
        assert ("mine", b"kept") in letters["null_value"].headers
        assert len(letters["text_too_large"].value) > 5 << 20
        for letter in letters.values():
            assert letter.key == b"s"
            assert dict(letter.headers)["__streams.errors.topic"] == topics.segments.encode()


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_records_as_large_as_their_topic_takes_stop_nobody(
    topics: Any, tmp_path: Path, delivery: str
) -> None:
    """Key and headers were not counted once: the dead letter of such a record, or a result with its
    traceparent, was larger than its topic takes, and the worker ended at every start."""
    limit = 1 << 20
    specs = [dataclasses.replace(spec, max_message_bytes=limit) for spec in topics.specs]
    create_topics(topics.bootstrap, specs, 1)
    large = b"y" * (limit - 400)
    settings = {"max_message_bytes": limit, "delivery": delivery, "operator__targets": "fr"}
    with (
        workers(topics, tmp_path, **settings) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        worker = start()
        say(made, topics.segments, "s", "s-0")
        made.send(topics.segments, key=b"k" * 20_000, value=b"v" * (limit - 20_300))
        made.send(topics.segments, key=b"s", value=None, headers=[("x", large), ("mine", b"1")])
        fair = json.dumps({"text": "s-1", "segment_id": "s-1"}).encode()
        made.send(topics.segments, key=b"s", value=fair, headers=[("traceparent", large)])
        say(made, topics.segments, "s", "s-2")
        wait_until(lambda: seen.covered("s") == 2, 30, worker.log)
        wait_until(lambda: len(dead.records[topics.dlq]) == 2, 10, worker.log)
        assert_all_reflected(seen.summaries(), "s", ["s-0", "s-1", "s-2"])
        (key_letter, header_letter) = (dict(r.headers) for r in dead.records[topics.dlq])
        assert key_letter["longstream.dlq.reason"] == b"stream_id_invalid"
        assert dead.records[topics.dlq][0].key == b"k" * 20_000
        assert key_letter["longstream.dlq.truncated"].startswith(b"size=%d " % (limit - 20_300))
        assert header_letter["longstream.dlq.reason"] == b"null_value"
        assert header_letter["mine"] == b"1"
        told = header_letter["longstream.dlq.truncated_headers"]
        assert told.startswith(b"count=1 size=%d " % (limit - 399))
        assert len(seen.translations()) == 3
        for record in seen.records[topics.translations]:
            assert "traceparent" not in dict(record.headers)
        assert worker.stop() == 0, worker.log


def test_results_of_one_commit_that_are_larger_than_a_message_go_out_in_parts(
    topics: Any, tmp_path: Path
) -> None:
    """Without transactions they ride along in the stream's state: all at once they were more than a
    message takes, and the worker ended. The large record that fails does not fit even alone."""
    limit = 400_000
    specs = [dataclasses.replace(spec, max_message_bytes=limit) for spec in topics.specs]
    create_topics(topics.bootstrap, specs, 1)
    settings = {"max_message_bytes": limit, "delivery": "at_least_once", "commit_interval_s": 3}
    names = [f"s-{number}" for number in range(24)]
    with (
        workers(topics, tmp_path, operator__targets="fr", **settings) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, topics.translations, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        for name in names:
            say(made, topics.segments, "s", f"{name} {'x' * 12_000}", segment_id=name)
        say(made, topics.segments, "s", f"FAIL {'y' * 200_000}", segment_id="large")
        worker = start()
        wait_until(lambda: seen.covered("s") == 23, 60, worker.log)
        wait_until(lambda: bool(dead.records[topics.dlq]), 30, worker.log)
        told = [event.source_text.split()[0] for event in seen.translations()]
        assert told == names
        (letter,) = dead.records[topics.dlq]
        assert len(letter.value) > 200_000
        assert worker.stop() == 0, worker.log


class NoText(str):
    """A header's name whose bytes are not UTF-8, as some clients let through."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"caf\xe9"


def test_a_header_name_that_is_no_text_stops_nobody(topics: Any, tmp_path: Path) -> None:
    """The client failed the whole fetch for it, at every start of every worker."""
    topics.create(1)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        worker = start()
        say(made, topics.segments, "s", "s-0")
        fair = json.dumps({"text": "s-1", "segment_id": "s-1"}).encode()
        for value in (fair, b"{"):
            made.send(topics.segments, key=b"s", value=value, headers=[(NoText("x"), b"1")])
        say(made, topics.segments, "s", "s-2")
        wait_until(lambda: seen.covered("s") == 2, 30, worker.log)
        wait_until(lambda: bool(dead.records[topics.dlq]), 10, worker.log)
        assert_all_reflected(seen.summaries(), "s", ["s-0", "s-1", "s-2"])
        (letter,) = dead.records[topics.dlq]
        assert ("caf\\xe9", b"1") in letter.headers
        assert worker.stop() == 0, worker.log


def test_graceful_stop_and_restart_go_on_where_it_ended(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
    ):
        first = start("w1")
        say(made, topics.segments, "a", *ids("a", 40))
        wait_until(lambda: seen.covered("a") >= 2, 30)
        assert first.stop() == 0, first.log
        say(made, topics.segments, "a", *ids("a", 20, start=40))
        end(made, topics.segments, "a")
        second = start("w2")
        wait_until(lambda: seen.covered("a") == 59, 30)
        assert_revisions_sound(seen.events())
        assert_all_reflected(seen.summaries(), "a", ids("a", 60))
        # A stream that has ended begins a new epoch when it speaks again.
        say(made, topics.segments, "a", *ids("again", 3))
        wait_until(lambda: seen.summaries()[-1].epoch == 1, 10)
        assert_revisions_sound(seen.events())
        assert second.stop() == 0, second.log


def test_at_least_once_without_transactions(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    with (
        workers(topics, tmp_path, delivery="at_least_once") as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
    ):
        first = start("w1")
        say(made, topics.segments, "a", *ids("a", 30))
        wait_until(lambda: seen.covered("a") >= 8, 30)
        first.kill()
        say(made, topics.segments, "a", *ids("a", 30, start=30))
        start("w2")
        wait_until(lambda: seen.covered("a") == 59, 40)
        # Repeats are allowed here, but a revision never has two contents.
        contents: dict[int, set[str]] = {}
        for event in seen.summaries("a"):
            contents.setdefault(event.revision, set()).add(event.text)
        assert sorted(contents) == list(range(1, 21))
        assert all(len(texts) == 1 for texts in contents.values()), contents


def test_a_hot_stream_delays_only_its_own_partition(topics: Any, tmp_path: Path) -> None:
    """200 slow records on one partition; the other's three come through at once."""
    topics.create(2)
    with (
        workers(topics, tmp_path, in_flight_per_partition=16, in_flight_per_key=4) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
    ):
        for number in range(200):
            value = json.dumps(
                {"stream_id": "hot", "text": "SLEEP 0.05", "segment_id": str(number)}
            )
            made.send(topics.segments, partition=0, key=b"hot", value=value.encode())
        made.flush()
        start()
        wait_until(lambda: seen.covered("hot") >= 5, 30)
        for number in range(3):
            value = json.dumps({"stream_id": "calm", "text": "x", "segment_id": str(number)})
            made.send(topics.segments, partition=1, key=b"calm", value=value.encode())
        made.flush()
        took = wait_until(lambda: seen.covered("calm") == 2, 10)
        assert seen.covered("hot") < 150
        assert took < 3
        wait_until(lambda: seen.covered("hot") == 197, 30)
        assert_revisions_sound(seen.events())


def test_metrics_and_readiness(topics: Any, tmp_path: Path) -> None:
    topics.create(1)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        worker = start()
        wait_until(lambda: json.loads(worker.get("/ready"))["ready"], 30)
        say(made, topics.segments, "a", *ids("a", 6))
        wait_until(lambda: seen.covered("a") == 5, 20)
        series = f'topic="{topics.segments}"'

        def lag() -> list[str]:
            lines = worker.get("/metrics").splitlines()
            return [
                x for x in lines if x.startswith("longstream_consumer_lag_messages") and series in x
            ]

        wait_until(lambda: bool(lag()) and lag()[0].endswith(" 0.0"), 10, lag())
        page = worker.get("/metrics")
        assert 'longstream_segments_consumed_total{final="true"' in page
        assert "longstream_prompt_tokens_total" in page


def test_missing_topics_are_said_in_a_sentence(topics: Any, tmp_path: Path) -> None:
    with workers(topics, tmp_path) as start:
        worker = start()
        assert worker.process.wait(20) == 2
        assert "make them with `longstream topics create`" in worker.log
        assert "Traceback" not in worker.log


def test_a_missing_broker_is_said_in_a_sentence(topics: Any, tmp_path: Path) -> None:
    with workers(topics, tmp_path, bootstrap="127.0.0.1:1") as start:
        worker = start()
        assert worker.process.wait(30) == 5
        assert "no Kafka at 127.0.0.1:1" in worker.log
        assert "Traceback" not in worker.log


def test_unequal_partition_counts_are_refused(topics: Any, tmp_path: Path) -> None:
    *most, last = topics.specs
    create_topics(topics.bootstrap, most, 2)
    create_topics(topics.bootstrap, [last], 3)
    with workers(topics, tmp_path) as start:
        worker = start()
        assert worker.process.wait(20) == 2
        assert "all must have the same number" in worker.log
