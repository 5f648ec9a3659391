"""A store whose calls are waited for only so long: it may take them and never answer.

One thread makes the calls, in order. Who calls waits for ``deadline_s`` at most and gets an OSError
then, so that a model never stands still for a store for longer; and the whole store is left alone for a
while after it was slow, so that it has a sixth of the model's time at most.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from pipelines.storage.snapshots import SnapshotStore

ANSWER_SECONDS = 20.0
SLOW_SECONDS = 1.0
REST_FACTOR = 5
MAX_WAITING = 1000

T = TypeVar("T")
Job = tuple[Future[Any], Callable[[], Any]]


class BoundedStore:
    """The same calls as :class:`~pipelines.storage.snapshots.SnapshotStore`; each raises OSError when
    the store does, does not answer in time, or is left alone: by all calls after one that failed and
    took longer than SLOW_SECONDS, by ``put`` also after one that took so long and went well."""

    def __init__(
        self,
        store: SnapshotStore,
        deadline_s: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._deadline_s, self._clock = store, deadline_s, clock
        self._jobs: queue.Queue[Job] = queue.Queue(MAX_WAITING)
        self._away_until = self._slow_until = clock()
        threading.Thread(target=self._work, args=(self._jobs,), daemon=True, name="store").start()

    def put(self, name: str, data: bytes) -> None:
        self._refuse_until(self._slow_until, "the store was slow")
        self._call(lambda: self._store.put(name, data), late=lambda: self._store.delete(name))

    def get(self, name: str) -> bytes:
        return self._call(lambda: self._store.get(name))

    def delete(self, name: str) -> None:
        self._call(lambda: self._store.delete(name))

    def clear(self, folder: str) -> None:
        self._call(lambda: self._store.clear(folder))

    def erase(self, stream_id: str, then: Callable[[BaseException | None], None]) -> None:
        """Have all that is kept of a stream erased when its turn comes, however long that takes.
        ``then`` is called in the store's thread, with what went wrong. Returns at once."""
        future = self._submit(lambda: self._store.erase(stream_id))
        future.add_done_callback(lambda done: then(done.exception()))

    def _call(self, work: Callable[[], T], late: Callable[[], object] | None = None) -> T:
        """``late``: done behind work that went on after its deadline, to take it back."""
        self._refuse_until(self._away_until, "the store did not do its work")
        started = self._clock()
        future = self._submit(work)
        wait([future], self._deadline_s)
        seconds = self._clock() - started
        if not future.done():
            self._away_until = self._clock() + REST_FACTOR * max(seconds, SLOW_SECONDS)
            if not future.cancel() and late is not None:
                self._submit(late)
            raise OSError(f"the store has not answered in {self._deadline_s:g} s")
        if seconds > SLOW_SECONDS:
            rested = self._clock() + REST_FACTOR * seconds
            if future.exception() is not None:
                self._away_until = rested
            else:
                self._slow_until = rested
        return future.result()

    def _refuse_until(self, moment: float, why: str) -> None:
        if (left := moment - self._clock()) > 0:
            raise OSError(f"{why}; it is left alone for {left:.0f} s more")

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((future, work))
        except queue.Full:
            future.set_exception(OSError(f"{MAX_WAITING} calls wait for the store already"))
        return future

    @staticmethod
    def _work(jobs: queue.Queue[Job]) -> None:
        """The thread. It has no hold on the store between calls."""
        while True:
            future, work = jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del future, work
