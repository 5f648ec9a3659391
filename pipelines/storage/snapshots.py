"""Snapshots of streams in a store: a folder, s3://…, whatever fsspec speaks. Used by the device process.

The promise: what a session record refers to is either in the store, whole, or the stream is restored
from its text instead. So a snapshot is written before the state that names it is published, the one
before it is kept until the next, and nothing that is read is trusted (checksum, identity).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem

from operators.errors import ConfigError, SnapshotError
from operators.state import Emission, SessionState

log = logging.getLogger(__name__)

KEPT = 2
"""Snapshots of a stream in the store: the newest may be named by a state that is never committed."""


class Store(Protocol):
    """Bytes by name; every method may raise OSError."""

    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def delete(self, name: str) -> None: ...
    def clear(self, folder: str) -> None: ...


class SnapshotOperator(Protocol):
    """What is needed of ``operators.stream_operator.StreamOperator``."""

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> object: ...
    def quiet(self, stream_id: str) -> bool: ...
    def snapshot(self, stream_id: str) -> bytes: ...


@contextmanager
def _tolerated(what: str) -> Iterator[None]:
    """An OSError is logged, and that is all."""
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", what, error)


@contextmanager
def _one_error() -> Iterator[None]:
    """What a store's client library raises is an OSError here: S3's, for one, has classes of its own
    for a server that cannot be reached."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class SnapshotStore:
    """Bytes by name under one URL; every method but ``purge`` raises OSError. Raises ConfigError when
    the store cannot be used, unless it ``may_be_away``: then it is not asked before it is needed."""

    def __init__(self, url: str, may_be_away: bool = False) -> None:
        try:
            with _one_error():
                self._files, self._root = fsspec.core.url_to_fs(url)
                if not may_be_away:
                    self._make_folder(self._root)
        except OSError as error:
            raise ConfigError(f"store {url}: {error}") from error

    @property
    def folder(self) -> Path | None:
        """Where the store is on a disk; None for one that is elsewhere."""
        return Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def put(self, name: str, data: bytes) -> None:
        """Write whole or not at all."""
        path = f"{self._root}/{name}"
        with _one_error():
            if isinstance(self._files, LocalFileSystem):
                self._make_folder(self._files._parent(path))
                self._files.pipe_file(f"{path}.part", data)
                self._files.mv(f"{path}.part", path)
            else:  # object stores show a file when it is complete
                self._files.pipe_file(path, data)

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError when it is not there."""
        with _one_error():
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def delete(self, name: str) -> None:
        """What is not there is deleted already."""
        with _one_error(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def clear(self, folder: str) -> None:
        """Delete all that lies under ``folder``."""
        with _one_error(), contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._root}/{folder}", recursive=True)

    def erase(self, stream_id: str) -> None:
        """Delete all that is kept of a stream: snapshots, and KV that any process has
        put aside here (:mod:`pipelines.storage.idle`)."""
        name = folder_of(stream_id)
        self.clear(name)
        with _one_error():
            found = self._files.find(self._root)
        for path in found:
            if path.endswith(f"/{name}.safetensors"):
                self.delete(path.removeprefix(f"{self._root}/"))

    def purge(self, before: datetime.datetime) -> int:
        """Delete all that was written before then; how much that was."""
        old = []
        try:
            with _one_error():
                for path in self._files.find(self._root):
                    written = self._files.modified(path)
                    if written.tzinfo is None:
                        written = written.replace(tzinfo=datetime.UTC)
                    if written < before:
                        old.append(path)
        except OSError as error:
            log.warning("old snapshots could not be looked for: %s", error)
        deleted = 0
        for path in old:
            with _tolerated("an old snapshot could not be deleted"):
                self.delete(path.removeprefix(f"{self._root}/"))
                deleted += 1
        return deleted

    def _make_folder(self, path: str) -> None:
        """On a disk for this user alone: what people said lies in it."""
        if isinstance(self._files, LocalFileSystem):
            Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self._files.makedirs(path, exist_ok=True)


def folder_of(stream_id: str) -> str:
    """Where a stream's snapshots lie: a hash, so that any id makes a fair name and none shows."""
    return hashlib.sha256(stream_id.encode()).hexdigest()[:32]


class Snapshots:
    """Takes, names, finds and clears away the snapshots of a device's streams."""

    def __init__(self, store: Store, interval_s: float, clock: Callable[[], float]) -> None:
        self._store, self._interval_s, self._clock = store, interval_s, clock
        self._names: dict[str, list[str]] = {}
        self._taken_at: dict[str, float] = {}

    def open(self, operator: SnapshotOperator, stream_id: str, state: SessionState | None) -> None:
        """Open the stream from the snapshot its state names, or, failing that, from its text."""
        self.forget(stream_id)
        if state is None or state.snapshot is None:
            operator.open(stream_id, state)
            return
        self._names[stream_id] = [state.snapshot]
        try:
            operator.open(stream_id, state, self._store.get(state.snapshot))
        except (OSError, SnapshotError) as error:
            log.warning("snapshot %s is not used, the text is: %s", state.snapshot, error)
            operator.open(stream_id, state)

    def note(self, operator: SnapshotOperator, emission: Emission) -> None:
        """Before an emission is published: take a snapshot if one is due and possible, and name the
        newest in the state. Mutates the emission."""
        stream_id, state = emission.stream_id, emission.state
        if state.ended:
            self.forget(stream_id)
            with _tolerated("snapshots of a stream that has ended stay"):
                self._store.clear(folder_of(stream_id))
            return
        now = self._clock()
        due = now - self._taken_at.get(stream_id, -self._interval_s) >= self._interval_s
        if due and operator.quiet(stream_id):
            self._take(operator, stream_id, state)
            self._taken_at[stream_id] = now
        if names := self._names.get(stream_id):
            emission.state = msgspec.structs.replace(state, snapshot=names[-1])

    def _take(self, operator: SnapshotOperator, stream_id: str, state: SessionState) -> None:
        name = f"{folder_of(stream_id)}/{state.epoch}-{state.cursor}.safetensors"
        try:
            self._store.put(name, operator.snapshot(stream_id))
        except (OSError, SnapshotError) as error:
            log.warning("no snapshot was written, the next is tried in its time: %s", error)
            return
        names = self._names.setdefault(stream_id, [])
        if name not in names:
            names.append(name)
        while len(names) > KEPT:
            with _tolerated("a snapshot that is not needed any more stays"):
                self._store.delete(names.pop(0))

    def forget(self, stream_id: str) -> None:
        """The stream is somebody else's now: what is in the store stays for them."""
        self._names.pop(stream_id, None)
        self._taken_at.pop(stream_id, None)
