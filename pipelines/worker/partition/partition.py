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
Its parts are the modules beside this one: in_flight (what was read, when that is too much), queues,
pacing (tenants over their rate), rejections (dead letters), deletion (forgotten streams), takeover (what
the owner before left undone), committer, metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from operators.errors import LongstreamError, SegmentError
from operators.events import Event, Segment
from operators.state import Emission, SessionState
from pipelines.wire import codec
from pipelines.wire.dead_letters import header
from pipelines.wire.decoding import decoder_of, single
from pipelines.wire.messages import complete, messages_of, now_ms
from pipelines.worker.context import Host
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.deletion import Leaving
from pipelines.worker.partition.in_flight import Records
from pipelines.worker.partition.metrics import Measures
from pipelines.worker.partition.pacing import Pacing
from pipelines.worker.partition.queues import Lane
from pipelines.worker.partition.rejections import Refusals
from pipelines.worker.partition.state import Recovered, SessionTable
from pipelines.worker.partition.takeover import Resuming, publish_outboxes

log = logging.getLogger(__name__)


class Partition:
    """See the module's docstring. Created when the partition is assigned, closed when it is lost."""

    def __init__(self, number: int, host: Host, broken_since: float | None = None) -> None:
        self.number = number
        self.broken_since = broken_since
        """Since when (monotonic) it could not be committed, over all attempts to take it up again."""
        self._host = host
        self._settings = host.settings
        self._metrics = host.metrics
        self._decoder = decoder_of(host.settings, host.schemas)
        self._lanes: dict[str, Lane] = {}
        self._sessions = SessionTable()
        self._floor = 0
        self._backlog: list[int] = []
        self._recovered = False
        self._closed = False
        self._draining = False
        self._emitted = asyncio.Event()
        self._records = Records(number, host)
        self.committer = Committer(
            host.make_publisher(number),
            self._records.finish,
            self._on_committed,
            interval_s=self._settings.commit_interval_s,
            max_events=min(
                self._settings.commit_max_events,
                max(1, self._settings.in_flight_per_partition // 2),
            ),
            patience_s=self._settings.broker_patience_s,
            on_retry=lambda: self._metrics.retry("commit"),
        )
        self._pacing = Pacing(host.tenants, self._wake)
        self._refusals = Refusals(number, host, self._records, self.committer)
        self._leaving = Leaving(number, host, self.committer, self._dispatch, self._refusals.refuse)
        self._resuming = Resuming(host, self._lanes, self._open_silent)
        self._measures = Measures(number, host, self._records)
        self.condemn, self.sentence = self._refusals.condemn, self._refusals.sentence

    # --- life -----------------------------------------------------------------------------

    async def recover(self) -> None:
        """Lock out the previous owner, read the streams' states, then let the records through.

        Raises RecoveryError or a Kafka error, the partition is unusable then; ConfigError when its
        states do not fit its input, or are too many.
        """
        started = time.monotonic()
        self._records.hold()
        # 1. fence; 2. read: what the old owner committed until now is all it will ever commit.
        await self.committer.open()
        recovered: Recovered = await self._host.recover(self.number)
        self._sessions, self._floor = recovered.sessions, recovered.committed
        self.committer.committed_offset = recovered.committed
        if self._closed:
            return
        self.committer.start()
        # 3. what the old owner may not have published, before anything newer.
        await publish_outboxes(self._sessions, self.committer)
        if self._closed:
            return
        # 4. the records that arrived meanwhile; then streams that are owed a summary.
        self._recovered = True
        backlog, self._backlog = self._backlog, []
        for offset in backlog:
            self._dispatch(offset)
        self._resuming.begin(self._sessions)
        self._records.release()
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
        self._leaving.close()
        self._resuming.close()
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
        return self._records.events()

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
        offset = self._records.take(event)
        if offset is None:
            return
        if self._recovered:
            self._dispatch(offset)
        else:
            self._backlog.append(offset)
        if self._records.load >= 1.0:
            self._records.hold()

    def _dispatch(self, offset: int) -> None:
        """Steps 2 and 3 for one record."""
        if offset < self._floor:
            self._refusals.skip(offset)
            return
        message = self._records[offset].message
        try:
            segment = self._decode(message, offset)
            if segment is None:  # an event without words
                self.committer.add(Entry(finished=(offset,)))
                return
            if self._leaving.behind(segment.stream_id, offset):
                return
            lane = self._lane(segment)
        except SegmentError as error:
            stage = "admission" if error.reason == "tenant_limit" else "decode"
            self._refusals.refuse(offset, stage, error.reason, str(error))
            return
        self._metrics.segment_consumed(segment.is_final)
        if offset <= lane.cursor:
            self._refusals.skip(offset)
            return
        if segment.type == "forget":
            self._leaving.mark(lane.stream_id, offset)
            self.pump(lane)
            return
        try:
            self._pacing.take(segment, offset)
        except SegmentError as error:
            self._refusals.refuse(offset, "admission", error.reason, str(error))
            return
        lane.waiting.append((segment, offset))
        self.pump(lane)

    def _decode(self, message: Any, offset: int) -> Segment | None:
        """The record's segment; None for an event that holds none. Raises SegmentError."""
        decoded = self._decoder.decode(
            message.key,
            message.value,
            message.headers,
            partition=self.number,
            offset=offset,
            partitions=self._host.partition_count(),
        )
        segment = single(decoded)
        self._metrics.input_decoded(decoded.adapter, decoded.dropped, empty=segment is None)
        return segment

    def _lane(self, segment: Segment) -> Lane:
        """The lane of the segment's stream; made anew if the stream is new or was put away."""
        stream_id = segment.stream_id
        if lane := self._lanes.get(stream_id):
            if lane.silent:
                self._host.tenants.admit(segment, live=True)
                lane.silent = False
            return lane
        owner = self._host.owners.get(stream_id)
        if owner is not None and owner is not self:
            raise SegmentError(
                "wrong_partition",
                f"the stream is on partition {owner.number} already; one stream belongs on one "
                "partition: let its key choose it",
            )
        if segment.type != "forget":
            self._host.tenants.admit(segment, self._sessions.is_live(stream_id))
        return self._new_lane(stream_id)

    def _new_lane(self, stream_id: str) -> Lane:
        """Raises SegmentError when the stream's state cannot be read."""
        state, _ = self._sessions.take(stream_id)
        lane = Lane(stream_id, cursor=state.cursor if state else -1, state=state)
        self._lanes[stream_id] = lane
        self._host.owners[stream_id] = self
        return lane

    def _open_silent(self, stream_id: str) -> Lane | None:
        """Open a stream that has not spoken since the partition was taken up; None if it has, if it is
        over, or if its state cannot be read, which is said when it speaks."""
        if stream_id in self._host.owners or not self._sessions.is_live(stream_id):
            return None
        try:
            lane = self._new_lane(stream_id)
        except SegmentError:
            return None
        lane.silent = True
        self.pump(lane)
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
        while not self._pacing.too_early(lane):
            next_ = lane.next(self._settings.in_flight_per_key, suspicious)
            if next_ is None:
                break
            segment, offset = next_
            self._host.device.feed(segment, offset, self._records[offset].read_at)
        self._leaving.leave(lane, self._lanes, self._sessions)

    def _wake(self, lane: Lane) -> None:
        if not self._closed:
            self.pump(lane)

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
        messages = self._refusals.replace_too_large(messages, finished)
        for failure in emission.failed:
            messages.append(
                self._refusals.letter(
                    failure.ticket, failure.stage, failure.reason, failure.message
                )
            )
        self._measures.note_coverage(lane, finished)
        self.committer.add(Entry(messages, emission.state, finished, events=events))
        self._host.settled(bool(finished))
        self.pump(lane)
        self._resuming.heard_of(lane.stream_id)

    def on_refused(self, stream_id: str, offset: int, reason: str, text: str) -> None:
        """The engine would not take a segment: a dead letter, and the lane goes on."""
        lane = self._lanes[stream_id]
        lane.finish(offset)
        self._emitted.set()
        self._refusals.refuse(offset, "operator", reason, text)
        self._host.settled(True)
        self.pump(lane)

    def _on_committed(self, entries: list[Entry], seconds: float) -> None:
        for entry in entries:
            self._measures.published(entry.events)
            for offset in entry.finished:
                self._records.acknowledge(offset)
            if entry.state is not None and entry.state.ended:
                self._put_away(entry.state)
        self.broken_since = None
        self._metrics.commit(seconds)
        self._host.on_progress()
        if self._records.load <= 0.5 and not self._closed:
            self._records.release()

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

    def _trace(self, finished: list[int]) -> bytes | None:
        return (
            header(self._records[finished[-1]].message.headers, "traceparent") if finished else None
        )

    # --- from time to time ------------------------------------------------------------------

    def reassigned(self) -> None:
        """The partition stayed ours through a rebalance, which fetches it again: hold if needed."""
        self.committer.resume()
        self._records.hold_again()

    def expire(self) -> None:
        """Forget streams that ended too long ago."""
        if self.recovered:
            self._leaving.expire(self._sessions)

    @property
    def in_flight(self) -> int:
        return len(self._records)

    @property
    def recovered(self) -> bool:
        return self._recovered and not self._closed

    def coverage_lag(self, now: float) -> float:
        """Seconds since the oldest uncovered segment of any lane was read (monotonic ``now``)."""
        return self._measures.coverage_lag(self._lanes.values(), now)

    def measure(self, highwater: int | None) -> None:
        """Export this partition's lag and commit gap."""
        self._measures.lag(highwater, self._floor)
