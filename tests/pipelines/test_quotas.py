"""Limits per tenant: what is let through, delayed and refused, and that nothing grows."""

from __future__ import annotations

import pytest

from operators.errors import SegmentError
from operators.events import Segment
from pipelines.config.load import Settings
from pipelines.worker.partition import quotas
from pipelines.worker.partition.quotas import Rate, TenantLimits
from tests.pipelines.test_partition import World, with_world


def segment(stream: str = "a", tenant: str | None = "t", text: str = "x") -> Segment:
    return Segment(stream_id=stream, text=text, tenant=tenant)


# --- rates -------------------------------------------------------------------------------------


def test_a_rate_lets_a_burst_through_and_then_its_share() -> None:
    rate, times = Rate(per_s=2, burst_s=3), []
    for _ in range(10):
        wait = rate.wait("t", 1, now=100.0)
        rate.take("t", 1, now=100.0)
        times.append(wait)
    assert times == [0, 0, 0, 0, 0, 0, 0.5, 1.0, 1.5, 2.0]
    assert rate.wait("other", 1, now=100.0) == 0
    assert rate.wait("t", 1, now=110.0) == 0


def test_something_larger_than_a_burst_goes_when_nothing_is_owed() -> None:
    rate = Rate(per_s=10, burst_s=1)
    assert rate.wait("t", 500, now=0.0) == 0
    rate.take("t", 500, now=0.0)
    assert rate.wait("t", 1, now=0.0) == pytest.approx(49.1)


def test_rates_remember_a_bounded_number_of_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MAX_TENANTS", 50)
    rate = Rate(per_s=1, burst_s=0)
    for number in range(500):
        rate.take(f"t{number}", 1, now=0.0)
    assert len(rate._paid_at) <= 50
    rate.take("late", 1, now=9.0)
    assert len(rate._paid_at) == 1, "those that owe nothing are let go"


def test_the_slower_of_two_rates_counts_and_limits_are_off_by_default() -> None:
    assert TenantLimits(Settings(), {}).reserve(segment()) == 0.0
    limited: list[str] = []
    both = Settings(tenant_segments_per_s=100, tenant_bytes_per_s=10, tenant_burst_s=1)
    paced = TenantLimits(both, {}, limited.append, clock=lambda: 5.0)
    assert paced.reserve(segment(text="x" * 10)) == 5.0
    assert paced.reserve(segment(text="x" * 10)) == 6.0
    assert paced.reserve(segment(tenant=None)) == 5.0, "who names no tenant is one of their own"
    assert limited == ["bytes"]


# --- streams -----------------------------------------------------------------------------------


def test_a_stream_too_many_is_refused_until_another_has_ended() -> None:
    open_now: dict[str, object] = {}
    limited: list[str] = []
    limits = TenantLimits(Settings(tenant_max_streams=2), open_now, limited.append)

    def admit(stream: str, tenant: str = "t", live: bool = False) -> None:
        limits.admit(segment(stream, tenant), live)
        open_now[stream] = True

    admit("a")
    admit("b")
    with pytest.raises(SegmentError, match="2 streams open") as refused:
        admit("c")
    assert refused.value.reason == "tenant_limit"
    assert limited == ["streams"]
    admit("c", tenant="other")
    admit("d", live=True)  # running before this worker took it over
    del open_now["a"], open_now["b"]
    admit("e")
    with pytest.raises(SegmentError):
        admit("f")


def test_streams_that_are_gone_are_not_remembered() -> None:
    limits = TenantLimits(Settings(tenant_max_streams=1), {})
    for number in range(100):
        limits.admit(segment(f"s{number}", tenant="t"), False)
    assert sum(map(len, limits._streams.values())) == 1


# --- in a partition ----------------------------------------------------------------------------


def test_a_tenant_over_its_rate_waits_while_others_go_on() -> None:
    async def test(world: World) -> None:
        for offset in range(3):
            world.say(offset, "hot", {"text": "x", "tenant": "t"})
        world.say(3, "calm", {"text": "x", "tenant": "u"})
        assert world.device.fed == [("hot", 0), ("calm", 3)]
        world.done("hot", 0)
        assert world.device.fed[2:] == []
        (queue,) = (queue for queue in world.partition.queues() if queue.stream_id == "hot")
        for offset in (1, 2):  # its time comes
            world.partition._pacing.not_before[offset] = 0.0
            world.partition._pacing.wake(queue)
        assert world.device.fed[2:] == [("hot", 1), ("hot", 2)]
        assert world.partition._pacing.not_before == {}

    with_world(test, tenant_segments_per_s=0.001, tenant_burst_s=0)


def test_excess_can_become_dead_letters() -> None:
    async def test(world: World) -> None:
        events = [world.say(offset, "hot", {"text": "x", "tenant": "t"}) for offset in range(3)]
        world.done("hot", 0)
        await world.settle()
        assert world.device.fed == [("hot", 0)]
        assert all(event.acked for event in events)
        letters = [m for group in world.publisher.groups for m in group.messages]
        reasons = [dict(letter.headers)["longstream.dlq.reason"] for letter in letters]
        assert reasons == [b"tenant_limit"] * 2

    with_world(test, tenant_segments_per_s=0.01, tenant_burst_s=0, tenant_excess="dead_letter")


def test_a_stream_too_many_becomes_dead_letters() -> None:
    async def test(world: World) -> None:
        world.say(0, "a", {"text": "x", "tenant": "t"})
        refused = world.say(1, "b", {"text": "x", "tenant": "t"})
        world.say(2, "b", {"text": "x", "tenant": "u"})
        await world.settle()
        assert refused.acked
        assert world.device.fed == [("a", 0), ("b", 2)]

    with_world(test, tenant_max_streams=1)
