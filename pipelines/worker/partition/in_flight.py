"""The records of one partition that were read and are not committed yet, and when that is too many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pipelines.kafka.offsets import Watermark
from pipelines.wire.dead_letters import pairs
from pipelines.worker.context import Host

MAX_HELD_BYTES = 32 << 20
"""Input bytes one partition keeps before it is not fetched any more, whatever their number."""
HEADER_BYTES = 160
"""What Python needs for a header besides its text: a record may have millions of empty ones."""


@dataclass
class Record:
    """One input record under way. ``event`` is Faust's, with the message to acknowledge."""

    event: Any
    read_at: float
    size: int = field(init=False)
    """Bytes it holds in memory, about: key, value and headers."""

    @property
    def message(self) -> Any:
        return self.event.message

    def __post_init__(self) -> None:
        message = self.event.message
        self.size = len(message.key or b"") + len(message.value or b"")
        for name, content in pairs(message.headers):
            self.size += len(name) + len(content or b"") + HEADER_BYTES


class Records:
    """By offset, in the order of reading. Holds and releases the partition (it is not fetched while
    it is held): at ``in_flight_per_partition`` records or MAX_HELD_BYTES, until half are done."""

    def __init__(self, number: int, host: Host) -> None:
        self._number, self._host = number, host
        self._records: dict[int, Record] = {}
        self._bytes = 0
        self._held = False
        self.watermark = Watermark()

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

    def take(self, event: Any) -> int | None:
        """The offset of a record that is new; None for one that is delivered again: it replaces the
        one that is held, or is acknowledged at once if it is done."""
        offset: int = event.message.offset
        if held := self._records.get(offset):
            held.event = event
            return None
        if self.watermark.is_finished(offset):
            event.ack()
            return None
        self.watermark.read(offset)
        record = self._records[offset] = Record(event, monotonic())
        self._bytes += record.size
        return offset

    def finish(self, offsets: Iterable[int]) -> int | None:
        """Note what is done; the watermark then."""
        for offset in offsets:
            self.watermark.finish(offset)
        return self.watermark.value

    def acknowledge(self, offset: int) -> None:
        """It is committed."""
        if record := self._records.pop(offset, None):
            self._bytes -= record.size
            record.event.ack()

    def clear(self) -> None:
        self._records.clear()

    # --- backpressure -------------------------------------------------------------------------

    @property
    def load(self) -> float:
        """How full the partition is, by records or bytes, whichever is more; 1.0 = hold it."""
        count = len(self._records) / self._host.settings.in_flight_per_partition
        return max(count, self._bytes / MAX_HELD_BYTES)

    def hold(self) -> None:
        if not self._held:
            self._held = True
            self._host.hold(self._number)

    def release(self) -> None:
        if self._held:
            self._held = False
            self._host.release(self._number)

    def hold_again(self) -> None:
        """After a rebalance, which fetches everything."""
        if self._held:
            self._host.hold(self._number)
