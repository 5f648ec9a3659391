"""Servers with OpenAI's interface for tests: a scripted one, and a proxy that misbehaves."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Body = dict[str, Any]
Act = Callable[["Exchange"], None]
"""Handles one request."""
Say = Callable[[Body], str]
"""The words of an answer to a request."""


class Exchange(BaseHTTPRequestHandler):
    """One request: ``body`` is what was asked."""

    protocol_version = "HTTP/1.1"
    server: Listener
    body: Body

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.script.seen.append((self.path, {}))
        self.server.script.get(self)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script = self.server.script
        with script.lock:
            script.seen.append((self.path, self.body))
            script.keys.append(self.headers.get("authorization", ""))
            act = script.next.popleft() if script.next else script.usual
            script.busy += 1
            script.busiest = max(script.busiest, script.busy)
        try:
            act(self)
        except (ConnectionError, httpx.HTTPError):
            self.close_connection = True
        finally:
            with script.lock:
                script.busy -= 1

    def reply(self, status: int, body: Body | bytes, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, pieces: list[bytes]) -> None:
        """A stream of events, closed at its end."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    script: Script

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # the client has gone, as it may


@dataclass
class Script:
    """What a server does. ``next``: the acts of the next POSTs; then ``usual``."""

    usual: Act
    get: Act
    next: deque[Act] = field(default_factory=deque)
    seen: list[tuple[str, Body]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    busiest: int = 0
    url: str = ""

    @property
    def asked(self) -> list[Body]:
        """What was asked for but the probes."""
        return [body for _, body in self.seen if body and "max_tokens" in body]


@contextmanager
def running(script: Script, context: Any = None) -> Iterator[Script]:
    """``context``: an SSL context, to serve https."""
    server = Listener(("127.0.0.1", 0), Exchange)
    server.script = script
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    script.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- a scripted server -----------------------------------------------------------------------------


def scripted(
    say: Say = lambda body: "Words.",
    *,
    model: str = "scripted",
    logprobs: bool = True,
    schema: bool = True,
    entry: Body | None = None,
) -> Script:
    """A server whose answers are ``say``'s; for choices, its first letter is the likeliest.
    ``entry``: what its list says of the model besides the name."""

    def get(exchange: Exchange) -> None:
        listed = {"id": model, "object": "model", "owned_by": "vllm", **(entry or {})}
        exchange.reply(200, {"object": "list", "data": [listed]})

    def answer(exchange: Exchange) -> None:
        body = exchange.body
        words = say(body)
        if body.get("response_format"):
            if not schema:
                exchange.reply(400, {"error": {"message": "response_format is not known"}})
                return
            letters = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]
            named = [x for x in words if x in letters["enum"]]
            words = json.dumps({"answer": (named or letters["enum"])[0]})
        usage = {"prompt_tokens": 7, "completion_tokens": max(1, len(words.split()))}
        if not body.get("stream"):
            choice: Body = {"message": {"role": "assistant", "content": words}, "index": 0}
            if body.get("logprobs") and logprobs:
                top = [{"token": x, "logprob": -0.1 - n} for n, x in enumerate(words[:5])]
                choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
            exchange.reply(200, {"model": model, "choices": [choice], "usage": usage})
            return
        deltas = [{"delta": {"content": words[at : at + 7]}} for at in range(0, len(words), 7)]
        counted = body["stream_options"].get("continuous_usage_stats", False)
        known = {"usage": usage} if counted else {}
        events: list[Body] = [{"choices": [delta], **known} for delta in deltas]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        events += [{"choices": [], "usage": usage}]
        pieces = [f"data: {json.dumps({'model': model, **event})}\n\n".encode() for event in events]
        exchange.stream([*pieces, b"data: [DONE]\n\n"])

    return Script(answer, get)


# --- a proxy -------------------------------------------------------------------------------------


def proxy(upstream: str) -> Script:
    """Hands every request on, unless its next act is another."""

    def get(exchange: Exchange) -> None:
        found = httpx.get(f"{upstream}{exchange.path}", trust_env=False, timeout=60)
        exchange.reply(found.status_code, found.content)

    def forward(exchange: Exchange) -> None:
        with httpx.stream(
            "POST", f"{upstream}{exchange.path}", json=exchange.body, trust_env=False, timeout=60
        ) as found:
            if not found.headers["content-type"].startswith("text/event-stream"):
                exchange.reply(found.status_code, found.read())
                return
            exchange.stream([])
            for piece in found.iter_bytes():
                exchange.wfile.write(piece)
                exchange.wfile.flush()

    return Script(forward, get)


def busy(exchange: Exchange) -> None:
    exchange.reply(429, {"error": {"message": "too many"}}, retry_after="0.05")


def broken(exchange: Exchange) -> None:
    exchange.reply(503, b"<html>down</html>")


def hangs_up(exchange: Exchange) -> None:
    exchange.close_connection = True


def cut_off(exchange: Exchange) -> None:
    """Begins an answer and drops the connection."""
    exchange.stream([b'data: {"choices":[{"delta":{"content":"The review is wrong"}}]}\n\n'])


def garbage(exchange: Exchange) -> None:
    exchange.stream([b"\xff\xfe not an event\n\n", b"{}{}{}\n"])


def no_json(exchange: Exchange) -> None:
    exchange.stream([b'data: {"choices": [{"delta"\n\n'])


def wrong_model(exchange: Exchange) -> None:
    event = {
        "model": "another",
        "choices": [{"delta": {"content": "Wrong"}, "finish_reason": "stop"}],
    }
    exchange.stream([f"data: {json.dumps(event)}\n\n".encode(), b"data: [DONE]\n\n"])


def too_long(exchange: Exchange) -> None:
    said = "the request exceeds the available context size (256 tokens)"
    exchange.reply(400, {"error": {"message": said, "type": "exceed_context_size_error"}})


def silent(seconds: threading.Event) -> Act:
    """Says nothing until the event is set."""

    def act(exchange: Exchange) -> None:
        seconds.wait(10)
        exchange.close_connection = True

    return act
