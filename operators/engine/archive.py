"""Snapshots of sessions: written, read, resumed from. A snapshot may be given to another process."""

from __future__ import annotations

from dataclasses import dataclass

from operators.cache.offload import OffloadedKv
from operators.engine import restore
from operators.engine.known_segments import Known
from operators.engine.residency import Residency
from operators.engine.session import Part, Session
from operators.engine.snapshot import DraftRecord, StreamMemory, from_bytes, to_bytes
from operators.state import SessionState


@dataclass(frozen=True)
class Found:
    """A snapshot that was read: the stream's memory, and its KV."""

    memory: StreamMemory
    kv: OffloadedKv


class Archive:
    """``identity``: which snapshots can be read; ``settings``: hash of those that shape answers;
    ``draft``: identity of the draft model (None: there is none)."""

    def __init__(
        self,
        residency: Residency,
        identity: dict[str, str],
        settings: str,
        draft: str | None,
        encode: restore.Encode,
    ) -> None:
        self._residency, self._settings, self._draft = residency, settings, draft
        self._encode, self.identity = encode, identity

    def save(self, session: Session) -> bytes:
        """The quiet session's whole memory. Changes nothing. Raises OSError or SnapshotError when
        its KV was in a store that has lost it."""
        kv = self._residency.memory(session)
        record = None
        if kv.draft is not None and self._draft is not None:
            record = DraftRecord(self._draft, kv.draft_origin)
        memory = restore.memory_of(session, self.identity, self._settings, record)
        return to_bytes(memory, kv.kv, kv.draft)

    def read(self, data: bytes) -> Found:
        """Raises SnapshotError when the file is torn or altered, or was made by something else."""
        memory, kv, draft_kv = from_bytes(data, self.identity)
        if memory.draft is None or draft_kv is None or memory.draft.model != self._draft:
            return Found(memory, OffloadedKv(kv, memory.length))
        origin = memory.draft.origin
        return Found(memory, OffloadedKv(kv, memory.length, draft_kv, origin))

    def resume(self, session: Session, state: SessionState, found: Found | None) -> None:
        """Continue from ``state``: behind the snapshot if that reaches it, else from the window's
        text. Mutates the fresh session."""
        since = restore.text_since(found.memory, state) if found is not None else None
        if found is not None and since is not None:
            memory = found.memory
            restore.from_snapshot(session, state, memory, since, encode=self._encode)
            self._residency.keep(session, found.kv)
            if memory.settings != self._settings:
                session.add_degraded("settings_changed")
            known, again = memory.known, since
        else:
            restore.from_text(session, state, self._encode)
            parts = [part for part in session.queue if isinstance(part, Part)]
            known, again = [], [part.info for part in parts]
        for item in state.items:
            for cited in item.evidence:
                name, start = cited.segment_id, cited.start_ms
                session.known.remember_name(Known(name, name, cited.revision, start_ms=start))
        for segment in known:
            session.known.remember(segment)
        session.known.restore(again, restore.said_in)
