"""The KV of streams without a slot: in host memory, beyond a limit in a disk tier.

Least recently used first; they return bit for bit. Host memory is bounded: what a disk tier does not
take is let go, and its stream's text has to be prefilled again. Streams are known by name only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from safetensors.torch import load, save
from torch import Tensor

from operators.errors import SnapshotError


class KvStore(Protocol):
    """Bytes by name; every method may raise OSError. Used by one operator only."""

    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class OffloadedKv:
    """A stream's KV in host memory: ``length`` tokens, and the draft model's KV with its ``origin``
    (see StreamSlot), if there is any."""

    kv: Tensor
    length: int
    draft: Tensor | None = None
    draft_origin: int = 0

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes + (self.draft.nbytes if self.draft is not None else 0)


@dataclass(frozen=True)
class _OnDisk:
    digest: str
    length: int
    draft_origin: int


class Offload:
    """``limit``: streams kept in host memory where there is a ``store``. ``max_bytes``: of host memory,
    in any case; 0 is no bound."""

    def __init__(self, limit: int, store: KvStore | None = None, max_bytes: int = 0) -> None:
        self._limit, self._store, self._max_bytes = limit, store, max_bytes
        self._in_host: dict[str, OffloadedKv] = {}  # least recently used first
        self._on_disk: dict[str, _OnDisk] = {}
        self._let_go: dict[str, None] = {}
        self.nbytes = 0
        """Of host memory in use."""
        self.failures = 0
        """Calls to the store that failed without loss."""
        self.losses = 0
        """Streams whose KV was let go for want of memory."""

    @property
    def in_host(self) -> int:
        return len(self._in_host)

    @property
    def on_disk(self) -> int:
        return len(self._on_disk)

    def __contains__(self, name: str) -> bool:
        return name in self._in_host or name in self._on_disk

    def is_on_disk(self, name: str) -> bool:
        return name in self._on_disk

    def put(self, name: str, memory: OffloadedKv) -> None:
        """Take a stream's KV; what exceeds the limits goes to the store, or is let go."""
        self._take_out(name)
        self._in_host[name] = memory
        self.nbytes += memory.nbytes
        while self._store is not None and len(self._in_host) > self._limit:
            if not self._to_disk(next(iter(self._in_host)), self._store):
                break  # tried again with the next stream
        while self._max_bytes and self.nbytes > self._max_bytes:
            oldest = next(iter(self._in_host))
            if self._store is None or not self._to_disk(oldest, self._store):
                self._take_out(oldest)
                self._let_go[oldest] = None
                self.losses += 1

    def _take_out(self, name: str) -> None:
        if (memory := self._in_host.pop(name, None)) is not None:
            self.nbytes -= memory.nbytes

    def get(self, name: str) -> OffloadedKv | None:
        """A stream's KV, None if there is none. Changes nothing. Raises OSError or SnapshotError when
        the store has lost it, or it was let go."""
        if name in self._let_go:
            raise SnapshotError(f"the KV of stream {name} was let go: host memory was full")
        if (stored := self._on_disk.get(name)) is None:
            return self._in_host.get(name)
        assert self._store is not None
        data = self._store.get(_file(name))
        if _digest(data) != stored.digest:
            raise SnapshotError(f"the store gave back another KV of stream {name}")
        tensors = load(data)
        return OffloadedKv(tensors["kv"], stored.length, tensors.get("draft"), stored.draft_origin)

    def drop(self, name: str) -> None:
        """Delete a stream's KV, also in the store. Idempotent."""
        self._take_out(name)
        self._let_go.pop(name, None)
        if self._on_disk.pop(name, None) is not None and self._store is not None:
            try:
                self._store.delete(_file(name))
            except OSError:
                self.failures += 1

    def _to_disk(self, name: str, store: KvStore) -> bool:
        memory = self._in_host[name]
        tensors = {"kv": memory.kv.contiguous()}
        if memory.draft is not None:
            tensors["draft"] = memory.draft.contiguous()
        data: bytes = save(tensors)
        try:
            store.put(_file(name), data)
        except OSError:
            self.failures += 1
            return False
        self._on_disk[name] = _OnDisk(_digest(data), memory.length, memory.draft_origin)
        self._take_out(name)
        return True


def _file(name: str) -> str:
    """A hash: every id gives a valid file name, and no id is disclosed."""
    return f"{_digest(name.encode())[:32]}.safetensors"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
