"""Commit groups, retries, the outbox and the offsets: no broker needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import ConfigError, SegmentError
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.kafka.errors import BrokerUnavailable
from pipelines.kafka.offsets import OffsetTracker
from pipelines.kafka.publishers import (
    Fenced,
    Group,
    OutboxPublisher,
    Retriable,
    _send_all,
)
from pipelines.wire.codec import decode_state
from pipelines.wire.messages import Message, pending_results
from pipelines.worker.partition.committer import ATTEMPTS, CommitError, Committer, Entry
from pipelines.worker.partition.state import SessionTable


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await body()

    asyncio.run(main())


# --- when a commit begins --------------------------------------------------------------------


@pytest.mark.parametrize(("usual", "collects"), [([], 1.0), ([0.2, 9.0, 0.2], 0.8), ([3.0], 0.5)])
def test_a_commit_begins_earlier_by_what_commits_usually_take(
    usual: list[float], collects: float
) -> None:
    async def body() -> None:
        committer = Committer(
            FakePublisher(),
            lambda offsets: None,
            lambda entries, took: None,
            interval_s=1.0,
            max_events=9,
        )
        committer._first = 100.0
        committer._took.extend(usual)
        assert committer._collects_s(100.0) == pytest.approx(collects)
        assert committer._collects_s(105.0) == 0.0
        await committer.close()

    run(body)


# --- offsets ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), unique=True, min_size=1).map(sorted), st.randoms())
def test_what_is_committable_is_never_above_an_open_offset(offsets: list[int], rng: Any) -> None:
    """Whatever the gaps in the offsets and the order of finishing."""
    tracker = OffsetTracker()
    unread, open_ = list(offsets), []
    while unread or open_:
        if unread and (not open_ or rng.random() < 0.5):
            open_.append(unread.pop(0))
            tracker.read(open_[-1])
        else:
            offset = open_.pop(rng.randrange(len(open_)))
            tracker.finish(offset)
            assert tracker.is_finished(offset)
        read = [o for o in offsets if o not in unread]
        assert tracker.committable == min(open_, default=read[-1] + 1)
        assert len(tracker) == len(open_)
    assert tracker.gap == 0


def test_an_offset_is_read_once_and_in_order() -> None:
    offsets = OffsetTracker()
    offsets.read(5)
    with pytest.raises(ValueError, match="read after"):
        offsets.read(5)
    with pytest.raises(KeyError):
        offsets.finish(4)


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
        self.offsets = OffsetTracker()
        for offset in range(10):
            self.offsets.read(offset)
        self.committed: list[Entry] = []
        self.publisher = publisher
        options = {"interval_s": 0.02, "max_events": 100, **options}
        self.committer = Committer(publisher, self.finish, self.note, **options)
        self.committer.start()

    def finish(self, offsets: Iterable[int]) -> int | None:
        for offset in offsets:
            self.offsets.finish(offset)
        return self.offsets.committable

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
    """In order, each with the offsets of its own entries; the parts do not wait for the interval."""

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
    monkeypatch.setattr("pipelines.worker.partition.committer.BACKOFF_SECONDS", 0.001)

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
    monkeypatch.setattr("pipelines.worker.partition.committer.BACKOFF_SECONDS", 0.001)

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
        with pytest.raises(BrokerUnavailable, match="broker_patience_s"):
            await harness.committer.open()
        harness.committer.add(entry("a", 0))
        with pytest.raises(BrokerUnavailable, match="broker_patience_s"):
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


class FakeBatch:
    """aiokafka's batch builder: full after ``room`` messages."""

    def __init__(self, room: int) -> None:
        self.room, self.values = room, []

    def append(self, *, value: bytes, **_: Any) -> object | None:
        if len(self.values) >= self.room:
            return None
        self.values.append(value)
        return object()


class FakeProducer:
    """aiokafka's producer as far as a publisher uses it; fails from the ``fail_at``-th message on."""

    def __init__(self, fail_at: int = 1_000, room: int = 1_000) -> None:
        self.fail_at, self.room = fail_at, room
        self.sent: list[tuple[str, bytes]] = []
        self.batches: list[str] = []

    def create_batch(self) -> FakeBatch:
        return FakeBatch(self.room)

    async def send_batch(
        self, batch: FakeBatch, topic: str, *, partition: int
    ) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        if len(self.sent) >= self.fail_at:
            future.set_exception(KafkaError("broker gone"))
        else:
            self.batches.append(topic)
            self.sent += [(topic, value) for value in batch.values]
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


def test_messages_of_a_topic_are_sent_in_order_in_as_few_batches_as_hold_them() -> None:
    producer = FakeProducer(room=2)
    messages = [Message("ab"[n % 2], b"k", str(n).encode()) for n in range(6)]
    run(lambda: _send_all(producer, messages, 0))  # type: ignore[arg-type]
    assert producer.batches == ["a", "a", "b", "b"]
    assert [value for topic, value in producer.sent if topic == "a"] == [b"0", b"2", b"4"]
    assert [value for topic, value in producer.sent if topic == "b"] == [b"1", b"3", b"5"]


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
