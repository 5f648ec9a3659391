"""Records that a partition finishes without the device: duplicates and dead letters."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.wire.messages import MESSAGE_ROOM, Message, dead_letter_of
from pipelines.worker.context import Commits, Entry, Queue, Records, WorkerContext

log = logging.getLogger(__name__)


class Rejections:
    """Of one partition."""

    def __init__(
        self, number: int, context: WorkerContext, records: Records, commits: Commits
    ) -> None:
        self._number, self._context = number, context
        self._records, self._commits = records, commits
        self._quarantined: list[tuple[Queue, int, int, str]] = []

    def skip(self, offset: int) -> None:
        """Finish a record that an earlier owner finished."""
        self._context.metrics.duplicate_input()
        self._commits.add(Entry(finished=(offset,)))

    def reject(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> None:
        """Finish a record with a dead letter; see :meth:`letter`."""
        letter = self.letter(offset, stage, reason, text, **details)
        self._commits.add(Entry(messages=[letter], finished=(offset,)))

    def quarantine(self, queue: Queue, attempts: int, cause: str) -> None:
        """Leave out the queue's first waiting segment, with which the device failed ``attempts`` times,
        the last time by ``cause``. Nothing is published yet."""
        self._quarantined.append((queue, queue.quarantine(), attempts, cause))

    def publish_quarantined(self) -> None:
        """Publish the dead letters of quarantined segments, with the degraded states."""
        quarantined, self._quarantined = self._quarantined, []
        for queue, offset, attempts, cause in quarantined:
            text = f"the device failed {attempts} times with it, the last time alone: {cause}"
            letter = self.letter(
                offset, "device", "device_fault", text, attempts=attempts, retryable=True
            )
            self._commits.add(Entry([letter], queue.state, (offset,)))

    def replace_too_large(self, messages: list[Message], finished: list[int]) -> list[Message]:
        """An emission's results without those larger than a topic takes, and a dead letter for its last
        record instead. Results that follow from no record are returned as they are."""
        limit = self._context.settings.max_message_bytes - MESSAGE_ROOM
        large = max((message.size for message in messages), default=0)
        if large <= limit or not finished:
            return messages
        text = f"a result of {large} bytes does not fit into max_message_bytes and was left out"
        letter = self.letter(finished[-1], "publish", "result_too_large", text)
        return [*(message for message in messages if message.size <= limit), letter]

    def letter(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> Message:
        """The dead letter for a record; it is counted and logged. ``text`` must not quote the input."""
        self._context.metrics.dead_letter(stage, reason)
        log.warning("partition %d offset %d refused: %s (%s)", self._number, offset, reason, text)
        message = self._records[offset].message
        return dead_letter_of(
            message, self._context.settings, stage=stage, reason=reason, text=text, **details
        )
