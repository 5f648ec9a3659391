"""The worker: Faust consumes, partitions queue, the device computes, committers write.

Start, in this order: (1) topics checked, (2) HTTP pages, (3) device process with its model, (4) the
consumer joins its group. Stop, within ``stop_deadline_s``: (1) nothing new is taken, (2) what the
device has is finished and committed, (3) Faust leaves the group, (4) the device ends. A fault of the
device, of Faust or of a commit stops the process with an exit code that is not 0 and nothing
acknowledged: what restarts us finds the input where it was. Before that the device is started again
(:mod:`pipelines.worker.supervisor`), and a partition that could not be committed is taken up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from faust.types import TP

from operators.errors import LongstreamError
from operators.state import Emission
from pipelines.config.load import Settings
from pipelines.device import protocol
from pipelines.device.client import DeviceClient
from pipelines.kafka.health import Brokers, watch
from pipelines.kafka.publishers import make_publisher
from pipelines.kafka.transport import make_faust_app
from pipelines.observability.http import HttpServer, Readiness, serve
from pipelines.observability.metrics import Metrics
from pipelines.wire.decoding import prepare, schemas_of
from pipelines.worker import exit_codes
from pipelines.worker.assignment import Assignment
from pipelines.worker.context import Host
from pipelines.worker.partition.partition import Partition
from pipelines.worker.partition.state import recover
from pipelines.worker.supervisor import DeviceKeeper

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
EXPIRY_SECONDS = 10.0
RECOVERY_SECONDS = 120.0


class Worker:
    """One worker process: ``exit_code = await Worker(settings).run(stop)``."""

    def __init__(self, settings: Settings, *, toy: bool = False) -> None:
        self._settings = settings
        self._toy = toy
        self._metrics = Metrics(worker=settings.worker, model=settings.model)
        self._readiness = Readiness()
        self._owners: dict[str, Partition] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._http: HttpServer | None = None
        self._faulty = False
        self._schemas = schemas_of(settings)

    async def run(self, stop: asyncio.Event) -> int:
        """Work until ``stop`` is set or something fails; the process's exit code.

        Raises ConfigError or ModelError when it cannot start.
        """
        self._fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        settings = self._settings
        self._device = self._make_device()
        self._app = make_faust_app(settings)
        self._assignment = Assignment(
            self._app, self._make_host(), self._readiness, self._spawn, self._fail
        )
        self._connect()
        try:
            token = settings.http_token
            self._http = await serve(
                settings.http_host,
                settings.http_port,
                self._metrics,
                self._readiness,
                token=token.get_secret_value() if token else None,
            )
            log.info("serving %s/metrics", self._http.url)
            if await self._start_device(stop):
                self._spawn(self._tick())
                return await self._until(stop)
            return 0
        finally:
            await self._shut_down()

    # --- start and stop --------------------------------------------------------------------

    def _make_host(self) -> Host:
        settings = self._settings
        recovery_s = min(RECOVERY_SECONDS, settings.broker_patience_s)
        return Host(
            settings=settings,
            metrics=self._metrics,
            device=self._device,
            owners=self._owners,
            hold=lambda number: self._app.consumer.hold(self._tp(number)),
            release=lambda number: self._app.consumer.release(self._tp(number)),
            recover=lambda number: recover(settings, number, recovery_s),
            make_publisher=lambda number: make_publisher(settings, number),
            on_progress=self._on_progress,
            schemas=self._schemas,
            partition_count=lambda: self._app.consumer.partition_count(settings.topic_segments),
            admits=self._device.admits,
            settled=self._device.settled,
        )

    def _make_device(self) -> DeviceKeeper:
        settings = self._settings
        load = protocol.Load(
            model=settings.model,
            device=settings.device,
            config=settings.operator.to_dict(),
            gguf_dir=str(settings.gguf_dir) if settings.gguf_dir else None,
            model_sha256=settings.model_sha256,
            draft_model_sha256=settings.draft_model_sha256,
            snapshot_url=settings.snapshot_url,
            snapshot_interval_s=settings.snapshot_interval_s,
            spill_url=settings.spill_url,
            snapshot_retention_h=settings.snapshot_retention_h,
            toy=self._toy,
        )

        def client() -> DeviceClient:
            return DeviceClient(
                self._on_emission,
                self._metrics.apply_beat,
                lambda message: log.info("model: %s", message),
                self._on_refused,
                threads=settings.threads,
                cache=settings.cache,
                stall_timeout_s=settings.device_stall_s,
            )

        return DeviceKeeper(
            client,
            load,
            lambda: list(self._assignment.partitions.values()),
            self._metrics,
            restarts=settings.device_restarts,
            attempts=settings.device_attempts,
            on_ready=self._on_ready,
        )

    def _on_ready(self, ready: protocol.Ready | None) -> None:
        """The device has loaded its model; None when it is gone."""
        self._readiness.model = ready.model if ready else None
        if ready is None:
            return
        log.info(
            "model %s on %s: ingest %s, generation %s, %d slots, %.1f MB per stream, %.1f MB in all",
            ready.model,
            ready.device,
            ready.dtype_ingest,
            ready.dtype_generation,
            ready.slots,
            ready.bytes_per_stream / 1e6,
            ready.bytes_total / 1e6,
        )

    def _connect(self) -> None:
        """Tie the Faust app to us: one agent on the input topic."""
        topic = self._app.topic(
            self._settings.topic_segments,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

        async def segments(stream: Any) -> None:
            async for event in stream.noack().events():
                await prepare(self._schemas, event.message.value)
                self._accept(event)

        self._app.agent(topic, name="segments", concurrency=1)(segments)

    async def _start_device(self, stop: asyncio.Event) -> bool:
        """Load the model, which may take minutes; False if told to stop meanwhile."""
        starting = asyncio.ensure_future(self._device.start())
        stopped = asyncio.ensure_future(stop.wait())
        waited: set[asyncio.Future[Any]] = {starting, stopped}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            await self._device.kill()
            return False
        starting.result()
        return True

    async def _until(self, stop: asyncio.Event) -> int:
        """Wait for the stop signal or a fault."""
        stopped = self._spawn(_wait(stop))
        crashed = self._spawn(self._run_faust())
        kept = self._spawn(self._device.keep())
        watched = self._spawn(self._watch_brokers())
        waited: set[asyncio.Future[None]] = {stopped, crashed, kept, watched, self._fault}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        errors = [future.exception() for future in done]
        error = next((error for error in errors if error is not None), None)
        if error is None:
            log.info("stopping")
            return exit_codes.OK
        self._faulty = True
        reason = exit_codes.in_words(error)
        log.error("stopping on a fault, nothing unfinished is acknowledged: %s", reason)
        return exit_codes.code_of(error)

    async def _run_faust(self) -> None:
        """Start Faust and see that it goes on. The start itself waits for the group without end."""
        starting = self._spawn(self._app.start())
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if starting.done():
                starting.result()
            if self._app.crashed or self._app.should_stop:
                reason = self._app.crash_reason
                raise LongstreamError(
                    f"Faust stopped by itself: {exit_codes.in_words(reason) if reason else 'no reason'}"
                ) from reason
            refusal = self._app.consumer.refusal
            if refusal is not None and exit_codes.hopeless(refusal):
                raise LongstreamError(
                    f"consumer group: {exit_codes.in_words(refusal)}"
                ) from refusal

    async def _watch_brokers(self) -> None:
        brokers = Brokers(self._settings)
        try:
            patience_s = self._settings.broker_patience_s
            await watch(brokers.answer, self._readiness.kafka, patience_s=patience_s)
        finally:
            await brokers.close()

    async def _shut_down(self) -> None:
        deadline = time.monotonic() + self._settings.stop_deadline_s
        self._readiness.stopping = True
        if self._device.healthy and not self._faulty:
            for partition in self._assignment.partitions.values():
                partition.stop_feeding()
            # Leave a third of the time to everything below.
            await self._drain(self._settings.stop_deadline_s * 0.66)
        for task in list(self._tasks):
            task.cancel()
        ended = asyncio.gather(*self._tasks, return_exceptions=True)
        await self._within(deadline, ended, "tasks")
        closes = [p.close(forget=False) for p in self._assignment.partitions.values()]
        await self._within(deadline, asyncio.gather(*closes, return_exceptions=True), "commits")
        await self._within(deadline, self._app.stop(), "Faust")
        await self._device.stop(timeout=max(0.5, min(5.0, deadline - time.monotonic())))
        self._metrics.device_up(False)
        if self._http is not None:
            await self._http.close()
        self._fault.cancel()
        _heard(self._fault)  # one more that came while we stopped changes nothing

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(p.drain() for p in self._assignment.partitions.values()))
        except TimeoutError:
            log.warning("not all segments under way were finished in %.0f s; they stay", seconds)

    async def _within(self, deadline: float, work: Any, what: str) -> None:
        """Await ``work``, but not past the deadline (at least half a second). What then still hangs
        is left behind: a client whose broker is away may not even listen to being cancelled."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=max(0.5, deadline - time.monotonic()))
        if not task.done():
            log.warning("%s did not stop in time", what)
            task.add_done_callback(_heard)
            task.cancel()
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s stopped with %r", what, error)

    def _tp(self, number: int) -> TP:
        return TP(self._settings.topic_segments, number)

    # --- data -------------------------------------------------------------------------------

    def _accept(self, event: Any) -> None:
        """One record from Faust. Must not raise: Faust acknowledges what an agent fails on."""
        try:
            partition = self._assignment.partitions.get(event.message.partition)
            if partition is not None:
                partition.accept(event)
        except Exception as error:
            log.exception("a record could not be taken")
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """The worker cannot go on; only the first reason counts."""
        if not self._fault.done():
            self._fault.set_exception(error)

    def _on_emission(self, emission: Emission) -> None:
        partition = self._owners.get(emission.stream_id)
        if partition is not None:
            self._on_progress()
            partition.on_emission(emission)

    def _on_refused(self, refused: protocol.Refused) -> None:
        partition = self._owners.get(refused.stream_id)
        if partition is not None:
            partition.on_refused(refused.stream_id, refused.ticket, refused.reason, refused.message)

    def _on_progress(self) -> None:
        self._readiness.progress()
        self._metrics.progress()

    async def _tick(self) -> None:
        """Twice a second: what can only be measured by looking."""
        expiry = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            partitions = list(self._assignment.partitions.values())
            in_flight = sum(partition.in_flight for partition in partitions)
            self._readiness.in_flight = in_flight
            self._metrics.queue_depth(in_flight)
            self._metrics.event_loop_tasks(len(asyncio.all_tasks()))
            now = time.monotonic()
            lags = [partition.coverage_lag(now) for partition in partitions]
            self._metrics.coverage_lag(max(lags, default=0.0))
            if due := now >= expiry:
                expiry = now + EXPIRY_SECONDS
            for partition in partitions:
                if due:
                    partition.expire()
                with contextlib.suppress(Exception):  # no end offset known during a rebalance
                    partition.measure(self._app.consumer.highwater(self._tp(partition.number)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends. With what it dies of the worker cannot go on: nobody else
        would hear of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not task.cancelling():  # nobody asked: a library's own cancelled task came through
                self._fail(LongstreamError(f"{task.get_coro()} was cut off"))
        elif isinstance(error := task.exception(), Exception):
            self._fail(error)


def _heard(task: asyncio.Future[Any]) -> None:
    """What it ended with is no news: it was cancelled."""
    if not task.cancelled():
        task.exception()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
