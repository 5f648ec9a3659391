"""A Kafka for tests, the demo and ``longstream kafka``, found or started.

    with broker.start() as kafka:
        create_topics(kafka.bootstrap)  # pipelines.kafka.topics

Modules: find (the order of attempts), docker, jvm, tansu (one way each), cluster (three JVM nodes),
process and guard (a child that dies with its parent), cache, base (the Broker itself).
"""

from pipelines.dev.broker.base import Broker, BrokerError
from pipelines.dev.broker.find import default_cache, from_environment, start

__all__ = [
    "Broker",
    "BrokerError",
    "default_cache",
    "from_environment",
    "start",
]
