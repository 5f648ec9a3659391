"""Commit groups, retries, the outbox, the watermark, and a partition's lanes: no broker needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from operators.config import OperatorConfig
from operators.errors import ConfigError, SegmentError
from operators.types import (
    Emission,
    Failure,
    Segment,
    SessionState,
    Source,
    SummaryEvent,
    TranslationEvent,
)
from pipelines.codec import decode_state
from pipelines.committer import ATTEMPTS, CommitError, Committer, Entry
from pipelines.exits import Waited
from pipelines.host import Host
from pipelines.metrics import Metrics
from pipelines.partition import Partition
from pipelines.publishers import (
    Fenced,
    Group,
    Message,
    OutboxPublisher,
    Retriable,
    pending_results,
)
from pipelines.sessions import Recovered, SessionTable
from pipelines.settings import Settings
from pipelines.watermark import Watermark


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await body()

    asyncio.run(main())


# --- watermark ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), unique=True, min_size=1).map(sorted), st.randoms())
def test_watermark_is_never_above_an_open_offset(offsets: list[int], rng: Any) -> None:
    """Whatever the gaps in the offsets and the order of finishing."""
    watermark = Watermark()
    unread, open_ = list(offsets), []
    while unread or open_:
        if unread and (not open_ or rng.random() < 0.5):
            open_.append(unread.pop(0))
            watermark.read(open_[-1])
        else:
            offset = open_.pop(rng.randrange(len(open_)))
            watermark.finish(offset)
            assert watermark.is_finished(offset)
        read = [o for o in offsets if o not in unread]
        assert watermark.value == min(open_, default=read[-1] + 1)
        assert len(watermark) == len(open_)
    assert watermark.gap == 0


def test_an_offset_is_read_once_and_in_order() -> None:
    watermark = Watermark()
    watermark.read(5)
    with pytest.raises(ValueError, match="read after"):
        watermark.read(5)
    with pytest.raises(KeyError):
        watermark.finish(4)


# --- committer ---------------------------------------------------------------------------------


class FakePublisher:
    """Publishes into a list; ``errors`` are raised first, one per attempt."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts: list[Group] = []
        self.groups: list[Group] = []
        self.most = 1_000
        """Messages that fit into a group."""

    def fits(self, group: Group) -> bool:
        return len(group.messages) <= self.most

    async def open(self) -> None:
        pass

    async def publish(self, group: Group) -> None:
        self.attempts.append(group)
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.sleep(0)
        self.groups.append(group)

    async def close(self) -> None:
        pass


class Harness:
    """A committer whose offsets 0…9 are open."""

    def __init__(self, publisher: FakePublisher, **options: Any) -> None:
        self.watermark = Watermark()
        for offset in range(10):
            self.watermark.read(offset)
        self.committed: list[Entry] = []
        self.publisher = publisher
        options = {"interval_s": 0.02, "max_events": 100, **options}
        self.committer = Committer(publisher, self.finish, self.note, **options)
        self.committer.start()

    def finish(self, offsets: Iterable[int]) -> int | None:
        for offset in offsets:
            self.watermark.finish(offset)
        return self.watermark.value

    def note(self, entries: list[Entry], seconds: float) -> None:
        self.committed += entries


def entry(stream: str, offset: int, text: str = "") -> Entry:
    return Entry(
        messages=[Message("t", stream.encode(), text.encode())],
        state=SessionState(stream_id=stream, cursor=offset),
        finished=(offset,),
    )


def test_a_group_holds_results_in_order_the_newest_states_and_the_watermark() -> None:
    async def body() -> None:
        harness = Harness(FakePublisher())
        for stream, offset in (("a", 0), ("b", 2), ("a", 3)):
            harness.committer.add(entry(stream, offset, f"{stream}{offset}"))
        await harness.committer.flush()
        (group,) = harness.publisher.groups
        assert [m.value for m in group.messages] == [b"a0", b"b2", b"a3"]
        assert {s: state.cursor for s, state in group.states.items()} == {"a": 3, "b": 2}
        assert group.offset == 1, "1 is still open"
        assert len(harness.committed) == 3
        await harness.committer.close()

    run(body)


def test_a_group_that_would_be_too_large_is_committed_in_parts() -> None:
    """In order, each with the watermark of its own entries; the parts do not wait for the interval."""

    async def body() -> None:
        harness = Harness(FakePublisher(), interval_s=60)
        harness.publisher.most = 2
        large = Entry([Message("t", b"a", b"%d" % n) for n in range(5)], None, (5,))
        for offset in range(5):
            harness.committer.add(entry("a", offset, f"a{offset}"))
        harness.committer.add(large)
        await harness.committer.flush()
        groups = harness.publisher.groups
        values = [m.value for group in groups for m in group.messages]
        assert values == [b"a0", b"a1", b"a2", b"a3", b"a4", b"0", b"1", b"2", b"3", b"4"]
        assert all(len(group.messages) <= 2 for group in groups[:-1])
        assert len(groups[-1].messages) == 5, "one entry is not divided"
        assert [group.offset for group in groups] == sorted({group.offset for group in groups})
        for group in groups[:-1]:
            assert group.states["a"].cursor + 1 == group.offset
        assert len(harness.committed) == 6
        await harness.committer.close()

    run(body)


def test_what_arrives_during_a_commit_in_parts_comes_after_its_rest() -> None:
    class Busy(FakePublisher):
        async def publish(self, group: Group) -> None:
            if not self.attempts:
                harness.committer.add(entry("a", 2, "a2"))
            await super().publish(group)

    harness: Harness

    async def body() -> None:
        nonlocal harness
        harness = Harness(Busy(), interval_s=60)
        harness.publisher.most = 1
        for offset in range(2):
            harness.committer.add(entry("a", offset, f"a{offset}"))
        await harness.committer.flush()
        values = [m.value for group in harness.publisher.groups for m in group.messages]
        assert values == [b"a0", b"a1", b"a2"]
        await harness.committer.close()

    run(body)


def test_commits_happen_by_time_and_by_count() -> None:
    async def body() -> None:
        by_time = Harness(FakePublisher(), interval_s=0.05)
        by_time.committer.add(entry("a", 0))
        await asyncio.sleep(0.01)
        assert not by_time.publisher.groups
        await asyncio.sleep(0.1)
        assert len(by_time.publisher.groups) == 1
        by_count = Harness(FakePublisher(), interval_s=60, max_events=2)
        by_count.committer.add(entry("a", 0))
        by_count.committer.add(entry("a", 1))
        await asyncio.sleep(0.05)
        assert len(by_count.publisher.groups) == 1
        await by_time.committer.close()
        await by_count.committer.close()

    run(body)


def test_the_same_group_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.committer.BACKOFF_SECONDS", 0.001)

    async def body() -> None:
        harness = Harness(FakePublisher(Retriable("x"), Retriable("y")))
        harness.committer.add(entry("a", 0, "same"))
        await harness.committer.flush()
        first, second, third = harness.publisher.attempts
        assert first is second is third
        assert len(harness.committed) == 1
        await harness.committer.close()

    run(body)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([Retriable("down")] * ATTEMPTS, CommitError),
        ([Fenced("gone")], Fenced),
        ([RuntimeError("unknown")], CommitError),
    ],
)
def test_a_failed_commit_acknowledges_nothing(
    errors: list[Exception], expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.committer.BACKOFF_SECONDS", 0.001)

    async def body() -> None:
        harness = Harness(FakePublisher(*errors))
        harness.committer.add(entry("a", 0))
        with pytest.raises(expected):
            await harness.committer.failed
        await harness.committer.flush()  # returns although it has failed
        assert not harness.committed
        await harness.committer.close()

    run(body)


class Silent(FakePublisher):
    """A broker that answers nothing."""

    async def open(self) -> None:
        await asyncio.Event().wait()

    async def publish(self, group: Group) -> None:
        await asyncio.Event().wait()


def test_a_broker_that_answers_nothing_is_waited_for_so_long() -> None:
    async def body() -> None:
        harness = Harness(Silent(), patience_s=0.05)
        with pytest.raises(Waited, match="broker_patience_s"):
            await harness.committer.open()
        harness.committer.add(entry("a", 0))
        with pytest.raises(Waited, match="broker_patience_s"):
            await harness.committer.failed
        assert not harness.committed
        await harness.committer.close()

    run(body)


def test_a_partition_is_never_committed_backwards() -> None:
    async def body() -> None:
        harness = Harness(FakePublisher())
        harness.committer.committed_offset = 50
        harness.committer.add(Entry(finished=(0,)))
        await harness.committer.flush()
        assert not harness.publisher.groups, "nothing to write, nothing to commit"
        assert len(harness.committed) == 1
        await harness.committer.close()

    run(body)


# --- outbox ------------------------------------------------------------------------------------


class FakeProducer:
    """aiokafka's producer as far as the outbox uses it; fails from the ``fail_at``-th send on."""

    def __init__(self, fail_at: int = 1_000) -> None:
        self.fail_at = fail_at
        self.sent: list[tuple[str, bytes]] = []

    async def send(self, topic: str, *, value: bytes, **_: Any) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        if len(self.sent) >= self.fail_at:
            future.set_exception(KafkaError("broker gone"))
        else:
            self.sent.append((topic, value))
            future.set_result(None)
        return future


def publish_with(producer: FakeProducer) -> None:
    async def body() -> None:
        publisher = OutboxPublisher(Settings(), 0)
        publisher._producer = producer
        result = Message("results", b"a", b"the text", [("h", b"v")])
        state = SessionState(stream_id="a", cursor=7)
        await publisher.publish(Group([result], {"a": state}, {"a": [result]}, offset=8))

    run(body)


def test_the_state_with_its_outbox_is_written_before_the_result() -> None:
    producer = FakeProducer()
    publish_with(producer)
    (state_topic, state), (result_topic, result) = producer.sent
    assert state_topic == Settings().topic_sessions
    assert (result_topic, result) == ("results", b"the text")
    decoded, problem = decode_state(state)
    assert decoded is not None, problem
    assert decoded.cursor == 7
    assert pending_results(state) == [Message("results", b"a", b"the text", [("h", b"v")])]


def test_a_result_that_was_not_written_is_in_the_state() -> None:
    producer = FakeProducer(fail_at=1)
    with pytest.raises(Retriable, match="broker gone"):
        publish_with(producer)
    ((_, state),) = producer.sent
    assert [m.value for m in pending_results(state)] == [b"the text"]


@pytest.mark.parametrize(("bytes_", "whole"), [(2000, True), (4000, False)])
def test_results_that_do_not_fit_into_their_state_are_written_before_it(
    bytes_: int, whole: bool
) -> None:
    """Base64 makes them a third larger. Nothing is lost whichever of the two a crash leaves out."""
    settings = Settings(max_message_bytes=6000, operator={"max_text_bytes": 4000})
    result = Message("results", b"a", b"x" * bytes_, [("h", b"v")])
    state = SessionState(stream_id="a", cursor=7)
    group = Group([result], {"a": state}, {"a": [result]}, offset=8)
    producer = FakeProducer()

    async def body() -> None:
        publisher = OutboxPublisher(settings, 0)
        publisher._producer = producer
        assert publisher.fits(group) == whole
        await publisher.publish(group)

    run(body)
    order = [settings.topic_sessions, "results"]
    assert [topic for topic, _ in producer.sent] == (order if whole else order[::-1])
    sent = dict(producer.sent)
    assert len(sent[settings.topic_sessions]) <= settings.max_message_bytes
    assert pending_results(sent[settings.topic_sessions]) == ([result] if whole else [])


# --- sessions ----------------------------------------------------------------------------------


def test_session_table_returns_a_state_once_and_refuses_what_it_cannot_read() -> None:
    table = SessionTable()
    table.put("a", msgspec.json.encode(SessionState(stream_id="a", cursor=3)))
    table.put("b", b"not a state")
    table.put("gone", b"{}")
    table.put("gone", None)
    state, _ = table.take("a")
    assert state is not None
    assert state.cursor == 3
    assert table.take("a") == table.take("gone") == (None, None)
    for _ in range(2):  # it stays refused: starting over would reuse revisions
        with pytest.raises(SegmentError, match="session record"):
            table.take("b")


def test_session_table_is_bounded() -> None:
    table = SessionTable(max_bytes=400)
    table.put("a", bytes(range(256)))
    table.put("a", bytes(range(256)))  # in place of the first
    with pytest.raises(ConfigError, match="forget streams"):
        table.put("b", bytes(range(256)))


# --- partition ---------------------------------------------------------------------------------


class FakeDevice:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.opened: dict[str, SessionState | None] = {}
        self.fed: list[tuple[str, int]] = []
        self.read_at: dict[int, float] = {}
        self.dropped: list[str] = []
        self.erased: list[str] = []
        self.faults: list[Exception] = []
        """What the next erasures end with."""

    def open(self, stream_id: str, state: SessionState | None = None) -> None:
        self.opened[stream_id] = state

    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None:
        self.fed.append((segment.stream_id, ticket))
        self.read_at[ticket] = read_at

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
        self.host = Host(
            settings=self.settings,
            metrics=Metrics(),
            device=self.device,
            owners={},
            hold=lambda number: self.held.append(True),
            release=lambda number: self.held.append(False),
            recover=self._recover,
            make_publisher=lambda number: self.publisher,
        )
        self.partition = Partition(0, self.host)

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
    monkeypatch.setattr("pipelines.records.monotonic", lambda: next(clock))

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
    monkeypatch.setattr("pipelines.records.MAX_HELD_BYTES", 1000)

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
    monkeypatch.setattr("pipelines.records.MAX_HELD_BYTES", 10_000)

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
        bad = world.say(0, "a", b"{not json")
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
        other = Partition(1, world.host)
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
        assert not world.host.owners
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
