"""What a partition does not process: records done before, and those that become dead letters."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.wire.messages import MESSAGE_ROOM, Message, dead_letter_of
from pipelines.worker.context import Host
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.in_flight import Records
from pipelines.worker.partition.queues import Lane

log = logging.getLogger(__name__)


class Refusals:
    """Of one partition: finishes records without the device."""

    def __init__(self, number: int, host: Host, records: Records, committer: Committer) -> None:
        self._number, self._host = number, host
        self._records, self._committer = records, committer
        self._condemned: list[tuple[Lane, int, int, str]] = []

    def skip(self, offset: int) -> None:
        """It was done before."""
        self._host.metrics.duplicate_input()
        self._committer.add(Entry(finished=(offset,)))

    def refuse(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> None:
        letter = self.letter(offset, stage, reason, text, **details)
        self._committer.add(Entry(messages=[letter], finished=(offset,)))

    def condemn(self, lane: Lane, attempts: int, cause: str) -> None:
        """The lane's first waiting segment killed the device ``attempts`` times, the last time by
        ``cause``: leave it out."""
        self._condemned.append((lane, lane.condemn(), attempts, cause))

    def sentence(self) -> None:
        """Make dead letters of what was condemned; the stream's state says that it lost something."""
        condemned, self._condemned = self._condemned, []
        for lane, offset, attempts, cause in condemned:
            text = f"the device failed {attempts} times with it, the last time alone: {cause}"
            letter = self.letter(
                offset, "device", "device_fault", text, attempts=attempts, retryable=True
            )
            self._committer.add(Entry([letter], lane.state, (offset,)))

    def replace_too_large(self, messages: list[Message], finished: list[int]) -> list[Message]:
        """An emission's results without those that no topic takes, and a dead letter for its last record
        in their place. One that came of no record stays."""
        limit = self._host.settings.max_message_bytes - MESSAGE_ROOM
        large = max((message.size for message in messages), default=0)
        if large <= limit or not finished:
            return messages
        text = f"a result of {large} bytes does not fit into max_message_bytes and was left out"
        letter = self.letter(finished[-1], "publish", "result_too_large", text)
        return [*(message for message in messages if message.size <= limit), letter]

    def letter(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> Message:
        """The dead letter for a record, counted and logged."""
        self._host.metrics.dead_letter(stage, reason)
        log.warning("partition %d offset %d refused: %s (%s)", self._number, offset, reason, text)
        message = self._records[offset].message
        return dead_letter_of(
            message, self._host.settings, stage=stage, reason=reason, text=text, **details
        )
