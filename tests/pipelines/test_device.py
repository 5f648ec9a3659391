"""The device process seen from its parent, with the echo operator in place of a model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable

import psutil
import pytest

from operators.config import OperatorConfig
from operators.errors import ConfigError, DeviceError
from operators.events import Segment, TranslationEvent
from operators.state import Emission, SessionState
from pipelines.device import protocol
from pipelines.device.client import DeviceClient
from pipelines.device.frames import FrameReader, frame
from pipelines.device.process import Device
from pipelines.lab.chaos.operators import Echo
from pipelines.observability.telemetry import Beat
from pipelines.served.settings import ServerSettings
from pipelines.storage.bounded import BoundedStore
from tests.operators.test_stream_operator import CONFIG
from tests.served import busy, running, scripted

TOY = protocol.Load(model="echo", toy=True)


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_TEST_OPERATOR", "tests.echo_device:make")


class Seen:
    """Collects emissions and beats, and waits for a number of them."""

    def __init__(self) -> None:
        self.emissions: list[Emission] = []
        self.beats: list[Beat] = []

    async def wait(self, count: int, timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while len(self.emissions) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def run(
    test: Callable[[DeviceClient, Seen], Awaitable[None]],
    load: protocol.Load = TOY,
    **options: float,
) -> None:
    """Run ``test`` with a started device, and see that no process outlives it."""

    async def body() -> None:
        seen = Seen()
        device = DeviceClient(seen.emissions.append, seen.beats.append, **options)  # type: ignore[arg-type]
        try:
            await device.start(load, timeout=30)
            await test(device, seen)
        finally:
            await device.kill()
        assert device.pid is None or not psutil.pid_exists(device.pid)

    asyncio.run(body())


def say(stream: str, text: str) -> Segment:
    return Segment(stream_id=stream, text=text, segment_id=text)


def test_segments_come_back_in_feed_order_with_state() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.open("b", SessionState(stream_id="b", cursor=40, next_seq=7, covered_seq=6))
        for ticket in range(3):
            device.feed(say("a", f"t{ticket}"), ticket)
        device.feed(say("b", "x"), 41)
        await seen.wait(4)
        assert [e.done for e in seen.emissions] == [[0], [1], [2], [41]]
        assert seen.emissions[2].events[0].revision == 1
        assert seen.emissions[3].state.next_seq == 8

    run(test)


@pytest.mark.parametrize("operator", ["make", "make_engine"])
def test_a_probe_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    monkeypatch.setenv("LONGSTREAM_TEST_OPERATOR", f"tests.echo_device:{operator}")

    async def test(device: DeviceClient, seen: Seen) -> None:
        await device.probe()
        device.open("a")
        device.feed(say("a", "a red button"), 0)
        await seen.wait(1)
        assert [(e.stream_id, e.done) for e in seen.emissions] == [("a", [0])]

    run(test, protocol.Load(model="echo", toy=True, config=CONFIG.to_dict()))


def test_nothing_of_a_dropped_stream_arrives_after_the_answer() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        for ticket in range(50):
            device.feed(say("a", "SLEEP 0.01"), ticket)
        await device.drop("a")
        before = len(seen.emissions)
        device.open("a")
        device.feed(say("a", "again"), 7)
        await seen.wait(before + 1)
        assert seen.emissions[-1].done == [7]
        assert len(seen.emissions) == before + 1 < 50

    run(test)


def test_an_erasure_the_device_dies_with_has_failed() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.feed(say("a", "SLEEP 60"), 0)
        await asyncio.sleep(0.5)  # it is in the step now, and hears nothing
        plain, erasing = device.drop("a"), device.drop("a", erase=True)
        await asyncio.sleep(0.1)
        assert not erasing.done()
        await device.kill()
        await plain
        with pytest.raises(DeviceError, match="before it had erased"):
            await erasing

    run(test)


def test_an_erasure_that_fails_is_told_and_may_be_asked_for_again() -> None:
    faults = ["disk on fire"]

    class Store:
        def erase(self, stream_id: str) -> None:
            if faults:
                raise OSError(faults.pop())

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        device, frames = Device(theirs), FrameReader(protocol.Report)
        device._operator = Echo(CONFIG)
        device._stores = [BoundedStore(Store()), BoundedStore(Store())]  # type: ignore[arg-type]
        device._obey(protocol.Open("a"))
        answers = []
        for generation in (1, 2):
            device._obey(protocol.Drop("a", generation, erase=True))
            answers += frames.feed(ours.recv(1 << 16))
    failed, done = answers
    assert failed == protocol.Dropped("a", 1, "OSError: disk on fire")
    assert done == protocol.Dropped("a", 2)


def test_metrics_arrive_with_the_beats() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.feed(say("a", "three words here"), 0)
        await seen.wait(1)
        async with asyncio.timeout(5):
            while sum(beat.counters.get("prompt_tokens", 0) for beat in seen.beats) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    run(test)


def test_beats_continue_during_a_long_step() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.feed(say("a", "SLEEP 1.6"), 0)
        await asyncio.sleep(0.3)
        before = len(seen.beats)
        await asyncio.sleep(1.2)
        assert len(seen.beats) >= before + 2
        assert seen.beats[-1].busy
        assert not device.failed.done()

    run(test, beat_timeout_s=2.0)


@pytest.mark.parametrize("fault", ["CRASH", "EXIT"])
def test_a_fault_is_a_device_error(fault: str) -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.feed(say("a", fault), 0)
        reason = "said CRASH" if fault == "CRASH" else "exit code 9"
        with pytest.raises(DeviceError, match=reason):
            await asyncio.wait_for(device.failed, 10)

    run(test)


def test_a_hanging_step_is_noticed() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        device.open("a")
        device.feed(say("a", "HANG"), 0)
        with pytest.raises(DeviceError, match="no step in 1 s"):
            await asyncio.wait_for(device.failed, 10)

    run(test, stall_timeout_s=1.0)


def test_a_frozen_process_is_noticed() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        assert device.pid
        os.kill(device.pid, signal.SIGSTOP)
        with pytest.raises(DeviceError, match="no beat"):
            await asyncio.wait_for(device.failed, 60)

    run(
        test, beat_timeout_s=5.0
    )  # a busy machine keeps a sound process waiting for a second or two


def test_ctrl_c_is_not_for_the_device() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        assert device.pid
        os.kill(device.pid, signal.SIGINT)
        os.kill(device.pid, signal.SIGTERM)
        device.open("a")
        device.feed(say("a", "still here"), 0)
        await seen.wait(1)

    run(test)


def test_stop_ends_the_process_in_order() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        started = time.monotonic()
        await device.stop()
        assert time.monotonic() - started < 4
        assert device._process is not None
        assert device._process.returncode == 0

    run(test)


def test_a_wrong_setting_is_reported_in_its_own_words() -> None:
    async def test(device: DeviceClient, seen: Seen) -> None:
        pytest.fail("started")

    load = protocol.Load(model="echo", toy=True, config={"windows": 3})
    with pytest.raises(ConfigError, match="unknown operator settings: windows"):
        run(test, load)


def test_the_device_does_not_get_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_SASL_PASSWORD", "hunter2")

    async def test(device: DeviceClient, seen: Seen) -> None:
        assert "LONGSTREAM_SASL_PASSWORD" not in psutil.Process(device.pid).environ()

    run(test)


def test_frames_survive_any_cut() -> None:
    messages = [protocol.Drop("a", 3), protocol.Stop(), protocol.Feed(7, say("ü", "x" * 1000))]
    stream = b"".join(map(frame, messages))
    for size in (1, 3, 7, 1000, len(stream)):
        reader = FrameReader(protocol.Command)
        pieces = (stream[at : at + size] for at in range(0, len(stream), size))
        assert [m for piece in pieces for m in reader.feed(piece)] == messages


def test_a_stream_out_of_step_is_refused() -> None:
    with pytest.raises(DeviceError, match="out of step"):
        list(FrameReader(protocol.Command).feed(b"\xff\xff\xff\xff"))


def test_a_device_on_a_server_reports_trouble_and_goes_on() -> None:
    """The model's process with backend openai: emissions with state as ever; a failed request shows in
    a beat, and so does that it has passed."""

    async def body() -> None:
        with running(scripted(lambda body: "Bonjour.")) as script:
            seen, told = Seen(), list[str]()
            device = DeviceClient(
                *(seen.emissions.append, seen.beats.append, told.append), beat_timeout_s=120
            )
            server = ServerSettings(url=script.url, key="sk-secret", attempts=3)
            config = OperatorConfig(targets=("fr",), window=256, update_tokens=128).to_dict()
            load = protocol.Load(model="", backend="openai", server=server, config=config)
            try:
                ready = await device.start(load, timeout=240)
                assert (ready.model, ready.bytes_per_stream) == ("scripted", 0)
                script.next.append(busy)
                device.open("m")
                device.feed(say("m", "Good morning."), 0)
                await seen.wait(1, timeout=60)
                async with asyncio.timeout(10):
                    while "server_trouble|reason=rate_limited" not in _gauges(seen):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            finally:
                await device.kill()
        (emission,) = seen.emissions
        assert (emission.done, emission.state.cursor) == ([0], 0)
        assert isinstance(event := emission.events[0], TranslationEvent)
        assert (event.committed, event.model.name) == ("Bonjour.", "scripted")
        assert script.keys[-1] == "Bearer sk-secret"
        assert not [text for text in told if "sk-secret" in text]

    asyncio.run(body())


def _gauges(seen: Seen) -> dict[str, float]:
    return {name: value for beat in seen.beats for name, value in beat.gauges.items()}


def test_time_without_a_core_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose cores others hold, a step may take minutes; a process that has its core and
    makes no step is hung."""
    clock = [0.0]
    monkeypatch.setattr("pipelines.device.client.time.monotonic", lambda: clock[0])
    device = DeviceClient(lambda emission: None, stall_timeout_s=60.0)
    device._handle(Beat(steps=1, busy=True, starved_s=5.0))
    clock[0] = 100.0
    device._handle(Beat(steps=1, busy=True, starved_s=85.0))
    assert device._left(60.0) == pytest.approx(40.0)
    clock[0] = 150.0
    device._handle(Beat(steps=1, busy=True, starved_s=85.0))
    assert device._left(60.0) < 0
    device._handle(Beat(steps=2, busy=True, starved_s=85.0))
    assert device._left(60.0) == pytest.approx(60.0)
