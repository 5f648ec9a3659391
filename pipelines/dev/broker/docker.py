"""Apache Kafka in a container, through testcontainers.

The host port is chosen beforehand, because the address that Kafka advertises has to be known when
it starts, and because a restart has to come back on the same one. testcontainers' own reaper
removes the container when this process ends in any way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipelines.dev.broker.base import (
    KAFKA_VERSION,
    Broker,
    BrokerError,
    Kind,
    Log,
    free_ports,
    listens,
)
from pipelines.dev.broker.jvm import COMMON_PROPERTIES

IMAGE = f"apache/kafka:{KAFKA_VERSION}"
ENGINE_SECONDS = 3
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
START_SECONDS = 90.0


class DockerBroker(Broker):
    """Owns the container; its data lives in the container's own layer, so a restart keeps it."""

    kind: Kind = "docker"

    def __init__(self, bootstrap: str, container: Any) -> None:
        super().__init__(bootstrap, f"{IMAGE} (Docker, {bootstrap})")
        self._container = container

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.stop()

    def kill(self) -> None:
        self._running().kill()

    def restart(self) -> None:
        self._running().start()
        self.wait_until_listening()

    def _running(self) -> Any:
        if self._container is None:
            raise BrokerError(f"{self.description} is closed and its data removed")
        return self._container.get_wrapped_container()

    def wait_until_listening(self, timeout: float = START_SECONDS) -> None:
        """Return when the port accepts connections; :class:`BrokerError` with the log if not."""
        deadline = time.monotonic() + timeout
        while not listens(self.bootstrap):
            if time.monotonic() > deadline:
                tail = b"\n".join(self._container.get_logs())[-3000:].decode(errors="replace")
                raise BrokerError(
                    f"{self.description} did not listen within {timeout:.0f} s:\n{tail}"
                )
            time.sleep(0.1)


def engine_host() -> str:
    """Host of the Docker engine that answers within 3 s; :class:`BrokerError` if none does."""
    try:
        from testcontainers.core.docker_client import DockerClient, get_docker_host
    except ImportError as error:
        raise BrokerError("the Python package testcontainers is not installed") from error
    try:
        knock(get_docker_host() or os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE)
        client = DockerClient(timeout=ENGINE_SECONDS)
        with contextlib.closing(client.client):
            client.client.ping()
            return str(client.host())
    except Exception as error:  # docker, requests and urllib3 each raise their own
        raise BrokerError(f"no Docker engine answered ({type(error).__name__})") from error


def knock(engine: str) -> None:
    """Connect once to ``unix:///path`` or ``tcp://host:port``; OSError if nobody is there.

    The docker package leaves its socket open when that fails. Other schemes are not tried here.
    """
    scheme, _, address = engine.partition("://")
    if scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ENGINE_SECONDS)
            probe.connect(address)
    elif scheme in ("tcp", "http", "https"):
        parts = urlsplit(engine)
        with socket.create_connection((parts.hostname or "", parts.port or 2375), ENGINE_SECONDS):
            pass


def container_environment(host: str, port: int, properties: Mapping[str, str]) -> dict[str, str]:
    """The image takes every property as a variable: ``a.b-c`` is ``KAFKA_A_B___C``."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        **COMMON_PROPERTIES,
        **properties,
    }
    return {
        "KAFKA_" + name.replace("-", "___").replace("_", "__").replace(".", "_").upper(): value
        for name, value in settings.items()
    } | {"KAFKA_HEAP_OPTS": "-Xms96m -Xmx512m"}


def start_docker(
    log: Log, *, port: int | None = None, properties: Mapping[str, str] | None = None
) -> DockerBroker:
    """Start a container with Kafka, pulling its image first; :class:`BrokerError` if it fails."""
    host = engine_host()
    from testcontainers.core.container import DockerContainer

    log(f"starting {IMAGE} in Docker (the first time its image is pulled)")
    port = port or free_ports(1)[0]
    container = DockerContainer(IMAGE).with_envs(
        **container_environment(host, port, properties or {})
    )
    # Only the loopback interface when the engine is this machine's.
    local = host in ("localhost", "127.0.0.1")
    container.ports["9092/tcp"] = ("127.0.0.1", port) if local else port
    try:
        container.start()
        broker = DockerBroker(f"{'127.0.0.1' if local else host}:{port}", container)
        broker.wait_until_listening()
    except Exception as error:
        with contextlib.suppress(Exception):
            container.stop()
        raise BrokerError(f"{IMAGE} did not start in Docker: {error}") from error
    return broker
