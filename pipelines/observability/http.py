"""Three pages over HTTP: ``/metrics`` for Prometheus, ``/live`` and ``/ready`` for who restarts us.

``/live`` answers as long as the event loop turns: restart the process when it does not. ``/ready``
is 200 only when every check holds, with each check in its JSON body. Nothing else is served.

Bound to loopback unless told otherwise. With a token, ``/metrics`` wants ``Authorization: Bearer``,
and ``/ready`` tells strangers the verdict only; ``/live`` stays open, it says nothing.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import hdrs, web

from operators.errors import ConfigError
from pipelines.observability.metrics import CONTENT_TYPE, Metrics

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 6066


class Check(NamedTuple):
    """One condition of readiness, and what a person should know about it."""

    ok: bool
    detail: str


ReadinessCheck = Callable[[], Mapping[str, Check]]


@dataclass
class Readiness:
    """Ready = Kafka there, in the group, model loaded, and progress within ``stall_seconds`` or idle. A
    standby, in the group without partitions, is ready: it takes over as fast as the others.

    The worker writes the fields as things happen; calling the object gives the checks. ``clock`` is
    monotonic seconds.
    """

    stall_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    partitions: int | None = None
    """Partitions assigned to this worker, 0 for a standby; None before the group has answered."""
    model: str | None = None
    """Name of the loaded model; None while it is not loaded, or its process is gone."""
    stopping: bool = False
    kafka_away: str | None = None
    """In words, that no broker answers; None while one does."""
    server_troubles: set[str] = field(default_factory=set)
    """What is wrong with the server that has the model, since its last good answer."""
    _in_flight: int = field(default=0, init=False, repr=False)
    _last_progress: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._last_progress = self.clock()

    @property
    def in_flight(self) -> int:
        """Segments read and not finished; 0 = idle. Leaving 0 starts the wait for progress anew."""
        return self._in_flight

    @in_flight.setter
    def in_flight(self, segments: int) -> None:
        if self._in_flight == 0 and segments > 0:
            self._last_progress = self.clock()
        self._in_flight = segments

    def progress(self) -> None:
        """Something was finished just now."""
        self._last_progress = self.clock()

    def kafka(self, away: str | None) -> None:
        """No broker answers, in words; None when one does again."""
        self.kafka_away = away

    def server(self, reason: str, bad: bool) -> None:
        """Trouble with the model's server began or ended."""
        (self.server_troubles.add if bad else self.server_troubles.discard)(reason)

    def __call__(self) -> Mapping[str, Check]:
        quiet = self.clock() - self._last_progress
        moving = self.in_flight == 0 or quiet <= self.stall_seconds
        state = "idle" if self.in_flight == 0 else f"{self.in_flight} segments in flight"
        return {
            "kafka": Check(self.kafka_away is None, self.kafka_away or "answers"),
            "assigned": Check(self.partitions is not None, self._assigned()),
            "model": self._model_check(),
            "progress": Check(moving, f"{state}, last progress {quiet:.1f} s ago"),
            "running": Check(not self.stopping, "stopping" if self.stopping else "running"),
        }

    def _assigned(self) -> str:
        if self.partitions is None:
            return "not in the consumer group yet"
        return f"{self.partitions} partitions" if self.partitions else "standby, no partitions"

    def _model_check(self) -> Check:
        if self.server_troubles:
            return Check(False, f"its server: {', '.join(sorted(self.server_troubles))}")
        return Check(self.model is not None, self.model or "not loaded")


class HttpServer:
    """A running server. ``port`` is the real one (useful after asking for port 0)."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        self._runner = runner
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def close(self) -> None:
        """Stop listening and close open connections. May be called twice."""
        await self._runner.cleanup()


async def serve(
    host: str,
    port: int,
    metrics: Metrics,
    readiness: ReadinessCheck,
    *,
    token: str | None = None,
) -> HttpServer:
    """Start serving in the running event loop and return at once.

    Raises ConfigError when the address cannot be bound.
    """
    app = web.Application()
    pages = _Pages(metrics, readiness, token)
    app.router.add_get("/metrics", pages.metrics)
    app.router.add_get("/live", pages.live)
    app.router.add_get("/ready", pages.ready)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"cannot serve HTTP on {host}:{port} ({error.strerror or error}); "
            "choose another LONGSTREAM_HTTP_PORT (0 = any free one) or LONGSTREAM_HTTP_HOST"
        ) from error
    return HttpServer(runner, host, runner.addresses[0][1])


class _Pages:
    def __init__(self, metrics: Metrics, readiness: ReadinessCheck, token: str | None) -> None:
        self._metrics = metrics
        self._readiness = readiness
        self._token = token.encode() if token else None

    async def metrics(self, request: web.Request) -> web.Response:
        if not self._known(request):
            return web.Response(
                status=401,
                text="this page wants Authorization: Bearer <token>\n",
                headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
            )
        response = web.Response(
            body=self._metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE}
        )
        response.enable_compression()
        return response

    async def live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        checks = self._readiness()
        ready = all(check.ok for check in checks.values())
        body: dict[str, object] = {"ready": ready}
        if self._known(request):
            body["checks"] = {name: check._asdict() for name, check in checks.items()}
        return web.json_response(body, status=200 if ready else 503)

    def _known(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get(hdrs.AUTHORIZATION, "")
        scheme, _, credentials = given.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            credentials.strip().encode("utf-8", "surrogateescape"), self._token
        )
