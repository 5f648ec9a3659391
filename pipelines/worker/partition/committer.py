"""Publishes what a partition finished, in order, one group at a time.

1. Entries are collected until :meth:`Committer.flush`, up to ``commit_max_events``, or for
   ``commit_interval_s`` after the first, less the time a commit usually takes: the results are to count
   by then. If they are too large for the publisher, they are split into groups.
2. They become one :class:`~pipelines.kafka.publishers.Group`: the messages in order, the newest state
   of each stream, and the committable offset after these entries.
3. The group is published. If nothing of it took effect the *same* group is retried a few times, unless
   the error is permanent.
4. Only then are the entries reported as committed and their input acknowledged.

When step 3 fails for good the committer stops, ``failed`` holds the error, and nothing is acknowledged:
the partition's next owner reads the input from the committed offset again.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable

from operators.errors import ConfigError, LongstreamError
from pipelines.kafka.errors import BrokerUnavailable, is_permanent
from pipelines.kafka.publishers import Fenced, Group, Publisher, Retriable, TooLarge
from pipelines.worker.context import Entry

ATTEMPTS = 5
BACKOFF_SECONDS = 0.2
REMEMBERED = 9
"""Commits whose median says how long the next one will take."""


class CommitError(LongstreamError):
    """Results could not be committed; what took effect is unknown until a restart reads it back."""


class Committer:
    """The commit loop of one partition.

    ``finish`` marks offsets as finished and returns the committable offset, ``finish_questions`` those
    of the topic of questions; ``on_committed`` is called after each commit with its entries and its
    duration in seconds. ``on_too_large`` is told the size of a message that a topic refuses (None: of a
    batch), before the committer fails.
    """

    def __init__(
        self,
        publisher: Publisher,
        finish: Callable[[Iterable[int]], int | None],
        on_committed: Callable[[list[Entry], float], None],
        *,
        interval_s: float,
        max_events: int,
        patience_s: float = 300.0,
        on_retry: Callable[[], None] = lambda: None,
        finish_questions: Callable[[Iterable[int]], int | None] = lambda offsets: None,
        on_too_large: Callable[[int | None], None] = lambda size: None,
    ) -> None:
        self._publisher = publisher
        self._finish, self._finish_questions = finish, finish_questions
        self._on_committed = on_committed
        self._on_retry = on_retry
        self._on_too_large = on_too_large
        self._interval_s = interval_s
        self._max_events = max_events
        self._patience_s = patience_s
        self._pending: list[Entry] = []
        self._first = 0.0
        """When the first of the pending entries came."""
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._arrived = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self.committed_offset = 0
        """The partition's committed offset; it only rises."""
        self.committed_question = 0
        """The same of the topic of questions."""
        self._task: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Connect; with exactly-once delivery this fences the previous owner.

        Raises BrokerUnavailable after ``patience_s`` seconds: the client itself would wait for ever.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._publisher.open()
        except TimeoutError:
            raise BrokerUnavailable(
                f"Kafka did not let the partition's producer begin within {self._patience_s:.0f} s "
                "(broker_patience_s): is a broker away, or can an earlier transaction not be ended "
                "because fewer replicas are in sync than min.insync.replicas?"
            ) from None

    def start(self) -> None:
        """Begin committing. Entries may be added before."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, entry: Entry) -> None:
        if not self._pending:
            self._first = time.monotonic()
        self._pending.append(entry)
        self._idle.clear()
        self._arrived.set()
        if len(self._pending) >= self._max_events:
            self._urgent.set()

    async def flush(self) -> None:
        """Commit what is pending now; returns when that is done, or when the committer has failed."""
        if self._task is None or self._task.done():
            return
        self._urgent.set()
        idle = asyncio.ensure_future(self._idle.wait())
        await asyncio.wait({idle, self._task}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()

    def pause(self) -> None:
        """Start no commit until :meth:`resume`; one that is running is finished."""
        self._allowed.clear()

    def resume(self) -> None:
        self._allowed.set()

    async def close(self) -> None:
        """Stop without committing what is pending."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._publisher.close()
        if not self.failed.done():
            self.failed.cancel()

    async def _run(self) -> None:
        try:
            while True:
                # 1.
                await self._arrived.wait()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), self._collects_s(time.monotonic()))
                await self._allowed.wait()
                await self._commit()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(error)

    def _collects_s(self, now: float) -> float:
        """Seconds until the next commit begins."""
        usual = statistics.median(self._took) if self._took else 0.0
        begins = self._first + self._interval_s - min(usual, self._interval_s / 2)
        return max(0.0, begins - now)

    async def _commit(self) -> None:
        entries, self._pending = self._pending, []
        self._arrived.clear()
        self._urgent.clear()
        started = time.monotonic()
        group = self._group(entries)  # 2.
        while len(entries) > 1 and not self._publisher.fits(group):
            half = len(entries) // 2
            self._pending[:0] = entries[half:]
            entries = entries[:half]
            group = self._group(entries)
        if self._pending:
            self._arrived.set()
            self._urgent.set()
        self._note_offset(group, entries)
        if group.messages or group.states or group.moves:
            await self._publish_in_time(group)  # 3.
        if group.offset is not None:
            self.committed_offset = group.offset
        if group.question_offset is not None:
            self.committed_question = group.question_offset
        took = time.monotonic() - started
        self._took.append(took)
        self._on_committed(entries, took)  # 4.
        if not self._pending:
            self._idle.set()

    def _group(self, entries: list[Entry]) -> Group:
        group = Group()
        for entry in entries:
            group.messages += entry.messages
            if entry.state is not None:
                group.states[entry.state.stream_id] = entry.state
                group.outbox.setdefault(entry.state.stream_id, []).extend(entry.messages)
            if entry.forgotten is not None:
                group.states[entry.forgotten] = None
                group.outbox.pop(entry.forgotten, None)
        return group

    def _note_offset(self, group: Group, entries: list[Entry]) -> None:
        offset = self._finish(o for entry in entries for o in entry.finished)
        if offset is not None and offset > self.committed_offset:
            group.offset = offset
        question = self._finish_questions(o for entry in entries for o in entry.answered)
        if question is not None and question > self.committed_question:
            group.question_offset = question

    async def _publish_in_time(self, group: Group) -> None:
        """Bounded by ``patience_s``: the client itself waits for its brokers without end."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._publish(group)
        except TimeoutError:
            raise BrokerUnavailable(
                f"Kafka did not take the results within {self._patience_s:.0f} s (broker_patience_s): "
                "is a broker away, or are fewer replicas in sync than min.insync.replicas?"
            ) from None

    async def _publish(self, group: Group) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._publisher.publish(group)
                return
            except TooLarge as error:
                self._on_too_large(error.size)
                raise CommitError(str(error)) from None
            except Retriable as error:
                if is_permanent(error):
                    raise CommitError(str(error)) from error
                if attempt == ATTEMPTS:
                    raise CommitError(f"gave up after {ATTEMPTS} attempts: {error}") from error
                self._on_retry()
                await asyncio.sleep(BACKOFF_SECONDS * 2**attempt)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, Fenced | CommitError | BrokerUnavailable | ConfigError):
            wrapped = CommitError(f"commit failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        if not self.failed.done():
            self.failed.set_exception(error)
