"""Kafka goes away, loses a node, a topic or replicas, or refuses: wait and go on, or say why not."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)

from operators.errors import ConfigError
from pipelines.config.load import Settings
from pipelines.dev import broker
from pipelines.dev.broker.base import free_ports
from pipelines.dev.broker.cluster import Cluster
from pipelines.dev.broker.jvm import FAST_RESTART, JvmBroker, start_jvm
from pipelines.dev.broker.process import ProcessBroker
from pipelines.kafka.health import Brokers
from pipelines.kafka.topics import admin_client
from tests.kafka_settings import no_kafka
from tests.worker_process import (
    Records,
    WorkerProcess,
    assert_all_reflected,
    assert_revisions_sound,
    producer,
    say,
    wait_until,
    workers,
)

TopicsAt = Callable[[str], Any]

# kafka-python, with which the tests themselves read and write, leaves the socket of a connection that
# was refused to the garbage collector. The workers are other processes and use another client.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def sockets_collected() -> Iterator[None]:
    """Here, not in a later test of another module, which does not expect them. What kafka-python logs
    names its connections, and pytest keeps it to the end of the session: so it logs nothing."""
    level = logging.getLogger("kafka").level
    logging.getLogger("kafka").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("kafka").setLevel(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def ids(stream: str, count: int, start: int = 0) -> list[str]:
    return [f"{stream}-{number}" for number in range(start, start + count)]


def check(seen: Records, stream: str, count: int) -> None:
    assert_revisions_sound(seen.events())
    assert_all_reflected(seen.summaries(), stream, ids(stream, count))


def set_topic(bootstrap: str, topic: str, **configs: str) -> None:
    named = {name.replace("_", "."): value for name, value in configs.items()}
    with admin_client(bootstrap) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, named)])


def last_words(worker: WorkerProcess) -> str:
    """What the worker said when it ended, on one line."""
    return " ".join(worker.log.split("stopping on a fault")[-1].split())


# --- away, and back ------------------------------------------------------------------------------


def outage(
    own_kafka: ProcessBroker, topics: Any, folder: Path, seconds: float, after: float = 1.5
) -> None:
    """The only broker is killed with work under way and comes back: same worker, nothing missing."""
    topics.create(2)
    with workers(topics, folder, commit_interval_s=0.05) as start:
        with producer(topics.bootstrap) as made:
            for number in range(40):
                say(made, topics.segments, "a", f"a-{number} SLEEP 0.05")
                say(made, topics.segments, "b", f"b-{number} SLEEP 0.05")
        worker = start()
        worker.wait_for_log("assigned partitions")
        time.sleep(after)  # a few transactions
        own_kafka.kill()
        time.sleep(seconds)
        assert worker.process.poll() is None, worker.log
        own_kafka.restart()
        back = time.monotonic()
        with (
            producer(topics.bootstrap) as made,
            Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
        ):
            for stream in "ab":
                say(made, topics.segments, stream, *ids(stream, 20, start=40))
            assert seen.covered("a") < 59, "nothing was left to do after the outage"
            wait_until(lambda: seen.covered("a") == seen.covered("b") == 59, 120, worker.log)
            print(f"all done {time.monotonic() - back:.1f} s after the broker was back")
            assert_revisions_sound(seen.events())
            for stream in "ab":
                texts = " ".join(e.items[-1].text for e in seen.summaries(stream))
                named = [word for word in texts.split() if word.startswith(f"{stream}-")]
                assert sorted(named) == sorted(ids(stream, 60))
        assert worker.stop() == 0, worker.log


def test_a_broker_away_for_a_while(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    outage(own_kafka, topics_at(own_kafka.bootstrap), tmp_path, 10)


@pytest.mark.slow
def test_a_broker_away_for_a_minute(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """Longer than a transaction may last: the broker ends it, and the worker begins anew."""
    outage(own_kafka, topics_at(own_kafka.bootstrap), tmp_path, 60)


@pytest.mark.slow
def test_a_broker_that_goes_away_while_states_are_read(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    outage(own_kafka, topics_at(own_kafka.bootstrap), tmp_path, 30, after=0.0)


@pytest.mark.slow
def test_a_broker_that_stays_away_ends_the_worker(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    topics = topics_at(own_kafka.bootstrap).create(1)
    with workers(topics, tmp_path, broker_patience_s=5, stop_deadline_s=3) as start:
        with producer(topics.bootstrap) as made:
            say(made, topics.segments, "a", *(f"{name} SLEEP 0.1" for name in ids("a", 60)))
        worker = start()
        worker.wait_for_log("assigned partitions")
        own_kafka.kill()
        assert worker.process.wait(60) == 5, worker.log
        assert "no Kafka at" in worker.log
        own_kafka.restart()
        with Records(topics.bootstrap, topics.summaries, partitions=1) as seen:
            start("next")
            wait_until(lambda: seen.covered("a") == 59, 60)
            assert_revisions_sound(seen.events())


def test_idle_workers_notice_too(
    own_kafka: ProcessBroker, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """Nothing to fetch or commit: one says so, waits and goes on; a hasty one ends as documented."""
    topics = topics_at(own_kafka.bootstrap).create(2)
    with workers(topics, tmp_path, stop_deadline_s=3) as start:
        patient = start("patient")
        patient.wait_for_log("ready in")
        hasty = start("hasty", broker_patience_s=10)
        hasty.wait_for_log("ready in")  # its partition: nothing is under way now
        assert json.loads(patient.get("/ready"))["ready"]
        own_kafka.kill()
        assert hasty.process.wait(60) == 5, hasty.log
        assert "no broker of Kafka's has answered for" in last_words(hasty)
        patient.wait_for_log("no broker of Kafka's has answered for")
        ready = json.loads(patient.get("/ready"))
        assert not ready["ready"]
        assert "has answered for" in ready["checks"]["kafka"]["detail"]
        assert patient.process.poll() is None
        own_kafka.restart()
        patient.wait_for_log("Kafka answers again after")
        assert json.loads(patient.get("/ready"))["checks"]["kafka"]["ok"]
        with (
            producer(topics.bootstrap) as made,
            Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
        ):
            for stream in "abcd":
                say(made, topics.segments, stream, *ids(stream, 3))
            wait_until(lambda: all(seen.covered(s) == 2 for s in "abcd"), 60, patient.log)
        assert patient.stop() == 0, patient.log


@pytest.mark.slow
def test_one_of_three_brokers_after_the_other_is_killed(
    cluster: Cluster, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """Each node in turn: leaders of partitions and the group's and transactions' coordinators."""
    topics = topics_at(cluster.bootstrap).create(4)
    streams = [f"s{number}" for number in range(6)]
    with (
        workers(topics, tmp_path, commit_interval_s=0.1) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries) as seen,
    ):
        worker = start()
        count = 0
        for node in cluster.nodes:
            for stream in streams:
                say(made, topics.segments, stream, *ids(stream, 9, start=count))
            node.kill()
            killed = time.monotonic()
            for stream in streams:
                say(made, topics.segments, stream, *ids(stream, 9, start=count + 9))
            count += 18
            wait_until(
                lambda n=count: all(seen.covered(s) == n - 1 for s in streams),  # type: ignore[misc]
                120,
                worker.log,
            )
            print(f"all done {time.monotonic() - killed:.1f} s after {node.description} was killed")
            node.restart()
            time.sleep(8)  # until it is in sync again
        for stream in streams:
            check(seen, stream, count)
        assert worker.stop() == 0, worker.log


@pytest.mark.slow
def test_too_few_replicas_in_sync(cluster: Cluster, topics_at: TopicsAt, tmp_path: Path) -> None:
    """Results need three replicas and one is dead: the worker waits, or ends after its patience."""
    topics = topics_at(cluster.bootstrap).create(1)
    set_topic(topics.bootstrap, topics.summaries, min_insync_replicas="3")
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        worker = start()
        say(made, topics.segments, "a", *ids("a", 3))
        wait_until(lambda: seen.covered("a") == 2, 60, worker.log)
        cluster.nodes[2].kill()
        try:
            time.sleep(6)  # until it has left the in-sync set
            say(made, topics.segments, "a", *ids("a", 3, start=3))
            time.sleep(9)
            assert seen.covered("a") == 2
            assert worker.process.poll() is None
            worker.kill()
            hasty = start("hasty", broker_patience_s=5, stop_deadline_s=5)
            assert hasty.process.wait(90) == 5, hasty.log
            assert "min.insync.replicas" in last_words(hasty)
            patient = start("patient")
            patient.wait_for_log("assigned partitions")
            time.sleep(3)
            assert patient.process.poll() is None
        finally:
            cluster.nodes[2].restart()
        wait_until(lambda: seen.covered("a") == 5, 90, patient.log)
        check(seen, "a", 6)


# --- topics --------------------------------------------------------------------------------------


def test_a_topic_that_vanishes_ends_the_worker_and_a_new_one_goes_on(
    topics: Any, tmp_path: Path
) -> None:
    topics.create(1)
    with (
        workers(topics, tmp_path, broker_patience_s=10, stop_deadline_s=3) as start,
        producer(topics.bootstrap) as made,
    ):
        worker = start()
        say(made, topics.segments, "a", *ids("a", 2))
        worker.wait_for_log("ready in")
        with admin_client(topics.bootstrap) as admin:
            admin.delete_topics([topics.summaries])
        say(made, topics.segments, "a", "a-2")
        assert worker.process.wait(90) == 2, worker.log
        assert f"no topic {topics.summaries}" in worker.log
        topics.create(1)
        with Records(topics.bootstrap, topics.summaries, partitions=1) as seen:
            start("next")
            wait_until(lambda: seen.covered("a") == 2, 40)
            check(seen, "a", 3)


def test_input_made_anew_is_noticed(topics: Any, tmp_path: Path) -> None:
    """Its offsets begin at 0 again, below what the states say is done: nothing may be passed over. What
    the worker says to do then helps."""
    topics.create(1)
    with workers(topics, tmp_path, stop_deadline_s=3) as start:
        with (
            producer(topics.bootstrap) as made,
            Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        ):
            worker = start()
            say(made, topics.segments, "a", *ids("a", 3))
            wait_until(lambda: seen.covered("a") == 2, 40, worker.log)
        assert worker.stop() == 0, worker.log
        make_anew(topics, topics.segments)
        with producer(topics.bootstrap) as made:
            say(made, topics.segments, "a", "new-0", "new-1")
            heir = start("heir")
            assert heir.process.wait(60) == 2, heir.log
            words = last_words(heir)
            assert "[0] ends at offset 2, but was processed to offset 3" in words
            make_anew(topics, topics.sessions)
            say(made, topics.segments, "a", "new-2")
        other = {"app_id": f"{topics.prefix}anew"} if "another app_id" in words else {}
        with Records(topics.bootstrap, topics.summaries, partitions=1) as seen:
            last = start("last", **other)
            wait_until(lambda: len(seen.summaries("a")) == 2, 40, last.log)
            assert seen.summaries("a")[-1].text.endswith("covers new-0 new-1 new-2")


def make_anew(topics: Any, name: str) -> None:
    with admin_client(topics.bootstrap) as admin:
        admin.delete_topics([name])
        wait_until(lambda: name not in admin.list_topics(), 20)
    topics.create(1)


def test_a_result_too_large_for_its_topic_is_cut_to_what_the_broker_takes(
    topics: Any, tmp_path: Path
) -> None:
    """Here a dead letter, on a topic whose limit was lowered under the worker, which learns the new one
    from the refusal: no hole, and the letter says that it was cut."""
    topics.create(1)
    noise = b"\xff" + random.Random(1).randbytes(5000)  # that no compression makes smaller
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        worker = start()
        worker.wait_for_log("assigned partitions")
        set_topic(topics.bootstrap, topics.dlq, max_message_bytes="2000")
        say(made, topics.segments, "a", "a-0")
        made.send(topics.segments, key=b"a", value=noise)
        say(made, topics.segments, "a", "a-1", "a-2")
        wait_until(lambda: seen.covered("a") == 2, 60)
        check(seen, "a", 3)
        wait_until(lambda: len(dead.records[topics.dlq]) == 1, 20)
        assert len(dead.records[topics.dlq][0].value) < 2000
        assert worker.process.poll() is None, worker.log


def test_a_worker_keeps_to_the_smallest_message_its_topics_take(
    topics: Any, tmp_path: Path
) -> None:
    """From the start, not when the first large record comes, perhaps months later: a topic that somebody
    made with Kafka's default takes an eighth of ours. The input is only read: its limit is of no
    concern."""
    topics.create(1)
    set_topic(topics.bootstrap, topics.segments, max_message_bytes="100000")
    set_topic(topics.bootstrap, topics.dlq, max_message_bytes="4000")
    small = {"operator__max_text_bytes": 1000}
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.dlq, partitions=1) as dead,
    ):
        refused = start("refused")
        assert refused.process.wait(60) == 2, refused.log
        words = f"max.message.bytes of {topics.dlq} is 4000, too small for segments of up to"
        assert words in refused.log
        assert "assigned" not in refused.log
        worker = start("worker", **small)
        made.send(topics.segments, key=b"a", value=b"{" + b"x" * 20_000)
        say(made, topics.segments, "a", *ids("a", 3))
        wait_until(lambda: seen.covered("a") == 2, 40, worker.log)
        wait_until(lambda: len(dead.records[topics.dlq]) == 1, 10)
        assert (
            f"max.message.bytes of {topics.dlq} is 4000: this worker writes no larger" in worker.log
        )


# --- access --------------------------------------------------------------------------------------

USER, PASSWORD = "worker", "hush"


class Guarded:
    """A broker with ACLs: whoever comes to ``bootstrap`` may do all, the rest log in at ``sasl``."""

    def __init__(self, started: JvmBroker, sasl: str) -> None:
        self.bootstrap, self.sasl = started.bootstrap, sasl

    def allow(self, kind: ResourceType, name: str, *operations: ACLOperation) -> None:
        with admin_client(self.bootstrap) as admin:
            admin.create_acls(
                [
                    ACL(
                        f"User:{USER}",
                        "*",
                        operation,
                        ACLPermissionType.ALLOW,
                        ResourcePattern(kind, name),
                    )
                    for operation in operations
                ]
            )

    def allow_all(self, topics: Any, *but: str) -> None:
        """Everything a worker needs on these topics, except for those named."""
        operations = (ACLOperation.READ, ACLOperation.WRITE, ACLOperation.DESCRIBE)
        for spec in topics.specs:
            kept = operations if spec.name not in but else (ACLOperation.DESCRIBE,)
            self.allow(ResourceType.TOPIC, spec.name, *kept)
        app = topics.prefix.rstrip(".")
        if "group" not in but:
            self.allow(ResourceType.GROUP, app, ACLOperation.READ)
        if "transactions" not in but:
            name = f"{app}-{topics.segments}-0"
            self.allow(ResourceType.TRANSACTIONAL_ID, name, *operations[1:])


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    port, sasl, controller = free_ports(3)
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},"
        f"CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
        "SASL_PLAINTEXT:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{plain} required user_{USER}="'
        f'{PASSWORD}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    try:
        started = start_jvm(
            broker.default_cache(), print, port=port, properties={**FAST_RESTART, **properties}
        )
    except broker.BrokerError as error:
        no_kafka(error)
    with started:
        yield Guarded(started, f"127.0.0.1:{sasl}")


def login(guarded: Guarded, password: str = PASSWORD) -> dict[str, object]:
    return {
        "bootstrap": guarded.sasl,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": USER,
        "sasl_password": password,
    }


def test_with_all_it_needs_a_worker_works(
    guarded: Guarded, topics_at: TopicsAt, tmp_path: Path
) -> None:
    """And so what the tests below see refused is what they took away."""
    topics = topics_at(guarded.bootstrap).create(1)
    guarded.allow_all(topics)
    with (
        workers(topics, tmp_path, **login(guarded)) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        worker = start()
        say(made, topics.segments, "a", *ids("a", 3))
        wait_until(lambda: seen.covered("a") == 2, 40, worker.log)
        assert "the broker does not say max.message.bytes of" in worker.log
        assert worker.stop() == 0, worker.log
        for spec in topics.specs:
            guarded.allow(ResourceType.TOPIC, spec.name, ACLOperation.DESCRIBE_CONFIGS)
        knowing = start("knowing")
        knowing.wait_for_log("assigned partitions")
        assert "does not say" not in knowing.log


def test_a_refused_login_is_not_taken_for_nobody_there(guarded: Guarded) -> None:
    """As of a worker that ran when the password was changed, and lost its connection."""

    async def body() -> None:
        brokers = Brokers(Settings(**login(guarded, "guess")))
        with pytest.raises(ConfigError, match="refuses the login"):
            await brokers.answer()

    asyncio.run(body())


def test_a_wrong_password_is_named(guarded: Guarded, topics_at: TopicsAt, tmp_path: Path) -> None:
    topics = topics_at(guarded.bootstrap).create(1)
    with workers(topics, tmp_path, **login(guarded, "guess")) as start:
        worker = start()
        assert worker.process.wait(60) == 6, worker.log
        assert f"refuses the login of {USER!r} by PLAIN" in worker.log
        assert "guess" not in worker.log


@pytest.mark.parametrize("missing", ["summaries", "sessions", "segments", "group", "transactions"])
def test_a_missing_access_ends_the_worker(
    guarded: Guarded, topics_at: TopicsAt, tmp_path: Path, missing: str
) -> None:
    topics = topics_at(guarded.bootstrap).create(1)
    guarded.allow_all(topics, getattr(topics, missing, missing))
    with (
        workers(topics, tmp_path, stop_deadline_s=5, **login(guarded)) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        worker = start()
        say(made, topics.segments, "a", *ids("a", 3))
        assert worker.process.wait(60) == 6, worker.log
        assert "Kafka refuses access" in last_words(worker)
        assert PASSWORD not in worker.log
        assert not seen.events()
        guarded.allow_all(topics)
        start("allowed")
        wait_until(lambda: seen.covered("a") == 2, 40)
        check(seen, "a", 3)
