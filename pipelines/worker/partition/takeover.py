"""Work that the previous owner of a partition left undone.

Without transactions a state may have been written and its results not: they are in the state's outbox
and are published first (:func:`publish_outboxes`).

An update that was running or due when the previous owner ended is in no record; only its text is, as
uncovered tokens of the state. Such streams are opened on the device without new input, and the engine's
own triggers do the rest: an update by tokens runs where it was due, one by time within one more
interval. At most ``in_flight_per_partition`` streams of a partition are open like this at once; the
others follow as the device reports. Streams without uncovered text stay closed until a record of theirs
arrives.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from pipelines.config.load import Settings
from pipelines.wire.messages import now_ms
from pipelines.worker.context import Commits, Entry, Fitting, Queue, Sessions, WorkerContext

OUTBOXES_AT_ONCE = 256


async def publish_outboxes(sessions: Sessions, commits: Commits, fitting: Fitting) -> None:
    """Publish the results in the states' outboxes, then write these states without them. Returns
    early when a commit fails."""
    while found := sessions.outboxes(OUTBOXES_AT_ONCE):
        for _, results in found:
            commits.add(Entry(messages=fitting.replace_too_large(results, ())))
        await commits.flush()
        for state, _ in found:
            commits.add(Entry(state=fitting.fit_state(state)))


def least_uncovered(settings: Settings) -> int:
    """Tokens that no summary covers from which the engine makes an update without new input."""
    config = settings.operator
    by_time = config.update_interval_s or config.update_silence_s
    return 1 if by_time else config.update_tokens


class Takeover:
    """Opens the streams of one partition that have uncovered text. ``open_stream`` opens one that is
    still closed; it returns None where there is nothing to open."""

    def __init__(
        self,
        context: WorkerContext,
        queues: Mapping[str, Queue],
        open_stream: Callable[[str], Queue | None],
    ) -> None:
        self._settings, self._queues, self._open_stream = context.settings, queues, open_stream
        self._due: deque[tuple[str, int]] = deque()
        """Streams, and when their state was written (Unix ms)."""
        self._unreported: set[str] = set()
        """Opened here, without a report of the device since."""

    def start(self, sessions: Sessions) -> None:
        """Open the first streams whose recovered state has uncovered text."""
        self._due.extend(sessions.uncovered(least_uncovered(self._settings)))
        self._open_more()

    def on_report(self, stream_id: str) -> None:
        """The device reported on the stream: the next may be opened."""
        self._unreported.discard(stream_id)
        self._open_more()

    def close(self) -> None:
        self._due.clear()

    def _open_more(self) -> None:
        if not self._due:
            return
        self._unreported.intersection_update(self._queues)  # a stream may have been forgotten
        while self._due and len(self._unreported) < self._settings.in_flight_per_partition:
            stream_id, at_ms = self._due.popleft()
            if (queue := self._open_stream(stream_id)) is not None:
                age_s = max(0.0, (now_ms() - at_ms) / 1000)
                queue.uncovered_since = time.monotonic() - age_s
                queue.newest_input = at_ms / 1000
                self._unreported.add(stream_id)
