"""Real worker processes and a view of what they wrote, for tests on a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from operators.events import AnyEvent, SummaryEvent, TranslationEvent, task_of
from pipelines.wire.codec import decode_event
from tests.pipelines.test_schemas import validate

ROOT = Path(__file__).parent.parent


class WorkerProcess:
    """``longstream worker`` with the echo operator, on its own topics; its log in a file."""

    def __init__(self, topics: Any, folder: Path, name: str = "w1", **settings: object) -> None:
        self.name = name
        self.log_path = folder / f"{name}-{time.monotonic_ns()}.log"
        names = {
            "TOPIC_SEGMENTS": topics.segments,
            "TOPIC_SUMMARIES": topics.summaries,
            "TOPIC_SUMMARIES_LATEST": topics.latest,
            "TOPIC_TRANSLATIONS": topics.translations,
            "TOPIC_QUESTIONS": topics.questions,
            "TOPIC_ANSWERS": topics.answers,
            "TOPIC_SESSIONS": topics.sessions,
            "TOPIC_DLQ": topics.dlq,
        }
        defaults: dict[str, object] = {
            "BOOTSTRAP": topics.bootstrap,
            "APP_ID": topics.prefix.rstrip("."),
            "WORKER": name,
            "HTTP_PORT": 0,
            "COMMIT_INTERVAL_S": 0.1,
            "SESSION_TIMEOUT_S": 6,
            "STOP_DEADLINE_S": 10,
            "THREADS": 1,
            "TEST_OPERATOR": "tests.echo_device:make",
        }
        values = {**names, **defaults, **{k.upper(): v for k, v in settings.items()}}
        env = {k: v for k, v in os.environ.items() if not k.startswith("LONGSTREAM_")}
        env |= {f"LONGSTREAM_{k}": str(v) for k, v in values.items()}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.main", "worker"],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, text: str, timeout: float = 30.0) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None, timeout, self.log)
        assert text in self.log, f"worker ended without saying {text!r}:\n{self.log}"

    def device(self) -> psutil.Process:
        """Its device process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, as an orchestrator would; the exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> str:
        """A page of its HTTP server."""
        self.wait_for_log("/metrics")
        url = self.log.split("serving ")[1].split("/metrics")[0]
        try:
            with urllib.request.urlopen(url + path, timeout=5) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()


@contextmanager
def workers(
    topics: Any, folder: Path, **defaults: object
) -> Iterator[Callable[..., WorkerProcess]]:
    """A function that starts workers; all are dead at the end, and none left a device behind."""
    started: list[WorkerProcess] = []

    def start(name: str = "w1", **settings: object) -> WorkerProcess:
        started.append(WorkerProcess(topics, folder, name, **{**defaults, **settings}))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
                worker.kill()
            print(f"--- {worker.name}, exit {worker.process.returncode}\n{worker.log[-6000:]}")


class Records:
    """Reads topics from their start, in the background, as a read_committed consumer sees them."""

    def __init__(self, bootstrap: str, *names: str, partitions: int = 4) -> None:
        self.records: dict[str, list[Any]] = defaultdict(list)
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=10 << 20,
        )
        self._consumer.assign([TopicPartition(n, p) for n in names for p in range(partitions)])
        self._stop = threading.Event()
        self._validated: set[tuple[str, int, int]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for tp, records in self._consumer.poll(timeout_ms=100).items():
                self.records[tp.topic] += records
        self._consumer.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def events(self) -> list[AnyEvent]:
        """All summaries, translations and answers so far, in the order of each partition."""
        values = [r for records in list(self.records.values()) for r in list(records)]
        for record in values:
            place = (record.topic, record.partition, record.offset)
            if place not in self._validated:  # against the JSON Schema files, once each
                validate(json.loads(record.value)["schema"], record.value)
                self._validated.add(place)
        return [decode_event(r.value) for r in values]

    def summaries(self, stream: str | None = None) -> list[SummaryEvent]:
        return [
            e
            for e in self.events()
            if isinstance(e, SummaryEvent) and stream in (None, e.stream_id)
        ]

    def translations(self) -> list[TranslationEvent]:
        return [e for e in self.events() if isinstance(e, TranslationEvent) and e.is_final]

    def covered(self, stream: str) -> int:
        """The highest sequence number a summary of the stream covers; -1 for none."""
        return max((e.covers.to_seq for e in self.summaries(stream)), default=-1)


@contextmanager
def producer(bootstrap: str) -> Iterator[KafkaProducer]:
    made = KafkaProducer(bootstrap_servers=bootstrap, max_request_size=10 << 20, linger_ms=5)
    try:
        yield made
    finally:
        made.close(timeout=5)


def say(made: KafkaProducer, topic: str, stream: str, *texts: str, **fields: object) -> None:
    """Produce one segment per text, its id the text."""
    for text in texts:
        value = {"stream_id": stream, "text": text, "segment_id": text, **fields}
        made.send(topic, key=stream.encode(), value=json.dumps(value).encode())
    made.flush()


def end(made: KafkaProducer, topic: str, *streams: str) -> None:
    for stream in streams:
        value = json.dumps({"stream_id": stream, "type": "session_end"}).encode()
        made.send(topic, key=stream.encode(), value=value)
    made.flush()


PATIENCE = 4
"""A machine with other work is so many times slower."""


def wait_until(condition: Callable[[], bool], timeout: float, message: object = "") -> float:
    """Poll until true; the seconds it took. ``timeout``: seconds on a quiet machine; the test fails
    after PATIENCE times as many."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout * PATIENCE:
            raise AssertionError(f"not within {timeout * PATIENCE} s: {message}")
        time.sleep(0.03)
    return time.monotonic() - started


def assert_revisions_sound(events: Sequence[AnyEvent]) -> None:
    """Per (stream, task, epoch): every revision once, contiguous from 1, in rising order."""
    seen: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for event in events:
        seen[event.stream_id, task_of(event), event.epoch].append(event.revision)
    for key, revisions in seen.items():
        assert revisions == list(range(1, len(revisions) + 1)), f"{key}: {revisions}"


def assert_all_reflected(summaries: list[SummaryEvent], stream: str, ids: list[str]) -> None:
    """Every segment id is named by exactly one summary: none lost, none taken twice."""
    named = " ".join(
        e.items[-1].text.split("covers", 1)[1] for e in summaries if e.stream_id == stream
    )
    assert sorted(named.split()) == sorted(ids)
