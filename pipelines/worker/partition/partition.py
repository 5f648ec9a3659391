"""One assigned partition of the segment topic: its streams' queues, its recovery, a record's way.

1. ``accept``: a record is added once. One that is delivered again (Faust seeks back after a rebalance)
   only replaces the event to acknowledge, or is acknowledged at once if it is finished.
2. After recovery it is decoded. A record that cannot be used becomes a dead letter and is finished.
3. It joins the queue of its stream. A record at or below the stream's cursor was finished by an earlier
   owner and is skipped.
4. At most ``in_flight_per_key`` records of a queue are with the device, so that one busy stream delays
   only itself.
5. The device's emission goes to the committer; once it is committed the record is acknowledged.

The parts are the modules beside this one, which only this one imports: in_flight (uncommitted records
and backpressure), queues, quotas (tenants' limits), rejections (dead letters), deletion, takeover (what
the previous owner left undone), state (recovered states), committer, metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from operators.errors import ConfigError, LongstreamError, SegmentError
from operators.events import AnyEvent, Question, Segment
from operators.state import Emission, SessionState
from pipelines.wire import codec
from pipelines.wire.dead_letters import header
from pipelines.wire.decoding import decoder_of, single
from pipelines.wire.messages import (
    complete,
    dead_letter_of,
    messages_of,
    now_ms,
    unknown_stream,
)
from pipelines.wire.questions import decode_question
from pipelines.worker.context import Entry, Queue, WorkerContext
from pipelines.worker.partition.committer import Committer
from pipelines.worker.partition.deletion import StreamDeletion
from pipelines.worker.partition.in_flight import InFlightRecords
from pipelines.worker.partition.metrics import PartitionMetrics
from pipelines.worker.partition.question_order import QuestionOrder
from pipelines.worker.partition.queues import StreamQueue
from pipelines.worker.partition.quotas import Pacing
from pipelines.worker.partition.rejections import Rejections
from pipelines.worker.partition.state import Recovered, SessionTable
from pipelines.worker.partition.takeover import Takeover, least_uncovered, publish_outboxes

log = logging.getLogger(__name__)


REWOUND_TIMES = 4
CALM_SECONDS = 300.0
"""After a takeover or an outage producers have so long to come back before their streams are ended."""
TOO_LARGE = "state_too_large"
STOPPED = (
    "the stream's state does not fit max.message.bytes of its topic, whatever is left out: raise that "
    "(and max_message_bytes), then replay these records"
)


class Partition:
    """Created when the partition is assigned, closed when it is lost."""

    def __init__(
        self, number: int, context: WorkerContext, broken_since: float | None = None
    ) -> None:
        self.number = number
        self.broken_since = broken_since
        """Since when (monotonic) no commit succeeded, over all attempts to reopen the partition."""
        self._context = context
        self._settings = context.settings
        self._metrics = context.metrics
        self._decoder = decoder_of(context.settings, context.schemas)
        self._queues: dict[str, StreamQueue] = {}
        self._tracing = context.tracing
        self._sessions = SessionTable()
        self._floor = 0
        self._rewound = dict.fromkeys(
            (self._settings.topic_segments, self._settings.topic_questions), 0
        )
        self._calm_since = time.monotonic()
        """Since when Kafka has answered without a pause, and the partition is ours."""
        self._backlog: list[int] = []
        self._recovered = False
        self._closed = False
        self._draining = False
        self._reported = asyncio.Event()
        self._records = InFlightRecords(number, context)
        self._asked = InFlightRecords(number, context, questions=True)
        self._question_floor = 0
        self._refused_questions = frozenset[int]()
        self._question_backlog: list[int] = []
        self.committer = Committer(
            context.make_publisher(number),
            self._records.finish,
            self._on_committed,
            interval_s=self._settings.commit_interval_s,
            max_events=min(
                self._settings.commit_max_events,
                max(1, self._settings.in_flight_per_partition // 2),
            ),
            patience_s=self._settings.broker_patience_s,
            on_retry=lambda: self._metrics.retry("commit"),
            finish_questions=self._asked.finish,
            on_too_large=context.limit.learn,
        )
        self._question_order = QuestionOrder(self.committer.add)
        self._pacing = Pacing(context.tenants, self._wake)
        self._rejections = Rejections(number, context, self._records, self.committer)
        self._deletion = StreamDeletion(
            number, context, self.committer, self._redispatch, self._rejections.reject
        )
        self._takeover = Takeover(context, self._queues, self._open_silent)
        self._own_metrics = PartitionMetrics(number, context, self._records, self._asked)
        self.quarantine = self._rejections.quarantine
        self.publish_quarantined = self._rejections.publish_quarantined

    # --- recovery and close -----------------------------------------------------------------

    async def recover(self) -> None:
        """Fence the previous owner, read the streams' states, then dispatch the records.

        Raises RecoveryError or a Kafka error, after which the partition is unusable; ConfigError when
        the states do not fit the input, or are too large.
        """
        started = time.monotonic()
        self._records.hold()
        self._asked.hold()
        # 1. fence; 2. read: after the fence the previous owner commits nothing more.
        await self.committer.open()
        recovered: Recovered = await self._context.recover(self.number)
        self._sessions, self._floor = recovered.sessions, recovered.committed
        self.committer.committed_offset = recovered.committed
        self._question_floor = self.committer.committed_question = recovered.committed_question
        self._refused_questions = recovered.refused_questions
        if self._closed:
            return
        self.committer.start()
        # 3. results that the previous owner may not have published, before anything newer.
        await publish_outboxes(self._sessions, self.committer, self._rejections)
        if self._closed:
            return
        # 4. the records that arrived meanwhile; then streams with text that no summary covers.
        self._recovered = True
        backlog, self._backlog = self._backlog, []
        for offset in backlog:
            self._dispatch(offset)
        questions, self._question_backlog = self._question_backlog, []
        for offset in questions:
            self._dispatch_question(offset)
        self._takeover.start(self._sessions)
        self._records.release()
        self._asked.release()
        if not self._records:
            self.broken_since = None
        self._calm_since = time.monotonic()
        self._metrics.recovered(time.monotonic() - started)
        log.info(
            "partition %d: ready in %.2f s, %d streams known, committed offset %d",
            self.number,
            time.monotonic() - started,
            len(self._sessions),
            self._floor,
        )

    async def drain(self) -> None:
        """Wait until what the device has is finished and committed. The caller sets a deadline."""
        while not self._closed and any(
            queue.given or queue.asked for queue in self._queues.values()
        ):
            self._reported.clear()
            await self._reported.wait()
        await self.committer.flush()

    async def close(self, *, forget: bool = True) -> None:
        """Commit nothing more and drop the streams on the device; not with ``forget=False``, for a
        worker that ends together with its device. Idempotent."""
        self._closed = True
        self._deletion.close()
        self._takeover.close()
        self._reported.set()
        drops = []
        for stream_id, queue in self._queues.items():
            if self._context.owners.pop(stream_id, None) is not None and queue.open and forget:
                with contextlib.suppress(LongstreamError):
                    drops.append(self._context.device.drop(stream_id))
            queue.waiting.clear()
            queue.given.clear()
            queue.questions.clear()
            queue.asked.clear()
        self._queues.clear()
        self._tracing.forget(self.number)
        self._records.clear()
        self._asked.clear()
        self._context.on_report(False)  # ends the trial of a queue that is gone
        await self.committer.close()
        await asyncio.gather(*drops)

    def unfinished(self) -> list[Any]:
        """Faust's events that are not acknowledged, in order."""
        return self._records.events()

    def unanswered(self) -> list[Any]:
        """The same of the topic of questions."""
        return self._asked.events()

    def stop_feeding(self) -> None:
        """Feed the device nothing more; waiting records stay uncommitted for the next owner."""
        self._draining = True
        for queue in self._queues.values():
            queue.waiting.clear()
            queue.questions.clear()

    # --- input ------------------------------------------------------------------------------

    def accept(self, event: Any) -> None:
        """Step 1 for one delivered record."""
        if self._closed or self._draining:
            return
        offset = self._records.add(event)
        if offset is None:
            return
        self._tracing.read((self.number, offset), self._header_of(offset))
        if self._recovered:
            self._dispatch(offset)
        else:
            self._backlog.append(offset)
        if self._records.load >= 1.0:
            self._records.hold()

    def _dispatch(self, offset: int) -> None:
        """Steps 2 and 3 for one record."""
        if offset < self._floor:
            self._rejections.skip(offset)
            return
        message = self._records[offset].message
        try:
            segment = self._decode(message, offset)
            if segment is None:  # an event without words
                self.committer.add(Entry(finished=(offset,)))
                return
            if self._deletion.defer(segment.stream_id, offset):
                return
            queue = self._queue_for(segment)
        except SegmentError as error:
            stage = "admission" if error.reason == "tenant_limit" else "decode"
            self._rejections.reject(offset, stage, error.reason, str(error))
            return
        self._metrics.segment_consumed(segment.is_final)
        self._metrics.segment_language(segment.language)
        self._own_metrics.note_input(queue, offset, message.timestamp)
        if offset <= queue.cursor:
            self._rejections.skip(offset)
            return
        if queue.stopped and segment.type != "forget":
            self._rejections.reject(offset, "publish", TOO_LARGE, STOPPED)
            return
        if segment.type == "forget":
            self._deletion.request(queue.stream_id, offset)
            self.pump(queue)
            return
        try:
            self._pacing.reserve(segment, offset)
        except SegmentError as error:
            self._rejections.reject(offset, "admission", error.reason, str(error))
            return
        queue.waiting.append((segment, offset))
        self.pump(queue)

    # --- questions --------------------------------------------------------------------------

    def accept_question(self, event: Any) -> None:
        """Step 1 for one record of the topic of questions."""
        if self._closed or self._draining:
            return
        offset = self._asked.add(event)
        if offset is None:
            return
        self._question_order.read(offset)
        if self._recovered:
            self._dispatch_question(offset)
        else:
            self._question_backlog.append(offset)
        if self._asked.load >= 1.0:
            self._asked.hold()

    def _dispatch_question(self, offset: int) -> None:
        """Steps 2 and 3 for one question."""
        message = self._asked[offset].message
        if offset < self._question_floor or offset in self._refused_questions:
            self._skip_question(offset)
            return
        try:
            question = decode_question(
                message.key,
                message.value,
                message.headers,
                partition=self.number,
                offset=offset,
                partitions=self._context.partition_count(),
            )
            if self._deletion.defer(question.stream_id, -1 - offset):
                return
            queue = self._queue_asked(question.stream_id)
        except SegmentError as error:
            self._reject_question(offset, "decode", error.reason, str(error))
            return
        if queue is None:
            self._answer_unknown(question, offset)
        elif offset <= queue.question_cursor:
            self._skip_question(offset)
        elif queue.stopped:
            self._reject_question(offset, "publish", TOO_LARGE, STOPPED)
        else:
            queue.questions.append((question, offset))
            self.pump(queue)

    def _redispatch(self, offset: int) -> None:
        """A record that waited for its stream's deletion; a question's offset is -1 - offset."""
        if offset >= 0:
            self._dispatch(offset)
        else:
            self._dispatch_question(-1 - offset)

    def _queue_asked(self, stream_id: str) -> StreamQueue | None:
        """The queue of the stream that is asked about; None if there is no such stream."""
        if queue := self._queues.get(stream_id):
            return queue
        owner = self._context.owners.get(stream_id)
        if owner is not None and owner is not self:
            raise SegmentError(
                "wrong_partition",
                f"the stream is on partition {owner.number}: let the question's key choose it",
            )
        if not self._sessions.knows(stream_id):
            return None
        queue = self._new_queue(stream_id)
        queue.silent = True
        return queue

    def _answer_unknown(self, question: Question, offset: int) -> None:
        topic = self._settings.topic_questions
        answer = complete(unknown_stream(question, offset), topic, self.number)
        messages = messages_of([answer], self._settings, self._question_trace(offset))
        self._question_order.refused(offset, Entry(messages, answered=(offset,), events=(answer,)))

    def _skip_question(self, offset: int) -> None:
        self._metrics.duplicate_input()
        self._question_order.remembered(Entry(answered=(offset,)))

    def _reject_question(self, offset: int, stage: str, reason: str, text: str) -> None:
        """Finish a question with a dead letter. ``text`` must not quote it."""
        self._metrics.dead_letter(stage, reason)
        log.warning("partition %d question %d refused: %s", self.number, offset, reason)
        letter = dead_letter_of(
            self._asked[offset].message,
            self._settings,
            stage=stage,
            reason=reason,
            text=text,
            retryable=stage == "device",
            max_bytes=self._context.limit.bytes,
        )
        self._question_order.refused(offset, Entry([letter], answered=(offset,)))

    def _pump_questions(self, queue: Queue) -> None:
        """Give the device the queue's questions up to its bound; one with which the device failed too
        often becomes a dead letter."""
        while asked := queue.next_question(self._settings.in_flight_per_key):
            question, offset = asked
            if queue.question_strikes.get(offset, 0) < self._settings.device_attempts:
                self._context.device.ask(question, offset)
                continue
            queue.finish_question(offset)
            text = f"the device failed {self._settings.device_attempts} times with it"
            self._reject_question(offset, "device", "device_fault", text)

    def _question_trace(self, offset: int) -> bytes | None:
        record = self._asked.get(offset)
        return header(record.message.headers, "traceparent") if record else None

    # --- segments ---------------------------------------------------------------------------

    def _decode(self, message: Any, offset: int) -> Segment | None:
        """The record's segment; None for an event that holds none. Raises SegmentError."""
        decoded = self._decoder.decode(
            message.key,
            message.value,
            message.headers,
            partition=self.number,
            offset=offset,
            partitions=self._context.partition_count(),
        )
        segment = single(decoded)
        self._metrics.input_decoded(decoded.adapter, decoded.dropped, empty=segment is None)
        return segment

    def _queue_for(self, segment: Segment) -> StreamQueue:
        """The queue of the segment's stream; a new one if the stream is new or was closed."""
        stream_id = segment.stream_id
        if queue := self._queues.get(stream_id):
            queue.heard()
            if queue.silent:
                live = queue.state is None or not queue.state.ended
                self._context.tenants.admit(segment, live=live)
                queue.silent = False
            return queue
        owner = self._context.owners.get(stream_id)
        if owner is not None and owner is not self:
            raise SegmentError(
                "wrong_partition",
                f"the stream is on partition {owner.number} already; one stream belongs on one "
                "partition: let its key choose it",
            )
        if segment.type != "forget":
            self._context.tenants.admit(segment, self._sessions.is_live(stream_id))
        return self._new_queue(stream_id)

    def _new_queue(self, stream_id: str) -> StreamQueue:
        """Raises SegmentError when the stream's state cannot be read."""
        state, _ = self._sessions.take(stream_id)
        queue = StreamQueue(stream_id, cursor=state.cursor if state else -1, state=state)
        queue.question_cursor = state.question_cursor if state else -1
        self._queues[stream_id] = queue
        self._context.owners[stream_id] = self
        return queue

    def _remove_queue(self, stream_id: str) -> None:
        """Later reports of the device on the stream are ignored."""
        del self._queues[stream_id]
        self._context.owners.pop(stream_id, None)

    def _open_silent(self, stream_id: str, *, ending: bool = False) -> StreamQueue | None:
        """Open a stream without a record of it; None if it is open or has ended, or if its state cannot
        be read, which its next record reports. ``ending``: to end it."""
        if stream_id in self._context.owners or not self._sessions.is_live(stream_id):
            return None
        try:
            queue = self._new_queue(stream_id)
        except SegmentError:
            return None
        queue.silent, queue.ending = True, ending
        self.pump(queue)
        return queue

    def queues(self) -> list[StreamQueue]:
        return list(self._queues.values())

    def pump(self, queue: Queue) -> None:
        """Step 4: open the stream on the device and feed it up to its bound, if the device admits it."""
        if self._draining or not self._context.admits(queue):
            return
        if queue.stopped:
            self._erase_if_due(queue)
            return
        if not queue.open and not queue.has_work(least_uncovered(self._settings)):
            self._erase_if_due(queue)
            return
        if not queue.open:
            self._context.device.open(queue.stream_id, queue.state)
            queue.open = True
        suspicious = self._settings.device_attempts - 1
        while not self._pacing.delay(queue):
            next_ = queue.next(self._settings.in_flight_per_key, suspicious)
            if next_ is None:
                break
            segment, offset = next_
            self._tracing.fed((self.number, offset))
            self._context.device.feed(segment, offset, self._records[offset].read_at)
        self._pump_questions(queue)
        if queue.ending and queue.idle and not queue.end_given:
            queue.end_given = True
            self._context.device.end(queue.stream_id)
        self._erase_if_due(queue)

    def _erase_if_due(self, queue: Queue) -> None:
        if self._deletion.due(queue):
            self._remove_queue(queue.stream_id)
            self._deletion.erase(queue, self._sessions)

    def _wake(self, queue: Queue) -> None:
        if not self._closed:
            self.pump(queue)

    # --- output -----------------------------------------------------------------------------

    def on_emission(self, emission: Emission) -> None:
        """Step 5: what the device computed for one of the partition's streams."""
        queue = self._queues[emission.stream_id]
        if queue.stopped:
            return
        self._reported.set()
        finished = [*emission.done, *(failure.ticket for failure in emission.failed)]
        for offset in finished:
            queue.finish(offset)
        for offset in emission.answered:
            queue.finish_question(offset)
        state = self._rejections.fit_state(emission.state)
        if state is None:
            self._stop(queue, finished, emission.answered)
            return
        queue.cursor = max(queue.cursor, state.cursor)
        queue.question_cursor = max(queue.question_cursor, state.question_cursor)
        queue.state = state
        if state.ended:
            queue.ending = queue.end_given = False
        topic = self._settings.topic_segments
        events: list[AnyEvent] = [complete(event, topic, self.number) for event in emission.events]
        messages = messages_of(events, self._settings, self._traceparent(finished))
        for made in emission.answers:
            answer = complete(made, self._settings.topic_questions, self.number)
            trace = self._question_trace(answer.source.last_offset)
            messages += messages_of([answer], self._settings, trace)
            events.append(answer)
        messages = self._rejections.replace_too_large(messages, finished)
        messages += [
            self._rejections.letter(failed.ticket, failed.stage, failed.reason, failed.message)
            for failed in emission.failed
        ]
        self._own_metrics.note_coverage(queue, finished)
        entry = Entry(messages, state, finished, answered=emission.answered, events=events)
        self._question_order.remembered(entry)
        self._context.on_report(bool(finished or emission.answered))
        self.pump(queue)
        self._takeover.on_report(queue.stream_id)

    def _stop(self, queue: StreamQueue, finished: list[int], answered: list[int]) -> None:
        """The stream's state does not fit its topic: without it, results that were published would be
        made a second time, in other words. So nothing more is, and its records are dead letters."""
        log.error("partition %d: a stream is stopped: %s", self.number, STOPPED)
        queue.stopped = True
        if queue.open:
            self._context.device.drop(queue.stream_id)
            queue.open = False
        for offset in sorted({*finished, *queue.given, *(at for _, at in queue.waiting)}):
            self._rejections.reject(offset, "publish", TOO_LARGE, STOPPED)
        for offset in sorted({*answered, *queue.asked, *(at for _, at in queue.questions)}):
            self._reject_question(offset, "publish", TOO_LARGE, STOPPED)
        for left in (queue.given, queue.waiting, queue.asked, queue.questions):
            left.clear()
        self._context.on_report(True)
        self._takeover.on_report(queue.stream_id)

    def on_refused(
        self, stream_id: str, offset: int, reason: str, text: str, question: bool = False
    ) -> None:
        """The engine refused a segment or a question: it becomes a dead letter, the queue continues."""
        queue = self._queues[stream_id]
        if queue.stopped:
            return
        self._reported.set()
        if question:
            queue.finish_question(offset)
            self._reject_question(offset, "operator", reason, text)
        else:
            queue.finish(offset)
            self._rejections.reject(offset, "operator", reason, text)
        self._context.on_report(True)
        self.pump(queue)

    def _on_committed(self, entries: list[Entry], seconds: float) -> None:
        for entry in entries:
            self._own_metrics.published(entry.events, self._queues)
            for offset in entry.finished:
                self._tracing.committed((self.number, offset))
                self._records.acknowledge(offset)
            for offset in entry.answered:
                self._asked.acknowledge(offset)
            if entry.state is not None and entry.state.ended:
                self._close_ended(entry.state)
        self.broken_since = None
        self._metrics.commit(seconds)
        self._context.on_progress()
        if self._records.load <= 0.5 and not self._closed:
            self._records.release()
        if self._asked.load <= 0.5 and not self._closed:
            self._asked.release()

    def _close_ended(self, state: SessionState) -> None:
        """Drop an ended stream without new records from the device; its state stays in the table."""
        queue = self._queues.get(state.stream_id)
        if queue is None or not queue.idle or queue.state is not state:
            return
        self._remove_queue(state.stream_id)
        if queue.open:
            self._context.device.drop(state.stream_id)
        self._sessions.put(state.stream_id, codec.encode_state(state), at_ms=now_ms())

    def _traceparent(self, finished: list[int]) -> bytes | None:
        """The trace context of what was made of these: the worker's own where it traces, else the last
        record's, passed through."""
        own = self._tracing.made((self.number, offset) for offset in finished)
        return own or (self._header_of(finished[-1]) if finished else None)

    def _header_of(self, offset: int) -> bytes | None:
        return header(self._records[offset].message.headers, "traceparent")

    # --- called by the worker ---------------------------------------------------------------

    def reassigned(self) -> None:
        """The partition stayed assigned through a rebalance, which fetches it again."""
        self.committer.resume()
        self._records.reapply_hold()
        self._asked.reapply_hold()

    def expire(self) -> None:
        """Delete the states of streams that ended longer ago than ``state_retention_h``."""
        if self.recovered:
            self._deletion.expire(self._sessions)

    def end_idle(self) -> None:
        """End the streams of which no record came for ``stream_idle_timeout_s``, some at a time. Call
        it only when all that the topic holds has been read: what waits there may be theirs."""
        timeout, now = self._settings.stream_idle_timeout_s, time.monotonic()
        if not timeout or not self.recovered or self._draining:
            return
        if now - self._calm_since < min(timeout, CALM_SECONDS):
            return
        room = self._settings.in_flight_per_partition
        room -= sum(queue.ending for queue in self._queues.values())
        for queue in self.queues():
            over = not queue.ending and queue.idle and now - queue.heard_at > timeout
            if queue.end_failures >= self._settings.device_attempts:
                log.warning("a stream was not ended: the device failed with it; tried again later")
                queue.heard_at, queue.end_failures, queue.ending = now, 0, False
            elif over and queue.state is None:  # nothing of it was ever finished
                self._remove_queue(queue.stream_id)
                if queue.open:
                    self._context.device.drop(queue.stream_id)
            elif over and room > 0 and queue.state is not None and not queue.state.ended:
                room -= 1
                self._metrics.stream_ended_idle()
                queue.ending = True
                self.pump(queue)
        for stream_id in self._sessions.live_before(now_ms() - int(timeout * 1000)):
            if room > 0 and self._open_silent(stream_id, ending=True) is not None:
                room -= 1
                self._metrics.stream_ended_idle()

    def note_outage(self) -> None:
        """Kafka did not answer: that nothing came says nothing about the streams."""
        self._calm_since = time.monotonic()
        for queue in self._queues.values():
            queue.heard_at = self._calm_since

    @property
    def in_flight(self) -> int:
        return len(self._records)

    @property
    def recovered(self) -> bool:
        return self._recovered and not self._closed

    @property
    def streams(self) -> int:
        return len(self._queues)

    @property
    def table_bytes(self) -> int:
        """Memory of the closed streams' states."""
        return self._sessions.nbytes

    def coverage_lag(self, now: float) -> float:
        """Seconds since the oldest uncovered segment of any queue was read (monotonic ``now``)."""
        return self._own_metrics.coverage_lag(self._queues.values(), now)

    def check_input(self, highwater: int | None, questions: int | None = None) -> None:
        """Raises ConfigError when an input ends below what was read of it: the topic was made anew
        under this worker, which would skip its records as duplicates. Called twice a second; once may
        be a broker that has just taken over. ``questions``: the end of the topic of questions."""
        settings = self._settings
        inputs = (
            (settings.topic_segments, highwater, self._floor, self._records),
            (settings.topic_questions, questions, self._question_floor, self._asked),
        )
        for topic, end, floor, records in inputs:
            read = max(floor, records.offsets.read_to)
            below = end is not None and end < read
            self._rewound[topic] = self._rewound[topic] + 1 if below else 0
            if self._rewound[topic] >= REWOUND_TIMES:
                raise ConfigError(
                    f"{topic}[{self.number}] ends at offset {end}, and was read to offset {read}: it "
                    "was made anew or truncated. Start the worker again, which says what to do"
                )

    def measure(self, highwater: int | None, questions: int | None = None) -> None:
        """Export this partition's lag and commit gap, of segments and of questions; no lag before it is
        known where it stands, for all of the partition would seem to wait."""
        if not self._recovered:
            highwater = questions = None
        self._own_metrics.lag(highwater, self._floor)
        self._own_metrics.lag(questions, self._question_floor, questions=True)
