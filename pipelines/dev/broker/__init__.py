"""A Kafka for tests, the demo and ``longstream kafka``: found or started, and its topics made.

    with broker.start() as kafka:
        broker.create_topics(kafka.bootstrap, broker.TOPICS, partitions=4)

Modules: find (the order of attempts), docker, jvm, tansu (one way each), cluster (three JVM nodes),
process and guard (a child that dies with its parent), topics, cache, base (the Broker itself).
"""

from pipelines.dev.broker.base import Broker, BrokerError
from pipelines.dev.broker.find import default_cache, from_environment, start
from pipelines.kafka.topics import (
    DEFAULT_PARTITIONS,
    TOPICS,
    TopicSpec,
    admin_client,
    create_topics,
)

__all__ = [
    "DEFAULT_PARTITIONS",
    "TOPICS",
    "Broker",
    "BrokerError",
    "TopicSpec",
    "admin_client",
    "create_topics",
    "default_cache",
    "from_environment",
    "start",
]
