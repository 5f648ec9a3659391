"""What every request passes before it is answered: who asks, how often, how much; and the headers of all
answers. Nothing that is said here or logged holds text, a stream's name or a token.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.config.fields import Settings
from pipelines.gateway.access import ALL, Access, Caller, Refused
from pipelines.gateway.limits import Full, Places, Rate, Record
from pipelines.gateway.sender import Unavailable
from pipelines.gateway.shapes import Problem

log = logging.getLogger(__name__)

SAFE = ("GET", "HEAD", "OPTIONS")
METHODS = (*SAFE, "POST", "PATCH", "DELETE", "PUT")
MAX_BODY_SECONDS = 20.0
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
TITLES = {
    400: "bad request",
    401: "no access",
    403: "not allowed",
    404: "not found",
    405: "method not allowed",
    413: "too large",
    415: "wrong content type",
    421: "unknown host",
    429: "too many requests",
    503: "not available",
}


class Gate:
    """An ASGI app around the routes."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access, record: Record) -> None:
        self._app, self._settings, self._access = app, settings, access
        self._record = record
        self._rate = Rate(settings.gateway_requests_per_s)
        self._places = Places(settings.gateway_max_requests)
        self._body = settings.gateway_body_kib << 10
        self.ready: Callable[[], bool] = lambda: True
        """Whether the views are filled; before that /v1 answers 503."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # As it was sent, so that an encoded slash in a name is no path separator.
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        scope["path"] = raw.decode("ascii", "replace").partition("?")[0]
        scope["root_path"] = ""
        headers = _headers(scope)
        origin = headers.get("origin", "")
        answer = _Answer(send, self._cors(origin))
        started = time.monotonic()
        try:
            await self._pass(scope, receive, answer, headers)
        except Refused as error:
            await self._refuse(scope, answer, error.status, str(error))
        except Unavailable as error:
            await self._refuse(scope, answer, 503, str(error))
        except Full:
            await self._refuse(
                scope, answer, 503, "too many at once; try again", {"retry-after": "2"}
            )
        except Exception as error:
            # Starlette has answered 500. A traceback with its variables would hold what people said.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s in %s:%s", type(error).__name__, frame.filename, frame.lineno)
        self._count(scope, answer.status, time.monotonic() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        log.debug("%s %s in %.3f s", method, status, seconds)
        known = method if method in (*METHODS, "WEBSOCKET") else "other"
        self._record("gateway_requests", 1, known, str(status or "none"))
        if method != "WEBSOCKET" and not scope["path"].endswith(("/events", "/questions")):
            self._record("gateway_request_seconds", seconds)

    async def _pass(
        self, scope: Scope, receive: Receive, send: _Answer, headers: Mapping[str, str]
    ) -> None:
        address = (scope.get("client") or ("", 0))[0]
        is_api = scope["path"].startswith("/v1/")
        if is_api and scope.get("method") == "OPTIONS":
            await _preflight(send)
            return
        scope.setdefault("state", {})
        if scope["path"] == "/metrics" and ALL not in self._access.caller(headers, address).tenants:
            raise Refused(403, "the numbers are of all tenants: this wants a token for *")
        if is_api:
            caller = self._access.caller(headers, address)
            scope["state"]["caller"] = caller
            self._check(scope, headers, caller)
            if not self.ready():
                raise Unavailable("the gateway is still reading Kafka")
        if scope["type"] == "websocket" or scope["path"].endswith("/events"):
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/questions"):  # may wait for an answer, in places of its own
            receive = await self._whole_body(receive, headers)
            await self._app(scope, receive, send)
            return
        with self._places.one():
            if scope["method"] not in SAFE:
                receive = await self._whole_body(receive, headers)
            await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Mapping[str, str], caller: Caller) -> None:
        if wait := self._rate.take(caller.name):
            raise _TooFast(wait)
        socket = scope["type"] == "websocket"
        if socket or scope["method"] not in SAFE:
            self._access.check_origin(headers)
        if socket and not caller.may_write:
            raise Refused(403, "this token may read only")
        if not socket and scope["method"] in ("POST", "PATCH"):
            media = headers.get("content-type", "").partition(";")[0].strip().lower()
            if media != "application/json":
                raise Refused(415, "content-type: application/json")

    async def _whole_body(self, receive: Receive, headers: Mapping[str, str]) -> Receive:
        """Read the body, which may not be larger than allowed. Raises Refused."""
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said) > self._body:
            raise Refused(413, f"the body may have {self._body} bytes")
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size > self._body:
                raise Refused(413, f"the body may have {self._body} bytes")
            parts.append(part)
            more = message.get("more_body", False)
        whole = b"".join(parts)
        given = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": whole, "more_body": False}

        return again

    def _cors(self, origin: str) -> dict[str, str]:
        if not origin or origin.lower() not in self._settings.gateway_origin_list:
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-headers": "authorization, content-type, last-event-id",
            "access-control-allow-methods": "GET, POST, PATCH, DELETE",
            "access-control-expose-headers": "etag",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "Origin",
        }

    async def _refuse(
        self,
        scope: Scope,
        send: _Answer,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if send.status:
            raise RuntimeError("refused after the answer had begun")
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": detail[:100]})
            return
        await problem(status, detail, headers)(scope, _nothing, send)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal as RFC 9457 has it."""
    body = msgspec.json.encode(Problem(TITLES.get(status, "refused"), status, detail))
    fields = dict(headers or {})
    if status == 401:
        fields["www-authenticate"] = "Bearer"
    return Response(body, status, fields, media_type="application/problem+json")


async def problem_of(request: Request, error: Exception) -> Response:
    """The answer to what a handler raises."""
    match error:
        case Refused():
            return problem(error.status, str(error))
        case HTTPException():
            return problem(error.status_code, str(error.detail), error.headers)
        case Full():
            return problem(503, "too many at once; try again", {"retry-after": "2"})
    return problem(503, str(error))


HANDLERS: dict[Any, Any] = dict.fromkeys((Refused, HTTPException, Full, Unavailable), problem_of)


async def _nothing() -> Message:
    raise RuntimeError("a refusal reads no body")


class _TooFast(Refused):
    def __init__(self, wait: float) -> None:
        super().__init__(429, f"too many requests; wait {wait:.1f} s")


class _Answer:
    """``send`` that adds the headers of all answers and remembers the status."""

    def __init__(self, send: Send, extra: Mapping[str, str]) -> None:
        self._send, self._extra, self.status = send, extra, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name for name, _ in message["headers"]}
            added = {"cache-control": "no-cache", **SECURITY, **self._extra}
            message["headers"] = [
                *message["headers"],
                *((n.encode(), v.encode()) for n, v in added.items() if n.encode() not in given),
            ]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)


async def _preflight(send: _Answer) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
