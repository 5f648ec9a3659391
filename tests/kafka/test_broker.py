"""The broker itself: it starts, keeps data over a crash, has transactions, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaConsumer, KafkaProducer

from pipelines.config.load import Settings
from pipelines.dev import broker
from pipelines.dev.broker import find
from pipelines.dev.broker.base import free_ports, listens
from pipelines.dev.broker.cache import cached_folder
from pipelines.dev.broker.docker import container_environment, knock
from pipelines.dev.broker.process import ProcessBroker
from pipelines.kafka.errors import TopicError
from pipelines.kafka.topics import TopicSpec, admin_client, create_topics

ROOT = Path(__file__).parents[2]


def produce(bootstrap: str, topic: str, values: list[bytes], key: bytes = b"k") -> None:
    """Send the values to the topic and wait until the broker has them."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    try:
        for future in [producer.send(topic, value, key=key) for value in values]:
            future.get(timeout=30)
    finally:
        producer.close()


def consume(bootstrap: str, topic: str, count: int, seconds: float = 20.0) -> list[bytes]:
    """The first ``count`` values of the topic, fewer if they do not come in time."""
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=int(seconds * 1000),
    )
    try:
        # The count first: zip must not ask for one more record and wait for it.
        return [record.value for _, record in zip(range(count), consumer, strict=False)]
    finally:
        consumer.close()


def becomes(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    """True as soon as the condition holds, False if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid: int) -> bool:
    """True if the process exists and is not merely waiting to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- a real Kafka ------------------------------------------------------------------------------


def test_produced_records_come_back_in_order(kafka, topics):
    topics.create(partitions=1)
    values = [b"record %d" % n for n in range(50)]
    produce(kafka, topics.segments, values)
    assert consume(kafka, topics.segments, 50) == values


def test_a_record_of_five_megabytes_reaches_the_topic(kafka, topics, kafka_broker):
    # An oversized input has to reach the worker, which refuses it with a reason.
    if kafka_broker.kind == "external":
        pytest.skip("the limit of somebody else's Kafka is not ours to set")
    topics.create(partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka, max_request_size=8 << 20)
    try:
        sent = producer.send(topics.segments, b"x" * (5 << 20)).get(timeout=30)
    finally:
        producer.close()
    assert sent.offset == 0


def test_read_committed_hides_an_aborted_transaction(kafka, topics, kafka_broker):
    assert kafka_broker.transactions
    topics.create(partitions=1)
    asyncio.run(_write_transactions(kafka, topics.summaries))
    committed = asyncio.run(_read(kafka, topics.summaries, "read_committed", 2))
    assert committed == [b"kept 1", b"kept 2"]
    everything = asyncio.run(_read(kafka, topics.summaries, "read_uncommitted", 3))
    assert everything == [b"kept 1", b"aborted", b"kept 2"]


async def _write_transactions(bootstrap: str, topic: str) -> None:
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=f"writer-{topic}"
    ) as producer:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept 1")
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept 2")


async def _read(bootstrap: str, topic: str, isolation: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        isolation_level=isolation,
        enable_auto_commit=False,
    ) as consumer:
        values: list[bytes] = []
        async with asyncio.timeout(20):
            while len(values) < count:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    values += [record.value for record in records]
        return values


def test_topics_get_their_policies_and_creating_them_again_changes_nothing(kafka, topics):
    names = sorted(spec.name for spec in topics.specs)
    assert sorted(create_topics(kafka, topics.specs, 3)) == names
    assert create_topics(kafka, topics.specs, 3) == []
    with admin_client(kafka) as admin:
        described = {topic["name"]: topic for topic in admin.describe_topics(names)}
        from kafka.admin import ConfigResource, ConfigResourceType

        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        configs = admin.describe_configs(asked)["topic"]
    assert {len(described[name]["partitions"]) for name in names} == {3}
    compacted = {n for n in names if configs[n]["cleanup.policy"]["value"] == "compact"}
    assert compacted == {topics.latest, topics.sessions}
    assert int(configs[topics.dlq]["retention.ms"]["value"]) == int(
        Settings().dlq_retention_h * 3_600_000
    )
    limits = {int(configs[name]["max.message.bytes"]["value"]) for name in names}
    assert limits == {Settings().max_message_bytes}, "else a worker keeps to less"


def test_an_existing_topic_with_another_partition_count_is_refused(kafka, topics):
    topics.create(partitions=2)
    with pytest.raises(TopicError, match="has 2 partitions, 5 are needed"):
        topics.create(partitions=5)


def test_an_existing_state_topic_that_is_not_compacted_is_refused(kafka, topics):
    create_topics(kafka, [TopicSpec(topics.sessions)], 1)
    with pytest.raises(TopicError, match=r"cleanup\.policy=delete, compact is needed"):
        topics.create(partitions=1)


def test_a_mistyped_topic_is_not_created(kafka, topics):
    producer = KafkaProducer(bootstrap_servers=kafka, max_block_ms=1500)
    try:
        with pytest.raises(Exception, match=r"(?i)topic|metadata|time"):
            producer.send(topics.prefix + "nobody.made.this", b"x").get(timeout=5)
    finally:
        producer.close()
    with admin_client(kafka) as admin:
        assert topics.prefix + "nobody.made.this" not in admin.list_topics()


def test_a_killed_broker_comes_back_with_its_data_on_its_port(own_kafka):
    bootstrap, pid = own_kafka.bootstrap, own_kafka.pid
    create_topics(bootstrap, partitions=1)
    produce(bootstrap, "insights.sessions.v1", [b"before the crash"])
    own_kafka.kill()
    assert not runs(pid)
    assert not listens(bootstrap)
    own_kafka.restart()
    assert own_kafka.bootstrap == bootstrap
    produce(bootstrap, "insights.sessions.v1", [b"after it"])
    assert consume(bootstrap, "insights.sessions.v1", 2) == [b"before the crash", b"after it"]
    folder, pid = own_kafka.folder, own_kafka.pid
    own_kafka.close()
    assert not folder.exists()
    assert not runs(pid)
    own_kafka.close()  # a second time does no harm
    with pytest.raises(broker.BrokerError, match="its data removed"):
        own_kafka.restart()


OWNER_OF_A_JVM = """
import sys, time
from pipelines.dev.broker.find import default_cache
from pipelines.dev.broker.jvm import start_jvm
started = start_jvm(default_cache(), lambda line: None)
print(started.pid, started.folder, flush=True)
time.sleep(600)
"""


def test_the_jvm_and_its_folder_go_when_the_owner_is_sigkilled():
    with owner(OWNER_OF_A_JVM) as (process, pid, folder):
        assert runs(pid)
        assert (folder / "data").is_dir()
        process.kill()
        process.wait()
        assert becomes(lambda: not runs(pid))
        assert becomes(lambda: not folder.exists())


# --- the guard, with a small server in Kafka's place -------------------------------------------

OWNER_OF_A_SMALL_SERVER = """
import sys, tempfile, time
from pathlib import Path
from pipelines.dev.broker.base import free_ports
from pipelines.dev.broker.process import ProcessBroker
port = free_ports(1)[0]
folder = Path(tempfile.mkdtemp(prefix="longstream-test-"))
command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
started = ProcessBroker(f"127.0.0.1:{port}", "a small server", folder, command)
started.launch()
print(started.pid, started.folder, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def owner(script: str) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """A process that owns a server: (process, the server's pid, its folder). Killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            pid, folder = process.stdout.readline().split()
            yield process, int(pid), Path(folder)
        finally:
            process.kill()


def small_server(folder: Path, *arguments: str) -> ProcessBroker:
    port = free_ports(1)[0]
    command = arguments or ("-m", "http.server", str(port), "--bind", "127.0.0.1")
    return ProcessBroker(f"127.0.0.1:{port}", "a small server", folder, [sys.executable, *command])


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_and_its_folder_go_with_their_owner(death):
    with owner(OWNER_OF_A_SMALL_SERVER) as (process, pid, folder):
        assert runs(pid)
        assert folder.is_dir()
        process.send_signal(death)
        process.wait()
        assert becomes(lambda: not runs(pid))
        assert becomes(lambda: not folder.exists())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl(PR_SET_PDEATHSIG)")
def test_a_server_goes_when_its_guard_is_sigkilled(tmp_path):
    with small_server(tmp_path / "server") as server:
        server.folder.mkdir()
        server.launch()
        pid = server.pid
        psutil.Process(pid).parent().kill()
        assert becomes(lambda: not runs(pid))


def test_a_server_that_ends_while_starting_shows_the_end_of_its_log(tmp_path):
    server = small_server(tmp_path, "-c", "print('the disk is full'); raise SystemExit(3)")
    with (
        server,
        pytest.raises(broker.BrokerError, match=r"ended while starting(.|\n)*disk is full"),
    ):
        server.launch()


def test_a_server_that_never_listens_is_given_up(tmp_path):
    with small_server(tmp_path, "-c", "import time; time.sleep(60)") as server:
        with pytest.raises(broker.BrokerError, match="did not listen within 1 s"):
            server.launch(timeout=1)
        pid = server.pid
        assert runs(pid)
    assert not runs(pid)


def test_kill_and_restart_are_refused_at_the_wrong_time(tmp_path):
    with small_server(tmp_path) as server:
        with pytest.raises(broker.BrokerError, match="is not running"):
            server.kill()
        server.launch()
        with pytest.raises(broker.BrokerError, match=r"kill\(\) it first"):
            server.restart()
    with pytest.raises(broker.BrokerError, match="cannot kill a broker of kind external"):
        broker.Broker("somewhere:9092", "somebody else's").kill()


# --- which broker is taken ---------------------------------------------------------------------


@pytest.fixture
def ways(monkeypatch) -> list[str]:
    """The ways to start a broker replaced by failures; returns the list of those tried."""
    tried: list[str] = []

    def failing(name: str) -> Callable[..., broker.Broker]:
        def start(*args: object, **kwargs: object) -> broker.Broker:
            tried.append(name)
            raise broker.BrokerError(f"no {name} here")

        return start

    for name in ("docker", "jvm", "tansu"):
        monkeypatch.setattr(find, f"start_{name}", failing(name))
    return tried


def test_docker_is_tried_before_a_jvm_and_the_error_says_what_to_do(ways):
    with pytest.raises(broker.BrokerError) as caught:
        broker.start()
    assert ways == ["docker", "jvm"]
    for words in ("no docker here", "no jvm here", "LONGSTREAM_BOOTSTRAP", "Java 17"):
        assert words in str(caught.value)


def test_tansu_is_tried_last_and_only_when_allowed(ways):
    with pytest.raises(broker.BrokerError):
        broker.start(allow_tansu=True)
    assert ways == ["docker", "jvm", "tansu"]


def test_an_existing_broker_is_taken_before_all(ways, tmp_path):
    with small_server(tmp_path) as server:
        server.launch()
        with broker.start(bootstrap=server.bootstrap) as found:
            assert (found.kind, found.bootstrap) == ("external", server.bootstrap)
        assert listens(server.bootstrap), "closing must not end somebody else's broker"
    assert ways == []


def test_an_existing_broker_that_does_not_answer_is_an_error_not_a_reason_for_another(ways):
    with pytest.raises(broker.BrokerError, match=r"nothing listens at 127\.0\.0\.1:1"):
        broker.start(bootstrap="127.0.0.1:1")
    assert ways == []


# --- small parts -------------------------------------------------------------------------------


def test_a_cached_folder_appears_complete_or_not_at_all(tmp_path):
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path, "a/b", broken)
    assert list((tmp_path / "a").iterdir()) == []
    made = cached_folder(tmp_path, "a/b", lambda folder: None)
    assert made == tmp_path / "a" / "b"
    assert cached_folder(tmp_path, "a/b", broken) == made, "an existing folder is not filled again"


def test_properties_become_the_variables_of_the_image():
    variables = container_environment("example", 29092, {"log.retention.ms": "7"})
    assert variables["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://example:29092"
    assert variables["KAFKA_LOG_RETENTION_MS"] == "7"
    assert variables["KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR"] == "1"


def test_a_docker_engine_is_knocked_at_before_it_is_used(tmp_path):
    path = str(tmp_path / "engine.sock")
    with pytest.raises(OSError, match="No such file"):
        knock(f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(path)
        engine.listen()
        knock(f"unix://{path}")
    with pytest.raises(ConnectionRefusedError):
        knock("tcp://127.0.0.1:1")


@pytest.mark.slow
def test_tansu_starts_and_carries_records():
    try:
        started = broker.start("tansu")
    except broker.BrokerError as error:
        pytest.skip(str(error))
    with started:
        assert not started.transactions
        create_topics(started.bootstrap, partitions=1)
        produce(started.bootstrap, "transcripts.segments.v1", [b"a", b"b"])
        assert consume(started.bootstrap, "transcripts.segments.v1", 2) == [b"a", b"b"]
