"""Nothing in a worker dies unheard, and nothing keeps it from ending."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.load import Settings
from pipelines.worker import app
from pipelines.worker.app import Worker


async def a_worker(**settings: Any) -> Any:
    """One that is running as far as its tasks are concerned."""
    worker: Any = Worker(Settings(**settings))
    worker._fault = asyncio.get_running_loop().create_future()
    worker._assignment = SimpleNamespace(partitions={})
    return worker


def test_what_a_task_dies_of_is_the_workers_fault() -> None:
    async def dies() -> None:
        raise RuntimeError("unheard")

    async def body() -> None:
        worker = await a_worker()
        worker._spawn(dies())
        with pytest.raises(RuntimeError, match="unheard"):
            await asyncio.wait_for(worker._fault, 5)
        assert not worker._tasks

    asyncio.run(body())


def test_tasks_that_end_or_are_cancelled_are_none() -> None:
    async def body() -> None:
        worker = await a_worker()
        forever = worker._spawn(asyncio.sleep(3600))
        await worker._spawn(asyncio.sleep(0))
        forever.cancel()
        await asyncio.wait({forever})
        await asyncio.sleep(0)
        assert not worker._fault.done()
        assert not worker._tasks

    asyncio.run(body())


def test_streams_that_cannot_expire_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the end of the tick alone: no metric moved any more, and nobody was told."""
    monkeypatch.setattr(app, "TICK_SECONDS", 0.0)

    class Unwell:
        number, in_flight, table_bytes = 0, 0, 0

        def coverage_lag(self, now: float) -> float:
            return 0.0

        def expire(self) -> None:
            raise KeyError("a bug")

    async def body() -> None:
        worker = await a_worker()
        worker._check_topics = lambda _: None  # there is no Kafka client here
        worker._assignment.partitions[0] = Unwell()
        worker._spawn(worker._tick())
        with pytest.raises(KeyError, match="a bug"):
            await asyncio.wait_for(worker._fault, 5)

    asyncio.run(body())


def test_a_task_that_will_not_end_does_not_keep_the_worker() -> None:
    async def body() -> None:
        worker = await a_worker(stop_deadline_s=0.2)
        released = asyncio.Event()

        async def stubborn() -> None:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        async def nothing(**_: object) -> None: ...

        worker._device = SimpleNamespace(healthy=False, stop=nothing)
        worker._app = SimpleNamespace(stop=nothing)
        task = worker._spawn(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(worker._shut_down(), 10)
        assert not task.done()
        released.set()
        await asyncio.wait({task})

    asyncio.run(body())
