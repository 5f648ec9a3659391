"""A device process that fails, and the partition that feeds it: no broker needed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from operators.errors import ConfigError, DeviceError, ModelError
from operators.state import Emission
from pipelines.config.load import Settings
from pipelines.device import protocol
from pipelines.device.client import DeviceClient
from pipelines.observability.metrics import Metrics
from pipelines.wire.messages import Message
from pipelines.worker.context import StreamOwner, WorkerContext
from pipelines.worker.partition.partition import Partition
from pipelines.worker.partition.quotas import TenantLimits
from pipelines.worker.partition.state import Recovered, SessionTable
from pipelines.worker.supervisor import DeviceSupervisor
from tests.pipelines.test_committer import FakePublisher
from tests.pipelines.test_partition import Event


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_TEST_OPERATOR", "tests.echo_device:make")
    monkeypatch.setattr("pipelines.worker.supervisor.BACKOFF_SECONDS", 0.01)


class World:
    """A recovered partition 0 between a kept echo device and a fake publisher."""

    def __init__(self, model: str = "echo", **settings: Any) -> None:
        self.settings = Settings(commit_interval_s=0.01, **settings)
        self.publisher = FakePublisher()
        self.metrics = Metrics()
        self.partitions: list[Partition] = []
        self.supervisor = DeviceSupervisor(
            lambda: DeviceClient(self.emission, stall_timeout_s=1.0),
            protocol.Load(model=model, toy=True),
            lambda: self.partitions,
            self.metrics,
            restarts=self.settings.device_restarts,
            attempts=self.settings.device_attempts,
            on_ready=lambda ready: None,
        )
        owners: dict[str, StreamOwner] = {}
        context = WorkerContext(
            settings=self.settings,
            metrics=self.metrics,
            device=self.supervisor,
            tenants=TenantLimits(self.settings, owners),
            owners=owners,
            hold=lambda number: None,
            release=lambda number: None,
            recover=self._recover,
            make_publisher=lambda number: self.publisher,
            admits=self.supervisor.admits,
            on_report=self.supervisor.on_report,
        )
        self.partition = Partition(0, context)
        self.partitions.append(self.partition)

    async def _recover(self, number: int) -> Recovered:
        return Recovered(SessionTable(), 0)

    def emission(self, emission: Emission) -> None:
        if owner := self.partition._context.owners.get(emission.stream_id):
            owner.on_emission(emission)

    def say(self, offset: int, stream: str, text: str) -> None:
        value = {"text": text, "segment_id": f"{stream}-{offset}"}
        self.partition.accept(Event(offset, stream, value))

    async def committed(self, offset: int) -> None:
        """Wait until the partition is committed up to ``offset``."""
        while not any(group.offset == offset for group in self.publisher.groups):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    @property
    def letters(self) -> list[Message]:
        topic = self.settings.topic_dlq
        return [m for group in self.publisher.groups for m in group.messages if m.topic == topic]


def run(test: Callable[[World, asyncio.Task[None]], Awaitable[None]], world: Any = World) -> None:
    async def body() -> None:
        made: World = world()
        await made.partition.recover()
        await made.supervisor.start()
        keeping = asyncio.create_task(made.supervisor.run())
        try:
            async with asyncio.timeout(30):
                await test(made, keeping)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await made.supervisor.kill()
            await made.partition.close()

    asyncio.run(body())


def test_a_killed_device_goes_on_from_the_newest_states(tmp_path: Path) -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        for offset in range(6):
            world.say(offset, "a", "x")
        await world.committed(6)
        world.say(6, "a", f"EXIT ONCE {tmp_path / 'x'}")
        world.say(7, "b", "x")
        for offset in (8, 9):
            world.say(offset, "a", "x")
        await world.committed(10)
        revisions = [
            m.key
            for group in world.publisher.groups
            for m in group.messages
            if m.topic == world.settings.topic_summaries
        ]
        assert revisions == [b"a"] * 3, "one summary per three segments, none twice"
        assert not world.letters

    run(test)


def test_only_the_segment_that_kills_is_left_out() -> None:
    """Two other streams had segments in the device each time it died."""

    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        offset = 0
        for _ in range(4):
            for stream in ("a", "b", "c"):
                world.say(offset, stream, "EXIT" if offset == 4 else "SLEEP 0.01")
                offset += 1
        await world.committed(12)
        (letter,) = world.letters
        headers = dict(letter.headers)
        assert headers["__streams.errors.offset"] == b"4"
        assert headers["longstream.dlq.stage"] == b"device"
        assert headers["longstream.dlq.attempts"] == b"3"
        assert headers["longstream.dlq.retryable"] == b"true"
        published = [m for group in world.publisher.groups for m in group.messages]
        summaries = [m for m in published if m.topic == world.settings.topic_summaries]
        flagged = {m.key for m in summaries if b'"degraded":["segment_lost"]' in (m.value or b"")}
        assert flagged == {b"b"}

    run(test)


def test_two_that_kill_in_a_row_are_both_left_out() -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        for offset in range(6):
            world.say(offset, "a", "EXIT" if offset in (2, 3) else "x")
        await world.committed(6)
        offsets = [dict(m.headers)["__streams.errors.offset"] for m in world.letters]
        assert offsets == [b"2", b"3"]

    run(test)


def test_a_lone_segment_that_kills_is_left_out() -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        world.say(0, "a", "EXIT")
        await world.committed(1)
        assert len(world.letters) == 1

    run(test)


def test_a_device_that_dies_of_everything_is_given_up_and_nothing_is_left_out() -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        for offset in range(9):
            world.say(offset, f"s{offset}", "x")
        with pytest.raises(DeviceError, match="failed 5 times in a row without finishing anything"):
            await keeping
        assert not world.publisher.groups

    run(test, lambda: World("broken", device_restarts=4))


def test_a_lone_segment_is_not_blamed_for_a_device_that_dies_of_everything() -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        world.say(0, "a", "x")
        with pytest.raises(DeviceError, match="failed 5 times in a row without finishing anything"):
            await keeping
        assert not world.publisher.groups

    run(test, lambda: World("broken", device_restarts=4))


def test_deadly_segments_in_a_row_do_not_use_up_the_restarts() -> None:
    """More of them than the device may be restarted, in two streams, good ones around them."""
    texts = {stream: ["x", *["EXIT"] * 5, "x"] for stream in "ab"}

    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        for number in range(7):
            for at, stream in enumerate("ab"):
                world.say(2 * number + at, stream, texts[stream][number])
        await world.committed(14)
        letters = [dict(m.headers) for m in world.letters]
        offsets = sorted(int(told["__streams.errors.offset"]) for told in letters)
        assert offsets == list(range(2, 12))
        assert {told["longstream.dlq.attempts"] for told in letters} == {b"3"}
        assert all(b"exit code 9" in told["__streams.errors.message"] for told in letters)
        assert not keeping.done()

    run(test, lambda: World(device_restarts=4))


def test_a_device_that_dies_with_nothing_under_way_is_given_up() -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        while not keeping.done():
            if (
                world.supervisor.healthy
                and (process := world.supervisor._client._process) is not None
            ):
                process.kill()
            await asyncio.sleep(0.01)
        with pytest.raises(DeviceError, match="failed 3 times in a row without finishing anything"):
            await keeping

    run(test, lambda: World(device_restarts=2, device_attempts=2))


def test_a_missing_model_is_not_tried_again() -> None:
    async def body() -> None:
        world = World("none")
        with pytest.raises(ModelError, match="no such model"):
            await world.supervisor.start()
        await world.supervisor.kill()
        assert world.supervisor._failures == 0

    asyncio.run(body())


def test_streams_that_come_while_the_device_is_down_are_served_when_it_is_up(
    tmp_path: Path,
) -> None:
    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        world.say(0, "a", f"EXIT ONCE {tmp_path / 'x'}")
        while world.supervisor.healthy:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        world.say(1, "new", "x")
        world.say(2, "a", "x")
        await world.committed(3)
        assert not world.letters

    run(test)


def test_a_store_that_goes_away_does_not_stop_a_device_that_starts_again(tmp_path: Path) -> None:
    """At the worker's first start it is a mistake in the settings; later it is an outage."""
    url = tmp_path / "kept"

    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        shutil.rmtree(url)
        url.write_text("a file where the folder was")
        world.say(0, "a", f"EXIT ONCE {tmp_path / 'x'}")
        world.say(1, "a", "x")
        await world.committed(2)
        assert not keeping.done()
        assert not world.letters

    def made() -> World:
        world = World()
        world.supervisor._load = msgspec.structs.replace(
            world.supervisor._load, snapshot_url=str(url)
        )
        return world

    run(test, made)
    with pytest.raises(ConfigError, match="store"):
        run(test, made)


def test_a_lost_partition_ends_the_trial_of_its_stream() -> None:
    """Its suspect goes with it; the other partition's streams must not wait for a verdict."""

    async def test(world: World, keeping: asyncio.Task[None]) -> None:
        other = Partition(1, world.partition._context)
        world.partitions.append(other)
        await other.recover()
        world.say(0, "a", "SLEEP 60")
        queue = world.partition.queues()[0]
        while not queue.given:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while queue.strikes.get(0, 0) < 2 or not queue.tried:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        other.accept(Event(0, "z", {"text": "x"}))
        assert not other.queues()[0].given, "it waits for the verdict"
        world.partitions.remove(world.partition)
        await world.partition.close()
        while not any("z" in group.states for group in world.publisher.groups):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await other.close()

    run(test)
