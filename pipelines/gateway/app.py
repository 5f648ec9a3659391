"""The gateway as an ASGI app: routes, the page's files, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from pipelines.config.fields import Settings
from pipelines.gateway.api import Api
from pipelines.gateway.events import Changes
from pipelines.gateway.feed import Feed
from pipelines.gateway.gate import HANDLERS, Gate
from pipelines.gateway.openapi import document
from pipelines.gateway.sender import Sender
from pipelines.gateway.views import Views
from pipelines.observability.catalogue import GATEWAY_SPECS
from pipelines.observability.metrics import CONTENT_TYPE, SideMetrics

MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
STREAM = "/v1/streams/{stream_id}"


class Gateway:
    """One gateway: ``app`` is to be served; its lifespan starts and stops all the rest."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = SideMetrics(GATEWAY_SPECS)
        self.changes = Changes()
        self.views = Views(settings, self.changes.notify)
        self.feed = Feed(settings, self.views)
        self.sender = Sender(settings)
        self.api = Api(
            settings, self.views, self.changes, self.feed, self.sender, self.metrics.record
        )
        gate = Gate(self._routes(), settings, self.api.access, self.metrics.record)
        gate.ready = self.feed.caught_up.is_set
        self.app: ASGIApp = gate

    def _routes(self) -> Starlette:
        api = self.api
        routes = [
            Route("/live", api.live),
            Route("/ready", api.ready),
            Route("/metrics", self._metrics),
            Route("/openapi.json", _openapi),
            Route("/v1/streams", api.streams),
            Route(STREAM, api.stream, methods=["GET"]),
            Route(STREAM, api.forget, methods=["DELETE"]),
            Route(f"{STREAM}/summary", api.summary),
            Route(f"{STREAM}/transcript", api.transcript),
            Route(f"{STREAM}/translations/{{lang}}", api.translation),
            Route(f"{STREAM}/export", api.export),
            Route(f"{STREAM}/events", api.events),
            Route(f"{STREAM}/segments", api.add_segments, methods=["POST"]),
            Route(f"{STREAM}/questions", api.add_question, methods=["POST"]),
            Route(f"{STREAM}/answers", api.answers),
            Route(f"{STREAM}/answers/{{question}}", api.answer),
            Route(f"{STREAM}/items", api.add_item, methods=["POST"]),
            Route(f"{STREAM}/items/{{item}}", api.edit, methods=["PATCH"]),
            WebSocketRoute(f"{STREAM}/segments", api.segments_socket),
            *_files(),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=HANDLERS)

    async def _metrics(self, request: Request) -> Response:
        for name, value in (
            ("readers", self.api.readers.used),
            ("readers_limit", self.api.readers.limit),
            ("streams", len(self.views)),
            ("view_bytes", self.views.bytes),
            ("ready", self.feed.caught_up.is_set() and self.feed.away is None),
        ):
            self.metrics.record(f"gateway_{name}", float(value))
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    def stuck(self) -> None:
        """A connection was cut off because its peer took nothing."""
        self.metrics.record("gateway_readers_dropped", 1, "stuck")

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        feeding = asyncio.create_task(self.feed.run(), name="feed")
        try:
            yield
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
            await self.sender.close()


async def _openapi(request: Request) -> Response:
    return Response(document(), media_type="application/json")


def _files() -> list[Route]:
    """The page's files, read once: nothing outside the folder can be asked for."""
    folder = Path(str(resources.files("pipelines.gateway"))) / "static"
    routes = []
    for path in sorted(folder.iterdir()):
        if path.suffix in MEDIA:
            name = "/" if path.name == "index.html" else f"/static/{path.name}"
            routes.append(Route(name, _File(path), methods=["GET"]))
    return routes


class _File:
    """An ASGI app that answers one file."""

    def __init__(self, path: Path) -> None:
        self._response = Response(path.read_bytes(), media_type=MEDIA[path.suffix])

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        await self._response(scope, receive, send)  # type: ignore[arg-type]
