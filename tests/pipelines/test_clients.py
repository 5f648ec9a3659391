"""The bare connection that says why a broker turns us away."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.config.fields import Settings
from pipelines.kafka.clients import turned_away
from tests.certificates import self_signed

SLOW_S = 0.3


@contextmanager
def slow_to_close(folder: Path) -> Iterator[int]:
    """A TLS server that answers a first request with nonsense, and closes some time after the client."""
    context, _ = self_signed(folder)

    def serve(listening: socket.socket) -> None:
        bare, _ = listening.accept()
        with context.wrap_socket(bare, server_side=True) as peer, suppress(OSError):
            peer.recv(4096)
            peer.sendall(b"\0\0\0\4" + b"\xff" * 4)  # a size, and the id of no request
            peer.recv(4096)  # the client's goodbye
            threading.Event().wait(SLOW_S)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


def test_no_socket_stays_open_where_the_broker_closes_late(tmp_path: Path) -> None:
    with slow_to_close(tmp_path) as port, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        settings = Settings(
            bootstrap=f"127.0.0.1:{port}",
            security_protocol="SSL",
            ssl_cafile=str(tmp_path / "cert.pem"),
        )
        asyncio.run(turned_away(settings))
        gc.collect()
    assert not [str(w.message) for w in seen if issubclass(w.category, ResourceWarning)]


def test_nobody_there_turns_nobody_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert asyncio.run(turned_away(Settings(bootstrap=f"127.0.0.1:{port}"))) is None
