"""One real Kafka for the whole pytest session, and topics of its own for each test.

There is no ``__init__.py`` beside this file on purpose: it would make this folder the package
``kafka`` and hide kafka-python.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # kafka-python reads its message schemas, once, when it is imported, by functions of
    # importlib.resources that Python 3.11 and 3.12 call deprecated (3.13 took that back). Nothing
    # of ours to change, and nothing else is ignored: only this import, only this text.
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    import kafka as _  # noqa: F401

from pipelines.dev import broker
from pipelines.dev.broker.cluster import Cluster, start_cluster
from pipelines.dev.broker.jvm import FAST_RESTART, java, start_jvm
from pipelines.dev.broker.process import ProcessBroker
from tests.kafka_settings import no_kafka
from tests.secure_broker import SecureBroker, secure_broker
from tests.topics import Topics

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[broker.Broker]:
    """The session's broker. Do not kill it: other tests use it; start one of your own for that."""
    try:
        found = broker.from_environment()
    except broker.BrokerError as error:
        # An address that was given but does not answer is a mistake, not a missing Kafka.
        if (
            os.environ.get("LONGSTREAM_REQUIRE_KAFKA") == "1"
            or "LONGSTREAM_BOOTSTRAP" in os.environ
        ):
            pytest.fail(f"a real Kafka is required: {error}", pytrace=False)
        pytest.skip(f"no real Kafka: {error}")
    with found:
        yield found


@pytest.fixture(scope="session")
def kafka(kafka_broker: broker.Broker) -> str:
    """``host:port`` of a real Kafka."""
    return kafka_broker.bootstrap


@pytest.fixture
def own_kafka() -> Iterator[ProcessBroker]:
    """A JVM broker of this test alone, which may ``kill()`` and ``restart()`` it."""
    try:
        java()
    except broker.BrokerError as error:
        no_kafka(error)
    with start_jvm(broker.default_cache(), print, properties=FAST_RESTART) as started:
        yield started


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """A JVM broker with a door that wants a login over TLS."""
    try:
        java()
        with secure_broker(tmp_path_factory.mktemp("secure")) as started:
            yield started
    except broker.BrokerError as error:
        no_kafka(error)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes for the tests of one module; who kills one restarts it."""
    try:
        java()
    except broker.BrokerError as error:
        no_kafka(error)
    with start_cluster(broker.default_cache(), print) as started:
        yield started


@pytest.fixture
def topics_at() -> Callable[[str], Topics]:
    """The same on another broker, by its address."""
    return lambda bootstrap: Topics(bootstrap, f"t{uuid.uuid4().hex[:8]}.")


@pytest.fixture
def topics(kafka: str) -> Topics:
    """Topic names of this test alone; call ``.create(partitions)`` to make them."""
    return Topics(kafka, f"t{uuid.uuid4().hex[:8]}.")


@pytest.fixture
def secure_topics(secure_kafka: SecureBroker) -> Topics:
    """The same behind the door that wants a login."""
    return Topics(secure_kafka.bootstrap, f"t{uuid.uuid4().hex[:8]}.")
