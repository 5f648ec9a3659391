"""One demo run, step by step: sends meetings, reads results back, shows both, knows when to stop.

Three parts at work: a thread replays the meetings, the worker process answers, and this loop reads
the output topics, asks the worker for its metrics and draws. Only acknowledged records and consumed
events enter the tally.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer
from rich.console import Console
from rich.live import Live

from operators.events import AnswerEvent, Question, Segment, SummaryEvent
from pipelines.cli.following import Follower
from pipelines.cli.replaying import Pacer, Replay, Sent, merged, parse_speed, timeline
from pipelines.cli.screen import Status, draw, plain_event, plain_segment
from pipelines.config.fields import Settings
from pipelines.dev.demo.plan import DemoPlan
from pipelines.dev.demo.tally import Tally
from pipelines.dev.demo.worker import Measured, WorkerProcess
from pipelines.kafka.tools import Reader, partition_count, producer, read
from pipelines.wire.partitioning import partition_of
from pipelines.wire.questions import encode_question

POLL_SECONDS = 0.25
MEASURE_SECONDS = 1.0
STATUS_SECONDS = 10.0
SETTLE_SECONDS = 30.0
BEAT_SECONDS = 1.5
"""The device reports at least once a second; after this long the last numbers are all in."""


class DemoRun:
    """State of one run. ``started`` is the monotonic time at which the user started the demo."""

    def __init__(
        self, plan: DemoPlan, settings: Settings, tally: Tally, console: Console, started: float
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.tally = tally
        self.follower = Follower()
        self.measured = Measured()
        self.rate: float | None = None
        self.first_summary: float | None = None
        self.sending: float | None = None
        self.last_result: float | None = None
        self.last_work: float | None = None
        """When the model was last seen to have read or written tokens."""
        self.note = ""
        self._asking: KafkaProducer
        self._first = ""
        """The stream that is asked the plan's question."""
        self.page = ""
        """Address of the page, if there is one."""
        self._console = console
        self.started = started
        self._sent: queue.SimpleQueue[Sent | BaseException] = queue.SimpleQueue()
        self._live: Live | None = None
        self._shown = 0
        self._log: deque[str] = deque(maxlen=200)
        self._status_at = 0.0
        self._last_count: tuple[float, float] | None = None

    # --- steps ---------------------------------------------------------------------------------

    def wait_for_worker(self, worker: WorkerProcess) -> None:
        """Return when the model is loaded and partitions are assigned. Shows the worker's log."""
        while not worker.ready():
            worker.check()
            self.note = "waiting for the worker to load its model and join"
            self._show_log(worker)
            self._draw()
            time.sleep(POLL_SECONDS)
        self.note = ""

    def run(self, worker: WorkerProcess, segments: list[list[Segment]]) -> str | None:
        """Send everything and follow until all came out; why it was given up, or None."""
        topics = [
            self.settings.topic_summaries,
            self.settings.topic_translations,
            self.settings.topic_answers,
            self.settings.topic_dlq,
        ]
        reader = Reader(self.settings, topics, from_start=())
        expected = sum(map(len, segments))
        stop = threading.Event()
        self._first = segments[0][0].stream_id if segments and segments[0] else ""
        thread = threading.Thread(target=self._replay, args=(segments, stop), name="replay")
        self.sending = self.last_result = time.monotonic()
        thread.start()
        try:
            with producer(self.settings) as self._asking:
                return self._follow(worker, reader, expected)
        finally:
            stop.set()
            thread.join(10.0)
            reader.close()

    def _follow(self, worker: WorkerProcess, reader: Reader, expected: int) -> str | None:
        measured_at = 0.0
        while True:
            for record in reader.poll(POLL_SECONDS):
                self._take(record)
            self._drain()
            now = time.monotonic()
            if now - measured_at >= MEASURE_SECONDS:
                worker.check()
                self._measure(worker, now)
                measured_at = now
            self._draw()
            sent = sum(map(len, self.tally.sent.values()))
            if sent == expected and self._over(now):
                time.sleep(BEAT_SECONDS)
                self._measure(worker, time.monotonic())
                for record in reader.poll(POLL_SECONDS):
                    self._take(record)
                return None
            if (why := self._given_up(now)) is not None:
                return why

    def _over(self, now: float) -> bool:
        """All closing summaries read, and all translations, or none came for a while."""
        if not self.tally.finished():
            return False
        return self.tally.complete() or now - (self.last_result or now) > SETTLE_SECONDS

    def _given_up(self, now: float) -> str | None:
        if now - max(self.last_result or now, self.last_work or 0.0) > self.plan.stall_seconds:
            return (
                f"nothing came out of the worker for {self.plan.stall_seconds:.0f} s, and its model "
                "did no work"
            )
        return None

    # --- what arrives --------------------------------------------------------------------------

    def _replay(self, segments: list[list[Segment]], stop: threading.Event) -> None:
        """The replay thread: results and errors go to the loop through a queue."""
        try:
            with producer(self.settings) as client:
                topic = self.settings.topic_segments
                count = partition_count(client, topic, self.settings)
                sender = Replay(client, topic, count, on_sent=self._sent.put)
                dues = merged(timeline(part) for part in segments)
                pacer = Pacer(parse_speed(self.plan.speed), sleep=_sleep_until(stop))
                sender.run(itertools.takewhile(lambda _: not stop.is_set(), dues), pacer)
        except BaseException as error:
            self._sent.put(error)

    def _drain(self) -> None:
        while True:
            try:
                sent = self._sent.get_nowait()
            except queue.Empty:
                return
            if isinstance(sent, BaseException):
                raise sent
            self.tally.take_sent(sent)
            if self.follower.take_segment(sent.segment) and sent.segment.type == "segment":
                self._say(plain_segment(sent.segment))

    def _take(self, record: Any) -> None:
        """One record of an output topic; those of streams that are not ours are left aside."""
        self._drain()  # a result may overtake the news that its input was stored
        if record.topic == self.settings.topic_dlq:
            self._take_dead_letter(record)
            return
        event = read(record, self.settings)
        if event is None or isinstance(event, Segment):
            return
        if event.stream_id not in self.follower.views:
            return
        now = time.monotonic()
        self.last_result = now
        if isinstance(event, SummaryEvent) and self.first_summary is None:
            self.first_summary = now - self.started
        if isinstance(event, AnswerEvent):
            self.tally.take_answer(event)
        else:
            self.tally.take_event(event)
            self._ask(event.stream_id)
        if self.follower.take_event(event):
            for line in plain_event(event):
                self._say(line)

    def _ask(self, stream_id: str) -> None:
        """Put this run's question to a stream, once it has a summary."""
        if any(q.stream_id == stream_id for q in self.tally.questions.values()):
            return
        if not self.tally.summaries(stream_id):
            return
        name = f"demo-{stream_id}"
        question = Question(stream_id=stream_id, question_id=name, kind="catch_up")
        if stream_id == self._first:
            question = Question(stream_id=stream_id, question_id=name, text=self.plan.question)
        topic = self.settings.topic_questions
        count = partition_count(self._asking, topic, self.settings)
        self._asking.send(
            topic,
            key=stream_id.encode(),
            value=encode_question(question),
            partition=partition_of(stream_id, count),
        )
        self.tally.take_question(question)

    def _take_dead_letter(self, record: Any) -> None:
        if (record.key or b"").decode(errors="replace") not in self.follower.views:
            return
        headers = dict(record.headers)
        partition, offset = (
            int(headers.get(f"__streams.errors.{name}") or -1) for name in ("partition", "offset")
        )
        self.tally.take_dead_letter(partition, offset)
        message = headers.get("__streams.errors.message") or b""
        self._say(f"dead letter: {message.decode(errors='replace')}")

    def _measure(self, worker: WorkerProcess, now: float) -> None:
        """Ask for the numbers; the rate shown is that of the last seconds."""
        measured = worker.measure()
        if measured.processed is not None and measured.processed != self.measured.processed:
            self.last_work = now
        if measured.generated is None:
            return
        self.measured = measured
        if self._last_count is None or now - self._last_count[0] >= 5.0:
            if self._last_count is not None:
                then, count = self._last_count
                self.rate = (measured.generated - count) / (now - then)
            self._last_count = now, measured.generated

    # --- what is shown -------------------------------------------------------------------------

    def showing(self, live: Live | None) -> None:
        """Draw on ``live`` from now on; None: print lines."""
        self._live = live

    def _status(self) -> Status:
        return Status(
            title="longstream demo",
            note=" · ".join(filter(None, (self.page, self.note or self._what()))),
            tokens_per_second=self.rate,
            acceptance=self.measured.acceptance,
            mean_accepted_length=self.measured.mean_accepted_length,
            kv_bytes_per_stream=self.measured.kv_bytes_per_stream,
            behind=sum(view.behind for view in self.follower.views.values()),
            seconds=time.monotonic() - self.started,
        )

    def _what(self) -> str:
        return self.plan.model if self.page else f"{self.plan.model} · {self.settings.bootstrap}"

    def _draw(self) -> None:
        if self._live is not None:
            views = list(self.follower.views.values())
            height = self._console.size.height
            screen = draw(views, self._status(), height, list(self._log))
            self._live.update(screen, refresh=True)
        elif time.monotonic() - self._status_at >= STATUS_SECONDS:
            self._status_at = time.monotonic()
            self._say(f"-- {self._status().line()}")

    def _show_log(self, worker: WorkerProcess) -> None:
        """New lines of the worker's log, where there is no screen to draw on."""
        new = worker.lines - self._shown
        self._shown = worker.lines
        for line in list(worker.log)[-new:] if new else []:
            self._log.append(line)
            self._say(f"worker: {line}")

    def _say(self, line: str) -> None:
        if self._live is None:
            print(line, file=self._console.file, flush=True)


def _sleep_until(stop: threading.Event) -> Callable[[float], None]:
    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return sleep
