"""What delivery costs: a no-op operator from Kafka to Kafka, beside plain copies of the same records.

A topic is filled; one worker (or one process of a plain copy) empties it; a reader of committed records
counts what arrives. The rate is of all of them, from the first one's sending (its timestamp) to the
reader's sight of the last. Then 100 segments a second are written
and each is timed from its producer to that reader: what exceeds the wait for its group's commit is ours.
Last, the brokers' own log sizes say what was written for those segments.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pipelines.dev import broker
from pipelines.dev.broker.base import free_ports
from pipelines.dev.demo.worker import WorkerProcess
from pipelines.kafka.tools import (
    KafkaConsumer,
    TopicPartition,
    connection,
    partition_for,
    producer,
)
from pipelines.kafka.topics import admin_client, create_topics, topic_specs
from pipelines.lab.benchmarks.harness import Result, Run
from pipelines.lab.benchmarks.talk import speech

MODEL = "no-op"
MODES = ("exactly_once", "at_least_once")
PARTITIONS = (1, 4, 16)
STREAMS = 64
COMMIT_S = 1.0
RATE = 100.0
PATIENCE_S = 120.0


class Bench:
    """Topics of a run on one broker, and what is done with them."""

    def __init__(self, bootstrap: str, run: Run) -> None:
        self.bootstrap, self.run = bootstrap, run

    def settings(self, mode: str, partitions: int) -> Any:
        from pipelines.config.fields import TOPIC_FIELDS, Settings

        name = f"bench.{uuid.uuid4().hex[:8]}"
        topics = {field: f"{name}.{field.removeprefix('topic_')}" for field in TOPIC_FIELDS}
        return Settings(
            bootstrap=self.bootstrap,
            app_id=name,
            partitions=partitions,
            delivery=mode,  # type: ignore[arg-type]
            commit_interval_s=COMMIT_S,
            **topics,  # type: ignore[arg-type]
        )

    @contextlib.contextmanager
    def topics(self, settings: Any) -> Iterator[None]:
        create_topics(
            self.bootstrap, topic_specs(settings), settings.partitions, replication_factor=1
        )
        try:
            yield
        finally:
            with admin_client(self.bootstrap) as admin, contextlib.suppress(Exception):
                admin.delete_topics(list(settings.topics))

    @contextlib.contextmanager
    def side(self, name: str, settings: Any) -> Iterator[None]:
        """One process that copies from the segments' topic to the translations'."""
        if name == "longstream":
            env = {f"LONGSTREAM_{f.upper()}": str(getattr(settings, f)) for f in _given(settings)}
            env["LONGSTREAM_TEST_OPERATOR"] = f"{__package__}.pipeline_sides:make_noop"
            with WorkerProcess(env, free_ports(1)[0]) as worker:
                yield
                worker.check()
            return
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", f"{__package__}.pipeline_sides", name, settings.delivery,
             self.bootstrap, settings.topic_segments, settings.topic_translations,
             settings.app_id, str(COMMIT_S)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- what is measured --------------------------------------------------------------------

    def rate(self, side: str, mode: str, partitions: int, count: int) -> float:
        """Segments per second."""
        settings = self.settings(mode, partitions)
        with self.topics(settings):
            self.fill(settings, count)
            with self.side(side, settings), self.reader(settings) as reader:
                seen, began = 0, 0.0
                deadline = time.monotonic() + PATIENCE_S
                while seen < count and time.monotonic() < deadline:
                    for records in reader.poll(timeout_ms=200, max_records=5000).values():
                        first = records[0].timestamp / 1000
                        began, seen = min(began or first, first), seen + len(records)
                took = time.time() - began
        if seen < count:
            raise RuntimeError(f"{side}, {mode}: {seen} of {count} after {PATIENCE_S:.0f} s")
        return count / took

    def latency(self, mode: str, seconds: float) -> tuple[list[float], float, float]:
        """(added seconds per segment, bytes of text, bytes written to Kafka) at RATE a second."""
        settings = self.settings(mode, 4)
        lines = segments()
        texts = 0
        with (
            self.topics(settings),
            self.side("longstream", settings),
            self.reader(settings) as reader,
        ):
            write = self.producer(settings, linger_ms=0)  # a speaker's own wait is not ours
            self.warm(write, lines, reader)
            before = self.written(settings)
            sent: dict[str, float] = {}
            arrived: dict[str, float] = {}
            began = time.monotonic()
            count = int(seconds * RATE)
            while len(arrived) < count and time.monotonic() < began + seconds + 30:
                while len(sent) < count and time.monotonic() - began >= len(sent) / RATE:
                    key, value, text = next(lines)
                    sent[text["segment_id"]] = time.monotonic()
                    texts += len(text["text"].encode())
                    write(key, value)
                polled = reader.poll(timeout_ms=2)
                now = time.monotonic()
                for record in itertools.chain.from_iterable(polled.values()):
                    name = json.loads(record.value)["unit_id"]
                    if name in sent:
                        arrived.setdefault(name, now)
            after = self.written(settings)
        if len(arrived) < count:
            raise RuntimeError(f"{mode}: {len(arrived)} of {count} arrived")
        return added(sent, arrived), float(texts), after - before

    # --- Kafka -------------------------------------------------------------------------------

    def producer(self, settings: Any, linger_ms: int = 5) -> Any:
        client = producer(settings, linger_ms)

        def write(key: str, value: bytes) -> None:
            client.send(
                settings.topic_segments, value, key=key.encode(),
                partition=partition_for(key, settings.partitions),
            )  # fmt: skip

        write.flush = client.flush  # type: ignore[attr-defined]
        return write

    def fill(self, settings: Any, count: int) -> None:
        write = self.producer(settings)
        for key, value, _ in itertools.islice(segments(), count):
            write(key, value)
        write.flush()

    def warm(self, write: Any, lines: Any, reader: Any) -> None:
        """Until something comes out at the other end; what is written before is not counted."""
        deadline = time.monotonic() + PATIENCE_S
        for _ in range(STREAMS):
            key, value, _ = next(lines)
            write(key, value)
        seen = 0
        while seen < STREAMS and time.monotonic() < deadline:
            seen += sum(map(len, reader.poll(timeout_ms=200).values()))

    @contextlib.contextmanager
    def reader(self, settings: Any) -> Iterator[Any]:
        options = connection(settings, "longstream-bench")
        consumer = KafkaConsumer(
            **options, isolation_level="read_committed", group_id=None, enable_auto_commit=False,
            fetch_max_wait_ms=5,
        )  # fmt: skip
        parts = [TopicPartition(settings.topic_translations, n) for n in range(settings.partitions)]
        with contextlib.closing(consumer):
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            yield consumer

    def written(self, settings: Any) -> float:
        """Bytes in the logs of all topics a worker writes to, and of Kafka's own topics for offsets and
        transactions, by what the broker says."""
        ours = {name for name in settings.topics if name != settings.topic_segments}
        ours |= {"__consumer_offsets", "__transaction_state"}
        with admin_client(self.bootstrap) as admin:
            return float(sum(size for name, size in log_sizes(admin) if name in ours))


def log_sizes(admin: Any) -> Iterator[tuple[str, int]]:
    """(topic, bytes) of every partition's log, over all brokers."""
    for node in admin.describe_log_dirs():
        for folder in node["log_dirs"]:
            for topic in folder["topics"]:
                for part in topic["partitions"]:
                    yield topic["name"], part["partition_size"]


def segments() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, value, segment) without end: STREAMS streams in turn, lines of a real meeting."""
    sources = [speech(f"stream-{n}") for n in range(STREAMS)]
    for number, source in enumerate(itertools.cycle(sources)):
        line = next(source)
        text = {
            "stream_id": line.stream_id,
            "seq": line.seq,
            "segment_id": f"{line.segment_id}-{number}",
            "text": line.text,
        }
        yield line.stream_id, json.dumps(text).encode(), text


def added(sent: dict[str, float], arrived: dict[str, float]) -> list[float]:
    """Seconds beyond the commit interval: of each group (what arrived together) its first segment has
    waited the whole interval, so what it took longer was added for all of them."""
    late: list[float] = []
    groups = itertools.groupby(sorted(arrived, key=arrived.__getitem__), key=arrived.__getitem__)
    for at, names in groups:
        group = list(names)
        first = min(sent[name] for name in group)
        late += [at - first - COMMIT_S] * len(group)
    return late


def _given(settings: Any) -> tuple[str, ...]:
    from pipelines.config.fields import TOPIC_FIELDS

    return ("bootstrap", "app_id", "delivery", "commit_interval_s", *TOPIC_FIELDS)


def run(run: Run) -> Result:
    """Rates of every side, mode and number of partitions, interleaved; then latency and bytes."""
    count = 300 if run.quick else 20_000  # several commits, whatever the side
    partitions = (1,) if run.quick else PARTITIONS
    rounds = run.rounds or (1 if run.quick else 2)
    sides = ("longstream",) if run.quick else ("longstream", "faust", "aiokafka")
    with broker.from_environment(log=run.say) as kafka:
        bench = Bench(kafka.bootstrap, run)
        rates: dict[str, list[float]] = {}
        for turn in range(rounds):
            for number, mode, side in itertools.product(partitions, MODES, sides):
                run.say(f"round {turn + 1}: {side}, {mode}, {number} partitions")
                name = f"{side}_{mode}_{number}"
                try:
                    rates.setdefault(name, []).append(bench.rate(side, mode, number, count))
                    run.say(f"{rates[name][-1]:.0f} segments/s")
                except RuntimeError as error:
                    run.say(str(error))
        out: dict[str, Any] = {
            f"segments_s_{name}": round(statistics.median(values), 1)
            for name, values in rates.items()
        }
        for mode in MODES:
            run.say(f"latency: {mode}")
            late, text, written = bench.latency(mode, 3 if run.quick else 30)
            cuts = statistics.quantiles(late, n=100, method="inclusive")
            out[f"added_latency_p50_ms_{mode}"] = round(cuts[49] * 1000, 1)
            out[f"added_latency_p99_ms_{mode}"] = round(cuts[98] * 1000, 1)
            out[f"write_amplification_{mode}"] = round(written / text, 2) if written else None
        out["added_latency_p50_ms"] = out["added_latency_p50_ms_exactly_once"]
        out["write_amplification"] = out["write_amplification_exactly_once"]
        for number in partitions:
            ours = out.get(f"segments_s_longstream_exactly_once_{number}")
            for side in ("faust", "aiokafka"):
                theirs = out.get(f"segments_s_{side}_exactly_once_{number}")
                if ours and theirs:
                    out[f"ratio_plain_{side}_{number}"] = round(ours / theirs, 3)
        ratios = [v for k, v in out.items() if k.startswith("ratio_plain_faust_")]
        if ratios:
            out["ratio_plain_faust"] = min(ratios)
    return {"segments": count, "streams": STREAMS, "commit_interval_s": COMMIT_S, **out}
