"""Faust with commits that cannot pass a message still being worked on.

Stock Faust commits past one (its issue #606): with offset 5 unfinished and 6 to 19 acknowledged it
commits 20, and in a fresh group even an unfinished offset 0 is passed. After a crash those messages
are gone. Here, for each partition:

1. Every message handed to an agent is kept by strong reference until it is acknowledged (Faust keeps
   weak ones: a message nobody holds would silently stop counting as unfinished).
2. An acknowledgement counts only for a message of the current assignment: on revocation all are
   forgotten, and what is acknowledged later is ignored (it will be delivered again).
3. The offset to commit is the smallest unacknowledged one, or one past the highest acknowledged.
   Offsets never delivered (transaction markers, compacted records) do not hold it back.
4. With ``commits_offsets`` off nothing is committed from here: in exactly-once delivery the offsets
   travel in the transaction with the results (:mod:`pipelines.worker.partition.committer`).
5. What was fetched across a rebalance is dropped, and the committed offsets are sought once more. Faust
   delivers such a batch and then drops, as seen already, what the new assignment reads before it:
   a worker frozen in a fetch lost one segment that way.
6. After a delivery across a rebalance the committed offsets are sought once more, too: Faust notes its
   message as read when the new assignment has begun, and drops what that reads before it.

Also: a partition can be *held* (not fetched) without losing what was fetched already. Faust's
``pause_partitions`` drops the rest of the current batch on the floor. The client learns a partition's
end from its fetches only, so that of a held one is asked for: else its lag would stand still just when
it grows.

faust-streaming and aiokafka are pinned, because this overrides methods that are not their public
face; tests/kafka/test_commit_regression.py fails if an upgrade changes what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Coroutine, Generator, Iterable, Iterator, MutableSet
from typing import Any

import aiokafka
import faust
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ack_lock
from mode import Service
from mode.services import WaitResults

from pipelines.config.load import Settings
from pipelines.kafka import header_names
from pipelines.kafka.clients import faust_broker, faust_credentials

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.05
POLL_SECONDS = 0.2
HELD_POLL_SECONDS = 0.02
ENDS_SECONDS = 1.0


class InFlight(MutableSet[Any]):
    """Messages delivered and not acknowledged, by strong reference, per partition in order.

    Stands in for Faust's WeakSet, so it is told of every message by Faust itself.
    """

    def __init__(self) -> None:
        self._messages: dict[TP, dict[int, Message]] = {}

    def add(self, value: Any) -> None:
        self._messages.setdefault(value.tp, {})[value.offset] = value

    def discard(self, value: Any) -> None:
        if value in self:
            del self._messages[value.tp][value.offset]

    def smallest(self, tp: TP) -> int | None:
        """The smallest unacknowledged offset of the partition."""
        return min(self._messages.get(tp, ()), default=None)

    def forget(self, tps: Iterable[TP]) -> None:
        """Drop the partitions' messages: they will be delivered again, to us or to another."""
        for tp in tps:
            self._messages.pop(tp, None)

    def __contains__(self, value: object) -> bool:
        message: Any = value
        return self._messages.get(message.tp, {}).get(message.offset) is message

    def __iter__(self) -> Iterator[Message]:
        return (message for held in self._messages.values() for message in held.values())

    def __len__(self) -> int:
        return sum(map(len, self._messages.values()))


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads only committed records, so an input written by an aborted transaction is not seen."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # used when it starts, which is later
        return consumer


class Consumer(driver.Consumer):  # type: ignore[misc]
    """The consumer described at the top of this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unacked_messages = InFlight()
        self._held: set[TP] = set()
        self._released = asyncio.Event()
        self._ends: dict[TP, int] = {}
        self._revocations = 0
        self._stale_fetch = False

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def member_id(self) -> str:
        """Our name in the consumer group. It changes only when the group had thrown us out."""
        return str(self._thread._consumer._coordinator.member_id)

    @property
    def refusal(self) -> Exception | None:
        """Why the consumer group will not have us; None while it may. aiokafka then waits for a fetch
        to be told, and without partitions Faust makes none: it would wait in silence for ever."""
        consumer = self._thread._consumer if self._thread else None
        coordinator = consumer._coordinator if consumer else None
        return getattr(coordinator, "_pending_exception", None)

    def partition_count(self, topic: str) -> int | None:
        """How many partitions the topic has, as the broker last said; None: not known yet."""
        consumer = self._thread._consumer if self._thread else None
        found = consumer.partitions_for_topic(topic) if consumer else None
        return len(found) if found else None

    # --- commits ---------------------------------------------------------------------------

    def ack(self, message: Message) -> bool:
        with ack_lock:
            # 2. not ours any more: it was forgotten with its assignment.
            if message not in self._unacked_messages:
                return False
            return bool(super().ack(message))

    def _new_offset(self, tp: TP) -> int | None:
        acked: list[int] = self._acked[tp]
        # 3. below the smallest unacknowledged offset everything delivered is acknowledged.
        smallest = self._unacked_messages.smallest(tp)
        finished = [offset for offset in acked if smallest is None or offset < smallest]
        if not finished:
            return None
        acked[:] = [offset for offset in acked if smallest is not None and offset > smallest]
        self._acked_index[tp].difference_update(finished)
        return max(finished) + 1

    def _filter_committable_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        # 4. still computed when switched off: it is what keeps the bookkeeping small.
        offsets = super()._filter_committable_offsets(tps)
        return offsets if self.app.commits_offsets else {}

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Faust collects missing offsets for its own ``_new_offset``; ours needs none of it."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # 2. before Faust's own handling, which lets other code run.
        self._revocations += 1
        self._unacked_messages.forget(map(ensure_TP, revoked))
        self._held.difference_update(map(ensure_TP, revoked))
        for tp in map(ensure_TP, revoked):
            self._ends.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    # --- backpressure ----------------------------------------------------------------------

    def hold(self, tp: TP) -> None:
        """Stop fetching the partition. What is fetched already is still delivered."""
        self._held.add(tp)
        self.on_buffer_full(tp)

    def release(self, tp: TP) -> None:
        """Fetch the partition again."""
        self._held.discard(tp)
        self.on_buffer_drop(tp)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Faust resumes everything after a rebalance; what is held stays so."""
        super().resume_partitions(tps)
        self._get_active_partitions().difference_update(self._held)
        self._buffered_partitions.update(self._held)

    def on_buffer_drop(self, tp: TP) -> None:
        """Faust's buffer has room again: fetch, unless the partition is held."""
        if tp not in self._held:
            super().on_buffer_drop(tp)
            self._released.set()

    def highwater(self, tp: TP) -> int | None:
        """The offset after the partition's last record, as far as we were told; None: not yet."""
        fetched: int | None = super().highwater(tp)
        told = self._ends.get(tp)
        return fetched if told is None else max(told, fetched or 0)

    def at_end(self, tp: TP) -> bool:
        """Whether everything the partition holds, as far as we were told, has been fetched."""
        consumer = self._thread._consumer if self._thread else None
        if consumer is None or tp in self._held:
            return False
        try:
            state = consumer._subscription.subscription.assignment.state_value(tp)
            end = self.highwater(tp)
            return bool(state.has_valid_position and end is not None and state.position >= end)
        except (AttributeError, KeyError):  # during a rebalance
            return False

    @Service.task  # type: ignore[untyped-decorator]
    async def _ask_for_ends(self) -> None:
        """Once a second, while partitions are held. In the client's own thread, past the queue of calls
        that commits and seeks wait in."""
        while not self.should_stop:
            await self.sleep(ENDS_SECONDS)
            if not self._held:
                continue
            try:
                asked = self._thread._consumer.end_offsets(list(self._held))
                told = asyncio.run_coroutine_threadsafe(asked, self._thread.thread_loop)
                self._ends.update(await asyncio.wrap_future(told))
            except Exception as error:  # a broker that is away: the lag stays as it was last known
                log.debug("the ends of held partitions are not known: %s", error)

    async def _wait_next_records(self, timeout: float) -> Any:
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        if self._stale_fetch:
            # 5. from the committed offsets again, whichever side of the seek that fetch was on.
            await self._seek_again()
            self._stale_fetch = False
        if self.flow_active and not self._get_active_partitions():
            # Until one may be fetched again; Faust sleeps a second in any case.
            self._released.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), IDLE_SECONDS)
            return {}, set()
        before = self._revocations
        records = await super()._wait_next_records(timeout)
        if self._revocations != before:
            self._stale_fetch = True
            return {}, set()
        return records

    async def _seek_again(self) -> None:
        """To the committed offsets; where there is none yet, which Faust leaves out, to the start."""
        if not self.assignment():
            return
        await self.perform_seek()
        fresh = [tp for tp in self.assignment() if not self._committed_offset.get(tp)]
        if fresh:
            starts = await self.earliest_offsets(*fresh)
            for tp, offset in starts.items():
                await self.seek(ensure_TP(tp), offset)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        # A partition released meanwhile is fetched with the next call, so keep each one short.
        most = HELD_POLL_SECONDS if self._held else POLL_SECONDS
        return await super()._getmany(active_partitions, min(timeout, most))

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:
        """As Faust's, which waits for each message's delivery with four tasks. A delivery seldom has to
        wait, so it is tried first; where it does, Faust waits for the rest of it."""
        before = self._revocations
        try:
            return await self._deliver(*coros, timeout=timeout)
        finally:
            # 6. Faust notes the message as read behind this, whichever assignment it was of.
            self._stale_fetch |= self._revocations != before

    async def _deliver(self, *coros: Any, timeout: Any) -> Any:
        delivery, *others = coros
        if not asyncio.iscoroutine(delivery):
            return await super().wait_first(*coros, timeout=timeout)
        try:
            waited = delivery.send(None)
        except BaseException as error:
            for other in filter(asyncio.iscoroutine, others):
                other.close()
            if not isinstance(error, StopIteration):
                raise
            # The agents take one message a turn of the event loop: delivered faster, polls would pile up
            # before a partition is held.
            await asyncio.sleep(0)
            if self.should_stop:
                return WaitResults([], [], True)
            return WaitResults([delivery], [error.value], False)
        return await super().wait_first(_Rest(delivery, waited), *others, timeout=timeout)


class _Rest(Awaitable[Any]):
    """What is left of a coroutine that waits for ``waited``."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waited: Any) -> None:
        self._coroutine, self._waited = coroutine, waited

    def __await__(self) -> Generator[Any, Any, Any]:
        waited = self._waited
        try:
            while True:
                try:
                    value = yield waited
                except BaseException as error:
                    waited = self._coroutine.throw(error)
                else:
                    waited = self._coroutine.send(value)
        except StopIteration as done:
            return done.value


class Transport(driver.Transport):  # type: ignore[misc]
    Consumer = Consumer


class LongstreamApp(faust.App):  # type: ignore[misc]
    """A Faust app on this transport, without the parts that touch disk or serve HTTP."""

    commits_offsets: bool = True

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """Faust makes data folders for tables; there are none."""


def make_faust_app(settings: Settings) -> LongstreamApp:
    """A Faust app configured from our settings, without agents yet."""
    header_names.install()
    app = LongstreamApp(
        settings.app_id,
        broker=faust_broker(settings),
        broker_credentials=faust_credentials(settings),
        broker_client_id=f"longstream-{settings.worker}",
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_rebalance_timeout=max(30.0, settings.session_timeout_s),
        broker_request_timeout=max(90.0, settings.session_timeout_s),
        broker_commit_interval=settings.commit_interval_s,
        broker_max_poll_records=settings.broker_max_poll_records,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=settings.max_message_bytes,
        stream_buffer_maxsize=settings.stream_buffer_maxsize,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        web_tables_enabled=False,
        worker_redirect_stdouts=False,
        autodiscover=False,
    )
    app.commits_offsets = settings.delivery == "at_least_once"
    return app
