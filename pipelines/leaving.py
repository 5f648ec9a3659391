"""Streams on their way out: forgotten because a mark in the input asks for it, or by their age.

A mark waits until all of its stream before it is done. Then the device erases what it has, and the
stream's state and latest summary go in the transaction that finishes the mark; records behind the
mark wait for that and start the stream anew, in a later epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from operators.errors import SegmentError
from operators.types import SessionState
from pipelines.committer import Committer, Entry
from pipelines.forgetting import farewell, is_remnant, remnant, remnant_key
from pipelines.host import Host
from pipelines.lanes import Lane
from pipelines.outputs import now_ms
from pipelines.sessions import SessionTable

log = logging.getLogger(__name__)


class Leaving:
    """Of one partition. ``again`` is called with the offsets that waited behind a mark."""

    def __init__(
        self, number: int, host: Host, committer: Committer, again: Callable[[int], None]
    ) -> None:
        self._number, self._host, self._committer = number, host, committer
        self._again = again
        self._marks: dict[str, list[int]] = {}
        """By stream: the mark's offset, then those behind it."""
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def behind(self, stream_id: str, offset: int) -> bool:
        """Whether a mark stands before this record of the stream; then it waits for that."""
        if (marked := self._marks.get(stream_id)) is None:
            return False
        marked.append(offset)
        return True

    def mark(self, stream_id: str, offset: int) -> None:
        self._marks[stream_id] = [offset]

    def leave(self, lane: Lane, lanes: dict[str, Lane], sessions: SessionTable) -> None:
        """Forget the lane's stream if it is asked for and all before the mark is done."""
        if lane.stream_id not in self._marks or not lane.idle:
            return
        del lanes[lane.stream_id]
        self._host.owners.pop(lane.stream_id, None)  # what the device still says is not heard
        dropped = self._host.device.drop(lane.stream_id, erase=True)
        dropped.add_done_callback(lambda _: self._left(lane, sessions))

    def _left(self, lane: Lane, sessions: SessionTable) -> None:
        """The device has let go: take away the state, then take what stands behind the mark."""
        if self._closed:
            return
        mark, *behind = self._marks.pop(lane.stream_id)
        self._say_farewell(lane.stream_id, lane.state, sessions, finished=(mark,))
        log.info("partition %d: a stream was forgotten, as offset %d asks", self._number, mark)
        for offset in behind:
            self._again(offset)

    def _say_farewell(
        self,
        stream_id: str,
        state: SessionState | None,
        sessions: SessionTable,
        finished: Sequence[int] = (),
    ) -> None:
        epoch = state.epoch + 1 if state else 0
        messages = farewell(self._host.settings, stream_id, epoch)
        self._committer.add(Entry(messages, forgotten=stream_id, finished=finished))
        sessions.put(remnant_key(stream_id), remnant(epoch), at_ms=now_ms())

    def expire(self, sessions: SessionTable) -> None:
        """Forget the state of streams that ended too long ago (``state_retention_h``), and in the
        same time after that what was left of them."""
        hours = self._host.settings.state_retention_h
        if hours is None:
            return
        for name in sessions.ended_before(now_ms() - int(hours * 3_600_000)):
            if is_remnant(name):
                sessions.put(name, None)
                self._committer.add(Entry(forgotten=name))
                continue
            try:
                state, _ = sessions.take(name)
            except SegmentError:
                continue  # a later version's, which will know what to do with it
            self._say_farewell(name, state, sessions)
