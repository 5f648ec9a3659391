"""Server-sent events of one stream: no queue per reader, each has a place in the stream's one log.

A reader that comes with a cursor gets what it has not seen; where that is no longer held it gets
``reset`` and reads the stream anew. One that takes nothing for ``gateway_send_timeout_s`` is cut off by
:class:`~pipelines.gateway.server.BoundedProtocol`; it may resume by its last id, here or elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from pipelines.gateway.limits import Full, Places, Record
from pipelines.gateway.views import Cursor, Entry, StreamView, Views, frame

BEAT_SECONDS = 15.0
BLOCK_BYTES = 64 << 10

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Changes:
    """Wakes the readers of a stream."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self.closed = False
        """The gateway ends: readers are to go, and may resume elsewhere."""

    def close(self) -> None:
        self.closed = True
        for stream_id in list(self._waiting):
            self.notify(stream_id)

    def notify(self, stream_id: str) -> None:
        for future in self._waiting.pop(stream_id, ()):
            if not future.done():
                future.set_result(None)

    def next(self, stream_id: str) -> asyncio.Future[None]:
        """Done at the stream's next change. Ask for it before looking, so that none is missed."""
        future = asyncio.get_running_loop().create_future()
        waiting = self._waiting[stream_id]
        waiting.add(future)
        future.add_done_callback(lambda done: self._leave(stream_id, done))
        return future

    def _leave(self, stream_id: str, future: asyncio.Future[None]) -> None:
        if (waiting := self._waiting.get(stream_id)) is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[stream_id]


class EventStream:
    """An ASGI response. Raises Full before it starts when there are too many readers."""

    def __init__(
        self,
        view: StreamView,
        views: Views,
        changes: Changes,
        places: Places,
        after: Cursor | None,
        headers: Mapping[str, str],
        record: Record,
    ) -> None:
        self._record = record
        self._view, self._views, self._changes = view, views, changes
        self._places, self._headers = places, headers
        self._seen = after or view.cursor
        """What this reader has seen. Topics are read side by side, so each reader has ids of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._places.one():
            fields = {"content-type": "text/event-stream", **self._headers}
            raw = [(name.encode(), value.encode()) for name, value in fields.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await self._write(send, gone)
            finally:
                gone.cancel()
                with suppress(asyncio.CancelledError):
                    await gone

    async def _write(self, send: Send, gone: asyncio.Future[None]) -> None:
        log = self._view.log
        missed = log.after(self._seen)
        number = log.next_number
        opening = b"retry: 2000\n\n"
        if missed is None:
            opening += self._reset()
        else:
            opening += frame("hello", {"cursor": str(self._seen)})
            opening += b"".join(map(self._event, missed))
        await _body(send, opening)
        if missed is None:
            await _body(send, b"", more=False)
            return
        while not gone.done():
            if self._changes.closed:
                await _body(send, b"", more=False)
                return
            changed = self._changes.next(self._view.stream_id)
            if self._views.get(self._view.stream_id) is not self._view:
                changed.cancel()
                await _body(send, frame("forgotten", {}), more=False)
                return
            if number < log.first_number:  # it reads more slowly than the log forgets
                changed.cancel()
                self._record("gateway_readers_dropped", 1, "behind")
                await _body(send, self._reset(), more=False)
                return
            block = bytearray()
            for entry in log.since(number):
                block += self._event(entry)
                number = entry.number + 1
                if len(block) >= BLOCK_BYTES:
                    break
            if block:
                changed.cancel()
                await _body(send, bytes(block))
                continue
            await asyncio.wait({changed, gone}, timeout=BEAT_SECONDS, return_when="FIRST_COMPLETED")
            if not changed.done():
                changed.cancel()
                await _body(send, b": beat\n\n")

    def _reset(self) -> bytes:
        return frame("reset", {"cursor": str(self._view.cursor)})

    def _event(self, entry: Entry) -> bytes:
        self._seen = self._seen.past(entry.source, entry.offset)
        return f"id: {self._seen}\n".encode() + entry.frame


async def _body(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


__all__ = ["Changes", "EventStream", "Full"]
