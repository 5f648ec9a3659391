"""The worker: Faust consumes, partitions queue, the device computes, committers publish.

Start, in this order: (1) the HTTP server, (2) the device process with its model, (3) the consumer joins
its group. Stop, within ``stop_deadline_s``: (1) no new records, (2) what the device has is finished and
committed, (3) Faust leaves the group, (4) the device process ends. A fault of the device, of Faust or of
a commit ends the process with a non-zero exit code and nothing unfinished acknowledged. Before that the
device is restarted within bounds (:mod:`pipelines.worker.supervisor`), and a partition whose commit
failed is reopened (:mod:`pipelines.worker.assignment`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from operators.errors import ConfigError, LongstreamError
from operators.state import Emission
from pipelines.config.load import Settings
from pipelines.device import protocol
from pipelines.device.client import DeviceClient
from pipelines.kafka.errors import explain, is_permanent
from pipelines.kafka.health import Brokers, watch
from pipelines.kafka.publishers import make_publisher
from pipelines.kafka.transport import make_faust_app
from pipelines.observability.http import HttpServer, Readiness, serve
from pipelines.observability.metrics import Metrics
from pipelines.observability.telemetry import Beat, decode_key
from pipelines.observability.tracing import make_tracing
from pipelines.served.options import server_settings
from pipelines.wire.decoding import prepare, schemas_of
from pipelines.wire.messages import MessageLimit
from pipelines.worker import exit_codes
from pipelines.worker.assignment import Assignment
from pipelines.worker.context import StreamOwner, WorkerContext
from pipelines.worker.known_weights import known_weights
from pipelines.worker.partition.partition import Partition
from pipelines.worker.partition.quotas import TenantLimits
from pipelines.worker.partition.state import recover
from pipelines.worker.supervisor import DeviceSupervisor

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
EXPIRY_SECONDS = 10.0


class Worker:
    """One worker process: ``exit_code = await Worker(settings).run(stop)``."""

    def __init__(self, settings: Settings, *, toy: bool = False) -> None:
        self._settings = settings
        self._toy = toy
        self._metrics = Metrics(worker=settings.worker, model=settings.model)
        self._metrics.threads(settings.threads)
        self._readiness = Readiness()
        self._tracing = make_tracing(settings.otel, settings.worker)
        self._owners: dict[str, StreamOwner] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._http: HttpServer | None = None
        self._faulty = False
        self._partition_count: int | None = None
        self._schemas = schemas_of(settings)

    async def run(self, stop: asyncio.Event) -> int:
        """Run until ``stop`` is set or something fails. Returns the exit code of the process.

        Raises ConfigError or ModelError when it cannot start.
        """
        self._fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        settings = self._settings
        self._device = self._make_device()
        self._app = make_faust_app(settings)
        self._assignment = Assignment(
            self._app, self._make_context(), self._readiness, self._spawn, self._fail
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
            if settings.operator.dtype_decode == "auto" and not self._toy:
                self._device.follow(await known_weights(settings))
            if await self._start_device(stop):
                self._spawn(self._tick())
                return await self._until(stop)
            return 0
        finally:
            await self._shut_down()

    # --- start and stop --------------------------------------------------------------------

    def _make_context(self) -> WorkerContext:
        settings = self._settings
        recovery_s = min(settings.recovery_timeout_s, settings.broker_patience_s)
        limit = MessageLimit(settings.max_message_bytes)
        return WorkerContext(
            settings=settings,
            metrics=self._metrics,
            device=self._device,
            tenants=TenantLimits(settings, self._owners, self._metrics.tenant_limited),
            owners=self._owners,
            hold=lambda number: self._app.consumer.hold(self._tp(number)),
            release=lambda number: self._app.consumer.release(self._tp(number)),
            hold_questions=lambda number: self._app.consumer.hold(self._question_tp(number)),
            release_questions=lambda number: self._app.consumer.release(self._question_tp(number)),
            recover=lambda number: recover(settings, number, recovery_s),
            make_publisher=lambda number: make_publisher(settings, number, limit),
            limit=limit,
            on_progress=self._on_progress,
            schemas=self._schemas,
            tracing=self._tracing,
            partition_count=lambda: self._app.consumer.partition_count(settings.topic_segments),
            admits=self._device.admits,
            on_report=self._device.on_report,
        )

    def _make_device(self) -> DeviceSupervisor:
        settings = self._settings
        load = protocol.Load(
            model=settings.model,
            backend=settings.backend,
            server=server_settings(settings),
            device=settings.device,
            config=settings.operator.to_dict(),
            gguf_dir=str(settings.gguf_dir) if settings.gguf_dir else None,
            model_sha256=settings.model_sha256,
            draft_model_sha256=settings.draft_model_sha256,
            snapshot_url=settings.own_snapshot_url,
            snapshot_interval_s=settings.snapshot_interval_s,
            offload_url=settings.offload_url,
            snapshot_retention_h=settings.snapshot_retention_h,
            toy=self._toy,
        )

        def client() -> DeviceClient:
            return DeviceClient(
                self._on_emission,
                self._on_beat,
                lambda message: log.info("model: %s", message),
                self._on_refused,
                threads=settings.threads,
                cache=settings.cache,
                stall_timeout_s=settings.device_stall_s,
            )

        return DeviceSupervisor(
            client,
            load,
            lambda: list(self._assignment.partitions.values()),
            self._metrics,
            restarts=settings.device_restarts,
            attempts=settings.device_attempts,
            on_ready=self._on_ready,
        )

    def _on_beat(self, beat: Beat) -> None:
        self._metrics.apply_beat(beat)
        for key, value in beat.gauges.items():
            name, labels = decode_key(key)
            if name == "server_trouble":
                self._readiness.server(labels.get("reason", ""), bool(value))

    def _on_ready(self, ready: protocol.Ready | None) -> None:
        """The device has loaded its model; None when the device is down."""
        self._readiness.model = ready.model if ready else None
        self._readiness.server_troubles.clear()
        if ready is None:
            return
        log.info(
            "model %s on %s: prefill %s, decode %s, %d slots, %.1f MB per stream, %.1f MB in all",
            ready.model,
            ready.device,
            ready.dtype_prefill,
            ready.dtype_decode,
            ready.slots,
            ready.bytes_per_stream / 1e6,
            ready.bytes_total / 1e6,
        )

    def _connect(self) -> None:
        """Add an agent on each input topic to the Faust app, which gives a worker the same partitions
        of both (they have equally many)."""

        async def segments(stream: Any) -> None:
            async for event in stream.noack().events():
                await prepare(self._schemas, event.message.value)
                self._accept(event)

        async def questions(stream: Any) -> None:
            async for event in stream.noack().events():
                self._accept(event, question=True)

        self._agent(self._settings.topic_segments, "segments", segments)
        self._agent(self._settings.topic_questions, "questions", questions)

    def _agent(self, name: str, agent: str, read: Callable[[Any], Any]) -> None:
        topic = self._app.topic(
            name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        self._app.agent(topic, name=agent, concurrency=1)(read)

    async def _start_device(self, stop: asyncio.Event) -> bool:
        """Load the model, which may take minutes; False if ``stop`` is set meanwhile."""
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
        """Wait for the stop signal or a fault; the exit code."""
        stopped = self._spawn(_wait(stop))
        crashed = self._spawn(self._run_faust())
        supervised = self._spawn(self._device.run())
        watched = self._spawn(self._watch_brokers())
        waited: set[asyncio.Future[None]] = {stopped, crashed, supervised, watched, self._fault}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        errors = [future.exception() for future in done]
        error = next((error for error in errors if error is not None), None)
        if error is None:
            log.info("stopping")
            return exit_codes.OK
        self._faulty = True
        reason = explain(error)
        log.error("stopping on a fault, nothing unfinished is acknowledged: %s", reason)
        return exit_codes.code_of(error)

    async def _run_faust(self) -> None:
        """Start Faust and watch it: its own start waits for the consumer group without end."""
        starting = self._spawn(self._app.start())
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if starting.done():
                starting.result()
            if self._app.crashed or self._app.should_stop:
                reason = self._app.crash_reason
                raise LongstreamError(
                    f"Faust stopped by itself: {explain(reason) if reason else 'no reason'}"
                ) from reason
            refusal = self._app.consumer.refusal
            if refusal is not None and is_permanent(refusal):
                raise LongstreamError(f"consumer group: {explain(refusal)}") from refusal

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
            # A third of the time is left for everything below.
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
        await self._within(deadline, asyncio.to_thread(self._tracing.close), "tracing")
        if self._http is not None:
            await self._http.close()
        self._fault.cancel()
        _retrieve(self._fault)  # a further fault during the stop changes nothing

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(p.drain() for p in self._assignment.partitions.values()))
        except TimeoutError:
            log.warning("not all segments in flight were finished in %.0f s", seconds)

    async def _within(self, deadline: float, work: Any, what: str) -> None:
        """Await ``work`` until the deadline, at least half a second. What hangs then is abandoned: a
        client without its broker may not even react to being cancelled."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=max(0.5, deadline - time.monotonic()))
        if not task.done():
            log.warning("%s did not stop in time", what)
            task.add_done_callback(_retrieve)
            task.cancel()
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s stopped with %r", what, error)

    def _tp(self, number: int) -> TP:
        return TP(self._settings.topic_segments, number)

    # --- data -------------------------------------------------------------------------------

    def _question_tp(self, number: int) -> TP:
        return TP(self._settings.topic_questions, number)

    def _accept(self, event: Any, question: bool = False) -> None:
        """One record from Faust. Must not raise: Faust acknowledges a record on which an agent fails."""
        try:
            partition = self._assignment.partitions.get(event.message.partition)
            if partition is not None:
                (partition.accept_question if question else partition.accept)(event)
        except Exception as error:
            log.exception("a record could not be accepted")
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the worker with ``error``; only the first one counts."""
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
            partition.on_refused(
                refused.stream_id,
                refused.ticket,
                refused.reason,
                refused.message,
                refused.question,
            )

    def _on_progress(self) -> None:
        self._readiness.progress()
        self._metrics.progress()

    async def _tick(self) -> None:
        """Twice a second: sample the gauges, and expire old states from time to time."""
        expiry = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            partitions = list(self._assignment.partitions.values())
            in_flight = sum(partition.in_flight for partition in partitions)
            self._readiness.in_flight = in_flight
            bound = len(partitions) * self._settings.in_flight_per_partition
            self._metrics.queue_depth(in_flight, bound)
            self._metrics.event_loop_tasks(len(asyncio.all_tasks()))
            table = sum(partition.table_bytes for partition in partitions)
            most = len(partitions) * self._settings.states_max_bytes
            self._metrics.streams(len(self._owners), table, most)
            now = time.monotonic()
            lags = [partition.coverage_lag(now) for partition in partitions]
            self._metrics.coverage_lag(max(lags, default=0.0))
            if due := now >= expiry:
                expiry = now + EXPIRY_SECONDS
            try:
                self._check_topics(partitions)
            except ConfigError as error:
                self._fail(error)
            for partition in partitions:
                if self._readiness.kafka_away is not None:
                    partition.note_outage()
                if due:
                    partition.expire()
                    if self._app.consumer.at_end(self._tp(partition.number)):
                        partition.end_idle()
                with contextlib.suppress(Exception):  # no end offset known during a rebalance
                    partition.measure(
                        self._app.consumer.highwater(self._tp(partition.number)),
                        self._app.consumer.highwater(self._question_tp(partition.number)),
                    )

    def _check_topics(self, partitions: list[Partition]) -> None:
        """Raises ConfigError when an input topic is not the one it was."""
        if not partitions:
            return
        topic = self._settings.topic_segments
        count = self._app.consumer.partition_count(topic)
        self._partition_count = self._partition_count or count
        if count is not None and count != self._partition_count:
            raise ConfigError(
                f"{topic} had {self._partition_count} partitions and has {count}: streams go to others "
                "now than their states. Stop the producers and call `longstream topics grow`"
            )
        for partition in partitions:
            with contextlib.suppress(KafkaError, AssertionError, KeyError):  # during a rebalance
                partition.check_input(
                    self._app.consumer.highwater(self._tp(partition.number)),
                    self._app.consumer.highwater(self._question_tp(partition.number)),
                )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task and keep a reference until it ends. An exception of the task ends the worker."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not task.cancelling():  # not requested: a library cancelled a task it awaited
                self._fail(LongstreamError(f"{task.get_coro()} was cancelled by a library"))
        elif isinstance(error := task.exception(), Exception):
            self._fail(error)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Mark the exception of a cancelled task as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
