"""Where the KV of a stream lies that has no slot: in host memory, or, past a limit, in a store.

Streams without work make room for others, least recently used first, and come back bit for bit. Only
tensors move; the session itself (queue, ledger, window text, draft index) stays, it is small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from safetensors.torch import load, save
from torch import Tensor

from operators.cache.kv_cache import KvCache
from operators.config import OperatorConfig
from operators.decoding.draft_model import DraftMemory, DraftModel
from operators.engine import restore
from operators.engine.session import Session, Spilled
from operators.errors import SnapshotError
from operators.observer import Observer


class KvStore(Protocol):
    """Bytes by name; every method may raise OSError. One operator's own: no other writes there."""

    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def delete(self, name: str) -> None: ...


class Parking:
    """Moves streams between slots, host memory and ``store`` (None: host memory holds them all).

    ``prefix``: KV of the pinned tokens, with which a new stream begins. ``encode``: the tokenizer's,
    to run a window's text again should the store lose its KV.
    """

    def __init__(
        self,
        cache: KvCache,
        config: OperatorConfig,
        prefix: Tensor,
        draft: DraftModel | None,
        store: KvStore | None,
        encode: Callable[[str], list[int]],
        observer: Observer,
    ) -> None:
        self._cache, self._config, self._prefix, self._draft = cache, config, prefix, draft
        self._store, self._encode, self._observer = store, encode, observer
        self._in_host: dict[str, Session] = {}  # least recently used first
        self._resident: dict[str, Session] = {}
        self._stored = 0

    @property
    def in_host(self) -> int:
        """Streams whose KV is in host memory."""
        return len(self._in_host)

    @property
    def in_store(self) -> int:
        """Streams whose KV is in the store."""
        return self._stored

    # --- into a slot and out of it -------------------------------------------------------------

    def make_resident(self, session: Session, *, only_spare: bool = False) -> bool:
        """Give the session a slot, another's if that one is idle; False if none is to be had. If the
        store has lost its KV, its window's text is queued to be run again (``restored: replay``).
        ``only_spare``: not the slot of a stream with hypotheses either."""
        if not self._cache.free_slots:
            idle = [s for s in self._resident.values() if s.idle]
            if only_spare:
                idle = [s for s in idle if not s.hypotheses]
            if not idle:
                return False
            self.park(min(idle, key=lambda s: s.last_used))
        try:
            kv, draft = self.memory(session)
        except (OSError, SnapshotError):
            restore.again_from_text(session, self._encode)
            self._observer.count("kv_restores", kind=session.restored)
            kv, draft = self._prefix, None
        session.slot = self._cache.allocate()
        self._cache.restore(session.slot, kv, session.parked_length)
        if self._draft is not None:
            self._draft.adopt(session.slot, draft)
        self._forget_copies(session)
        self._resident[session.stream_id] = session
        return True

    def park(self, session: Session) -> None:
        """Move an idle session's KV to host memory, and what exceeds its limit to the store."""
        assert session.slot is not None
        session.hypotheses.recall(self._cache)
        kv, draft = self.memory(session)
        length = session.slot.length
        self._leave_slot(session)
        self.keep(session, kv, length, draft)

    def keep(self, session: Session, kv: Tensor, length: int, draft: DraftMemory | None) -> None:
        """Take KV of ``length`` tokens as the session's memory, to be given a slot when needed."""
        session.parked, session.parked_length, session.parked_draft = kv, length, draft
        self._in_host[session.stream_id] = session
        while self._store is not None and len(self._in_host) > self._config.host_streams:
            if not self._spill(next(iter(self._in_host.values())), self._store):
                return  # tried again with the next stream that is parked

    def memory(self, session: Session) -> tuple[Tensor, DraftMemory | None]:
        """The session's KV wherever it lies, and the draft model's if there is any. Changes nothing.
        Raises OSError or SnapshotError when the store has lost it."""
        if session.slot is not None:
            draft = self._draft.export(session.slot) if self._draft is not None else None
            return self._cache.export(session.slot), draft
        if session.spilled is not None:
            return self._fetch(session, session.spilled)
        if session.parked is not None:
            return session.parked, session.parked_draft
        return self._prefix, None

    def drop(self, session: Session) -> None:
        """Free whatever the session holds, wherever it lies."""
        session.hypotheses.clear(self._cache)
        if session.slot is not None:
            self._leave_slot(session)
        self._forget_copies(session)

    def _leave_slot(self, session: Session) -> None:
        assert session.slot is not None
        self._cache.release(session.slot)
        session.slot = None
        self._resident.pop(session.stream_id, None)

    def _forget_copies(self, session: Session) -> None:
        if session.spilled is not None and self._store is not None:
            self._stored -= 1
            try:
                self._store.delete(_name(session))
            except OSError:
                self._observer.count("kv_store_failures")
        if self._in_host.get(session.stream_id) is session:
            del self._in_host[session.stream_id]
        session.parked = session.parked_draft = session.spilled = None

    # --- the store -----------------------------------------------------------------------------

    def _spill(self, session: Session, store: KvStore) -> bool:
        assert session.parked is not None
        tensors, draft = {"kv": session.parked.contiguous()}, session.parked_draft
        if draft is not None:
            tensors["draft"] = draft.kv.contiguous()
        data: bytes = save(tensors)
        try:
            store.put(_name(session), data)
        except OSError:
            self._observer.count("kv_store_failures")
            return False
        session.spilled = Spilled(_digest(data), draft.origin if draft is not None else 0)
        session.parked = session.parked_draft = None
        del self._in_host[session.stream_id]
        self._stored += 1
        return True

    def _fetch(self, session: Session, spilled: Spilled) -> tuple[Tensor, DraftMemory | None]:
        assert self._store is not None
        data = self._store.get(_name(session))
        if _digest(data) != spilled.digest:
            raise SnapshotError(f"the store gave back another KV of stream {session.stream_id}")
        tensors = load(data)
        draft = tensors.get("draft")
        memory = DraftMemory(draft, spilled.draft_origin) if draft is not None else None
        return tensors["kv"], memory


def _name(session: Session) -> str:
    """A hash: any id makes a fair name, and none shows."""
    return f"{_digest(session.stream_id.encode())[:32]}.safetensors"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
