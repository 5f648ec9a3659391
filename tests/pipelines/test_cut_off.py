"""aiokafka's stop lets the cancellation of its own tasks come through. Whoever stops a client must not
end of it unheard: a partition would stand still for ever, in a worker that says it is ready."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from operators.errors import LongstreamError
from pipelines.config.load import Settings
from pipelines.kafka.clients import disconnect
from pipelines.worker import assignment
from pipelines.worker.assignment import Assignment
from pipelines.worker.partition import state
from pipelines.worker.partition.state import RecoveryError
from tests.pipelines.test_worker_faults import a_worker


async def leak() -> None:
    """What aiokafka's Fetcher.close does."""
    task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
    await task


class Away:
    """A consumer whose broker is away."""

    def __init__(self, **_: Any) -> None: ...

    async def start(self) -> None:
        await asyncio.sleep(3600)

    async def stop(self) -> None:
        await leak()


def test_disconnecting_cuts_nobody_off() -> None:
    async def body() -> str:
        with pytest.raises(asyncio.CancelledError):
            await Away().stop()
        await disconnect(Away())
        return "went on"

    assert asyncio.run(body()) == "went on"


def test_a_recovery_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.aiokafka, "AIOKafkaConsumer", Away)
    with pytest.raises(RecoveryError, match="was not read within"):
        asyncio.run(state.recover(Settings(), 0, timeout=0.05))


class Signal:
    def connect(self, receiver: Any) -> None: ...


class Partition:
    """Cut off the first time, in order the second."""

    made: ClassVar[list[Partition]] = []
    again: ClassVar[asyncio.Event]

    def __init__(self, number: int, host: Any, broken_since: float | None) -> None:
        self.number, self.broken_since = number, broken_since
        self.committer = SimpleNamespace(failed=asyncio.get_running_loop().create_future())
        self.made.append(self)

    async def recover(self) -> None:
        if len(self.made) == 1:
            await leak()
        self.again.set()

    def unfinished(self) -> list[Any]:
        return []

    def unanswered(self) -> list[Any]:
        return []

    async def close(self) -> None:
        self.committer.failed.cancel()


def test_a_partition_that_is_cut_off_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "Partition", Partition)
    monkeypatch.setattr(assignment, "REOPEN_SECONDS", 0.0)
    monkeypatch.setattr(Partition, "made", [])

    async def body() -> None:
        monkeypatch.setattr(Partition, "again", asyncio.Event(), raising=False)
        worker = await a_worker()
        app: Any = SimpleNamespace(
            on_partitions_revoked=Signal(), on_partitions_assigned=Signal(), rebalancing=False
        )
        host: Any = SimpleNamespace(
            settings=Settings(), metrics=SimpleNamespace(forget_partition=lambda *_: None)
        )
        readiness: Any = SimpleNamespace()
        owner = Assignment(app, host, readiness, worker._spawn, worker._fail)
        owner._open(0)
        await asyncio.wait_for(Partition.again.wait(), 5)
        assert Partition.made[1].broken_since is not None
        assert owner.partitions[0] is Partition.made[1]
        assert not worker._fault.done()
        # Closed because it is lost, it ends without a word.
        owner._close(0)
        await asyncio.sleep(0.05)
        assert not worker._fault.done()
        assert not worker._tasks

    asyncio.run(body())


def test_a_task_that_is_cut_off_ends_the_worker() -> None:
    async def body() -> None:
        worker = await a_worker()
        worker._spawn(leak())
        with pytest.raises(LongstreamError, match=r"leak.* was cancelled by a library"):
            await asyncio.wait_for(worker._fault, 5)

    asyncio.run(body())
