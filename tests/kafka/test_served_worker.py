"""A worker whose model is llama.cpp's real server, on the real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.events import AnswerEvent
from pipelines.wire.dead_letters import header
from tests import served
from tests.served import Exchange, Script, running
from tests.worker_process import (
    Records,
    WorkerProcess,
    assert_revisions_sound,
    end,
    producer,
    say,
    wait_until,
    workers,
)

pytestmark = pytest.mark.model
KEY = "sk-known-to-nobody"
STREAMS = ("a", "b")
SAID = (
    "The review moves to Friday at ten.",
    "Ben will call the supplier before Wednesday.",
    "Who pays for the labels?",
    "We agreed on a budget of 40000 euro.",
)


@pytest.fixture
def server() -> Iterator[Script]:
    """SmolLM2 in llama.cpp's server, behind a proxy that can misbehave."""
    pytest.importorskip("xllamacpp")
    from pipelines import models
    from pipelines.lab.llamacpp_server import serve

    url = serve(models.gguf_file("smollm2-135m"), parallel=2, context=2048)
    with running(served.proxy(url)) as script:
        yield script


@pytest.fixture
def settings(server: Script, tmp_path: Path) -> dict[str, Any]:
    key = tmp_path / "key"
    key.write_text(KEY)
    return {
        "test_operator": "",
        "backend": "openai",
        "server_url": server.url,
        "server_key_file": key,
        "operator__window": 256,
        "operator__update_tokens": 64,
        "operator__branch_tokens": 900,
        "operator__branches": 2,
        "operator__targets": "fr",
    }


def wait_ready(worker: WorkerProcess) -> None:
    wait_until(lambda: json.loads(worker.get("/ready"))["ready"], 60, worker.log)


def busy(exchange: Exchange) -> None:
    exchange.reply(429, {"error": {"message": "too many"}}, retry_after="3")


def test_everything_is_covered_through_trouble_and_a_kill(
    topics: Any, tmp_path: Path, server: Script, settings: dict[str, Any]
) -> None:
    """Translations, notes and an answer of two streams. The server is busy at first, which /ready says,
    then breaks and drops a connection; the worker is killed on the way."""
    topics.create(1)
    names = (topics.summaries, topics.translations, topics.answers)
    with (
        workers(topics, tmp_path, **settings) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, *names, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as refused,
    ):
        worker = start("w1")
        wait_ready(worker)
        server.next.extend([busy, served.broken, served.cut_off])
        for stream in STREAMS:
            say(made, topics.segments, stream, *SAID[:2], speaker={"name": "Ana"}, language="en")
        wait_until(lambda: "its server: rate_limited" in worker.get("/ready"), 30, worker.log)
        wait_until(lambda: len(seen.translations()) >= 2, 120, worker.log)
        wait_ready(worker)
        worker.kill()
        for stream in STREAMS:
            say(made, topics.segments, stream, *SAID[2:], speaker={"name": "Ana"}, language="en")
        heir = start("w2")
        wait_until(lambda: len(seen.translations()) == 2 * len(SAID), 120, heir.log)
        question = {"question_id": "q", "text": "When is the review?"}
        made.send(topics.questions, key=b"a", value=json.dumps(question).encode())
        made.flush()
        wait_until(lambda: any(isinstance(e, AnswerEvent) for e in seen.events()), 120, heir.log)
        end(made, topics.segments, *STREAMS)
        wait_until(lambda: sum(e.status == "final" for e in seen.summaries()) == 2, 120, heir.log)
        assert heir.stop(60) == 0
        events = seen.events()
        assert not refused.records
    assert_revisions_sound(events)
    for stream in STREAMS:
        assert seen.covered(stream) == len(SAID) - 1
        translated = [e for e in seen.translations() if e.stream_id == stream]
        assert sorted(e.unit_id for e in translated) == sorted(SAID)
        assert all(e.committed for e in translated)
        for item in seen.summaries(stream)[-1].items:
            assert {e.segment_id for e in item.evidence} <= set(SAID)
    assert len({event.model.name for event in events}) == 1
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in worker.log + heir.log


def test_a_text_the_server_refuses_is_a_dead_letter_and_the_rest_goes_on(
    topics: Any, tmp_path: Path, server: Script, settings: dict[str, Any]
) -> None:
    topics.create(1)
    with (
        workers(topics, tmp_path, **settings) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.translations, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as refused,
    ):
        worker = start("w1")
        wait_ready(worker)
        server.next.append(served.too_long)
        say(made, topics.segments, "a", SAID[0], language="en")
        wait_until(lambda: len(refused.records[topics.dlq]) == 1, 60, worker.log)
        say(made, topics.segments, "a", SAID[1], language="en")
        wait_until(lambda: len(seen.translations()) == 1, 120, worker.log)
        (letter,) = refused.records[topics.dlq]
        assert header(letter.headers, "__streams.errors.exception") == b"context_too_small"
        (translation,) = seen.translations()
        assert translation.unit_id == SAID[1]
        assert worker.stop(60) == 0
