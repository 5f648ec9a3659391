"""Keeps a device process running: starts it again when it fails, within bounds.

1. A device that dies, hangs or reports a fault is killed. Every segment it had gets a strike and
   waits again (:mod:`pipelines.worker.partition.queues`); nothing of it was acknowledged.
2. It is started again, later each time. After ``restarts`` failures in a row with nothing done in
   between (no segment, no sentence) the keeper gives up with DeviceError; a model that cannot be
   loaded, or a wrong setting, ends it at once.
3. Streams are opened again from their newest state (or the snapshot it names), and fed again.
4. Segments with ``attempts`` - 1 strikes are first tried alone, one at a time. One that kills the
   device then, too, is condemned: left out, a dead letter, its stream marked degraded.
5. A sentence is published only when the device, started again, has done a harmless segment of ours
   (a *probe*): one that dies of everything must not turn the whole topic into dead letters, and one
   that does not may be given any number of deadly segments in a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from operators.errors import DeviceError
from operators.events import Segment
from operators.state import SessionState
from pipelines.device import protocol
from pipelines.device.client import DeviceClient, release
from pipelines.observability.metrics import Metrics
from pipelines.worker.partition.queues import Lane

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 15.0


class Lanes(Protocol):
    """What the keeper needs of :class:`pipelines.worker.partition.partition.Partition`."""

    def lanes(self) -> Iterable[Lane]: ...
    def pump(self, lane: Lane) -> None:
        """Open the lane on the device if it is admitted, and feed it."""

    def condemn(self, lane: Lane, attempts: int, cause: str) -> None:
        """Leave out the lane's first waiting segment; the dead letter waits for ``sentence``."""

    def sentence(self) -> None:
        """Publish the dead letters of what was condemned."""


class DeviceKeeper:
    """A device that outlives its process. Feeding it while it is down does nothing: what a lane
    holds is given again when it is up."""

    def __init__(
        self,
        make_client: Callable[[], DeviceClient],
        load: protocol.Load,
        owners: Callable[[], Iterable[Lanes]],
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
        self._trial: Lane | None = None
        self._condemned = False

    @property
    def suspicious(self) -> int:
        """Strikes from which a segment is tried alone."""
        return self._attempts - 1

    @property
    def healthy(self) -> bool:
        return self._up and not self._client.failed.done()

    # --- life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model, and have it proven if somebody was condemned. Raises ModelError,
        ConfigError, or DeviceError after all attempts."""
        while True:
            try:
                ready = await self._client.start(self._load)
                if self._condemned:
                    await self._client.probe()
                    self._sentence()
                break
            except DeviceError as error:
                await self._client.kill()
                await self._count(error)
                self._client = self._make_client()
        self._load = msgspec.structs.replace(self._load, again=True)
        self._up = True
        self._metrics.device_up(True)
        self._on_ready(ready)

    async def keep(self) -> None:
        """Watch the started device for ever. Raises what it cannot be kept running for."""
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
            self._lose(error)
            await self._count(error)
            self._client = self._make_client()
            await self.start()
            self._next_trial()

    async def stop(self, timeout: float) -> None:
        self._up = False
        await self._client.stop(timeout)

    async def kill(self) -> None:
        self._up = False
        await self._client.kill()

    async def _count(self, error: DeviceError) -> None:
        """One more failure in a row: give up, or wait before the next start."""
        self._failures += 1
        if self._failures > self._restarts:
            raise DeviceError(
                f"the device failed {self._failures} times and finished nothing in between; given up. "
                f"The last time: {error}"
            ) from error
        log.warning("%s; starting it again (%d of %d)", error, self._failures, self._restarts)
        self._metrics.device_restart()
        await asyncio.sleep(min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**self._failures))

    # --- what partitions ask of a device ----------------------------------------------------

    def admits(self, lane: Lane) -> bool:
        """Whether the lane may be opened now: not while the device is down, or another is tried."""
        return self._up and (self._trial is None or self._trial is lane)

    def open(self, stream_id: str, state: SessionState | None = None) -> None:
        with contextlib.suppress(DeviceError):  # it has just died, which `keep` will hear
            self._client.open(stream_id, state)

    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None:
        with contextlib.suppress(DeviceError):
            self._client.feed(segment, ticket, read_at)

    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]:
        with contextlib.suppress(DeviceError):
            if self._up:
                return self._client.drop(stream_id, erase)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        release(future, erase)
        return future

    # --- blame ----------------------------------------------------------------------------

    def settled(self, finished: bool) -> None:
        """After the device said something of a lane. ``finished``: a segment was done or failed."""
        if finished:
            self._failures = 0
        if self._trial is not None and not self._trial.given:
            self._next_trial()

    def _lose(self, error: DeviceError) -> None:
        self._trial = None
        for owner in self._owners():
            for lane in owner.lanes():
                lane.device_lost()
                if lane.suspected(self._attempts):
                    self._condemned = True
                    owner.condemn(lane, self._attempts, str(error))
        self._metrics.retry("device")

    def _next_trial(self) -> None:
        """Steps 3 and 4: try the next lane with suspects; with none left, everybody goes on."""
        if self._trial is not None:
            self._trial.tried = False
        for owner in self._owners():
            for lane in owner.lanes():
                if lane.suspected(self.suspicious):
                    self._trial, lane.tried = lane, True
                    owner.pump(lane)
                    return
        self._trial = None
        for owner in self._owners():
            for lane in owner.lanes():
                owner.pump(lane)

    def _sentence(self) -> None:
        """Step 5, on a device that has just shown that it works. A verdict is progress, too."""
        self._failures, self._condemned = 0, False
        for owner in self._owners():
            owner.sentence()
