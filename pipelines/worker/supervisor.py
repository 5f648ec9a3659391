"""Keeps a device process running: restarts it when it fails, within bounds.

1. A device that dies, hangs or reports a fault is killed. Every segment it had gets a strike and waits
   again (:mod:`pipelines.worker.partition.queues`); nothing of it was acknowledged.
2. It is restarted, with growing delays. After ``restarts`` consecutive failures without a finished
   segment or a published quarantine the supervisor raises DeviceError; a model that cannot be loaded, or
   a wrong setting, ends the worker at once.
3. Streams are opened again from their newest state (or the snapshot it names), and fed again.
4. Segments with ``attempts`` - 1 strikes are first tried alone, one at a time. One with which the device
   fails then, too, is quarantined: left out, to become a dead letter, its stream marked degraded.
5. The dead letter is published only after the restarted device has finished a harmless segment (a
   *probe*): a device that fails on everything must not turn the whole topic into dead letters. A
   published quarantine counts as progress, so any number of such segments may follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from operators.errors import DeviceError
from operators.events import Question, Segment
from operators.state import SessionState
from pipelines.device import protocol
from pipelines.device.client import DeviceClient, release
from pipelines.observability.metrics import Metrics
from pipelines.worker.context import Queue

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 15.0


class QueueOwner(Protocol):
    """What the supervisor uses of :class:`pipelines.worker.partition.partition.Partition`."""

    def queues(self) -> Iterable[Queue]: ...
    def pump(self, queue: Queue) -> None:
        """Open the queue's stream on the device if it is admitted, and feed it."""

    def quarantine(self, queue: Queue, attempts: int, cause: str) -> None:
        """Leave out the queue's first waiting segment, without publishing anything."""

    def publish_quarantined(self) -> None:
        """Publish the dead letters of what was quarantined."""


class DeviceSupervisor:
    """A device that outlives its process. Calls while it is down do nothing: what a queue holds is fed
    when it is up again."""

    def __init__(
        self,
        make_client: Callable[[], DeviceClient],
        load: protocol.Load,
        owners: Callable[[], Iterable[QueueOwner]],
        metrics: Metrics,
        *,
        restarts: int,
        attempts: int,
        on_ready: Callable[[protocol.Ready | None], None],
    ) -> None:
        self._make_client = make_client
        self._load = load
        self._owners = owners
        self._metrics = metrics
        self._restarts = restarts
        self._attempts = attempts
        self._on_ready = on_ready
        self._client = make_client()
        self._up = False
        self._failures = 0
        self._trial: Queue | None = None
        self._quarantined = False

    @property
    def suspicious(self) -> int:
        """Strikes from which a segment is tried alone."""
        return self._attempts - 1

    @property
    def healthy(self) -> bool:
        return self._up and not self._client.failed.done()

    # --- start, restart, stop ---------------------------------------------------------------

    def follow(self, weights: tuple[str, ...]) -> None:
        """Before the start: which weights the streams' states name."""
        self._load = msgspec.structs.replace(self._load, known_weights=weights)

    async def start(self) -> None:
        """Load the model, and probe it if a segment is quarantined. Raises ModelError, ConfigError, or
        DeviceError after all attempts."""
        while True:
            try:
                ready = await self._client.start(self._load)
                if self._quarantined:
                    await self._client.probe()
                    self._publish_quarantined()
                break
            except DeviceError as error:
                await self._client.kill()
                await self._count_failure(error)
                self._client = self._make_client()
        self._load = msgspec.structs.replace(self._load, again=True)
        self._up = True
        self._metrics.device_up(True)
        self._on_ready(ready)

    async def run(self) -> None:
        """Watch the started device and restart it, for ever. Raises the error that ends the worker."""
        while True:
            await asyncio.wait({self._client.failed})
            if self._client.failed.cancelled():
                return  # stopped on purpose
            error = self._client.failed.exception()
            self._up = False
            self._metrics.device_up(False)
            self._on_ready(None)
            await self._client.kill()
            if not isinstance(error, DeviceError):
                raise error or DeviceError("the device stopped")
            self._device_lost(error)
            await self._count_failure(error)
            self._client = self._make_client()
            await self.start()
            self._next_trial()

    async def stop(self, timeout: float) -> None:
        self._up = False
        await self._client.stop(timeout)

    async def kill(self) -> None:
        self._up = False
        await self._client.kill()

    async def _count_failure(self, error: DeviceError) -> None:
        """Wait before the next start. Raises DeviceError after too many consecutive failures."""
        self._failures += 1
        if self._failures > self._restarts:
            raise DeviceError(
                f"the device failed {self._failures} times in a row without finishing anything; the "
                f"last error: {error}"
            ) from error
        log.warning("%s; restart %d of %d", error, self._failures, self._restarts)
        self._metrics.device_restart()
        await asyncio.sleep(min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**self._failures))

    # --- the device, as partitions use it ---------------------------------------------------

    def admits(self, queue: Queue) -> bool:
        """Whether the queue may be fed now: the device is up, and no other queue is on trial."""
        return self._up and (self._trial is None or self._trial is queue)

    def open(self, stream_id: str, state: SessionState | None = None) -> None:
        with contextlib.suppress(DeviceError):  # it has just failed; `run` handles it
            self._client.open(stream_id, state)

    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None:
        with contextlib.suppress(DeviceError):
            self._client.feed(segment, ticket, read_at)

    def ask(self, question: Question, ticket: int) -> None:
        with contextlib.suppress(DeviceError):
            self._client.ask(question, ticket)

    def end(self, stream_id: str) -> None:
        with contextlib.suppress(DeviceError):
            self._client.end(stream_id)

    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]:
        with contextlib.suppress(DeviceError):
            if self._up:
                return self._client.drop(stream_id, erase)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        release(future, erase)
        return future

    # --- which segment ends the device ------------------------------------------------------

    def on_report(self, finished: bool) -> None:
        """After each report of the device on a stream. ``finished``: a segment was done or failed."""
        if finished:
            self._failures = 0
        if self._trial is not None and not self._trial.given:
            self._next_trial()

    def _device_lost(self, error: DeviceError) -> None:
        self._trial = None
        for owner in self._owners():
            for queue in owner.queues():
                queue.device_lost()
                if queue.suspected(self._attempts):
                    self._quarantined = True
                    owner.quarantine(queue, self._attempts, str(error))
        self._metrics.retry("device")

    def _next_trial(self) -> None:
        """Steps 3 and 4: try the next queue with a suspected segment; without one, feed all queues."""
        if self._trial is not None:
            self._trial.tried = False
        for owner in self._owners():
            for queue in owner.queues():
                if queue.suspected(self.suspicious):
                    self._trial, queue.tried = queue, True
                    owner.pump(queue)
                    return
        self._trial = None
        for owner in self._owners():
            for queue in owner.queues():
                owner.pump(queue)

    def _publish_quarantined(self) -> None:
        """Step 5, after a successful probe."""
        self._failures, self._quarantined = 0, False
        for owner in self._owners():
            owner.publish_quarantined()
