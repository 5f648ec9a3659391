"""A fetch that a rebalance overtakes is read again; the end of what is not fetched is asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.utils.locks import Event

from pipelines.kafka.transport import Consumer, InFlight

PLACE = TP("in", 0)


def consumer(monkeypatch: pytest.MonkeyPatch, during_fetch: Any) -> tuple[Any, list[str]]:
    """A consumer without Faust around it; what it does is noted in the list."""
    done: list[str] = []
    made: Any = Consumer.__new__(Consumer)
    made._revocations, made._stale_fetch, made._committed_offset = 0, False, {}
    monkeypatch.setattr(Consumer, "flow_active", True)
    monkeypatch.setattr(Consumer, "assignment", lambda self: {PLACE})
    monkeypatch.setattr(Consumer, "_get_active_partitions", lambda self: {PLACE})

    async def fetch(self: Any, timeout: float) -> Any:
        done.append("fetch")
        during_fetch(self)
        return {PLACE: ["record"]}, {PLACE}

    async def seek(self: Any) -> None:
        done.append("seek")

    monkeypatch.setattr(driver.Consumer, "_wait_next_records", fetch)

    async def earliest(self: Any, *places: TP) -> dict[TP, int]:
        return dict.fromkeys(places, 0)

    async def seek_to(self: Any, place: TP, offset: int) -> None:
        done.append(f"seek {place.partition} to {offset}")

    monkeypatch.setattr(Consumer, "perform_seek", seek)
    monkeypatch.setattr(Consumer, "earliest_offsets", earliest)
    monkeypatch.setattr(Consumer, "seek", seek_to)
    return made, done


def test_a_fetch_in_peace_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    made, done = consumer(monkeypatch, lambda self: None)
    records, _ = asyncio.run(made._wait_next_records(0.1))
    assert (records, done) == ({PLACE: ["record"]}, ["fetch"])


def test_a_fetch_across_a_rebalance_is_dropped_and_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delivered, its records would hide those before them that the new assignment reads."""

    def rebalance(self: Any) -> None:
        if len(done) == 1:
            self._revocations += 1

    made, done = consumer(monkeypatch, rebalance)
    assert asyncio.run(made._wait_next_records(0.1)) == ({}, set())
    records, _ = asyncio.run(made._wait_next_records(0.1))
    assert (records, done) == ({PLACE: ["record"]}, ["fetch", "seek", "seek 0 to 0", "fetch"])


def test_the_end_of_a_held_partition_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka learns it from fetches only: the lag stood still while the partition was held."""
    made: Any = Consumer.__new__(Consumer)
    made._held, made._ends = {PLACE}, {}
    answers: list[dict[TP, int] | Exception] = [OSError("no broker"), {PLACE: 70}, {PLACE: 90}]

    async def end_offsets(places: list[TP]) -> dict[TP, int]:
        assert places == [PLACE]
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def no_time(self: Any, seconds: float) -> None: ...

    async def body() -> None:
        made._thread = SimpleNamespace(
            _consumer=SimpleNamespace(end_offsets=end_offsets),
            thread_loop=asyncio.get_running_loop(),
            highwater=lambda tp: 20,
        )
        await Consumer._ask_for_ends.fun(made)

    monkeypatch.setattr(Consumer, "sleep", no_time)
    monkeypatch.setattr(Consumer, "should_stop", property(lambda self: not answers))
    asyncio.run(body())
    assert made.highwater(PLACE) == 90
    assert made.highwater(TP("in", 1)) == 20  # as fetched


def test_the_ends_of_partitions_that_are_gone_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = TP("in", 1)
    made: Any = Consumer.__new__(Consumer)
    made._unacked_messages, made._revocations = InFlight(), 0
    made._held, made._ends = {PLACE, other}, {PLACE: 70, other: 5}

    async def base(self: Any, revoked: set[TP]) -> None: ...

    monkeypatch.setattr(driver.Consumer, "on_partitions_revoked", base)
    asyncio.run(made.on_partitions_revoked({PLACE}))
    assert (made._held, made._ends) == ({other}, {other: 5})


def delivering(*waits: float) -> tuple[Any, list[str], Any]:
    """A consumer, what its delivery did, and a delivery that sleeps so long at each step."""
    did: list[str] = []

    async def deliver() -> str:
        for seconds in waits:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                did.append("cancelled")
                raise
            did.append("slept")
        return "delivered"

    made: Any = Consumer.__new__(Consumer)
    made._stopped, made._crashed, made._loop = Event(), Event(), None
    made._revocations, made._stale_fetch = 0, False
    return made, did, deliver


def test_a_delivery_that_need_not_wait_makes_no_tasks() -> None:
    async def body() -> None:
        made, _, deliver = delivering()
        suspended = Event()
        before = asyncio.all_tasks()
        found = await made.wait_first(deliver(), suspended.wait())
        assert (found.results, found.stopped) == (["delivered"], False)
        assert asyncio.all_tasks() == before
        made._stopped.set()
        assert (await made.wait_first(deliver(), suspended.wait())).stopped

    asyncio.run(body())


@pytest.mark.parametrize("waits", [(0.0,), (0.01,), (0.0, 0.01, 0.0)])
def test_a_delivery_that_waits_is_done_all_the_same(waits: tuple[float, ...]) -> None:
    async def body() -> None:
        made, did, deliver = delivering(*waits)
        found = await made.wait_first(deliver(), Event().wait())
        assert (found.results, found.stopped) == (["delivered"], False)
        assert did == ["slept"] * len(waits)

    asyncio.run(body())


def test_a_delivery_that_waits_is_given_up_when_the_flow_is_suspended() -> None:
    async def body() -> None:
        made, did, deliver = delivering(60.0)
        suspended = Event()
        asyncio.get_running_loop().call_later(0.01, suspended.set)
        found = await made.wait_first(deliver(), suspended.wait())
        await asyncio.sleep(0)
        assert (found.results, did) == ([True], ["cancelled"])

    asyncio.run(body())


@pytest.mark.parametrize("waits", [(), (0.01,), (60.0,)])
def test_a_delivery_across_a_rebalance_is_followed_by_another_seek(
    waits: tuple[float, ...],
) -> None:
    """Faust notes its message as read in the new assignment, and drops what that reads before it."""

    async def body() -> None:
        made, _, deliver = delivering(*waits)
        suspended = Event()

        def rebalance() -> None:
            made._revocations += 1
            suspended.set()

        asyncio.get_running_loop().call_soon(rebalance)
        await made.wait_first(deliver(), suspended.wait())
        assert made._stale_fetch

    asyncio.run(body())


def test_a_delivery_that_fails_says_so() -> None:
    async def fail(seconds: float) -> None:
        await asyncio.sleep(seconds) if seconds else None
        raise ValueError("no room")

    async def body() -> None:
        made, _, _ = delivering()
        for seconds in (0.0, 0.01):
            with pytest.raises(ValueError, match="no room"):
                await made.wait_first(fail(seconds), Event().wait())

    asyncio.run(body())
