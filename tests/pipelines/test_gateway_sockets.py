"""The gateway on a real socket: server-sent events, slow readers, many readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from pipelines.gateway.app import Gateway
from pipelines.gateway.server import config_of
from tests.pipelines.gateway import filled, made, segment

OPENED: list[asyncio.StreamWriter] = []


@contextlib.asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[int]:
    """The gateway's port; its lifespan, which would connect to Kafka, is left out."""
    config = config_of(gateway.app, gateway.settings, gateway.stuck)
    config.lifespan = "off"
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        task = asyncio.create_task(server._serve([listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            for writer in OPENED:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            OPENED.clear()
            server.should_exit = server.force_exit = True
            await task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Reader:
    """Server-sent events by a bare socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, path: str, **headers: str) -> Reader:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        OPENED.append(writer)
        fields = {k.replace("_", "-"): v for k, v in headers.items()}
        fields |= {"Host": "localhost", "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        return cls(reader, writer)

    async def event(self) -> tuple[str, str, Any]:
        """(id, kind, data) of the next event; comments and chunk sizes are skipped."""
        name = kind = ""
        while True:
            line = (await self.reader.readuntil(b"\n")).decode().strip()
            field, _, value = line.partition(": ")
            if field == "id":
                name = value
            elif field == "event":
                kind = value
            elif field == "data":
                return name, kind, json.loads(value)

    def close(self) -> None:
        self.writer.close()


def test_a_reader_resumes_where_it_was() -> None:
    async def scenario() -> None:
        gateway, _ = made()
        filled(gateway)
        async with serving(gateway) as port:
            live = await Reader.open(port, "/v1/streams/s/events")
            assert (await live.event())[1] == "hello"
            gateway.views.take("segments", 20, 1, segment(5, "live"))
            seen, kind, data = await live.event()
            assert (kind, data["text"]) == ("segment", "live")
            live.close()
            gateway.views.take("segments", 21, 1, segment(6, "missed <script>"))
            again = await Reader.open(port, "/v1/streams/s/events", Last_Event_ID=seen)
            assert (await again.event())[1] == "hello"
            assert (await again.event())[2]["text"] == "missed <script>"
            old = await Reader.open(port, "/v1/streams/s/events?after=11-0-0-0-0")
            assert (await old.event())[1] == "hello"
            ids = [(await old.event())[0] for _ in range(3)]  # in the order of this gateway
            assert ids == ["12-0-0-0-0", "12-0-6-0-0", "12-8-6-0-0"]
            gateway.views.remove("s")
            assert (await again.event())[1] == "forgotten"

    asyncio.run(scenario())


def test_readers_go_when_the_gateway_ends() -> None:
    async def scenario() -> None:
        gateway, _ = made()
        filled(gateway)
        async with serving(gateway) as port:
            reader = await Reader.open(port, "/v1/streams/s/events")
            assert (await reader.event())[1] == "hello"
            gateway.changes.close()
            assert b"event" not in await reader.reader.read()
            await until(lambda: gateway.api.readers.used == 0)

    asyncio.run(scenario())


def test_a_cursor_too_old_is_told_to_start_anew() -> None:
    async def scenario() -> None:
        gateway, _ = made()
        filled(gateway)
        view = gateway.views.get("s")
        assert view is not None
        view.log.clear()
        async with serving(gateway) as port:
            reader = await Reader.open(port, "/v1/streams/s/events?after=5-0-0-0-0")
            _, kind, data = await reader.event()
            assert (kind, data["cursor"]) == ("reset", str(view.cursor))
            rest = await reader.reader.read()  # and the answer ends
            assert b"event" not in rest

    asyncio.run(scenario())


def test_a_reader_that_takes_nothing_is_cut_off_and_holds_no_memory() -> None:
    async def scenario() -> None:
        gateway, _ = made(gateway_send_timeout_s=0.5)
        filled(gateway)
        async with serving(gateway) as port:
            slow = socket.create_connection(("127.0.0.1", port))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b"GET /v1/streams/s/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            quick = await Reader.open(port, "/v1/streams/s/events")
            await quick.event()
            await until(lambda: gateway.api.readers.used == 2)
            started = time.monotonic()
            number = 100
            while gateway.api.readers.used == 2 and time.monotonic() - started < 60:
                gateway.views.take("segments", number, 1, segment(number, "x" * 100_000))
                number += 1
                await quick.event()  # the other one is not held up
            assert gateway.api.readers.used == 1
            dropped = 'longstream_gateway_readers_dropped_total{reason="stuck"} 1.0'
            assert dropped in gateway.metrics.render().decode()
            slow.close()

    asyncio.run(scenario())


def test_readers_are_counted() -> None:
    async def scenario() -> None:
        gateway, _ = made(gateway_max_readers=1)
        filled(gateway)
        async with serving(gateway) as port:
            one = await Reader.open(port, "/v1/streams/s/events")
            await one.event()
            with pytest.raises(AssertionError, match="503"):
                await Reader.open(port, "/v1/streams/s/events")

    asyncio.run(scenario())


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 6000:
        pytest.skip(f"needs 6,000 open files, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_two_thousand_readers(many_files: None, tmp_path: Path) -> None:
    """Both ends in one process, on loopback, in bounded time. Prints what it took."""
    readers, rounds = 2000, 10

    async def scenario() -> dict[str, float]:
        gateway, _ = made(gateway_requests_per_s=10_000)
        filled(gateway)
        process = psutil.Process()
        async with serving(gateway) as port:
            before = process.memory_info().rss
            opened = []
            for start in range(0, readers, 50):
                batch = (
                    Reader.open(port, "/v1/streams/s/events") for _ in range(start, start + 50)
                )
                opened += await asyncio.gather(*batch)
            await asyncio.gather(*(reader.event() for reader in opened))
            assert gateway.api.readers.used == readers
            after = process.memory_info().rss
            took = []
            for number in range(rounds):
                started = time.monotonic()
                gateway.views.take(
                    "segments", 100 + number, 1, segment(100 + number, f"n {number}")
                )
                events = await asyncio.gather(*(reader.event() for reader in opened))
                took.append(time.monotonic() - started)
                assert {data["text"] for _, _, data in events} == {f"n {number}"}
            for reader in opened:
                reader.close()
            await until(lambda: gateway.api.readers.used == 0)
        return {
            "readers": readers,
            "event_to_all_median_s": sorted(took)[rounds // 2],
            "event_to_all_worst_s": max(took),
            "kib_per_reader_both_ends": (after - before) / readers / 1024,
        }

    print(json.dumps(asyncio.run(asyncio.wait_for(scenario(), 300))))
