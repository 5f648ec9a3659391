"""The gateway on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from operators.errors import ConfigError
from pipelines.config.fields import Settings
from pipelines.gateway.app import Gateway

log = logging.getLogger(__name__)
LEAVE_SECONDS = 3
BACKLOG = 2048


def bounded_protocol(seconds: float, on_stuck: Callable[[], None]) -> type[H11Protocol]:
    """HTTP connections that are cut off when their peer takes nothing for so many seconds: what waits
    for a slow reader is then one socket's buffer, for so long at most. ``on_stuck``: one was."""

    class BoundedProtocol(H11Protocol):
        _stuck: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(seconds, self._cut_off)

        def _cut_off(self) -> None:
            on_stuck()
            self.transport.abort()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._settle()

        def connection_lost(self, exc: Exception | None) -> None:
            self._settle()
            super().connection_lost(exc)

        def _settle(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

    return BoundedProtocol


class Server(uvicorn.Server):
    """Ends in order; uvicorn's own raises the signal again, which would be its exit code."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.force_exit = self.should_exit  # asked twice
        self.should_exit = True
        self._on_stop()


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises ConfigError."""
    host, port = settings.gateway_host, settings.gateway_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot serve on {host}:{port} ({error.strerror or error}); choose another "
            "LONGSTREAM_GATEWAY_PORT (0 = any free one)"
        ) from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(settings: Settings, on_url: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``on_url`` is told the address. Raises ConfigError."""
    gateway = Gateway(settings)
    with listen(settings) as listener:
        server = Server(config_of(gateway.app, settings, gateway.stuck), gateway.changes.close)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, server.stop)
        on_url(url_of(listener))
        await server.serve(sockets=[listener])


def config_of(
    app: ASGIApp, settings: Settings, on_stuck: Callable[[], None] = lambda: None
) -> uvicorn.Config:
    """No access log (it would hold streams' names), no header that names the server."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.gateway_send_timeout_s, on_stuck),
        ws="websockets-sansio",
        ws_max_size=settings.gateway_body_kib << 10,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=LEAVE_SECONDS,
        h11_max_incomplete_event_size=32 << 10,
    )
