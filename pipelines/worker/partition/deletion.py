"""Deletion of a stream: on request by a ``forget`` record, or by age after its end.

A request waits until all earlier records of its stream are finished. Then the device erases the stream,
and the stream's state and latest summary are deleted in the transaction that finishes the request.
Records behind the request wait for that; they start the stream anew in the next epoch.

A failed erasure is retried, each time later; the request waits meanwhile. While the device is down the
retries do not count: the supervisor ends the worker if it stays down. A store that fails ERASE_ATTEMPTS
times turns the request into a dead letter, and the stream continues as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from operators.errors import DeviceError, SegmentError
from operators.state import SessionState
from pipelines.wire.codec import encode_state
from pipelines.wire.messages import (
    deletion_messages,
    forgotten_key,
    forgotten_value,
    is_forgotten_key,
    now_ms,
)
from pipelines.worker.context import Commits, Entry, Queue, Sessions, WorkerContext

log = logging.getLogger(__name__)

ERASE_ATTEMPTS = 6
ERASE_SECONDS = 60.0
"""Longest time for a store to erase a stream."""
RETRY_SECONDS = 1.0


class StreamDeletion:
    """The deletions of one partition. ``redispatch`` receives the offsets that waited behind a request;
    ``reject`` (:meth:`Rejections.reject`) that of a request that is given up."""

    def __init__(
        self,
        number: int,
        context: WorkerContext,
        commits: Commits,
        redispatch: Callable[[int], None],
        reject: Callable[..., None],
    ) -> None:
        self._number, self._context, self._commits = number, context, commits
        self._redispatch, self._reject = redispatch, reject
        self._requests: dict[str, list[int]] = {}
        """By stream: the request's offset, then those behind it."""
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def request(self, stream_id: str, offset: int) -> None:
        self._requests[stream_id] = [offset]

    def defer(self, stream_id: str, offset: int) -> bool:
        """Whether the record comes behind a request for its stream; it then waits for that."""
        if (requested := self._requests.get(stream_id)) is None:
            return False
        requested.append(offset)
        return True

    def due(self, queue: Queue) -> bool:
        """Whether the stream's deletion is requested and everything before the request is finished."""
        return queue.idle and queue.stream_id in self._requests

    def erase(self, queue: Queue, sessions: Sessions, failures: int = 0) -> None:
        """Let the device erase a stream whose queue is closed, then finish the request. ``failures``:
        those of a store so far."""
        if self._closed:
            return
        erased = self._context.device.drop(queue.stream_id, erase=True)
        timer = asyncio.get_running_loop().call_later(ERASE_SECONDS, _time_out, erased)

        def on_done(done: asyncio.Future[None]) -> None:
            timer.cancel()
            error = done.exception()
            if not self._closed:
                self._on_erased(queue, sessions, failures, error)

        erased.add_done_callback(on_done)

    def _on_erased(
        self, queue: Queue, sessions: Sessions, failures: int, error: BaseException | None
    ) -> None:
        """Delete the state and dispatch what waited behind the request; after an ``error`` retry."""
        failures += isinstance(error, OSError)
        if error is not None and failures < ERASE_ATTEMPTS:
            seconds = RETRY_SECONDS * (5 if isinstance(error, DeviceError) else 2**failures)
            log.warning(
                "partition %d: a stream is not erased yet, next attempt in %.0f s: %s",
                self._number,
                seconds,
                error,
            )
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self.erase, queue, sessions, failures)
            return
        request, *behind = self._requests.pop(queue.stream_id)
        if error is None:
            self._delete(queue.stream_id, queue.state, sessions, finished=(request,))
            log.info("partition %d: stream deleted on request of offset %d", self._number, request)
        else:
            if queue.state is not None:
                sessions.put(queue.stream_id, encode_state(queue.state), at_ms=now_ms())
            text = f"the stream was not erased in {failures} attempts: {error}"
            self._reject(request, "device", "erase_failed", text, retryable=True)
        for offset in behind:
            self._redispatch(offset)

    def _delete(
        self,
        stream_id: str,
        state: SessionState | None,
        sessions: Sessions,
        finished: Sequence[int] = (),
    ) -> None:
        epoch = state.epoch + 1 if state else 0
        messages = deletion_messages(self._context.settings, stream_id, epoch)
        self._commits.add(Entry(messages, forgotten=stream_id, finished=finished))
        sessions.put(forgotten_key(stream_id), forgotten_value(epoch), at_ms=now_ms())

    def expire(self, sessions: Sessions) -> None:
        """Delete the states of streams that ended more than ``state_retention_h`` ago, and, as long
        again after that, the records of their next epoch."""
        hours = self._context.settings.state_retention_h
        if hours is None:
            return
        for name in sessions.ended_before(now_ms() - int(hours * 3_600_000)):
            if is_forgotten_key(name):
                sessions.put(name, None)
                self._commits.add(Entry(forgotten=name))
                continue
            try:
                state, _ = sessions.take(name)
            except SegmentError:
                continue  # written by a later version, which knows how to delete it
            self._delete(name, state, sessions)


def _time_out(erased: asyncio.Future[None]) -> None:
    if not erased.done():
        erased.set_exception(OSError(f"the store has not answered in {ERASE_SECONDS:.0f} s"))
