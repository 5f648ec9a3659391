"""Snapshots in S3, as far as a local server that speaks its protocol (moto) can tell."""

from __future__ import annotations

import datetime
import logging
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from operators.errors import ConfigError
from operators.state import SessionState
from pipelines.storage.bounded import BoundedStore
from pipelines.storage.idle import idle_store
from pipelines.storage.snapshots import KEPT, Snapshots, SnapshotStore, folder_of
from tests.operators.test_stream_operator import Clock, make, speech
from tests.pipelines.test_snapshot_store import restored, work

s3fs = pytest.importorskip("s3fs", reason="S3 is not tested: pip install -e '.[dev]'")
moto = pytest.importorskip("moto.server", reason="S3 is not tested: pip install -e '.[dev]'")

SPEECH = speech("a", 30)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[moto.ThreadedMotoServer]:
    """A server with an empty bucket named "kept"; the environment leads to it, as it would to S3."""
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    for method, path in [("POST", "moto-api/reset"), ("PUT", "kept")]:
        request = urllib.request.Request(f"http://{host}:{port}/{path}", method=method)
        urllib.request.urlopen(request, timeout=10).close()
    yield started
    started.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def files() -> list[str]:
    """All that lies in the bucket, asked anew."""
    s3 = s3fs.S3FileSystem(skip_instance_cache=True)
    return sorted(s3.find("kept"))


def kept(stream_id: str = "a") -> tuple[SnapshotStore, SessionState]:
    """A store with a stream's snapshots, and the last state that was published."""
    store, operator = SnapshotStore("s3://kept/snapshots"), make(targets=())
    operator.open(stream_id)
    said = speech(stream_id, 30)[:20]
    return store, work(operator, Snapshots(store, 0, Clock()), said, 0)[-1].state


@pytest.mark.usefixtures("server")
def test_another_worker_goes_on_from_s3() -> None:
    _, state = kept()
    assert state.snapshot is not None
    assert len(files()) == KEPT
    operator = make(targets=())
    snapshots = Snapshots(SnapshotStore("s3://kept/snapshots"), 0, Clock())
    snapshots.open(operator, "a", state)
    after = work(operator, snapshots, SPEECH[20:], 20)
    assert restored(after) == {"snapshot"}
    assert after[-1].state.ended
    assert files() == []  # an ended stream leaves nothing behind


@pytest.mark.usefixtures("server")
def test_a_forgotten_stream_is_gone_from_s3_and_no_other() -> None:
    store, _ = kept("a")
    kept("b")
    idle = idle_store("s3://kept/snapshots")
    assert idle is not None
    idle.put(f"{folder_of('a')}.safetensors", b"put aside by a process that was killed")
    SnapshotStore("s3://kept/snapshots").erase("a")
    assert {path.split("/")[2] for path in files()} == {folder_of("b")}
    with pytest.raises(FileNotFoundError):
        store.get(f"{folder_of('a')}/0-19.safetensors")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("fault", ["gone", "torn"])
def test_what_s3_lost_is_replayed_from_text(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    store, state = kept()
    assert state.snapshot is not None
    if fault == "gone":
        store.delete(state.snapshot)
    else:
        store.put(state.snapshot, store.get(state.snapshot)[:-100])
    operator, snapshots = make(targets=()), Snapshots(store, 0, Clock())
    with caplog.at_level(logging.WARNING):
        snapshots.open(operator, "a", state)
    assert "is not used, the text is" in caplog.text
    assert restored(work(operator, snapshots, SPEECH[20:], 20)) == {"replay"}


def test_s3_going_away_stops_nothing(
    server: moto.ThreadedMotoServer, caplog: pytest.LogCaptureFixture
) -> None:
    store, state = kept()
    server.stop()
    operator, snapshots = make(targets=()), Snapshots(store, 0, Clock())
    with caplog.at_level(logging.WARNING):
        snapshots.open(operator, "a", state)
        emissions = work(operator, snapshots, SPEECH[20:], 20)
    assert [ticket for emission in emissions for ticket in emission.done] == list(range(20, 31))
    assert "is not used, the text is" in caplog.text
    assert "no snapshot was written" in caplog.text
    assert restored(emissions) == {"replay"}


def test_s3_that_takes_calls_and_never_answers_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client itself would wait a minute for it, several times in a row."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "anything")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = BoundedStore(SnapshotStore("s3://kept/snapshots", may_be_away=True), 0.5)
        operator = make(targets=())
        named = SessionState(stream_id="a", snapshot=f"{folder_of('a')}/0-3.safetensors")
        snapshots = Snapshots(store, 0, Clock())
        snapshots.open(operator, "a", named)
        emissions = work(operator, snapshots, SPEECH[:6], 0)
    assert [ticket for emission in emissions for ticket in emission.done] == list(range(6))
    assert "has not answered in 0.5 s" in caplog.text
    assert "left alone" in caplog.text
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("server")
def test_old_snapshots_in_s3_are_purged() -> None:
    store, _ = kept()
    now = datetime.datetime.now(datetime.UTC)
    assert store.purge(now - datetime.timedelta(hours=1)) == 0
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file("kept/snapshots/another/0-1.safetensors", b"by another worker meanwhile")
    assert store.purge(now + datetime.timedelta(hours=1)) == KEPT + 1
    assert files() == []


def test_s3_that_cannot_be_reached_is_a_mistake_in_the_settings(
    server: moto.ThreadedMotoServer,
) -> None:
    server.stop()
    with pytest.raises(ConfigError, match="store s3://kept/snapshots"):
        SnapshotStore("s3://kept/snapshots")
