"""Streams on their way out: forgotten because a mark in the input asks for it, or by their age.

A mark waits until all of its stream before it is done. Then the device erases what it has, and the
stream's state and latest summary go in the transaction that finishes the mark; records behind the
mark wait for that and start the stream anew, in a later epoch.

What could not be erased is tried again, later each time; the mark waits meanwhile. A device that is away
is waited for: whoever keeps it gives up in the end. A store that fails ERASE_ATTEMPTS times makes a dead
letter of the mark, and the stream goes on as it was: nothing says of it that it was forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from operators.errors import DeviceError, SegmentError
from operators.events import SessionState
from pipelines.wire.codec import encode_state
from pipelines.wire.messages import (
    deletion_messages,
    forgotten_key,
    forgotten_value,
    is_forgotten_key,
    now_ms,
)
from pipelines.worker.context import Host
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.queues import Lane
from pipelines.worker.partition.state import SessionTable

log = logging.getLogger(__name__)

ERASE_ATTEMPTS = 6
ERASE_SECONDS = 60.0
"""So long a store may take to erase a stream."""
RETRY_SECONDS = 1.0


class Leaving:
    """Of one partition. ``again`` is called with the offsets that waited behind a mark, ``refuse`` (a
    :meth:`Refusals.refuse`) with that of a mark that is given up."""

    def __init__(
        self,
        number: int,
        host: Host,
        committer: Committer,
        again: Callable[[int], None],
        refuse: Callable[..., None],
    ) -> None:
        self._number, self._host, self._committer = number, host, committer
        self._again, self._refuse = again, refuse
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
        self._erase(lane, sessions, failures=0)

    def _erase(self, lane: Lane, sessions: SessionTable, failures: int) -> None:
        """Have the device erase the stream. ``failures``: of a store, before this attempt."""
        if self._closed:
            return
        dropped = self._host.device.drop(lane.stream_id, erase=True)
        timer = asyncio.get_running_loop().call_later(ERASE_SECONDS, _give_up, dropped)

        def answered(done: asyncio.Future[None]) -> None:
            timer.cancel()
            error = done.exception()
            if not self._closed:
                self._left(lane, sessions, failures, error)

        dropped.add_done_callback(answered)

    def _left(
        self, lane: Lane, sessions: SessionTable, failures: int, error: BaseException | None
    ) -> None:
        """The device has let go: take away the state, then take what stands behind the mark. Not so
        after an ``error``."""
        failures += isinstance(error, OSError)
        if error is not None and failures < ERASE_ATTEMPTS:
            away = isinstance(error, DeviceError)
            seconds = RETRY_SECONDS * (5 if away else 2**failures)
            log.warning(
                "partition %d: a stream is not erased yet, it is tried again in %.0f s: %s",
                self._number,
                seconds,
                error,
            )
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._erase, lane, sessions, failures)
            return
        mark, *behind = self._marks.pop(lane.stream_id)
        if error is None:
            self._say_farewell(lane.stream_id, lane.state, sessions, finished=(mark,))
            log.info("partition %d: a stream was forgotten, as offset %d asks", self._number, mark)
        else:
            if lane.state is not None:
                sessions.put(lane.stream_id, encode_state(lane.state), at_ms=now_ms())
            text = f"the stream was not erased in {failures} attempts: {error}"
            self._refuse(mark, "device", "erase_failed", text, retryable=True)
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
        messages = deletion_messages(self._host.settings, stream_id, epoch)
        self._committer.add(Entry(messages, forgotten=stream_id, finished=finished))
        sessions.put(forgotten_key(stream_id), forgotten_value(epoch), at_ms=now_ms())

    def expire(self, sessions: SessionTable) -> None:
        """Forget the state of streams that ended too long ago (``state_retention_h``), and in the
        same time after that what was left of them."""
        hours = self._host.settings.state_retention_h
        if hours is None:
            return
        for name in sessions.ended_before(now_ms() - int(hours * 3_600_000)):
            if is_forgotten_key(name):
                sessions.put(name, None)
                self._committer.add(Entry(forgotten=name))
                continue
            try:
                state, _ = sessions.take(name)
            except SegmentError:
                continue  # a later version's, which will know what to do with it
            self._say_farewell(name, state, sessions)


def _give_up(dropped: asyncio.Future[None]) -> None:
    if not dropped.done():
        dropped.set_exception(OSError(f"the store has not answered in {ERASE_SECONDS:.0f} s"))
