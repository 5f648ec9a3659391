"""What the owner before left undone, taken up whether or not the streams speak again.

A delivery without transactions may have written a state and not yet its results: they lie in the
state and are published first (:func:`publish_outboxes`).

An update that was running when that owner ended, or that time would have brought, is in no record:
only the text is, as uncovered. So such streams are opened on the device without a word of theirs, and
the engine's own rules do the rest: an update by tokens at the place where it was, one by time within
one more interval. At most ``in_flight_per_partition`` of a partition are open like this and not heard
of; the others follow as these are. Streams that are owed nothing stay closed until they speak.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pipelines.wire.messages import now_ms
from pipelines.worker.context import Host
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.queues import Lane
from pipelines.worker.partition.state import SessionTable

OUTBOXES_AT_ONCE = 256


async def publish_outboxes(sessions: SessionTable, committer: Committer) -> None:
    """Publish the results that lie in states, then write these states without them, so that the next
    owner need not do it again. Returns early when the committer fails."""
    while left := sessions.outboxes(OUTBOXES_AT_ONCE):
        for _, results in left:
            committer.add(Entry(messages=results))
        await committer.flush()
        for state, _ in left:
            committer.add(Entry(state=state))


class Resuming:
    """Of one partition and its ``lanes``. ``open_lane`` opens a stream that is still closed, or returns
    None where that is not to be."""

    def __init__(
        self, host: Host, lanes: dict[str, Lane], open_lane: Callable[[str], Lane | None]
    ) -> None:
        self._settings, self._lanes, self._open_lane = host.settings, lanes, open_lane
        self._owed: deque[tuple[str, int]] = deque()
        """Streams, and when their state was written (Unix ms)."""
        self._unheard: set[str] = set()

    def begin(self, sessions: SessionTable) -> None:
        """Open the first of those that the recovered states say are owed a summary."""
        config = self._settings.operator
        least = 1 if config.update_interval_s else config.update_tokens
        self._owed.extend((name, text.at_ms) for name, text in sessions.uncovered(least).items())
        self._open_more()

    def heard_of(self, stream_id: str) -> None:
        """The device said something of the stream: the next may be opened."""
        self._unheard.discard(stream_id)
        self._open_more()

    def close(self) -> None:
        self._owed.clear()

    def _open_more(self) -> None:
        if not self._owed:
            return
        self._unheard.intersection_update(self._lanes)  # a stream may have been forgotten meanwhile
        while self._owed and len(self._unheard) < self._settings.in_flight_per_partition:
            stream_id, at_ms = self._owed.popleft()
            if (lane := self._open_lane(stream_id)) is not None:
                age_s = max(0.0, (now_ms() - at_ms) / 1000)
                lane.uncovered_since = time.monotonic() - age_s
                lane.newest_input = at_ms / 1000
                self._unheard.add(stream_id)
