"""A partition between a fake device and a fake publisher: queues, bounds, dead letters. No broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from operators.config import OperatorConfig
from operators.events import Question, Segment, Source, SummaryEvent, TranslationEvent
from operators.state import Emission, Failure, SessionState
from pipelines.config.load import Settings
from pipelines.observability.metrics import Metrics
from pipelines.wire.messages import Message, MessageLimit
from pipelines.worker.context import StreamOwner, WorkerContext
from pipelines.worker.partition.partition import Partition
from pipelines.worker.partition.quotas import TenantLimits
from pipelines.worker.partition.state import Recovered, SessionTable
from tests.pipelines.test_committer import FakePublisher, run


class FakeDevice:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.opened: dict[str, SessionState | None] = {}
        self.fed: list[tuple[str, int]] = []
        self.asked: list[tuple[str, int]] = []
        self.read_at: dict[int, float] = {}
        self.ended: list[str] = []
        self.dropped: list[str] = []
        self.erased: list[str] = []
        self.faults: list[Exception] = []
        """What the next erasures end with."""

    def open(self, stream_id: str, state: SessionState | None = None) -> None:
        self.opened[stream_id] = state

    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None:
        self.fed.append((segment.stream_id, ticket))
        self.read_at[ticket] = read_at

    def ask(self, question: Question, ticket: int) -> None:
        self.asked.append((question.stream_id, ticket))

    def end(self, stream_id: str) -> None:
        self.ended.append(stream_id)

    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]:
        self.dropped.append(stream_id)
        self.erased += [stream_id] if erase else []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if erase and self.faults:
            future.set_exception(self.faults.pop(0))
        else:
            future.set_result(None)
        return future


class Event:
    """A Faust event, as far as a partition looks at it."""

    def __init__(self, offset: int, key: str, value: object) -> None:
        raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        self.message = SimpleNamespace(
            offset=offset,
            key=key.encode(),
            value=raw,
            headers=[],
            topic="transcripts.segments.v1",
            partition=0,
            timestamp=0.0,
        )
        self.acked = False

    def ack(self) -> None:
        self.acked = True


class World:
    """A recovered partition 0 between a fake device and a fake publisher."""

    def __init__(self, **settings: Any) -> None:
        settings = {"commit_interval_s": 0.01, **settings}
        self.settings = Settings(**settings)
        self.device = FakeDevice()
        self.publisher = FakePublisher()
        self.held: list[bool] = []
        self.recovered = Recovered(SessionTable(), 0)
        self.recovery_gate = asyncio.Event()
        self.recovery_gate.set()
        owners: dict[str, StreamOwner] = {}
        self.context = WorkerContext(
            settings=self.settings,
            metrics=Metrics(),
            device=self.device,
            tenants=TenantLimits(self.settings, owners),
            owners=owners,
            hold=lambda number: self.held.append(True),
            release=lambda number: self.held.append(False),
            recover=self._recover,
            make_publisher=lambda number: self.publisher,
            limit=MessageLimit(self.settings.max_message_bytes),
        )
        self.partition = Partition(0, self.context)

    async def _recover(self, number: int) -> Recovered:
        await self.recovery_gate.wait()
        return self.recovered

    def say(self, offset: int, stream: str, value: object = None) -> Event:
        event = Event(offset, stream, {"text": "x"} if value is None else value)
        self.partition.accept(event)
        return event

    def done(self, stream: str, *tickets: int, **changes: Any) -> None:
        state = SessionState(stream_id=stream, cursor=max(tickets, default=-1))
        emission = Emission(stream_id=stream, state=state, done=list(tickets))
        for name, value in changes.items():
            setattr(emission, name, value)
        self.partition.on_emission(emission)

    async def settle(self) -> None:
        await self.partition.committer.flush()

    @property
    def offsets(self) -> list[int | None]:
        return [group.offset for group in self.publisher.groups]


def with_world(
    test: Callable[[World], Awaitable[None]], recover: bool = True, **settings: Any
) -> None:
    async def body() -> None:
        world = World(**settings)
        if recover:
            await world.partition.recover()
        await test(world)
        await world.partition.close()

    run(body)


def test_a_record_is_acknowledged_only_after_its_commit() -> None:
    async def test(world: World) -> None:
        first, second = world.say(0, "a"), world.say(1, "b")
        world.done("b", 1)
        await world.settle()
        assert (first.acked, second.acked) == (False, True)
        assert world.offsets == [None], "the open offset 0 is where a restart goes on"
        world.done("a", 0)
        await world.settle()
        assert first.acked
        assert world.offsets == [None, 2]

    with_world(test)


def test_a_stream_has_a_bounded_share_of_the_device() -> None:
    async def test(world: World) -> None:
        for offset in range(10):
            world.say(offset, "hot")
        world.say(10, "calm")
        assert world.device.fed == [("hot", 0), ("hot", 1), ("calm", 10)]
        world.done("hot", 0)
        assert world.device.fed[-1] == ("hot", 2)

    with_world(test, in_flight_per_key=2)


def test_a_full_partition_is_held_and_released_at_half() -> None:
    async def test(world: World) -> None:
        world.held.clear()
        for offset in range(4):
            world.say(offset, "a")
        assert world.held == [True]
        world.done("a", 0)
        await world.settle()
        assert world.held == [True]
        world.done("a", 1)
        await world.settle()
        assert world.held == [True, False]

    with_world(test, in_flight_per_partition=4, in_flight_per_key=4)


def test_the_device_hears_how_long_a_segment_waited_in_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr("pipelines.worker.partition.in_flight.monotonic", lambda: next(clock))

    async def test(world: World) -> None:
        world.say(0, "hot")
        world.say(1, "hot")
        world.say(2, "calm")
        world.done("hot", 0)
        assert world.device.fed == [("hot", 0), ("calm", 2), ("hot", 1)]
        assert world.device.read_at == {0: 10.0, 2: 30.0, 1: 20.0}

    with_world(test, in_flight_per_key=1)


def test_a_partition_is_held_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few records of megabytes each must not wait for 64 of their kind."""
    monkeypatch.setattr("pipelines.worker.partition.in_flight.MAX_HELD_BYTES", 1000)

    async def test(world: World) -> None:
        world.held.clear()
        world.say(0, "a", {"text": "x" * 600})
        assert world.held == []
        world.say(1, "a", {"text": "x" * 600})
        assert world.held == [True]
        world.done("a", 0, 1)
        await world.settle()
        assert world.held == [True, False]

    with_world(test)


def test_a_partition_is_held_by_keys_and_headers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 records of 8 MB of headers each are half a gigabyte, whatever their values are."""
    monkeypatch.setattr("pipelines.worker.partition.in_flight.MAX_HELD_BYTES", 10_000)

    async def test(world: World) -> None:
        world.held.clear()
        for offset, headers in enumerate(([], [("h", b"x" * 6000)], [("", None)] * 30)):
            event = Event(offset, "a" * 200, {"text": "x"})
            event.message.headers = headers
            assert world.held == []
            world.partition.accept(event)
        assert world.held == [True]
        world.done("a" * 200, 0, 1, 2)
        await world.settle()
        assert world.held == [True, False]

    with_world(test)


def test_nothing_is_fed_before_recovery_and_done_work_is_not_repeated() -> None:
    async def test(world: World) -> None:
        world.recovery_gate.clear()
        table = SessionTable()
        table.put("a", msgspec.json.encode(SessionState(stream_id="a", cursor=6)))
        world.recovered = Recovered(table, committed=5)
        recovering = asyncio.ensure_future(world.partition.recover())
        events = [world.say(offset, "a") for offset in (4, 5, 6, 7)]
        await asyncio.sleep(0.02)
        assert not world.device.opened
        world.recovery_gate.set()
        await recovering
        await world.settle()
        state = world.device.opened["a"]
        assert state is not None
        assert state.cursor == 6
        assert world.device.fed == [("a", 7)]
        assert [event.acked for event in events] == [True, True, True, False]
        assert world.offsets == [7]

    with_world(test, recover=False)


def test_redelivery_replaces_the_message_and_feeds_nothing_twice() -> None:
    async def test(world: World) -> None:
        before = world.say(0, "a")
        done_before = world.say(1, "b")
        world.done("b", 1)
        await world.settle()
        again, done_again = world.say(0, "a"), world.say(1, "b")
        assert world.device.fed == [("a", 0), ("b", 1)]
        assert done_before.acked
        assert done_again.acked
        world.done("a", 0)
        await world.settle()
        assert again.acked
        assert not before.acked, "its assignment is over"

    with_world(test)


def test_refused_records_and_failed_segments_become_dead_letters() -> None:
    async def test(world: World) -> None:
        bad = world.say(0, "a", b'{"text":')
        world.say(1, "a")
        failure = Failure(1, "operator", "too_strange", "no")
        world.done("a", done=[], failed=[failure], state=SessionState(stream_id="a", cursor=1))
        await world.settle()
        letters = [m for group in world.publisher.groups for m in group.messages]
        assert [dict(m.headers)["longstream.dlq.reason"] for m in letters] == [
            b"malformed_json",
            b"too_strange",
        ]
        assert {m.topic for m in letters} == {world.settings.topic_dlq}
        assert bad.acked
        assert world.offsets[-1] == 2

    with_world(test)


def test_a_result_no_topic_takes_becomes_a_dead_letter() -> None:
    """The stream's state goes on with it; the results that fit are published."""

    async def test(world: World) -> None:
        record = world.say(0, "a")
        source = Source(first_offset=0, last_offset=0)
        small = SummaryEvent(stream_id="a", epoch=0, revision=1, text="short", source=source)
        large = TranslationEvent(
            stream_id="a",
            epoch=0,
            revision=1,
            target_lang="fr",
            unit_id="u",
            committed="x" * 40_000,
            source=source,
        )
        world.done("a", 0, events=[small, large])
        await world.settle()
        (group,) = world.publisher.groups
        topics = [m.topic for m in group.messages]
        settings = world.settings
        assert topics == [
            settings.topic_summaries,
            settings.topic_summaries_latest,
            settings.topic_dlq,
        ]
        letter = dict(group.messages[-1].headers)
        assert letter["longstream.dlq.reason"] == b"result_too_large"
        assert letter["longstream.dlq.stage"] == b"publish"
        assert group.messages[-1].value == record.message.value
        assert record.acked

    with_world(test, max_message_bytes=40_000, operator={"max_text_bytes": 4000})


def test_events_are_completed_and_the_latest_summary_goes_to_both_topics() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        event = SummaryEvent(
            stream_id="a", epoch=0, revision=1, source=Source(first_offset=0, last_offset=0)
        )
        world.done("a", 0, events=[event])
        await world.settle()
        full, latest = world.publisher.groups[0].messages
        assert (full.topic, latest.topic) == (
            world.settings.topic_summaries,
            world.settings.topic_summaries_latest,
        )
        body = json.loads(full.value or b"")
        assert full.value == latest.value
        assert body["source"]["topic"] == world.settings.topic_segments
        assert body["source"]["partition"] == 0
        assert body["event_id"]
        assert body["emitted_at_ms"] > 0

    with_world(test)


def test_a_stream_belongs_to_one_partition() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        other = Partition(1, world.context)
        await other.recover()
        other.accept(Event(0, "a", {"text": "x"}))
        await other.committer.flush()
        letter = world.publisher.groups[-1].messages[0]
        assert dict(letter.headers)["longstream.dlq.reason"] == b"wrong_partition"
        await other.close()

    with_world(test)


def test_an_ended_stream_leaves_the_device_and_comes_back_with_its_state() -> None:
    async def test(world: World) -> None:
        world.say(0, "a", {"type": "session_end"})
        world.done("a", 0, state=SessionState(stream_id="a", cursor=0, ended=True, epoch=4))
        await world.settle()
        assert world.device.dropped == ["a"]
        world.say(1, "a")
        state = world.device.opened["a"]
        assert state is not None
        assert (state.ended, state.epoch) == (True, 4)

    with_world(test)


def test_a_lost_partition_forgets_its_streams_and_commits_nothing() -> None:
    async def test(world: World) -> None:
        event = world.say(0, "a")
        world.done("a", 0)
        await world.partition.close()
        assert world.device.dropped == ["a"]
        assert not world.context.owners
        assert not event.acked
        assert not world.publisher.groups

    with_world(test)


def test_results_in_an_outbox_are_published_again_before_the_stream_goes_on() -> None:
    async def test(world: World) -> None:
        result = Message("results", b"a", b"the text")
        raw = msgspec.json.encode(
            {**msgspec.to_builtins(SessionState(stream_id="a", cursor=3)), "outbox": [result]}
        )
        table = SessionTable()
        table.put("a", raw)
        world.recovered = Recovered(table, committed=3)
        await world.partition.recover()
        world.say(3, "a")
        await world.settle()
        assert world.publisher.groups[0].messages == [result]
        assert world.device.fed == []

    with_world(test, recover=False, delivery="at_least_once")


def test_defaults_leave_room_for_every_stream() -> None:
    """in_flight_per_key segments of a stream must fit the engine's queue."""
    assert Settings().in_flight_per_key <= OperatorConfig().max_queue
