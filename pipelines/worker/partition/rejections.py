"""Records that a partition finishes without the device: duplicates and dead letters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from operators.state import SessionState
from pipelines.wire.codec import encode_state
from pipelines.wire.dead_letters import cut_again
from pipelines.wire.messages import Message, dead_letter_of, letter_of_result
from pipelines.wire.states import SHRUNK, fit_state
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

    def replace_too_large(
        self, messages: Sequence[Message], finished: Sequence[int]
    ) -> list[Message]:
        """An entry's messages without results larger than a topic takes, and a dead letter instead: for
        its last record, or of the result itself where it follows from none. Dead letters that are too
        large are cut."""
        limit, dlq = self._context.limit, self._context.settings.topic_dlq
        large = [m for m in messages if m.size > limit.content]
        if not large:
            return list(messages)
        kept = [m for m in messages if m.size <= limit.content]
        for message in large:
            if message.topic == dlq:
                cut = cut_again(message.key, message.value, message.headers, limit.content)
                kept.append(Message(dlq, *cut))
        results = [m for m in large if m.topic != dlq]
        if results and finished:
            most = max(m.size for m in results)
            text = f"a result of {most} bytes does not fit into max_message_bytes and was left out"
            kept.append(self.letter(finished[-1], "publish", "result_too_large", text))
        elif results:
            self._context.metrics.dead_letter("publish", "result_too_large")
            log.error("partition %d: a result is too large and was left out", self._number)
            kept.append(letter_of_result(results[0], self._context.settings, limit))
        return kept

    def fit_state(self, state: SessionState) -> SessionState | None:
        """The state as its topic takes it; None where it cannot be made to fit."""
        settings, limit = self._context.settings, self._context.limit.content

        sizes = [0]

        def size(candidate: SessionState) -> int:
            value = encode_state(candidate, settings.app_id)
            sizes.append(len(value) + len(state.stream_id.encode()))
            return sizes[-1]

        fitted = fit_state(state, limit, size)
        self._context.metrics.state_written(sizes[-1])
        if fitted is not None and fitted is not state and SHRUNK not in state.degraded:
            log.warning("partition %d: a state is shrunk to %d bytes", self._number, limit)
            self._context.metrics.state_shrunk()
        return fitted

    def letter(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> Message:
        """The dead letter for a record; it is counted and logged. ``text`` must not quote the input."""
        self._context.metrics.dead_letter(stage, reason)
        log.warning("partition %d offset %d refused: %s (%s)", self._number, offset, reason, text)
        message = self._records[offset].message
        return dead_letter_of(
            message,
            self._context.settings,
            stage=stage,
            reason=reason,
            text=text,
            max_bytes=self._context.limit.bytes,
            **details,
        )
