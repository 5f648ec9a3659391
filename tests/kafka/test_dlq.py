"""Dead letters on a real broker: seen, shown, put back once, and then part of the stream."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest

from operators.errors import ConfigError
from pipelines.cli.dlq import Letter, moment, printable
from pipelines.wire.dead_letters import dead_letter
from tests.worker_process import Records, producer, say, wait_until, workers

ROOT = Path(__file__).parents[2]


def dlq(topics: Any, *args: str) -> subprocess.CompletedProcess[str]:
    names = {
        "LONGSTREAM_BOOTSTRAP": topics.bootstrap,
        "LONGSTREAM_TOPIC_SEGMENTS": topics.segments,
        "LONGSTREAM_TOPIC_DLQ": topics.dlq,
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "dlq", *args],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        env={**os.environ, **names},
        check=False,
    )


def rows(topics: Any) -> list[dict[str, Any]]:
    done = dlq(topics, "ls", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_letter_is_listed_shown_and_put_back_once(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    with (
        workers(topics, tmp_path, operator__targets="fr") as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.translations, partitions=2) as seen,
    ):
        start("w1")
        made.send(
            topics.segments, key=b"a", value=b'{"text": 7, "x": "\x1b[2J"}', headers=[("h", b"1")]
        )
        say(made, topics.segments, "a", "all is well")
        made.flush()
        wait_until(lambda: len(seen.translations()) == 1, 40)
        (row,) = rows(topics)
        assert (row["stream"], row["stage"], row["replayed"]) == ("a", "decode", False)
        assert row["reason"] in dlq(topics, "ls").stdout

        shown = dlq(topics, "show", row["id"]).stdout
        assert '"text": 7' in shown
        assert "header h: 1" in shown
        assert "\x1b" not in shown

        assert "1 would be put back" in dlq(topics, "replay", "--all", "--dry-run").stdout
        assert len(rows(topics)) == 1
        assert "1 put back, 0 were before" in dlq(topics, "replay", row["id"]).stdout
        # It is refused again, for the same reason: a second letter, the first one marked.
        wait_until(lambda: len(rows(topics)) == 2, 40)
        first, second = rows(topics)
        assert (first["id"], first["replayed"]) == (row["id"], True)
        assert (second["reason"], second["replayed"]) == (row["reason"], False)
        assert second["source"] != first["source"]
        assert "0 put back, 1 were before" in dlq(topics, "replay", row["id"]).stdout


def test_what_was_refused_for_a_passing_cause_becomes_part_of_its_stream(
    topics: Any, tmp_path: Path
) -> None:
    topics.create(1)
    with (
        workers(topics, tmp_path, operator__targets="fr") as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.translations, partitions=1) as seen,
    ):
        strict = start("w1", operator__max_text_bytes=20)
        say(made, topics.segments, "a", "far too long for the first worker")
        say(made, topics.segments, "a", "short")
        made.flush()
        wait_until(lambda: len(seen.translations()) == 1, 40, strict.log)
        strict.kill()
        start("w2")
        done = dlq(topics, "replay", "--reason", "text_too_large")
        assert "1 put back" in done.stdout, done.stderr
        wait_until(lambda: len(seen.translations()) == 2, 40)
        assert seen.translations()[-1].unit_id == "far too long for the first worker"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("show", "9:9"), "no dead letter 9:9"),
        (("replay",), "say which"),
        (("replay", "0:0", "--all"), "say which"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    topics: Any, args: tuple[str, ...], said: str
) -> None:
    topics.create(1)
    done = dlq(topics, *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[31m\nb\u202eé") == "a\\x1b[31m\\nb\\u202eé"


def test_a_letter_goes_back_with_its_key_bytes_and_headers_also_odd_ones(topics: Any) -> None:
    """Headers without a value used to stop the replay: kafka-python does not send them."""
    topics.create(1)
    headers: list[tuple[str, bytes | None]] = [("h", None), ("h", b"\xff"), ("", b"")]
    for reason in ("wrong_type", "null_value"):
        values = (b"\xfe", None if reason == "null_value" else b"\x00\xff")
        key, value, whole = dead_letter(
            *values,
            headers,
            topic=topics.segments,
            partition=0,
            offset=5,
            stage="decode",
            reason=reason,
            message="planted",
            attempts=1,
            retryable=False,
            failed_at_ms=1_700_000_000_000,
        )
        asyncio.run(send(topics, topics.dlq, key, value, whole))
    done = dlq(topics, "replay", "--reason", "wrong_type", "--since", "2023-11-14")
    assert "1 put back" in done.stdout, done.stderr
    assert "0 put back" in dlq(topics, "replay", "--reason", "null_value", "--since", "1h").stdout
    assert "1 put back, 1 were before" in dlq(topics, "replay", "--all").stdout
    with Records(topics.bootstrap, topics.segments, partitions=1) as seen:
        wait_until(lambda: len(seen.records[topics.segments]) == 2, 20)
        first, second = seen.records[topics.segments]
    assert (first.key, first.value, list(first.headers)) == (b"\xfe", b"\x00\xff", headers)
    assert (second.key, second.value, list(second.headers)) == (b"\xfe", None, headers)


async def send(topics: Any, topic: str, key: Any, value: Any, headers: Any) -> None:
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        await made.send_and_wait(topic, key=key, value=value, headers=headers, partition=0)


def test_a_letter_that_was_cut_says_of_what() -> None:
    """So that it is not put back."""
    options: dict[str, Any] = {
        "topic": "t",
        "partition": 0,
        "offset": 5,
        "stage": "decode",
        "reason": "null_value",
        "message": "planted",
        "attempts": 1,
        "retryable": False,
        "failed_at_ms": 1,
    }
    for sent, cut in (
        ((b"a", b"v" * 900, [("longstream.dlq.truncated", b"mine")]), []),
        ((b"a", b"v" * 2000, []), ["truncated"]),
        ((b"k" * 2000, None, [("h", b"y" * 2000)]), ["truncated_headers", "truncated_key"]),
    ):
        _, _, headers = dead_letter(*sent, **options, max_bytes=1000)
        found = Letter(SimpleNamespace(headers=headers), False).cut
        assert list(found) == cut
        assert all("sha256=" in told for told in found.values())


@pytest.mark.parametrize(
    ("text", "seconds_ago"), [("90s", 90), ("15m", 900), ("2h", 7200), (" 3d ", 259_200)]
)
def test_since_so_long_ago(text: str, seconds_ago: int) -> None:
    assert moment(text) == pytest.approx(time.time() - seconds_ago, abs=30)


def test_since_a_time() -> None:
    assert moment("2026-01-31T12:00") == moment("2026-01-31T13:00+01:00") == 1769860800
    with pytest.raises(ConfigError, match="15m, 2h, 3d"):
        moment("yesterday")
