"""The worker's HTTP pages, asked over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from operators.errors import ConfigError
from pipelines.observability.http import Check, HttpServer, Readiness, serve
from pipelines.observability.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ready_state(clock: Clock) -> Readiness:
    state = Readiness(stall_seconds=30.0, clock=clock)
    state.partitions = 2
    state.model = "toy"
    return state


def run(
    use: Callable[[HttpServer, aiohttp.ClientSession], Awaitable[None]],
    *,
    metrics: Metrics | None = None,
    readiness: Callable[[], dict[str, Check]] | Readiness | None = None,
    token: str | None = None,
) -> None:
    async def main() -> None:
        state = readiness if readiness is not None else ready_state(Clock())
        server = await serve("127.0.0.1", 0, metrics or Metrics(), state, token=token)
        try:
            async with aiohttp.ClientSession(server.url, auto_decompress=True) as client:
                await use(server, client)
        finally:
            await server.close()

    asyncio.run(main())


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_metrics_page(encoding: str) -> None:
    metrics = Metrics()
    metrics.rebalance()

    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/metrics", headers={"Accept-Encoding": encoding}) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert answer.headers.get("Content-Encoding", "identity") == encoding
            assert "longstream_rebalances_total{" in await answer.text()

    run(use, metrics=metrics)


def test_live_says_so() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/live") as answer:
            assert answer.status == 200
            assert await answer.json() == {"live": True}

    run(use, readiness=Readiness())


def test_only_the_three_pages_exist() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        for path in ("/", "/metrics/", "/ready/x", "/table/", "/../etc/passwd", "/favicon.ico"):
            async with client.get(path) as answer:
                assert answer.status == 404, path
        async with client.post("/ready") as answer:
            assert answer.status == 405

    run(use)


def test_ready_when_all_checks_hold() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/ready") as answer:
            assert answer.status == 200
            body = await answer.json()
            assert body["ready"] is True
            assert set(body["checks"]) == {"kafka", "assigned", "model", "progress", "running"}
            assert all(check["ok"] and check["detail"] for check in body["checks"].values())

    run(use)


def fail_assigned(state: Readiness, clock: Clock) -> None:
    state.partitions = None


def fail_model(state: Readiness, clock: Clock) -> None:
    state.model = None


def fail_kafka(state: Readiness, clock: Clock) -> None:
    state.kafka("no broker answers")


def fail_progress(state: Readiness, clock: Clock) -> None:
    state.in_flight = 1
    clock.now += 31.0


def fail_running(state: Readiness, clock: Clock) -> None:
    state.stopping = True


def test_a_standby_is_ready() -> None:
    state = ready_state(Clock())
    state.partitions = 0
    assert all(check.ok for check in state().values())
    assert state()["assigned"].detail == "standby, no partitions"


@pytest.mark.parametrize(
    "fail", [fail_kafka, fail_assigned, fail_model, fail_progress, fail_running]
)
def test_one_failed_check_is_not_ready_and_is_named(
    fail: Callable[[Readiness, Clock], None],
) -> None:
    clock = Clock()
    state = ready_state(clock)
    fail(state, clock)

    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/ready") as answer:
            assert answer.status == 503
            checks = (await answer.json())["checks"]
            bad = [name for name, check in checks.items() if not check["ok"]]
            assert bad == [fail.__name__.removeprefix("fail_")]

    run(use, readiness=state)


def test_trouble_with_the_models_server_is_not_ready_until_it_has_passed() -> None:
    state = ready_state(Clock())
    state.server("rate_limited", True)
    assert state()["model"] == Check(False, "its server: rate_limited")
    state.server("rate_limited", False)
    assert state()["model"].ok


def test_idle_for_long_is_ready() -> None:
    clock = Clock()
    state = ready_state(clock)
    clock.now += 3600.0
    assert all(check.ok for check in state().values())


def test_progress_within_the_limit_is_ready_while_work_is_in_flight() -> None:
    clock = Clock()
    state = ready_state(clock)
    state.in_flight = 5
    clock.now += 29.0
    state.progress()
    clock.now += 29.0
    assert state()["progress"].ok
    clock.now += 2.0
    assert not state()["progress"].ok


def test_work_arriving_after_a_long_idle_has_the_whole_limit() -> None:
    clock = Clock()
    state = ready_state(clock)
    clock.now += 3600.0
    state.in_flight = 1
    assert state()["progress"].ok
    clock.now += 31.0
    assert not state()["progress"].ok


def test_with_a_token_strangers_see_a_verdict_only() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            async with client.get("/metrics", headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "longstream_" not in await answer.text()
            async with client.get("/ready", headers=headers) as answer:
                assert await answer.json() == {"ready": True}
        async with client.get("/live") as answer:
            assert answer.status == 200

    run(use, token="s3cret")


def test_the_right_token_opens() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        headers = {"Authorization": "Bearer s3cret"}
        async with client.get("/metrics", headers=headers) as answer:
            assert answer.status == 200
        async with client.get("/ready", headers=headers) as answer:
            assert "checks" in await answer.json()

    run(use, token="s3cret")


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    async def use(server: HttpServer, _: aiohttp.ClientSession) -> None:
        with pytest.raises(ConfigError, match="LONGSTREAM_HTTP_PORT"):
            await serve("127.0.0.1", server.port, Metrics(), Readiness())

    run(use)


def test_closed_means_closed() -> None:
    async def use(server: HttpServer, client: aiohttp.ClientSession) -> None:
        await server.close()
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/live")

    run(use)


def test_a_readiness_of_ones_own_will_do() -> None:
    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/ready") as answer:
            assert answer.status == 503
            body = await answer.json()
            assert body["checks"] == {"disk": {"ok": False, "detail": "full"}}

    run(use, readiness=lambda: {"disk": Check(False, "full")})


def test_a_broken_readiness_is_an_error_of_that_page_only() -> None:
    def broken() -> dict[str, Check]:
        raise RuntimeError("no")

    async def use(_: HttpServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/ready") as answer:
            assert answer.status == web.HTTPInternalServerError.status_code
        async with client.get("/live") as answer:
            assert answer.status == 200

    run(use, readiness=broken)
