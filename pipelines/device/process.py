"""The device process: one model, one thread, fed through a socket by ``pipelines.device.client``.

    python -m pipelines.device.process FD

Frames in and out as in :mod:`pipelines.device.protocol`. The loop: (1) take the commands that wait, (2)
one ``operator.step()``, (3) send what it emitted. A second, small thread sends a Beat every half second,
also while the model loads and during a long step: ``steps`` says whether the engine moves, the beat
itself only that the process lives.

The process ends when its socket does, when its parent dies (Linux: also by a signal from the
kernel), on Stop, and on any fault: it never tries to go on with a state it cannot vouch for.
Ctrl-C and SIGTERM are the parent's business and ignored here.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Protocol

from operators.config import OperatorConfig
from operators.errors import CapacityError, ConfigError, ModelError, SegmentError
from operators.events import Question, Segment
from operators.observer import Observer
from operators.state import Emission, SessionState
from pipelines.device import protocol
from pipelines.device.frames import FrameReader, frame
from pipelines.device.governor import Governor, Starved
from pipelines.observability.telemetry import Beat, BeatObserver
from pipelines.storage.bounded import BoundedStore
from pipelines.storage.snapshots import Snapshots, SnapshotStore

BEAT_SECONDS = 0.5
FLUSH_SECONDS = 0.001
"""Results of steps that follow each other faster go in one write."""
PROBE_STREAM = "\x00probe"
"""No stream of anybody's has a control character in its name."""
TEST_OPERATOR = "LONGSTREAM_TEST_OPERATOR"
"""Tests only: "module:function" that makes the operator when Load says ``toy``."""


class Operator(Protocol):
    """What the loop needs of ``operators.stream_operator.StreamOperator``."""

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> object: ...
    def quiet(self, stream_id: str) -> bool: ...
    def snapshot(self, stream_id: str) -> bytes: ...
    def feed(self, segment: Segment, ticket: int, waited: float = 0.0) -> None: ...
    def ask(self, question: Question, ticket: int | None = None) -> None: ...
    def end(self, stream_id: str) -> None: ...
    def drop(self, stream_id: str) -> None: ...
    def close(self) -> None: ...
    def step(self) -> list[Emission]: ...
    def has_work(self) -> bool: ...
    def idle_until(self) -> float | None: ...


class Stopped(Exception):
    """The parent said Stop, or its end of the socket is closed."""


class Device:
    """The loop around an operator."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameReader(protocol.Command)
        self._send_lock = threading.Lock()
        self._outgoing = bytearray()
        self._flushed_at = 0.0
        self._observer = BeatObserver()
        self._operator: Operator | None = None
        self._snapshots: Snapshots | None = None
        self._stores: list[BoundedStore] = []
        self._opened: set[str] = set()
        self._waiting: dict[str, deque[protocol.Feed]] = {}
        self._steps = 0
        self._busy = True  # loading counts
        self._governor = Governor(threads_allowed(), set_torch_threads)
        self._starved = Starved()

    def run(self) -> int:
        """Serve until stopped; the exit code of the process."""
        threading.Thread(target=self._beat_forever, daemon=True, name="beats").start()
        try:
            while True:
                self._once()
        except Stopped:
            if self._operator is not None:
                self._operator.close()
            return 0
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            with contextlib.suppress(OSError):
                self._send(protocol.Fatal(_kind(error), f"{type(error).__name__}: {error}"))
            return 1

    def _once(self) -> None:
        # 1. commands; with nothing to compute, sleep until one arrives or a trigger is due.
        for command in self._receive(self._wait_seconds()):
            self._obey(command)
            self._steps += 1  # a stream that waits for its snapshot is no standstill
        operator = self._operator
        if operator is None:
            return
        self._busy = operator.has_work()
        due = operator.idle_until()
        if not self._busy and (due is None or due > time.monotonic()):
            return
        # 2. one step; 3. its results.
        with self._governor.step():
            emissions = operator.step()
        self._steps += 1
        self._observer.gauge("cpu_threads", self._governor.threads)
        for emission in emissions:
            if self._snapshots is not None:
                self._snapshots.note(operator, emission)
            with self._send_lock:  # the beats' thread sends what waits, too
                self._outgoing += frame(protocol.Output(emission))
        self._feed_waiting()
        self._busy = operator.has_work()
        if not self._busy or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._send()

    def _wait_seconds(self) -> float | None:
        operator = self._operator
        if operator is None:
            return None
        if operator.has_work():
            return 0.0
        due = operator.idle_until()
        return None if due is None else max(0.0, due - time.monotonic())

    def _obey(self, command: protocol.Command) -> None:
        if isinstance(command, protocol.Load):
            self._load(command)
            return
        if isinstance(command, protocol.Stop):
            raise Stopped
        assert self._operator is not None, "the first command must be Load"
        if isinstance(command, protocol.Open):
            self._opened.add(command.stream_id)
            if self._snapshots is not None:
                self._snapshots.open(self._operator, command.stream_id, command.state)
            else:
                self._operator.open(command.stream_id, command.state)
        elif isinstance(command, protocol.Feed):
            stream_id = command.segment.stream_id
            if stream_id in self._waiting or not self._feed(command):
                self._waiting.setdefault(stream_id, deque()).append(command)
        elif isinstance(command, protocol.Ask):
            self._ask(self._operator, command)
        elif isinstance(command, protocol.End):
            self._operator.end(command.stream_id)
        elif isinstance(command, protocol.Probe):
            self._probe(self._operator)
        else:
            self._drop(self._operator, command)

    def _drop(self, operator: Operator, command: protocol.Drop) -> None:
        stream_id = command.stream_id
        self._waiting.pop(stream_id, None)
        if stream_id in self._opened:  # not one whose erasure is only tried again
            self._opened.remove(stream_id)
            operator.drop(stream_id)
        if self._snapshots is not None:
            self._snapshots.forget(stream_id)
        self._erase(command, list(self._stores) if command.erase else [])

    def _erase(
        self, command: protocol.Drop, stores: list[BoundedStore], error: BaseException | None = None
    ) -> None:
        """Have each store erase the stream, in its own thread and time; then answer."""
        if stores and error is None:
            first, *others = stores
            first.erase(command.stream_id, lambda error: self._erase(command, others, error))
            return
        problem = f"{type(error).__name__}: {error}" if error is not None else ""
        with contextlib.suppress(OSError):  # the parent is gone, which the loop will notice
            self._send(protocol.Dropped(command.stream_id, command.generation, problem))

    def _probe(self, operator: Operator) -> None:
        """Show that the model works, on words that can harm nobody."""
        self._busy = True
        operator.open(PROBE_STREAM)
        operator.feed(Segment(stream_id=PROBE_STREAM, text="Good morning."), 0)
        while operator.has_work():
            operator.step()
            self._steps += 1
        operator.drop(PROBE_STREAM)
        self._busy = False
        self._send(protocol.Probed())

    def _feed(self, command: protocol.Feed) -> bool:
        """Give a segment to the engine; False if its queue is full (long segments fill it fast)."""
        assert self._operator is not None
        segment, ticket = command.segment, command.ticket
        waited = max(0.0, time.monotonic() - command.read_at) if command.read_at else 0.0
        try:
            self._operator.feed(segment, ticket, waited)
        except CapacityError:
            return False
        except SegmentError as error:
            self._send(protocol.Refused(segment.stream_id, ticket, error.reason, str(error)))
        return True

    def _ask(self, operator: Operator, command: protocol.Ask) -> None:
        stream_id = command.question.stream_id
        try:
            operator.ask(command.question, command.ticket)
        except SegmentError as error:
            refused = (stream_id, command.ticket, error.reason, str(error), True)
            self._send(protocol.Refused(*refused))

    def _feed_waiting(self) -> None:
        """Offer the engine again what it had no room for, per stream in order."""
        for stream_id, commands in list(self._waiting.items()):
            while commands and self._feed(commands[0]):
                commands.popleft()
            if not commands:
                del self._waiting[stream_id]

    def _load(self, load: protocol.Load) -> None:
        config = OperatorConfig.from_dict(load.config)
        if load.snapshot_url:
            kept = BoundedStore(SnapshotStore(load.snapshot_url, load.again))
            self._snapshots = Snapshots(kept, load.snapshot_interval_s, time.monotonic)
            self._stores.append(kept)
        if load.offload_url:  # what any process put there: the engine has a folder of its own
            self._stores.append(BoundedStore(SnapshotStore(load.offload_url, load.again)))
        if load.snapshot_retention_h is not None:
            urls = {load.snapshot_url, load.offload_url} - {""}
            stores = [SnapshotStore(url, load.again) for url in urls]
            keep_s = load.snapshot_retention_h * 3600
            purge = threading.Thread(target=purge_forever, args=(stores, keep_s), daemon=True)
            purge.start()
        self._operator, ready = make_operator(load, config, self._observer, self._progress)
        self._busy = False
        self._send(ready)

    def _progress(self, message: str) -> None:
        self._send(protocol.Progress(message))

    def _receive(self, timeout: float | None) -> list[protocol.Command]:
        readable, _, _ = select.select([self._sock], [], [], timeout)
        if not readable:
            return []
        data = self._sock.recv(1 << 20)
        if not data:
            raise Stopped
        return list(self._frames.feed(data))

    def _send(self, *reports: protocol.Report) -> None:
        """Send what waits, then these."""
        with self._send_lock:
            data, self._outgoing = self._outgoing, bytearray()
            for report in reports:
                data += frame(report)
            if data:
                self._sock.sendall(data)
            self._flushed_at = time.monotonic()

    def _beat_forever(self) -> None:
        while True:
            counters, gauges, observations = self._observer.drain()
            beat = Beat(
                steps=self._steps,
                busy=self._busy,
                starved_s=self._starved(),
                counters=counters,
                gauges=gauges,
                observations=observations,
            )
            try:
                self._send(beat)
            except OSError:
                os._exit(0)  # the parent is gone, and a step may take long to notice
            time.sleep(BEAT_SECONDS)


def make_operator(
    load: protocol.Load, config: OperatorConfig, observer: Observer, progress: Callable[[str], None]
) -> tuple[Operator, protocol.Ready]:
    """Load the model and build the engine. Raises ModelError or ConfigError."""
    if load.toy:
        module, _, name = os.environ.get(TEST_OPERATOR, "").partition(":")
        if not name:
            raise ConfigError(f"a toy device needs {TEST_OPERATOR}=module:function")
        made: tuple[Operator, protocol.Ready] = getattr(importlib.import_module(module), name)(
            load, config, observer
        )
        return made
    from pipelines.device.loader import load_operator  # imports torch: only here

    return load_operator(load, config, observer, progress)


def threads_allowed() -> int:
    """What the parent allows, in the variable that OpenMP reads."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and given != "0" else 1


def set_torch_threads(count: int) -> None:
    if (torch := sys.modules.get("torch")) is not None:  # an echo in its place has none
        torch.set_num_threads(count)


def purge_forever(stores: list[SnapshotStore], keep_s: float) -> None:
    """Delete what is older than ``keep_s`` seconds, now and each time a tenth of that has passed."""
    while True:
        for store in stores:
            store.purge(datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=keep_s))
        time.sleep(max(1.0, keep_s / 10))


def _kind(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return "config"
    return "model" if isinstance(error, ModelError) else "device"


def die_with_parent() -> None:
    """Linux: have the kernel kill this process when the thread that started it ends."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        return Device(sock).run()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not sys.exit: interpreter teardown would wait for the beat thread and native thread pools.
    os._exit(code)
