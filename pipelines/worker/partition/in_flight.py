"""The records of one partition that were read and are not committed yet, with backpressure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pipelines.kafka.offsets import OffsetTracker
from pipelines.wire.dead_letters import pairs
from pipelines.worker.context import WorkerContext

MAX_HELD_BYTES = 32 << 20
"""Input bytes of one partition above which it is held, however few records they are."""
HEADER_BYTES = 160
"""Memory of a header besides its text: a record may have millions of empty ones."""


@dataclass
class Record:
    """One input record. ``event`` is Faust's, with the message to acknowledge."""

    event: Any
    read_at: float
    size: int = field(init=False)
    """Approximate bytes in memory: key, value and headers."""

    @property
    def message(self) -> Any:
        return self.event.message

    def __post_init__(self) -> None:
        message = self.event.message
        self.size = len(message.key or b"") + len(message.value or b"")
        for name, content in pairs(message.headers):
            self.size += len(name) + len(content or b"") + HEADER_BYTES


class InFlightRecords:
    """By offset, in the order of reading. A held partition is not fetched: the caller holds it at a
    ``load`` of 1 (``in_flight_per_partition`` records or MAX_HELD_BYTES) and releases it at a half."""

    def __init__(self, number: int, context: WorkerContext, *, questions: bool = False) -> None:
        self._number, self._context = number, context
        self._hold = context.hold_questions if questions else context.hold
        self._release = context.release_questions if questions else context.release
        self._records: dict[int, Record] = {}
        self._bytes = 0
        self._held = False
        self.offsets = OffsetTracker()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, offset: int) -> Record:
        return self._records[offset]

    def get(self, offset: int) -> Record | None:
        return self._records.get(offset)

    @property
    def oldest(self) -> Record | None:
        return next(iter(self._records.values()), None)

    def events(self) -> list[Any]:
        """Faust's events, in order."""
        return [record.event for record in self._records.values()]

    # --- in and out ---------------------------------------------------------------------------

    def add(self, event: Any) -> int | None:
        """Add a delivered record and return its offset. None for one that is delivered again: its event
        replaces the earlier one, or is acknowledged at once if the record is finished."""
        offset: int = event.message.offset
        if held := self._records.get(offset):
            held.event = event
            return None
        if self.offsets.is_finished(offset):
            event.ack()
            return None
        self.offsets.read(offset)
        record = self._records[offset] = Record(event, monotonic())
        self._bytes += record.size
        return offset

    def finish(self, offsets: Iterable[int]) -> int | None:
        """Finish the offsets; returns the committable offset."""
        for offset in offsets:
            self.offsets.finish(offset)
        return self.offsets.committable

    def acknowledge(self, offset: int) -> None:
        """The record is committed: acknowledge its event and drop it."""
        if record := self._records.pop(offset, None):
            self._bytes -= record.size
            record.event.ack()

    def clear(self) -> None:
        self._records.clear()

    # --- backpressure -------------------------------------------------------------------------

    @property
    def load(self) -> float:
        """Share of the limit in use, by records or bytes, whichever is more."""
        count = len(self._records) / self._context.settings.in_flight_per_partition
        return max(count, self._bytes / MAX_HELD_BYTES)

    def hold(self) -> None:
        if not self._held:
            self._held = True
            self._hold(self._number)

    def release(self) -> None:
        if self._held:
            self._held = False
            self._release(self._number)

    def reapply_hold(self) -> None:
        """After a rebalance, which resumes fetching of every partition."""
        if self._held:
            self._hold(self._number)
