"""Where the KV of a stream is: in a slot of the cache, offloaded, or nowhere yet (a new stream).

Streams without work make room for others, least recently used first. Only tensors move; the session
itself (queue, ledger, window text, draft index) stays, it is small.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from operators.cache.kv_cache import KvCache
from operators.cache.offload import Offload, OffloadedKv
from operators.decoding.draft_model import DraftMemory, DraftModel
from operators.engine import restore
from operators.engine.session import Session
from operators.errors import SnapshotError
from operators.observer import Observer


class Residency:
    """Gives slots to sessions and takes them away; the only module that does.

    ``prefix``: KV of the pinned tokens, with which a new stream begins. ``encode``: the tokenizer's,
    to queue a window's text again should the disk tier lose its KV.
    """

    def __init__(
        self,
        cache: KvCache,
        prefix: Tensor,
        draft: DraftModel | None,
        offload: Offload,
        encode: Callable[[str], list[int]],
        observer: Observer,
    ) -> None:
        self._cache, self._prefix, self._draft = cache, prefix, draft
        self._encode, self._observer = encode, observer
        self._resident: dict[str, Session] = {}
        self.offload = offload
        self._failures = self._losses = 0

    def make_resident(self, session: Session, *, only_spare: bool = False) -> bool:
        """Give the session a slot, an idle stream's if none is free; False if there is none. If the
        disk tier has lost its KV, its window's text is queued again (``restored: replay``).
        ``only_spare``: not the slot of a stream with partial hypotheses either."""
        if not self._cache.free_slots:
            idle = [s for s in self._resident.values() if s.idle]
            if only_spare:
                idle = [s for s in idle if not s.partials]
            if not idle:
                return False
            self.evict(min(idle, key=lambda s: s.last_used))
        try:
            memory = self.offload.get(session.stream_id)
        except (OSError, SnapshotError):
            restore.requeue_window_text(session, self._encode)
            self._observer.count("kv_restores", kind=session.restored)
            memory = None
        session.slot = self._cache.allocate()
        memory = memory or OffloadedKv(self._prefix, session.layout.sinks)
        self._cache.restore(session.slot, memory.kv, memory.length)
        if self._draft is not None:
            own = memory.draft
            known = DraftMemory(own, memory.draft_origin) if own is not None else None
            self._draft.adopt(session.slot, known)
        self._drop_copies(session)
        self._resident[session.stream_id] = session
        return True

    def evict(self, session: Session) -> None:
        """Take the slot of a session at rest; its KV is offloaded."""
        assert session.slot is not None
        session.partials.preempt(self._cache)
        memory = self.memory(session)
        self._leave_slot(session)
        self.keep(session, memory)

    def keep(self, session: Session, memory: OffloadedKv) -> None:
        """Take KV as the session's memory until it is given a slot."""
        session.offloaded_length = memory.length
        self.offload.put(session.stream_id, memory)
        self._count_failures()

    def memory(self, session: Session) -> OffloadedKv:
        """The session's KV wherever it is. Changes nothing. Raises OSError or SnapshotError when the
        disk tier has lost it."""
        if session.slot is not None:
            kv, length = self._cache.export(session.slot), session.slot.length
            if self._draft is None:
                return OffloadedKv(kv, length)
            own = self._draft.export(session.slot)
            return OffloadedKv(kv, length, own.kv, own.origin)
        found = self.offload.get(session.stream_id)
        return found or OffloadedKv(self._prefix, session.layout.sinks)

    def drop(self, session: Session) -> None:
        """Free whatever the session holds, wherever it is, with every branch still open."""
        session.close_branches(self._cache)
        if session.slot is not None:
            self._leave_slot(session)
        self._drop_copies(session)

    def _leave_slot(self, session: Session) -> None:
        assert session.slot is not None
        self._cache.release(session.slot)
        session.slot = None
        self._resident.pop(session.stream_id, None)

    def _drop_copies(self, session: Session) -> None:
        self.offload.drop(session.stream_id)
        self._count_failures()

    def _count_failures(self) -> None:
        if new := self.offload.failures - self._failures:
            self._failures += new
            self._observer.count("kv_store_failures", new)
        if lost := self.offload.losses - self._losses:
            self._losses += lost
            self._observer.count("idle_kv_let_go", lost)
