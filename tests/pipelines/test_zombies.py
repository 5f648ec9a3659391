"""Delivery without transactions: nobody fences a worker presumed dead, so it must stop by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.kafka.publishers import Fenced, Group, OutboxPublisher, Pulse
from pipelines.wire.codec import encode_state
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.state import SessionTable, cursor_of


def test_a_pulse_notices_that_it_stood_still_and_does_not_forget() -> None:
    times = iter([0.0, 5.0, 14.0, 24.0, 34.1, 34.2])
    pulse = Pulse(10.0, clock=lambda: next(times))
    assert [pulse.missed() for _ in range(5)] == [False, False, False, True, True]


def test_an_outbox_writes_nothing_after_standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        publisher = OutboxPublisher(Settings(), 0)
        sent: list[Any] = []

        class Producer:
            def create_batch(self) -> Any:
                return SimpleNamespace(append=lambda **fields: fields)

            async def send_batch(self, batch: Any, topic: str, **_: Any) -> asyncio.Future[None]:
                sent.append(topic)
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                done.set_result(None)
                return done

        publisher._producer = Producer()  # type: ignore[assignment]
        group = Group(states={"a": SessionState(stream_id="a", cursor=3)})
        await publisher.publish(group)
        assert sent == [Settings().topic_sessions]
        monkeypatch.setattr(publisher._pulse, "_clock", lambda: 1e12)
        with pytest.raises(Fenced, match="stood still"):
            await publisher.publish(group)
        assert len(sent) == 1

    asyncio.run(main())


def record(cursor: int) -> bytes:
    return encode_state(SessionState(stream_id="a", cursor=cursor, next_seq=cursor))


def test_a_state_written_late_does_not_replace_a_newer_one() -> None:
    table = SessionTable()
    for cursor in (4, 9, 6):
        table.put("a", record(cursor), cursor_of(record(cursor)))
    state, _ = table.take("a")
    assert state is not None
    assert state.cursor == 9


def test_a_forgotten_stream_begins_anew() -> None:
    table = SessionTable()
    table.put("a", record(9), 9)
    table.put("a", None, cursor_of(None))
    table.put("a", record(2), 2)
    state, _ = table.take("a")
    assert state is not None
    assert state.cursor == 2


def test_a_paused_committer_waits() -> None:
    async def main() -> None:
        published: list[Group] = []

        class Publisher:
            async def open(self) -> None: ...

            def fits(self, group: Group) -> bool:
                return True

            async def publish(self, group: Group) -> None:
                published.append(group)

            async def close(self) -> None: ...

        committer = Committer(
            Publisher(), lambda offsets: 8, lambda *_: None, interval_s=0.001, max_events=1
        )
        committer.start()
        committer.pause()
        committer.add(Entry(finished=(7,)))
        await asyncio.sleep(0.05)
        assert published == []
        committer.resume()
        await committer.flush()
        assert [group.offset for group in published] == [8]
        await committer.close()

    asyncio.run(main())
