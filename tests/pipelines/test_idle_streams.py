"""Streams without a producer end by themselves; streams without work stay closed after a restart."""

from __future__ import annotations

import time
from typing import Any

import pytest

from operators.errors import SegmentError
from operators.events import Segment
from operators.state import SessionState
from pipelines.wire.messages import now_ms
from tests.pipelines.test_partition import World, with_world
from tests.pipelines.test_takeover import BY_TIME, remember, state

HOUR = 3600.0


def calm(world: World) -> None:
    """As if the partition had been there for long."""
    world.partition._calm_since = time.monotonic() - 2 * HOUR


def silent(world: World, *streams: str) -> None:
    """As if nothing had come for two hours."""
    calm(world)
    for queue in world.partition.queues():
        if queue.stream_id in streams:
            queue.heard_at = time.monotonic() - 2 * HOUR


def ended(world: World, stream: str) -> None:
    world.done(stream, state=SessionState(stream_id=stream, cursor=0, ended=True))


def test_an_abandoned_stream_is_ended_and_stops_counting_against_its_tenant() -> None:
    """Two of them blocked a tenant for ever."""

    async def test(world: World) -> None:
        for offset, stream in enumerate("ab"):
            world.say(offset, stream, {"text": "x", "tenant": "t"})
            world.done(stream, offset)
        await world.settle()
        tenants = world.context.tenants
        third = Segment(stream_id="c", text="x", tenant="t")
        with pytest.raises(SegmentError, match="tenant"):
            tenants.admit(third, live=False)
        world.partition.end_idle()
        assert world.device.ended == []
        silent(world, "a")
        world.partition.end_idle()
        world.partition.end_idle()
        assert world.device.ended == ["a"]
        ended(world, "a")
        await world.settle()
        assert world.device.dropped == ["a"]
        tenants.admit(third, live=False)

    with_world(test, tenant_max_streams=2, stream_idle_timeout_s=HOUR)


def test_a_stream_that_is_heard_of_in_time_goes_on() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        silent(world, "a")
        world.partition.end_idle()
        assert world.device.ended == [], "the device still has its record"
        world.done("a", 0)
        await world.settle()
        world.say(1, "a")
        world.done("a", 1)
        await world.settle()
        world.partition.end_idle()
        assert world.device.ended == []

    with_world(test, stream_idle_timeout_s=HOUR)


def test_other_streams_that_talk_do_not_keep_an_abandoned_one() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        world.done("a", 0)
        world.say(1, "busy")
        await world.settle()
        silent(world, "a")
        world.partition.end_idle()
        assert world.device.ended == ["a"]

    with_world(test, stream_idle_timeout_s=HOUR)


def test_an_outage_of_kafka_says_nothing_about_a_stream() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        world.done("a", 0)
        await world.settle()
        silent(world, "a")
        world.partition.note_outage()
        world.partition.end_idle()
        calm(world)
        world.partition.end_idle()
        assert world.device.ended == []

    with_world(test, stream_idle_timeout_s=HOUR)


def test_never_means_never() -> None:
    async def test(world: World) -> None:
        remember(world, state("old"), at_ms=1)
        await world.partition.recover()
        calm(world)
        world.partition.end_idle()
        assert world.device.opened == {}

    with_world(test, recover=False, stream_idle_timeout_s=0)


def test_streams_of_an_earlier_worker_are_ended_too_some_at_a_time() -> None:
    async def test(world: World) -> None:
        old = [state(f"s{number}") for number in range(3)]
        remember(world, *old, state("over", ended=True), at_ms=now_ms() - int(2 * HOUR * 1000))
        remember(world, state("new"), at_ms=now_ms())
        await world.partition.recover()
        assert world.device.opened == {}
        world.partition.end_idle()
        assert world.device.ended == [], "their producers may come back with the worker"
        calm(world)
        world.partition.end_idle()
        assert world.device.ended == ["s0", "s1"]
        ended(world, "s0")
        world.partition.end_idle()
        assert world.device.ended == ["s0", "s1", "s2"]

    with_world(
        test,
        recover=False,
        stream_idle_timeout_s=HOUR,
        in_flight_per_partition=2,
        in_flight_per_key=2,
    )


def test_an_end_that_is_lost_with_the_device_is_given_again_and_not_for_ever() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        world.done("a", 0)
        await world.settle()
        silent(world, "a")
        world.partition.end_idle()
        (queue,) = world.partition.queues()
        for number in range(2, 4):
            queue.device_lost()
            world.partition.pump(queue)
            assert world.device.ended == ["a"] * number
        queue.device_lost()
        world.partition.end_idle()
        assert len(world.device.ended) == 3, "left alone until it has been silent as long again"
        assert not queue.ending

    with_world(test, stream_idle_timeout_s=HOUR, device_attempts=3)


@pytest.mark.parametrize(
    ("uncovered", "fields", "opens"),
    [(0, {}, False), (5, {}, True), (5, {"ended": True}, False)],
)
def test_a_restarted_device_opens_only_streams_with_work(
    uncovered: int, fields: dict[str, Any], opens: bool
) -> None:
    """Every idle stream was opened, and its whole window prefilled, at each restart."""

    async def test(world: World) -> None:
        world.say(0, "a")
        world.done("a", 0, state=state("a", uncovered, **fields))
        (queue,) = world.partition.queues()
        world.device.opened.clear()
        queue.device_lost()
        world.partition.pump(queue)
        assert ("a" in world.device.opened) == opens
        world.say(4, "a")
        assert "a" in world.device.opened
        assert world.device.fed[-1] == ("a", 4)

    with_world(test, operator=BY_TIME)
