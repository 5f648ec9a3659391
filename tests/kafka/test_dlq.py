"""Dead letters on a real broker: seen, shown, put back once, and then part of the stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.commands.dlq import printable
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
        [sys.executable, "-m", "pipelines.cli", "dlq", *args],
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
