"""What a worker keeps of its streams in a store, and what happens when the store lets it down."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.events import Segment
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from pipelines.config.load import load_settings
from pipelines.device import protocol
from pipelines.device.client import DeviceClient
from pipelines.storage.idle import idle_store
from pipelines.storage.snapshots import KEPT, Snapshots, SnapshotStore, folder_of
from tests.operators.test_stream_operator import CONFIG, Clock, make, speech

SPEECH = speech("a", 30)


def work(
    operator: StreamOperator, snapshots: Snapshots, segments: list[Segment], ticket: int
) -> list[Emission]:
    """One segment at a time, as a stream that keeps up with its speaker."""
    emissions = []
    for at, segment in enumerate(segments, start=ticket):
        operator.feed(segment, at)
        while operator.has_work():
            for emission in operator.step():
                snapshots.note(operator, emission)
                emissions.append(emission)
    return emissions


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def restored(emissions: list[Emission]) -> set[str]:
    return {e.kv.restored for m in emissions for e in m.events if hasattr(e, "kv")}


def kept(folder: Path) -> tuple[SnapshotStore, SessionState]:
    """A store with a stream's snapshots, and the last state that was published."""
    store, operator = SnapshotStore(str(folder)), make(targets=())
    operator.open("a")
    last = work(operator, Snapshots(store, 0, Clock()), SPEECH[:20], 0)[-1]
    return store, last.state


def test_another_worker_goes_on_from_the_store(tmp_path: Path) -> None:
    store, state = kept(tmp_path)
    assert state.snapshot is not None
    assert len(files(tmp_path)) == KEPT
    operator, snapshots = make(targets=()), Snapshots(store, 0, Clock())
    snapshots.open(operator, "a", state)
    after = work(operator, snapshots, SPEECH[20:], 20)
    assert restored(after) == {"snapshot"}
    assert after[-1].state.ended
    assert files(tmp_path) == []  # an ended stream leaves nothing behind


def test_an_object_store_serves_as_well() -> None:
    store, operator = SnapshotStore("memory://kept"), make(targets=())
    operator.open("a")
    state = work(operator, Snapshots(store, 0, Clock()), SPEECH[:10], 0)[-1].state
    other = make(targets=())
    Snapshots(store, 0, Clock()).open(other, "a", state)
    assert other._sessions["a"].restored == "snapshot"


def test_snapshots_keep_their_distance_in_time(tmp_path: Path) -> None:
    clock, operator = Clock(), make(targets=())
    snapshots = Snapshots(SnapshotStore(str(tmp_path)), 60, clock)
    operator.open("a")
    first = work(operator, snapshots, SPEECH[:5], 0)[-1].state
    clock.now = 59
    assert work(operator, snapshots, SPEECH[5:10], 5)[-1].state.snapshot == first.snapshot
    clock.now = 60
    assert work(operator, snapshots, SPEECH[10:12], 10)[-1].state.snapshot != first.snapshot


@pytest.mark.parametrize("fault", ["gone", "torn"])
def test_what_the_store_lost_is_replayed_from_text(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, state = kept(tmp_path)
    for file in files(tmp_path):
        if fault == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-100])
    operator, snapshots = make(targets=()), Snapshots(store, 0, Clock())
    with caplog.at_level(logging.WARNING):
        snapshots.open(operator, "a", state)
    assert "is not used, the text is" in caplog.text
    assert restored(work(operator, snapshots, SPEECH[20:], 20)) == {"replay"}


def test_a_store_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, operator = SnapshotStore(str(tmp_path)), make(targets=())
    operator.open("a")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "put", full)
    with caplog.at_level(logging.WARNING):
        emissions = work(operator, Snapshots(store, 0, Clock()), SPEECH[:6], 0)
    assert [t for m in emissions for t in m.done] == list(range(6))
    assert emissions[-1].state.snapshot is None
    assert "no space left" in caplog.text


def test_a_device_puts_idle_streams_into_its_store_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSTREAM_TEST_OPERATOR", "tests.echo_device:make_engine")
    config = {**CONFIG.to_dict(), "slots": 1, "host_streams": 0, "targets": ()}
    load = protocol.Load(model="toy", toy=True, config=config, offload_url=str(tmp_path))

    async def body() -> None:
        done: asyncio.Queue[Emission] = asyncio.Queue()
        device = DeviceClient(done.put_nowait, lambda _: None)
        try:
            await device.start(load, timeout=120)
            for name in ("a", "b"):
                device.open(name)
            for ticket, name in enumerate(("a", "b", "a")):
                device.feed(Segment(stream_id=name, text="the red button"), ticket)
                async with asyncio.timeout(60):
                    assert (await done.get()).stream_id == name
            assert len(files(tmp_path)) == 1  # b is there now, a came back
            await device.stop(60)
        finally:
            await device.kill()

    asyncio.run(body())
    assert files(tmp_path) == []


def test_every_store_for_idle_streams_is_a_place_of_its_own(tmp_path: Path) -> None:
    one, other = idle_store(str(tmp_path)), idle_store(str(tmp_path))
    assert one is not None
    assert other is not None
    one.put("a", b"one")
    with pytest.raises(FileNotFoundError):
        other.get("a")
    assert idle_store("") is None


def test_what_a_killed_process_left_goes_when_another_starts(tmp_path: Path) -> None:
    """Several processes on one disk: only the dead one's folder is deleted."""
    mine = idle_store(str(tmp_path))
    assert mine is not None
    mine.put("a.safetensors", b"alive")
    code = (
        "from pipelines.storage.idle import idle_store\n"
        f"store = idle_store({str(tmp_path)!r}); store.put('b.safetensors', b'dead')\n"
        "print(flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        third = idle_store(str(tmp_path))
        assert {path.name for path in files(tmp_path)} == {"a.safetensors", "b.safetensors"}
        other.kill()
    fourth = idle_store(str(tmp_path))
    assert [path.name for path in files(tmp_path)] == ["a.safetensors"]
    assert mine.get("a.safetensors") == b"alive"
    assert len(list(tmp_path.iterdir())) == 3
    assert third is not fourth


def test_a_device_that_forgets_a_stream_erases_what_others_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's spilled KV, where there are no snapshots: the worker itself deletes it."""
    monkeypatch.setenv("LONGSTREAM_TEST_OPERATOR", "tests.echo_device:make")
    url = f"{tmp_path}/spill"
    load = protocol.Load(model="echo", toy=True, offload_url=url)

    async def body() -> None:
        device = DeviceClient(lambda _: None)
        try:
            await device.start(load, timeout=60)
            left = SnapshotStore(f"{url}/idle-left")
            for stream in ("anna", "bert"):
                left.put(f"{folder_of(stream)}.safetensors", b"x")
                device.open(stream)
            await device.drop("bert")
            await device.drop("anna", erase=True)
        finally:
            await device.kill()

    asyncio.run(body())
    assert [path.stem for path in files(tmp_path)] == [folder_of("bert")]


def test_a_store_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="store nothing://here"):
        SnapshotStore("nothing://here")


def test_a_login_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, snapshot_url="s3://key:hunter2@bucket")
    assert "no login in the URL" in str(refused.value)
    assert "hunter2" not in str(refused.value)
