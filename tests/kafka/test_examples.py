"""The examples that talk to Kafka, on a real broker."""

from __future__ import annotations

import asyncio
import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from kafka import KafkaProducer

from operators.events import LedgerItem, SummaryEvent
from pipelines.cli.lag import read_lag
from pipelines.config.fields import Settings
from pipelines.kafka.tools import Reader, read
from pipelines.wire.codec import encode_event
from tests.kafka_settings import environment_of
from tests.test_public import example

ROOT = Path(__file__).parents[2]


def named(name: str, topics: Any) -> Any:
    """The example on this test's topics."""
    module = example(name)
    module.BROKER = topics.bootstrap
    module.TOPIC = topics.summaries if name == "kafka_consumer" else topics.segments
    return module


def said(topics: Any) -> list[tuple[str, str, bool]]:
    settings = Settings(bootstrap=topics.bootstrap, topic_segments=topics.segments)
    reader = Reader(settings, [topics.segments], [topics.segments])
    try:
        found = [read(record, settings) for record in reader.read_to_end()]
    finally:
        reader.close()
    return [(s.stream_id, s.text, s.is_final) for s in found if s is not None]  # type: ignore[union-attr]


def test_recognisers_messages_arrive_as_segments(
    topics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics.create(1)
    lines = (
        '{"uid":"u","segments":[{"start":"0.0","end":"1.0","text":" we ship","completed":false}]}\n'
        '{"uid":"u","segments":[{"start":"0.0","end":"1.6","text":" We ship it.","completed":true}]}\n'
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert named("whisperlive_events", topics).main(["--stream", "m"]) == 2

    async def post() -> int:
        app = named("jitsi_webhook", topics).application()
        async with TestClient(TestServer(app)) as client:
            event = {"type": "transcription-result", "transcript": [{"text": "On Monday."}]}
            return (await client.post("/room", json=event)).status

    assert asyncio.run(post()) == 202
    assert said(topics) == [
        ("m", "we ship", False),
        ("m", "We ship it.", True),
        ("room", "On Monday.", True),
    ]


def test_the_consumer_yields_what_changed(topics: Any) -> None:
    topics.create(1)
    old = LedgerItem(id="d1", kind="decision", text="Old.", last_changed_revision=1)
    new = LedgerItem(id="a2", kind="action_item", text="New.", last_changed_revision=2)
    event = SummaryEvent(stream_id="m", epoch=0, revision=2, items=(old, new))
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        made.send(topics.summaries, key=b"m", value=encode_event(event))
        made.flush()
    module = named("kafka_consumer", topics)
    found = module.notes(auto_offset_reset="earliest", consumer_timeout_ms=8000)
    assert list(itertools.islice(found, 1)) == [("m", "action_item", "New.")]
    found.close()


@pytest.mark.slow
def test_one_of_two_workers_may_die(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    settings = {"test_operator": "tests.echo_device:make", "session_timeout_s": "6"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "two_workers.py")],
        env=environment_of(topics, **settings) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "worker-1 is gone" in done.stdout
    assert all(f"[{name}] summary" in done.stdout for name in ("monday", "tuesday", "wednesday"))
    rows = read_lag(
        Settings(
            bootstrap=topics.bootstrap,
            app_id=topics.prefix.rstrip("."),
            topic_segments=topics.segments,
        )
    )
    assert sum(row.lag for row in rows) == 0
