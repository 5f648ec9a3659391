"""What a broker is to its users, whichever way it was found."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Literal, Self

from operators.errors import LongstreamError

Kind = Literal["external", "docker", "jvm", "tansu"]
Log = Callable[[str], None]

KAFKA_VERSION = "4.3.1"

# Below the range from which kernels pick client ports (32768 up on Linux, 49152 up on macOS): a
# client that keeps reconnecting to a port *inside* it while the broker restarts can be given that
# very port as its own and end up connected to itself.
PORTS = range(20_000, 32_000)


class BrokerError(LongstreamError):
    """No broker could be found or started, or it refused. Says what was tried and what to do."""


class Broker:
    """A Kafka-protocol broker that answers at ``bootstrap``; a context manager that closes it.

    This base class is the broker somebody else runs (``kind == "external"``); closing it does
    nothing. ``transactions`` says whether transactions and read_committed can be relied on.
    """

    kind: Kind = "external"
    transactions: bool = True

    def __init__(self, bootstrap: str, description: str) -> None:
        self.bootstrap = bootstrap
        self.description = description

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the broker and remove its data, if it is ours. Safe to call twice."""

    def kill(self) -> None:
        """End the broker at once, as a crash would; its data and port are kept."""
        raise BrokerError(f"cannot kill a broker of kind {self.kind}: {self.description}")

    def restart(self) -> None:
        """Start the killed broker again on the same data and the same port."""
        raise BrokerError(f"cannot restart a broker of kind {self.kind}: {self.description}")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """``count`` different ports nobody listens on now. Somebody may still come first."""
    found: list[int] = []
    start = time.monotonic_ns() % len(PORTS)
    for step in range(len(PORTS)):
        # A stride coprime to the range, so that processes starting together spread out.
        port = PORTS[(start + step * 7919) % len(PORTS)]
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
        if len(found) == count:
            return found
    raise BrokerError(f"no {count} free ports between {PORTS.start} and {PORTS.stop} on {host}")


def listens(bootstrap: str, timeout: float = 1.0) -> bool:
    """True if one of the comma-separated ``host:port`` accepts a TCP connection."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with closing(socket.create_connection((host.strip("[]"), int(port)), timeout)):
                return True
        except (OSError, ValueError, OverflowError):
            continue
    return False
