"""A cache with all that moves streams in and out of it, as the operator puts them together, but without
a scheduler: tests say themselves what happens next."""

from __future__ import annotations

from operators.cache.offload import Offload
from operators.config import OperatorConfig
from operators.decoding.drafters import NgramIndex
from operators.engine.archive import Archive
from operators.engine.residency import Residency
from operators.engine.session import Session
from operators.engine.snapshot import identity, settings_hash
from operators.model.loader import DecoderModel
from operators.observer import Observer
from tests.engine import SINKS, Driver, layout
from tests.operators.test_offload import MemoryStore

WINDOW = 24


class World:
    """``slots`` streams at a time, ``host_streams`` in host memory, the rest in ``store``."""

    def __init__(
        self, model: DecoderModel, *, slots: int, branches: int, host_streams: int
    ) -> None:
        self.driver = Driver(model, layout(WINDOW), slots=slots, branches=branches)
        self.cache, self.store = self.driver.cache, MemoryStore()
        self.config = OperatorConfig(slots=slots, branches=branches, host_streams=host_streams)
        pinned = self.driver.stream(SINKS)
        prefix = self.cache.export(pinned)
        self.cache.release(pinned)
        encode = model.tokenizer.encode
        offload = Offload(host_streams, self.store)
        self.residency = Residency(self.cache, prefix, None, offload, encode, Observer())
        who = identity(model, self.driver.layout, SINKS)
        self.archive = Archive(self.residency, who, settings_hash(self.config), None, encode)

    def new_session(self, name: str) -> Session:
        """A stream that begins with the pinned prefix, and has no slot yet."""
        sinks = self.driver.layout.sinks
        session = Session(name, self.driver.layout, NgramIndex(WINDOW), offloaded_length=sinks)
        session.covered = session.last_fork = sinks
        return session

    def restored(self, name: str, snapshot: bytes) -> Session:
        """A new session that continues from a snapshot of this or another world."""
        session, found = self.new_session(name), self.archive.read(snapshot)
        self.archive.resume(session, found.memory.state, found)
        assert session.restored == "snapshot"
        return session
