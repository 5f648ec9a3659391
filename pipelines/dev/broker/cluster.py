"""Several Kafka nodes on one machine, for tests of what a lost broker does.

Every node is broker and controller at once, each a JVM of its own with a small heap, so that one may
be killed and restarted while the others go on: three keep working with two.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from pipelines.dev.broker.base import KAFKA_VERSION, Broker, Kind, Log, free_ports
from pipelines.dev.broker.jvm import (
    COMMON_PROPERTIES,
    FAST_RESTART,
    JvmBroker,
    format_storage,
    jars,
    java,
    java_command,
)

HEAP = ("-Xms64m", "-Xmx256m")
REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # A dead replica leaves the in-sync set, and a returned one joins it, within seconds.
    "replica.lag.time.max.ms": "4000",
    "controller.quorum.election.timeout.ms": "1000",
    "controller.quorum.fetch.timeout.ms": "2000",
}


class Cluster(Broker):
    """Three nodes; ``nodes[i].kill()`` and ``.restart()`` are those of one. Closing ends all."""

    kind: Kind = "jvm"

    def __init__(self, nodes: list[JvmBroker]) -> None:
        bootstrap = ",".join(node.bootstrap for node in nodes)
        super().__init__(bootstrap, f"Apache Kafka {KAFKA_VERSION}, {len(nodes)} nodes")
        self.nodes = nodes

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def start_cluster(cache: Path, log: Log, *, properties: Mapping[str, str] | None = None) -> Cluster:
    """Start three nodes on free ports of the loopback interface; returns when all listen.

    ``properties`` are added to, or replace, those of every node. Topics have three replicas and
    take writes while two are in sync. Raises BrokerError.
    """
    program, classpath = java(), str(jars(cache, log) / "*")
    ports = free_ports(6)
    clients, controllers = ports[:3], ports[3:]
    voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
    with ExitStack() as undo:
        nodes = []
        for number, (client, controller) in enumerate(zip(clients, controllers, strict=True), 1):
            folder = Path(tempfile.mkdtemp(prefix=f"longstream-kafka-{number}-"))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            settings = _node(number, client, controller, folder) | dict(properties or {})
            settings["controller.quorum.voters"] = voters
            config = folder / "server.properties"
            config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
            run = java_command(program, classpath, folder, heap=HEAP)
            format_storage([*run], config, folder / "server.log", standalone=False)
            command = [*run, "kafka.Kafka", str(config)]
            description = f"Kafka node {number} (127.0.0.1:{client})"
            nodes.append(JvmBroker(f"127.0.0.1:{client}", description, folder, command))
        for node in nodes:
            # A node alone has no quorum and listens only when another is up: do not wait for each.
            node.begin()
            undo.callback(node.close)
        for node in nodes:
            node.await_listening()
        undo.pop_all()
    return Cluster(nodes)


def _node(number: int, client: int, controller: int, folder: Path) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        **COMMON_PROPERTIES,
        **REPLICATED,
        **FAST_RESTART,
    }
