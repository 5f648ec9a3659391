"""Dead letters are put back all or none, and listed without holding them all. No broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from typer.testing import CliRunner

from pipelines.cli import dlq
from pipelines.cli.main import make_cli
from pipelines.wire.dead_letters import dead_letter

COUNT = 6


def records() -> Iterator[Any]:
    """Six letters; the second was put back before."""
    for offset in range(COUNT):
        key, value, headers = dead_letter(
            b"a",
            b"x" * 100,
            [],
            topic="transcripts.segments.v1",
            partition=1,
            offset=offset,
            stage="decode",
            reason="wrong_type",
            message="m",
            attempts=1,
            retryable=False,
            failed_at_ms=1,
        )
        yield SimpleNamespace(
            partition=0, offset=offset, key=key, value=value, headers=headers, timestamp=1
        )
    yield SimpleNamespace(
        partition=0, offset=COUNT, key=b"a", value=b"", headers=[(dlq.MARK, b"0:1")], timestamp=2
    )


class Producer:
    """Notes what counts: what was sent in a transaction that was committed."""

    committed: list[tuple[str, bytes]]
    fails_at: int | None = None

    def __init__(self, **options: Any) -> None:
        self.options, self.sent = options, list[tuple[str, bytes]]()

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def begin_transaction(self) -> None: ...

    async def abort_transaction(self) -> None:
        self.sent.clear()

    async def commit_transaction(self) -> None:
        Producer.committed += self.sent

    async def send_and_wait(self, topic: str, *, value: bytes, **_: Any) -> None:
        if len(self.sent) == self.fails_at:
            raise KafkaError("no")
        self.sent.append((topic, value))


@pytest.fixture(autouse=True)
def topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "_records", lambda settings: records())
    monkeypatch.setattr(dlq.aiokafka, "AIOKafkaProducer", Producer)
    Producer.committed, Producer.fails_at = [], None


def call(*words: str) -> Any:
    return CliRunner().invoke(make_cli(), ["dlq", *words])


def test_letters_are_put_back_in_one_transaction() -> None:
    done = call("replay", "--all", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (len(told["put_back"]), told["before"]) == (COUNT - 1, 1)
    topics = [name for name, _ in Producer.committed]
    assert topics == ["transcripts.segments.v1", "insights.dlq.v1"] * (COUNT - 1)


def test_a_fault_in_the_middle_puts_nothing_back() -> None:
    """Those before it were back and those behind it not; a second try gave some of them twice."""
    Producer.fails_at = 5
    done = call("replay", "--all")
    assert done.exit_code != 0
    assert "dead letter 0:3 could not be put back, nothing was put back" in done.stderr
    assert Producer.committed == []


def test_an_id_that_does_not_exist_puts_nothing_back() -> None:
    done = call("replay", "0:0", "0:99")
    assert done.exit_code == 2
    assert "no dead letter 0:99" in done.stderr
    assert Producer.committed == []


def test_letters_are_listed_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole topic was loaded into memory first."""
    alive = 0

    class Counted(SimpleNamespace):
        def __init__(self, **fields: Any) -> None:
            nonlocal alive
            super().__init__(**fields)
            alive += 1
            assert alive < 5

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(dlq, "_records", lambda settings: (Counted(**vars(r)) for r in records()))
    rows = [json.loads(line) for line in call("ls", "--json").stdout.splitlines()]
    assert [row["replayed"] for row in rows] == [False, True, *[False] * (COUNT - 2)]
    monkeypatch.setattr(dlq, "PAGE_ROWS", 2)
    shown = call("ls").stdout
    assert shown.count("wrong_type") == COUNT
    assert shown.count("reason") == COUNT // 2, "a page at a time"
