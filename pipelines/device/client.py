"""The parent's end of the device process: start it, talk to it, notice when it stops working.

A fresh interpreter (no fork: threads and locks of the parent must not be copied) with one end of a
socket pair. The model is loaded before :meth:`DeviceClient.start` returns, so a worker joins its
consumer group only when it can do the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, DeviceError, ModelError
from operators.events import Question, Segment
from operators.state import Emission, SessionState
from pipelines.device import protocol
from pipelines.device.frames import FrameReader, frame
from pipelines.device.torch_env import TORCH
from pipelines.observability.telemetry import Beat

FLUSH_SECONDS = 0.001
"""Commands that follow each other faster go in one write: a write wakes the other process."""
_ERRORS: dict[str, type[Exception]] = {"config": ConfigError, "model": ModelError}
TEST_OPERATOR = "LONGSTREAM_TEST_OPERATOR"
_SECRET_PREFIXES = tuple(f"LONGSTREAM_{kind}_" for kind in ("SASL", "SSL", "HTTP", "SERVER"))


def test_operator_named() -> bool:
    """Tests only: whether the environment names an operator to use instead of the engine."""
    return bool(os.environ.get(TEST_OPERATOR))


class DeviceClient:
    """One device process.

    ``on_emission`` and ``on_beat`` are called in the event loop, in the order of the frames.
    ``failed`` gets a DeviceError when the process ends unasked, reports a fault, stops beating for
    ``beat_timeout_s`` or stays busy without a step for ``stall_timeout_s``. Time for which the process
    was ready to run and had no core does not count: a slow machine is no hung process.
    """

    def __init__(
        self,
        on_emission: Callable[[Emission], None],
        on_beat: Callable[[Beat], None] = lambda beat: None,
        on_progress: Callable[[str], None] = lambda message: None,
        on_refused: Callable[[protocol.Refused], None] = lambda refused: None,
        *,
        threads: int = 1,
        cache: Path | None = None,
        beat_timeout_s: float = 30.0,
        stall_timeout_s: float = 120.0,
    ) -> None:
        self._on_emission = on_emission
        self._on_beat = on_beat
        self._on_progress = on_progress
        self._on_refused = on_refused
        self._threads = threads
        self._cache = cache
        self._beat_timeout_s = beat_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._outgoing = bytearray()
        self._flushed_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._drops: dict[tuple[str, int], tuple[asyncio.Future[None], bool]] = {}
        self._generation = 0
        self._stopping = False
        self._last_beat = 0.0
        self._last_step = 0.0
        self._starved = self._starved_at_step = 0.0
        self._steps = -1
        self._busy = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, load: protocol.Load, timeout: float = 900.0) -> protocol.Ready:
        """Start the process, load the model, return its report. ``timeout``: seconds without a word
        of the loading, not for all of it.

        Raises ModelError or ConfigError with the device's own words, or DeviceError.
        """
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[protocol.Ready] = loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pipelines.device.process",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environment(),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._last_beat = self._last_step = time.monotonic()
        self._tasks = [
            loop.create_task(self._read(reader)),
            loop.create_task(self._watch()),
        ]
        self._send(load)
        outcomes: set[asyncio.Future[Any]] = {self._ready, self.failed}
        while not any(outcome.done() for outcome in outcomes) and (left := self._left(timeout)) > 0:
            await asyncio.wait(outcomes, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._ready.done():
            return self._ready.result()
        error = self.failed.exception() if self.failed.done() else None
        await self.kill()
        raise error or DeviceError(f"the loading model made no progress in {timeout:.0f} s")

    def open(self, stream_id: str, state: SessionState | None = None) -> None:
        """Make a stream known; with ``state`` it continues from there."""
        self._send(protocol.Open(stream_id, state))

    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None:
        """Hand over one segment of an open stream. The caller bounds how many are under way.
        ``read_at``: monotonic seconds; who has waited longest goes first."""
        self._send(protocol.Feed(ticket, segment, read_at))

    def ask(self, question: Question, ticket: int) -> None:
        """Hand over a question about an open stream. The caller bounds how many are under way."""
        self._send(protocol.Ask(ticket, question))

    def end(self, stream_id: str) -> None:
        """End an open stream that nobody else ends, behind all that was fed."""
        self._send(protocol.End(stream_id))

    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]:
        """Let go of a stream. When the result is done, no emission of it is left on the way.

        With ``erase`` also of all that is kept of it in the stores; the result is then the OSError that
        stood in the way, or DeviceError when the device ended before it said that it is done."""
        self._generation += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failed.done():
            release(future, erase)
            return future
        self._send(protocol.Drop(stream_id, self._generation, erase))
        self._drops[stream_id, self._generation] = future, erase
        return future

    async def probe(self) -> None:
        """Have the started device do a harmless segment, before any stream is open. Raises what
        ``failed`` got if it does not survive that."""
        self._probed = asyncio.get_running_loop().create_future()
        self._send(protocol.Probe())
        outcomes: set[asyncio.Future[None]] = {self._probed, self.failed}
        await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            self.failed.result()

    async def stop(self, timeout: float = 5.0) -> None:
        """Ask the process to leave; kill it after ``timeout`` seconds."""
        self._stopping = True
        if self._process is None:
            return
        with contextlib.suppress(DeviceError):
            self._send(protocol.Stop())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout)
        await self.kill()

    async def kill(self) -> None:
        """End the process at once and release what belongs to it."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None
        self._release_drops()
        if not self.failed.done():
            self.failed.cancel()

    def _environment(self) -> dict[str, str]:
        """Ours without the broker's credentials, which the device has no use for."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(_SECRET_PREFIXES)}
        threads = str(self._threads)
        if self._cache is not None:
            env["LONGSTREAM_CACHE"] = str(self._cache)
        return {**TORCH, **env} | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _send(self, command: protocol.Command) -> None:
        if self._writer is None or self._writer.is_closing():
            raise DeviceError("the device process is not running")
        if not self._outgoing:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._flushed_at + FLUSH_SECONDS), self._flush)
        self._outgoing += frame(command)

    def _flush(self) -> None:
        data, self._outgoing = bytes(self._outgoing), bytearray()
        self._flushed_at = asyncio.get_running_loop().time()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader(protocol.Report)
        try:
            while data := await reader.read(1 << 18):
                for report in frames.feed(data):
                    self._handle(report)
        except OSError:
            pass  # a killed process may reset the connection: the exit code says what happened
        except Exception as error:
            # Also a fault in a callback: silence here would look like an idle device.
            self._fail(DeviceError(f"handling a device report failed: {error!r}"), cause=error)
            return
        assert self._process is not None
        code = await self._process.wait()
        end = f"the device process ended (exit code {code}); the worker's log may say more"
        self._fail(DeviceError(end))

    def _handle(self, report: protocol.Report) -> None:
        self._last_beat = time.monotonic()
        if isinstance(report, protocol.Output):
            self._on_emission(report.emission)
        elif isinstance(report, Beat):
            self._starved = report.starved_s
            if report.steps != self._steps or not report.busy:
                self._steps = report.steps
                self._note_progress()
            self._busy = report.busy
            self._on_beat(report)
        elif isinstance(report, protocol.Dropped):
            future, _ = self._drops.pop((report.stream_id, report.generation), (None, False))
            if future is not None and not future.done():
                if report.problem:
                    future.set_exception(OSError(report.problem))
                else:
                    future.set_result(None)
        elif isinstance(report, protocol.Ready):
            self._note_progress()
            self._ready.set_result(report)
        elif isinstance(report, protocol.Probed):
            self._probed.set_result(None)
        elif isinstance(report, protocol.Refused):
            self._on_refused(report)
        elif isinstance(report, protocol.Progress):
            self._note_progress()
            self._on_progress(report.message)
        else:
            kind = _ERRORS.get(report.kind, DeviceError)
            self._fail(kind(report.message))

    async def _watch(self) -> None:
        """Fail when the process is silent, or busy for too long without finishing a step."""
        while not self.failed.done():
            await asyncio.sleep(min(1.0, self._beat_timeout_s / 4))
            now = time.monotonic()
            if now - self._last_beat > self._beat_timeout_s:
                self._fail(DeviceError(f"no beat from the device for {self._beat_timeout_s:.0f} s"))
            loaded = self._ready.done()
            if loaded and self._busy and self._left(self._stall_timeout_s) < 0:
                self._fail(
                    DeviceError(f"the device made no step in {self._stall_timeout_s:.0f} s of work")
                )

    def _note_progress(self) -> None:
        self._last_step, self._starved_at_step = time.monotonic(), self._starved

    def _left(self, allowed: float) -> float:
        """Seconds of ``allowed`` that are left since the last progress, without those for which the
        process had no core."""
        waited = self._starved - self._starved_at_step
        return allowed - (time.monotonic() - self._last_step - waited)

    def _fail(self, error: Exception, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._release_drops()
        if not self._stopping and not self.failed.done():
            self.failed.set_exception(error)

    def _release_drops(self) -> None:
        for future, erase in self._drops.values():
            release(future, erase)
        self._drops.clear()


def release(future: asyncio.Future[None], erase: bool) -> None:
    """The device is gone, and what it had of a stream with it; but nobody knows what it erased."""
    if future.done():
        return
    if erase:
        future.set_exception(DeviceError("the device ended before it had erased the stream"))
    else:
        future.set_result(None)
