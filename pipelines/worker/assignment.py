"""The partitions assigned to this worker: opened on assignment, closed when they are lost, and reopened
when a commit failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from operators.errors import LongstreamError
from pipelines.kafka.errors import is_permanent
from pipelines.kafka.publishers import Fenced
from pipelines.kafka.transport import LongstreamApp
from pipelines.observability.http import Readiness
from pipelines.worker.context import WorkerContext
from pipelines.worker.partition.committer import CommitError
from pipelines.worker.partition.partition import Partition
from pipelines.worker.partition.state import RecoveryError

log = logging.getLogger(__name__)

FLUSH_ON_REVOKE_SECONDS = 3.0
REOPEN_SECONDS = 2.0
REBALANCE_POLL_SECONDS = 0.5
CUT_OFF = "a Kafka client cancelled the partition's task"


class Assignment:
    """``partitions``: those assigned now, by number. ``spawn`` starts a task; ``on_fault`` receives the
    error that ends the worker."""

    def __init__(
        self,
        app: LongstreamApp,
        context: WorkerContext,
        readiness: Readiness,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._app, self._context, self._readiness = app, context, readiness
        self._settings, self._metrics = context.settings, context.metrics
        self._spawn, self._on_fault = spawn, on_fault
        self.partitions: dict[int, Partition] = {}
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._member_id = ""
        # Faust's signals hold their receivers weakly, so the bound methods are kept here.
        self._receivers = (self.on_revoked, self.on_assigned)
        app.on_partitions_revoked.connect(self._receivers[0])
        app.on_partitions_assigned.connect(self._receivers[1])

    def _numbers(self, tps: Iterable[TP]) -> set[int]:
        return {tp.partition for tp in tps if tp.topic == self._settings.topic_segments}

    async def on_revoked(self, app: Any, revoked: set[TP], **_: Any) -> None:
        """Commit what is finished, so that the next owner does not repeat it.

        The partitions stay open: most of them come back with the assignment that follows.
        """
        mine = [self.partitions[n] for n in self._numbers(revoked) if n in self.partitions]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_ON_REVOKE_SECONDS):
                await asyncio.gather(*(partition.committer.flush() for partition in mine))
        if self._settings.delivery == "at_least_once":
            # The next owner reads the states on its assignment, and nothing fences this worker before.
            for partition in mine:
                partition.committer.pause()

    async def on_assigned(self, app: Any, assigned: set[TP], **_: Any) -> None:
        """Close lost partitions, open new ones; they recover outside this callback."""
        numbers = self._numbers(assigned)
        # While this worker was out of the group, another may have continued its partitions.
        member, before = self._app.consumer.member_id, self._member_id
        self._member_id, was_out = member, before not in ("", member)
        if was_out:
            log.warning("the consumer group had removed this worker; all partitions are reopened")
        for number in list(self.partitions):
            failed = self.partitions[number].committer.failed.done()
            if number not in numbers or failed or was_out:
                self._close(number)
        for number in sorted(numbers):
            if number in self.partitions:
                self.partitions[number].reassigned()
            else:
                self._open(number)
        self._readiness.partitions = len(numbers)
        self._metrics.rebalance()
        log.info("assigned partitions %s", sorted(numbers))

    def _open(self, number: int, broken_since: float | None = None) -> None:
        partition = self.partitions[number] = Partition(number, self._context, broken_since)
        self._spawn(self._run_partition(partition))

    def _close(self, number: int) -> None:
        partition = self.partitions.pop(number)
        for topic in (self._settings.topic_segments, self._settings.topic_questions):
            self._metrics.forget_partition(topic, number)
        self._closing[number] = self._spawn(partition.close())

    async def _run_partition(self, partition: Partition) -> None:
        """Recover a partition, then wait until its committer fails."""
        number = partition.number
        try:
            if (closing := self._closing.pop(number, None)) is not None:
                await asyncio.wait({closing})
            await partition.recover()
            await asyncio.shield(partition.committer.failed)
        except (Fenced, CommitError, RecoveryError, KafkaError) as error:
            await self._reopen(partition, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self.partitions.get(number) is partition:  # else it was closed on purpose
                await self._reopen(partition, RecoveryError(CUT_OFF))
        except Exception as error:
            self._fail(partition, error)

    async def _reopen(self, partition: Partition, error: Exception) -> None:
        """Reopen an assigned partition from what is committed, as a restart of the process would. Fails
        the worker for a permanent error, or when no commit succeeded for ``broker_patience_s``."""
        now = time.monotonic()
        since = partition.broken_since = partition.broken_since or now
        patience = self._settings.broker_patience_s
        if is_permanent(error) or now - since > patience:
            self._fail(partition, error)
            return
        log.warning("partition %d: %s; it is reopened", partition.number, error)
        # Fenced by another worker: the next assignment comes within a session's time. Or by the broker,
        # which ends an interrupted transaction.
        fenced = isinstance(error, Fenced)
        await asyncio.sleep(self._settings.session_timeout_s if fenced else REOPEN_SECONDS)
        while self._app.rebalancing:
            await asyncio.sleep(REBALANCE_POLL_SECONDS)
            if time.monotonic() - since > patience:  # Faust waits for the broker without end
                self._fail(partition, error)
                return
        if self.partitions.get(partition.number) is partition:
            events, questions = partition.unfinished(), partition.unanswered()
            self._close(partition.number)
            self._open(partition.number, since)
            for event in events:
                self.partitions[partition.number].accept(event)
            for event in questions:
                self.partitions[partition.number].accept_question(event)

    def _fail(self, partition: Partition, error: Exception) -> None:
        """End the worker, unless the partition is not assigned any more."""
        if self.partitions.get(partition.number) is not partition:
            return
        if isinstance(error, Fenced):
            error = LongstreamError(
                f"{error}, repeatedly, but the consumer group assigns it to this worker: another "
                f"deployment may use app_id={self._settings.app_id!r}"
            )
        self._on_fault(error)
