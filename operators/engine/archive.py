"""Snapshots of sessions: taken, read, gone on from. A snapshot may be given to another process."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from operators.decoding.draft_model import DraftMemory
from operators.engine import restore
from operators.engine.residency import Parking
from operators.engine.session import Part, Session
from operators.engine.snapshot import DraftRecord, StreamMemory, from_bytes, to_bytes
from operators.state import SessionState


@dataclass(frozen=True)
class Found:
    """A snapshot that was read: the stream's memory, its KV, the draft model's."""

    memory: StreamMemory
    kv: Tensor
    draft: DraftMemory | None


class Archive:
    """``identity`` says whose snapshots can be read, ``settings`` is the hash of those that shape
    answers, ``draft`` identifies the draft model (None: there is none)."""

    def __init__(
        self,
        parking: Parking,
        identity: dict[str, str],
        settings: str,
        draft: str | None,
        encode: restore.Encode,
    ) -> None:
        self._parking, self._settings, self._draft = parking, settings, draft
        self._encode, self.identity = encode, identity

    def save(self, session: Session) -> bytes:
        """The quiet session's whole memory. Changes nothing. Raises OSError or SnapshotError when
        its KV was in a store that has lost it."""
        kv, draft = self._parking.memory(session)
        record = None
        if draft is not None and self._draft is not None:
            record = DraftRecord(self._draft, draft.origin)
        memory = restore.remember(session, self.identity, self._settings, record)
        return to_bytes(memory, kv, draft.kv if draft is not None else None)

    def read(self, data: bytes) -> Found:
        """Raises SnapshotError when the file is torn or altered, or was made by something else."""
        memory, kv, draft_kv = from_bytes(data, self.identity)
        draft = None
        if memory.draft is not None and draft_kv is not None and memory.draft.model == self._draft:
            draft = DraftMemory(draft_kv, memory.draft.origin)
        return Found(memory, kv, draft)

    def go_on(self, session: Session, state: SessionState, found: Found | None) -> None:
        """Continue from ``state``: behind the snapshot if that reaches it, else from the window's
        text. Mutates the fresh session."""
        since = restore.said_since(found.memory, state) if found is not None else None
        if found is not None and since is not None:
            memory = found.memory
            restore.from_snapshot(session, state, memory, since, encode=self._encode)
            self._parking.keep(session, found.kv, memory.length, found.draft)
            if memory.settings != self._settings:
                session.degraded = (*session.degraded, "settings_changed")
            known = [*memory.recent, *(info.segment_id for info in since)]
        else:
            restore.from_text(session, state, self._encode)
            known = [part.info.segment_id for part in session.queue if isinstance(part, Part)]
        cited = (e.segment_id for item in state.items for e in item.evidence)
        for segment_id in (*cited, *known):
            session.remember(segment_id)
