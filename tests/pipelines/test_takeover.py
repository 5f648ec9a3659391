"""A partition is taken up and nobody speaks: what its owner before left undone is done all the same."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from operators.errors import ConfigError
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.wire.codec import encode_state
from pipelines.wire.messages import Message, now_ms
from pipelines.worker.partition.state import SessionTable, compare_with_input
from tests.pipelines.test_partition import World, with_world

BY_TIME = {"update_interval_s": 60.0}
BY_TOKENS = {"update_tokens": 100}


def state(stream: str, uncovered: int = 0, **fields: Any) -> SessionState:
    return SessionState(stream_id=stream, cursor=3, uncovered_tokens=uncovered, **fields)


def remember(world: World, *states: SessionState, at_ms: int = 0) -> None:
    for kept in states:
        world.recovered.sessions.put(kept.stream_id, encode_state(kept), kept.cursor, at_ms)


# --- summaries that are owed -------------------------------------------------------------------


@pytest.mark.parametrize(("operator", "owed"), [(BY_TIME, "ab"), (BY_TOKENS, "b")])
def test_silent_streams_that_are_owed_a_summary_are_opened(
    operator: dict[str, object], owed: str
) -> None:
    async def test(world: World) -> None:
        states = [state("a", 99), state("b", 100), state("c"), state("d", 100, ended=True)]
        remember(world, *states)
        await world.partition.recover()
        assert world.device.opened == {s.stream_id: s for s in states if s.stream_id in owed}
        assert world.device.fed == []

    with_world(test, recover=False, operator=operator)


def test_so_many_at_once_the_others_as_these_are_heard_of() -> None:
    async def test(world: World) -> None:
        remember(world, *(state(f"s{number}", 5) for number in range(5)))
        await world.partition.recover()
        assert list(world.device.opened) == ["s0", "s1"]
        world.done("s1")
        assert list(world.device.opened) == ["s0", "s1", "s2"]
        world.say(9, "s3")  # speaks before its turn: opened once, by its word
        world.done("s3", 9)
        world.say(10, "s0", {"type": "forget"})  # goes, and leaves its place to another
        await asyncio.sleep(0)
        world.done("s2")
        assert list(world.device.opened) == ["s0", "s1", "s2", "s3", "s4"]

    with_world(
        test, recover=False, operator=BY_TIME, in_flight_per_partition=2, in_flight_per_key=2
    )


def test_a_state_nobody_can_read_keeps_no_other_from_being_opened() -> None:
    async def test(world: World) -> None:
        world.recovered.sessions.put("odd", b'{"uncovered_tokens": 7, "items": "what?"}')
        remember(world, state("a", 5))
        await world.partition.recover()
        assert list(world.device.opened) == ["a"]

    with_world(test, recover=False, operator=BY_TIME)


def test_what_is_owed_shows_as_coverage_lag_from_when_it_was_written() -> None:
    async def test(world: World) -> None:
        remember(world, state("a", 5), at_ms=now_ms() - 90_000)
        await world.partition.recover()
        assert world.partition.coverage_lag(time.monotonic()) >= 90
        world.done("a", state=state("a"))
        assert world.partition.coverage_lag(time.monotonic()) == 0

    with_world(test, recover=False, operator=BY_TIME)


def test_a_stream_opened_in_silence_counts_for_its_tenant_when_it_speaks() -> None:
    async def test(world: World) -> None:
        remember(world, state("a", 5))
        await world.partition.recover()
        world.say(4, "a", {"text": "x", "tenant": "t"})
        world.say(5, "b", {"text": "x", "tenant": "t"})
        await world.settle()
        (letter,) = [m for group in world.publisher.groups for m in group.messages]
        assert dict(letter.headers)["longstream.dlq.reason"] == b"tenant_limit"
        assert world.device.fed == [("a", 4)]

    with_world(test, recover=False, operator=BY_TIME, tenant_max_streams=1)


# --- results in an outbox ----------------------------------------------------------------------


def with_outbox(kept: SessionState, *results: Message) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(kept), "outbox": results})


@pytest.mark.parametrize("ended", [False, True])
def test_outboxes_of_silent_streams_are_published_once(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their results may be missing, and an ended stream never speaks again."""
    monkeypatch.setattr("pipelines.worker.partition.takeover.OUTBOXES_AT_ONCE", 2)

    async def test(world: World) -> None:
        results = {name: Message("results", name.encode(), b"the text") for name in "abc"}
        for name, result in results.items():
            raw = with_outbox(state(name, ended=ended), result)
            world.recovered.sessions.put(name, raw, 3)
        remember(world, state("d"))
        await world.partition.recover()
        await world.settle()
        groups = world.publisher.groups
        published = [m for group in groups for m in group.messages]
        assert sorted(m.key or b"" for m in published) == [b"a", b"b", b"c"]
        # Afterwards the states are written without them.
        for name in "abc":
            (at,) = [n for n, group in enumerate(groups) if name in group.states]
            (before,) = [n for n, group in enumerate(groups) if results[name] in group.messages]
            assert before < at
            assert groups[at].states[name] == state(name, ended=ended)
            assert not groups[at].outbox[name]
        assert not world.device.opened

    with_world(test, recover=False, delivery="at_least_once")


def test_an_outbox_is_published_before_its_stream_goes_on() -> None:
    async def test(world: World) -> None:
        world.recovery_gate.clear()
        recovering = asyncio.ensure_future(world.partition.recover())
        world.say(4, "a")
        result = Message("results", b"a", b"earlier")
        world.recovered.sessions.put("a", with_outbox(state("a"), result), 3)
        world.recovery_gate.set()
        await recovering
        assert world.publisher.groups[0].messages == [result]
        assert world.device.fed == [("a", 4)]
        assert world.device.opened == {"a": state("a")}

    with_world(test, recover=False, delivery="at_least_once")


def test_a_partition_lost_during_recovery_opens_and_feeds_nothing() -> None:
    async def test(world: World) -> None:
        world.recovery_gate.clear()
        recovering = asyncio.ensure_future(world.partition.recover())
        await asyncio.sleep(0)
        world.say(4, "b")
        remember(world, state("a", 5))
        await world.partition.close()
        world.recovery_gate.set()
        await recovering
        assert not world.device.opened
        assert not world.partition.recovered

    with_world(test, recover=False, operator=BY_TIME)


# --- input made anew ---------------------------------------------------------------------------


def test_states_are_behind_the_end_of_their_input() -> None:
    """A topic made anew begins at 0 again: what is said there would pass for done."""
    settings = Settings()
    compare_with_input(settings, 0, 8, 7, start=0, end=8)
    compare_with_input(settings, 0, None, -1, start=0, end=0)
    compare_with_input(settings, 0, None, 6, start=7, end=7)  # all expired, and all done
    with pytest.raises(ConfigError, match=r"\[3\] ends at offset 2, but was processed to offset 8"):
        compare_with_input(settings, 3, None, 7, start=0, end=2)
    with pytest.raises(ConfigError, match="another app_id"):
        compare_with_input(settings, 3, 9, 1, start=0, end=2)


def test_input_that_expired_unread_is_said(caplog: pytest.LogCaptureFixture) -> None:
    compare_with_input(Settings(), 0, 5, 4, start=5, end=9)
    compare_with_input(Settings(), 0, None, -1, start=5, end=9)  # a new group has missed nothing
    assert not caplog.records
    compare_with_input(Settings(), 0, 5, 4, start=8, end=9)
    assert "offsets 5 to 7 were deleted before they were read" in caplog.text


def test_the_newest_cursor_is_that_of_the_streams_that_are_known() -> None:
    table = SessionTable()
    assert table.newest_cursor == -1
    table.put("a", encode_state(SessionState(stream_id="a", cursor=9)), 9)
    table.put("b", encode_state(SessionState(stream_id="b", cursor=7)), 7)
    assert table.newest_cursor == 9
    table.put("a", None)
    assert table.newest_cursor == 7
