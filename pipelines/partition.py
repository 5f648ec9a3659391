"""One owned partition of the segment topic: its lanes, what is under way, and its recovery.

The life of a record:

1. ``accept``: read once. One that is delivered again (Faust seeks back after every rebalance) only
   replaces the message to acknowledge, or is acknowledged at once if it is done.
2. Until the partition is recovered it waits; then it is decoded. A record that cannot be used becomes
   a dead letter and is finished with it.
3. It joins the lane of its stream: first in, first out. One at or below the stream's cursor was done
   by an earlier owner and is skipped.
4. At most ``in_flight_per_key`` records of a lane are with the device at once, so a hot stream
   queues behind itself while others are served.
5. The device's emission goes to the committer; when it is committed the record is acknowledged.
6. A forget mark waits until all of its stream before it is done. Then the device erases what it has,
   and the stream's state and latest summary go in the transaction that finishes the mark; records
   behind the mark wait for that and start the stream anew, in a later epoch.

At ``in_flight_per_partition`` records (or 32 MB) the partition is not fetched until half of them are
done. A stream far hotter than that delays its own partition, never another: order within a partition
is Kafka's, and reading past a hot stream without bound would only move the problem into memory.

Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from operators.errors import LongstreamError, SegmentError
from operators.types import Emission, Event, Segment, SessionState
from pipelines import codec
from pipelines.committer import Committer, Entry
from pipelines.dead_letters import header
from pipelines.forgetting import farewell, is_remnant, remnant, remnant_key
from pipelines.lanes import Lane, Record
from pipelines.metrics import Metrics
from pipelines.outputs import complete, dead_letter_of, messages_of, now_ms, status_of, task_of
from pipelines.publishers import Message, Publisher, pending_results
from pipelines.sessions import Recovered, SessionTable
from pipelines.settings import Settings
from pipelines.tenants import Tenants
from pipelines.watermark import Watermark

log = logging.getLogger(__name__)

MAX_HELD_BYTES = 32 << 20
"""Input bytes one partition keeps before it is not fetched any more, whatever their number."""


class DeviceLike(Protocol):
    """What a partition needs of :class:`pipelines.device.DeviceClient`."""

    def open(self, stream_id: str, state: SessionState | None = None) -> None: ...
    def feed(self, segment: Segment, ticket: int) -> None: ...
    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]: ...


@dataclass
class Host:
    """What all partitions of a worker share."""

    settings: Settings
    metrics: Metrics
    device: DeviceLike
    owners: dict[str, Partition]
    """Which partition each open stream belongs to: emissions find their way by it."""
    hold: Callable[[int], None]
    release: Callable[[int], None]
    recover: Callable[[int], Any]
    """Partition number -> awaitable Recovered."""
    make_publisher: Callable[[int], Publisher]
    on_progress: Callable[[], None] = lambda: None
    tenants: Tenants = field(init=False)
    admits: Callable[[Lane], bool] = lambda lane: True
    """Whether a lane may have the device now (:mod:`pipelines.keeper`)."""
    settled: Callable[[bool], None] = lambda finished: None
    """Told after the device said something of a lane; True when a segment was done."""

    def __post_init__(self) -> None:
        self.tenants = Tenants(self.settings, self.owners, self.metrics.tenant_limited)


class Partition:
    """See the module's docstring. Created when the partition is assigned, closed when it is lost."""

    def __init__(self, number: int, host: Host, broken_since: float | None = None) -> None:
        self.number = number
        self.broken_since = broken_since
        """Since when (monotonic) it could not be committed, over all attempts to take it up again."""
        self._host = host
        self._settings = host.settings
        self._metrics = host.metrics
        self._watermark = Watermark()
        self._records: dict[int, Record] = {}
        self._bytes = 0
        self._lanes: dict[str, Lane] = {}
        self._sessions = SessionTable()
        self._floor = 0
        self._backlog: list[int] = []
        self._condemned: list[tuple[Lane, int, int, str]] = []
        self._leaving: dict[str, list[int]] = {}
        self._tenants = host.tenants
        self._not_before: dict[int, float] = {}
        self._delayed: set[str] = set()
        self._held = False
        self._recovered = False
        self._closed = False
        self._draining = False
        self._emitted = asyncio.Event()
        self.committer = Committer(
            host.make_publisher(number),
            self._finish,
            self._on_committed,
            interval_s=self._settings.commit_interval_s,
            max_events=min(
                self._settings.commit_max_events,
                max(1, self._settings.in_flight_per_partition // 2),
            ),
            patience_s=self._settings.broker_patience_s,
            on_retry=lambda: self._metrics.retry("commit"),
        )

    # --- life -----------------------------------------------------------------------------

    async def recover(self) -> None:
        """Lock out the previous owner, read the streams' states, then let the records through.

        Raises RecoveryError or a Kafka error; the partition is unusable then.
        """
        started = time.monotonic()
        self._hold()
        # 1. fence; 2. read: what the old owner committed until now is all it will ever commit.
        await self.committer.open()
        recovered: Recovered = await self._host.recover(self.number)
        self._sessions, self._floor = recovered.sessions, recovered.committed
        self.committer.committed_offset = recovered.committed
        self.committer.start()
        # 3. the records that arrived meanwhile.
        self._recovered = True
        backlog, self._backlog = self._backlog, []
        for offset in backlog:
            self._dispatch(offset)
        self._release()
        if not self._records:
            self.broken_since = None
        log.info(
            "partition %d: ready in %.2f s, %d streams known, committed offset %d",
            self.number,
            time.monotonic() - started,
            len(self._sessions),
            self._floor,
        )

    async def drain(self) -> None:
        """Wait until what the device has is done and committed. The caller sets a deadline."""
        while not self._closed and any(lane.given for lane in self._lanes.values()):
            self._emitted.clear()
            await self._emitted.wait()
        await self.committer.flush()

    async def close(self, *, forget: bool = True) -> None:
        """Let go: nothing more is committed. The device forgets the streams when its step is done;
        not with ``forget=False``, for a worker that leaves and takes it along. Idempotent."""
        self._closed = True
        self._emitted.set()
        drops = []
        for stream_id, lane in self._lanes.items():
            if self._host.owners.pop(stream_id, None) is not None and lane.open and forget:
                with contextlib.suppress(LongstreamError):
                    drops.append(self._host.device.drop(stream_id))
            lane.waiting.clear()
            lane.given.clear()
        self._lanes.clear()
        self._records.clear()
        self._host.settled(False)  # a lane on trial is gone
        await self.committer.close()
        await asyncio.gather(*drops)

    def unfinished(self) -> list[Any]:
        """Faust's events not acknowledged, in order: what another attempt has to take over."""
        return [record.event for record in self._records.values()]

    # --- input ----------------------------------------------------------------------------

    def stop_feeding(self) -> None:
        """Give the device nothing more; what waits stays uncommitted for the next owner."""
        self._draining = True
        for lane in self._lanes.values():
            lane.waiting.clear()

    def accept(self, event: Any) -> None:
        """Take one delivered record (step 1)."""
        if self._closed or self._draining:
            return
        offset = event.message.offset
        if held := self._records.get(offset):
            held.event = event
            return
        if self._watermark.is_finished(offset):
            event.ack()
            return
        self._watermark.read(offset)
        record = self._records[offset] = Record(event, time.monotonic())
        self._bytes += record.size
        if self._recovered:
            self._dispatch(offset)
        else:
            self._backlog.append(offset)
        if self._load() >= 1.0:
            self._hold()

    def _dispatch(self, offset: int) -> None:
        """Steps 2 and 3 for one record."""
        if offset < self._floor:
            self._skip(offset)
            return
        message = self._records[offset].message
        try:
            segment = codec.decode_segment(
                message.key,
                message.value,
                message.headers,
                partition=self.number,
                offset=offset,
                max_text_bytes=self._settings.operator.max_text_bytes,
            )
            if (behind := self._leaving.get(segment.stream_id)) is not None:
                behind.append(offset)
                return
            lane = self._lane(segment)
        except SegmentError as error:
            stage = "admission" if error.reason == "tenant_limit" else "decode"
            self._refuse(offset, stage, error.reason, str(error))
            return
        self._metrics.segment_consumed(segment.is_final)
        if offset <= lane.cursor:
            self._skip(offset)
            return
        if segment.type == "forget":
            self._leaving[lane.stream_id] = [offset]
            self.pump(lane)
            return
        try:
            if (at := self._tenants.pace(segment)) > 0:
                self._not_before[offset] = at
        except SegmentError as error:
            self._refuse(offset, "admission", error.reason, str(error))
            return
        lane.waiting.append((segment, offset))
        self.pump(lane)

    def _lane(self, segment: Segment) -> Lane:
        """The lane of the segment's stream; made anew if the stream is new or was put away."""
        stream_id = segment.stream_id
        if lane := self._lanes.get(stream_id):
            return lane
        owner = self._host.owners.get(stream_id)
        if owner is not None and owner is not self:
            raise SegmentError(
                "wrong_partition",
                f"the stream is on partition {owner.number} already; one stream belongs on one "
                "partition: let its key choose it",
            )
        if segment.type != "forget":
            self._tenants.admit(segment, self._sessions.is_live(stream_id))
        state, raw = self._sessions.take(stream_id)
        if raw is not None and state is not None and (lost := pending_results(raw)):
            self.committer.add(Entry(messages=lost))
        lane = Lane(stream_id, cursor=state.cursor if state else -1, state=state)
        self._lanes[stream_id] = lane
        self._host.owners[stream_id] = self
        return lane

    def lanes(self) -> list[Lane]:
        return list(self._lanes.values())

    def pump(self, lane: Lane) -> None:
        """Step 4: feed the device up to the stream's bound, which has it opened there first."""
        if self._draining or not self._host.admits(lane):
            return
        if not lane.open:
            self._host.device.open(lane.stream_id, lane.state)
            lane.open = True
        suspicious = self._settings.device_attempts - 1
        while not self._too_early(lane):
            next_ = lane.next(self._settings.in_flight_per_key, suspicious)
            if next_ is None:
                break
            self._host.device.feed(*next_)
        self._leave(lane)

    def _too_early(self, lane: Lane) -> bool:
        """Whether the lane's next segment exceeds its tenant's rate; then it is tried in time."""
        if not lane.waiting:
            return False
        left = self._not_before.get(lane.waiting[0][1], 0.0) - time.monotonic()
        if left <= 0:
            self._not_before.pop(lane.waiting[0][1], None)
            return False
        if lane.stream_id not in self._delayed:
            self._delayed.add(lane.stream_id)
            asyncio.get_running_loop().call_later(left, self._wake, lane)
        return True

    def _wake(self, lane: Lane) -> None:
        self._delayed.discard(lane.stream_id)
        if not self._closed:
            self.pump(lane)

    def condemn(self, lane: Lane, attempts: int, cause: str) -> None:
        """The lane's first waiting segment killed the device ``attempts`` times, the last time by
        ``cause``: leave it out."""
        self._condemned.append((lane, lane.condemn(), attempts, cause))

    def sentence(self) -> None:
        """Make dead letters of what was condemned; the stream's state says that it lost something."""
        condemned, self._condemned = self._condemned, []
        for lane, offset, attempts, cause in condemned:
            text = f"the device failed {attempts} times with it, the last time alone: {cause}"
            letter = self._letter(
                offset, "device", "device_fault", text, attempts=attempts, retryable=True
            )
            self.committer.add(Entry([letter], lane.state, (offset,)))

    def _skip(self, offset: int) -> None:
        self._metrics.duplicate_input()
        self.committer.add(Entry(finished=(offset,)))

    def _refuse(self, offset: int, stage: str, reason: str, text: str) -> None:
        letter = self._letter(offset, stage, reason, text)
        self.committer.add(Entry(messages=[letter], finished=(offset,)))

    def _letter(self, offset: int, stage: str, reason: str, text: str, **details: Any) -> Message:
        self._metrics.dead_letter(stage, reason)
        log.warning("partition %d offset %d refused: %s (%s)", self.number, offset, reason, text)
        message = self._records[offset].message
        return dead_letter_of(
            message, self._settings, stage=stage, reason=reason, text=text, **details
        )

    # --- output ---------------------------------------------------------------------------

    def on_emission(self, emission: Emission) -> None:
        """Step 5: what the device did for one of our streams."""
        lane = self._lanes[emission.stream_id]
        self._emitted.set()
        finished = [*emission.done, *(failure.ticket for failure in emission.failed)]
        for offset in finished:
            lane.finish(offset)
        lane.cursor = max(lane.cursor, emission.state.cursor)
        lane.state = emission.state
        topic = self._settings.topic_segments
        events: list[Event] = [complete(event, topic, self.number) for event in emission.events]
        messages = messages_of(events, self._settings, self._trace(finished))
        for failure in emission.failed:
            messages.append(
                self._letter(failure.ticket, failure.stage, failure.reason, failure.message)
            )
        self._note_coverage(lane, finished)
        self.committer.add(Entry(messages, emission.state, finished, events=events))
        self._host.settled(bool(finished))
        self.pump(lane)

    def on_refused(self, stream_id: str, offset: int, reason: str, text: str) -> None:
        """The engine would not take a segment: a dead letter, and the lane goes on."""
        lane = self._lanes[stream_id]
        lane.finish(offset)
        self._emitted.set()
        self._refuse(offset, "operator", reason, text)
        self._host.settled(True)
        self.pump(lane)

    def _finish(self, offsets: Iterable[int]) -> int | None:
        for offset in offsets:
            self._watermark.finish(offset)
        return self._watermark.value

    def _on_committed(self, entries: list[Entry], seconds: float) -> None:
        for entry in entries:
            self._observe(entry.events)
            for offset in entry.finished:
                self._acknowledge(offset)
            if entry.state is not None and entry.state.ended:
                self._put_away(entry.state)
        self.broken_since = None
        self._metrics.commit(seconds)
        self._host.on_progress()
        if self._load() <= 0.5:
            self._release()

    def _acknowledge(self, offset: int) -> None:
        if record := self._records.pop(offset, None):
            self._bytes -= record.size
            record.event.ack()

    def _put_away(self, state: SessionState) -> None:
        """An ended stream that stays quiet needs no place on the device."""
        lane = self._lanes.get(state.stream_id)
        if lane is None or not lane.idle or lane.state is not state:
            return
        del self._lanes[state.stream_id]
        self._host.owners.pop(state.stream_id, None)
        if lane.open:
            self._host.device.drop(state.stream_id)
        self._sessions.put(state.stream_id, codec.encode_state(state), at_ms=now_ms())

    # --- forgetting ---------------------------------------------------------------------------

    def _leave(self, lane: Lane) -> None:
        """Forget the lane's stream if it is asked for and all before the mark is done."""
        if lane.stream_id not in self._leaving or not lane.idle:
            return
        del self._lanes[lane.stream_id]
        self._host.owners.pop(lane.stream_id, None)  # what the device still says is not heard
        dropped = self._host.device.drop(lane.stream_id, erase=True)
        dropped.add_done_callback(lambda _: self._left(lane))

    def _left(self, lane: Lane) -> None:
        """The device has let go: take away the state, then take what stands behind the mark."""
        if self._closed:
            return
        mark, *behind = self._leaving.pop(lane.stream_id)
        self._say_farewell(lane.stream_id, lane.state, finished=(mark,))
        log.info("partition %d: a stream was forgotten, as offset %d asks", self.number, mark)
        for offset in behind:
            self._dispatch(offset)

    def _say_farewell(
        self, stream_id: str, state: SessionState | None, finished: Sequence[int] = ()
    ) -> None:
        epoch = state.epoch + 1 if state else 0
        messages = farewell(self._settings, stream_id, epoch)
        self.committer.add(Entry(messages, forgotten=stream_id, finished=finished))
        self._sessions.put(remnant_key(stream_id), remnant(epoch), at_ms=now_ms())

    def expire(self) -> None:
        """Forget the state of streams that ended too long ago (``state_retention_h``), and in the
        same time after that what was left of them."""
        hours = self._settings.state_retention_h
        if hours is None or not self.recovered:
            return
        for name in self._sessions.ended_before(now_ms() - int(hours * 3_600_000)):
            if is_remnant(name):
                self._sessions.put(name, None)
                self.committer.add(Entry(forgotten=name))
                continue
            try:
                state, _ = self._sessions.take(name)
            except SegmentError:
                continue  # a later version's, which will know what to do with it
            self._say_farewell(name, state)

    # --- backpressure, measuring ------------------------------------------------------------

    def _load(self) -> float:
        """How full the partition is, by records or bytes, whichever is more; 1.0 = hold it."""
        count = len(self._records) / self._settings.in_flight_per_partition
        return max(count, self._bytes / MAX_HELD_BYTES)

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._host.hold(self.number)

    def _release(self) -> None:
        if self._held and not self._closed:
            self._held = False
            self._host.release(self.number)

    def reassigned(self) -> None:
        """The partition stayed ours through a rebalance, which fetches it again: hold if needed."""
        self.committer.resume()
        if self._held:
            self._host.hold(self.number)

    def _trace(self, finished: list[int]) -> bytes | None:
        return (
            header(self._records[finished[-1]].message.headers, "traceparent") if finished else None
        )

    def _observe(self, events: Sequence[Event]) -> None:
        for event in events:
            task = task_of(event)
            self._metrics.output_published(status_of(event), task)
            if record := self._records.get(event.source.last_offset):
                self._metrics.end_to_end(task, time.time() - record.message.timestamp)

    def _note_coverage(self, lane: Lane, finished: list[int]) -> None:
        state = lane.state
        if state is None or state.covered_seq >= state.next_seq - 1:
            lane.uncovered_since = None
        elif lane.uncovered_since is None and finished:
            lane.uncovered_since = self._records[finished[-1]].read_at

    @property
    def in_flight(self) -> int:
        return len(self._records)

    @property
    def recovered(self) -> bool:
        return self._recovered and not self._closed

    def coverage_lag(self, now: float) -> float:
        """Seconds since the oldest uncovered segment of any lane was read (monotonic ``now``)."""
        since = [lane.uncovered_since for lane in self._lanes.values() if lane.uncovered_since]
        return now - min(since) if since else 0.0

    def measure(self, highwater: int | None) -> None:
        """Export this partition's lag and commit gap."""
        topic = self._settings.topic_segments
        self._metrics.commit_gap(topic, self.number, self._watermark.gap)
        if highwater is None:
            return
        value = self._watermark.value
        behind = highwater - (self._floor if value is None else value)
        oldest = next(iter(self._records.values()), None)
        age = time.time() - oldest.message.timestamp if oldest else 0.0 if behind <= 0 else None
        self._metrics.consumer_lag(topic, self.number, behind, age)
