"""Webhooks: what is sent, signed, repeated and refused. Targets are on loopback."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from operators.errors import ConfigError
from pipelines.config.fields import Settings
from pipelines.gateway.webhooks import (
    Deliverer,
    Hook,
    HookReader,
    Undeliverable,
    is_public,
    notes_of,
    read_hooks,
    signature,
)
from pipelines.observability.catalogue import WEBHOOK_SPECS
from pipelines.observability.metrics import SideMetrics
from pipelines.wire.codec import encode_event
from tests.pipelines.gateway import KeptRecords, item, summary

SECRET = b"a-secret-of-the-hook"


class Target:
    """A server that answers with the given statuses, the last one from then on."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.statuses, self.headers = list(statuses), headers
        self.requests: list[tuple[dict[str, str], bytes]] = []

    async def __aenter__(self) -> Target:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers=self.headers)

    def hook(self, **fields: Any) -> Hook:
        fields = {"kinds": frozenset({"decision", "final"}), "allow_private": True, **fields}
        return Hook("crm", f"http://127.0.0.1:{self.port}/hook", SECRET, **fields)


def event(revision: int = 2, **fields: Any) -> Any:
    old = item(0, "We ship", last_changed_revision=1)
    new = item(1, "We ship on Friday", last_changed_revision=2)
    task = item(2, "Write it", "action_item", last_changed_revision=2)
    return summary(revision, old, new, task, **fields)


async def no_wait(seconds: float) -> None:
    pass


def deliver(
    target: Target, hook: Hook | None = None, times: int = 1, **options: Any
) -> list[float]:
    """Deliver an event's notes; the waits between attempts."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def scenario() -> None:
        async with target:
            deliverer = Deliverer(hook or target.hook(), sleep, **options)
            try:
                for _ in range(times):
                    for note in notes_of(event(), hook or target.hook()):
                        await deliverer.deliver(note)
            finally:
                await deliverer.close()

    asyncio.run(scenario())
    return waits


def test_a_note_is_sent_once_it_changes_signed_and_with_an_id_that_stays() -> None:
    target = Target(200)
    deliver(target, times=2)
    assert len(target.requests) == 2  # only the decision of this revision
    headers, body = target.requests[0]
    sent = json.loads(body)
    assert (sent["type"], sent["item"]["text"]) == ("decision", "We ship on Friday")
    assert (
        headers["webhook-id"] == sent["event_id"] == json.loads(target.requests[1][1])["event_id"]
    )
    stamp = int(headers["webhook-timestamp"])
    assert headers["webhook-signature"] == signature(SECRET, sent["event_id"], stamp, body)
    assert headers["webhook-signature"] != signature(b"other", sent["event_id"], stamp, body)


def test_the_end_is_told_with_all_notes() -> None:
    hook = Hook("x", "http://a", SECRET, frozenset({"final"}))
    (note,) = notes_of(event(status="final"), hook)
    assert (note.type, len(note.items)) == ("final", 3)
    assert list(notes_of(event(), hook)) == []


def test_a_target_that_fails_is_asked_again_later_and_later() -> None:
    target = Target(500, 503, 200)
    waits = deliver(target)
    assert len(target.requests) == 3
    assert 0.8 <= waits[0] <= 1.2
    assert 1.6 <= waits[1] <= 2.4


def test_a_target_may_say_when() -> None:
    assert deliver(Target(429, 200, **{"retry-after": "7"})) == [7.0]
    assert deliver(Target(503, 200, **{"retry-after": "99999"})) == [120.0]


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (302, 1), (500, 3)])
def test_what_is_not_taken_is_given_up(status: int, asked: int) -> None:
    target = Target(status, location="http://169.254.169.254/")
    with pytest.raises(Undeliverable):
        deliver(target, attempts=3)
    assert len(target.requests) == asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    async def scenario() -> None:
        async with Target(200) as target:
            url = f"http://{host}:{target.port}/hook"
            deliverer = Deliverer(
                Hook("x", url, SECRET, frozenset({"decision"})), no_wait, attempts=1
            )
            (note,) = notes_of(event(), target.hook())
            with pytest.raises(Undeliverable):
                await deliverer.deliver(note)
            await deliverer.close()
            assert target.requests == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("name", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_dead_letters_and_tenants() -> None:
    async def scenario() -> None:
        async with Target(410) as target:
            kept = KeptRecords()
            hook = target.hook(tenants=frozenset({"one"}))

            async def tenant_of(stream_id: str) -> str | None:
                return {"s": "one", "t": "two"}.get(stream_id)

            metrics = SideMetrics(WEBHOOK_SPECS)
            reader = HookReader(Settings(), hook, tenant_of, kept, metrics.record)  # type: ignore[arg-type]
            deliverer = Deliverer(hook, no_wait, record=metrics.record)
            for stream in ("t", "unknown", "s"):
                value = encode_event(event(stream_id=stream))
                record = SimpleNamespace(
                    topic="summaries", partition=1, offset=9, key=stream.encode(), value=value
                )
                await reader.take(record, deliverer)
            await deliverer.close()
            assert len(target.requests) == 1  # the other tenants' were never sent
            ((topic, stream, value),) = kept.records
            assert (topic, stream) == (Settings().topic_dlq, "s")
            assert json.loads(value)["type"] == "decision"
            page = metrics.render().decode()
            assert 'webhook_failures_total{hook="crm",reason="status 410"} 1.0' in page
            assert 'webhook_dead_letters_total{hook="crm"} 1.0' in page
            assert 'webhook_deliveries_total{hook="crm"} 0.0' in page

    asyncio.run(scenario())


def test_the_file_is_checked(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    file = tmp_path / "hooks.toml"
    good = f'[[webhook]]\nname = "crm"\nurl = "https://example.org/x"\nsecret_file = "{secret}"\n'
    file.write_text(good + 'kinds = ["decision", "final"]\ntenants = ["one"]\n')
    (hook,) = read_hooks(file)
    assert (hook.name, hook.kinds, hook.allow_private) == ("crm", {"decision", "final"}, False)
    for bad in (
        "",
        good + good,
        good + 'kinds = ["gossip"]\n',
        good + 'address = "x"\n',
        good.replace("https://", "https://me:pass@"),
        good.replace("https://", "file://"),
        good.replace(str(secret), "/nowhere"),
    ):
        file.write_text(bad)
        with pytest.raises(ConfigError) as caught:
            read_hooks(file)
        assert "pass@" not in str(caught.value)
