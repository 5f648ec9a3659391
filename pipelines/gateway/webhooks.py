"""Webhooks: notes and endings of streams, posted to configured addresses.

**At least once.** Each hook reads the topic of summaries as a consumer group of its own. It commits an
offset once what the record holds was taken or has become a dead letter. A hook that is down holds up
nobody else. A repeated delivery has the same ``event_id``.

**Only where the settings say.** No address comes from a record. Addresses that are not public are
refused when they are connected to, whatever a name resolves to, unless the hook allows them. Redirects
are not followed.

**Signed** as Standard Webhooks are: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``, which
is ``v1,`` and the base64 of HMAC-SHA256 over "id.timestamp.body".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import random
import socket
import time
import tomllib
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import aiohttp
import aiokafka
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from aiokafka.errors import KafkaError

from operators.errors import ConfigError, LongstreamError
from operators.events import EVENT_NAMESPACE, LedgerItem, SummaryEvent
from pipelines.config.fields import Settings
from pipelines.gateway.limits import Record
from pipelines.gateway.sender import Sender, Unavailable
from pipelines.gateway.views import now_ms
from pipelines.kafka.clients import client_options, disconnect
from pipelines.wire.codec import decode_event
from pipelines.wire.dead_letters import dead_letter

log = logging.getLogger(__name__)

Kind = Literal["topic", "decision", "action_item", "open_question", "final"]
ATTEMPTS = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0
ANSWER_SECONDS = 15.0
TENANT_SECONDS = 10.0
POLL_MS = 500
LATER = (408, 409, 425, 429)
"""Of the statuses from 400 to 499 those that may be other later."""

TenantOf = Callable[[str], Awaitable[str | None]]


@dataclass(frozen=True)
class Hook:
    """One target. ``tenants`` empty: all."""

    name: str
    url: str
    secret: bytes
    kinds: frozenset[str]
    tenants: frozenset[str] = frozenset()
    allow_private: bool = False


class Note(msgspec.Struct, kw_only=True):
    """The body of a request. ``item`` for a note, ``items`` for the end of a stream."""

    event_id: str
    type: str
    stream_id: str
    epoch: int
    revision: int
    emitted_at_ms: int
    item: LedgerItem | None = None
    items: tuple[LedgerItem, ...] = ()


class Undeliverable(LongstreamError):
    """The target will not take it. ``attempts``: how often it was asked."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.attempts = attempts


class _Private(Exception):
    """An address that is not public."""


# --- settings ------------------------------------------------------------------------------------


def read_hooks(path: Path) -> list[Hook]:
    """The hooks of a TOML file: tables ``[[webhook]]`` with name, url, secret_file, kinds, tenants and
    allow_private. Raises ConfigError."""
    try:
        tables = tomllib.loads(path.read_text()).get("webhook", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"webhooks file {path}: {error}") from None
    hooks = [_hook(path, number, table) for number, table in enumerate(tables, 1)]
    if not hooks or len({hook.name for hook in hooks}) < len(hooks):
        raise ConfigError(f"webhooks file {path}: one [[webhook]] at least, each with its own name")
    return hooks


def _hook(path: Path, number: int, table: Any) -> Hook:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"webhooks file {path}: webhook {number}: {what}")

    known = {"name", "url", "secret_file", "kinds", "tenants", "allow_private"}
    if not isinstance(table, dict) or not table.keys() <= known:
        raise wrong(f"expected {', '.join(sorted(known))}")
    name, url = table.get("name"), table.get("url")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise wrong("name: letters, digits, - and _")
    url = url if isinstance(url, str) else ""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise wrong("url: http:// or https://, without a login in it")
    kinds = frozenset(table.get("kinds") or get_args(Kind))
    if not kinds <= set(get_args(Kind)):
        raise wrong(f"kinds: of {', '.join(get_args(Kind))}")
    try:
        secret = Path(table["secret_file"]).expanduser().read_bytes().strip()
    except (KeyError, OSError, TypeError):
        raise wrong("secret_file: a file that can be read") from None
    if len(secret) < 16:
        raise wrong("secret_file: 16 bytes at least")
    tenants = frozenset(table.get("tenants", ()))
    return Hook(name, url, secret, kinds, tenants, table.get("allow_private") is True)


# --- what is sent --------------------------------------------------------------------------------


def notes_of(event: SummaryEvent, hook: Hook) -> Iterator[Note]:
    """What of a summary the hook is told: items that this revision changed, and the end."""
    for item in event.items:
        if item.last_changed_revision == event.revision and item.kind in hook.kinds:
            yield _note(event, item.kind, item.id, item=item)
    if event.status == "final" and "final" in hook.kinds:
        yield _note(event, "final", "", items=event.items)


def _note(event: SummaryEvent, kind: str, about: str, **fields: Any) -> Note:
    facts = f"{event.stream_id}\x1fwebhook:{kind}:{about}\x1f{event.epoch}\x1f{event.revision}"
    return Note(
        event_id=str(uuid.uuid5(EVENT_NAMESPACE, facts)),
        type=kind,
        stream_id=event.stream_id,
        epoch=event.epoch,
        revision=event.revision,
        emitted_at_ms=event.emitted_at_ms,
        **fields,
    )


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    digest = hmac.new(secret, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


# --- where it goes -------------------------------------------------------------------------------


class PublicOnly(AbstractResolver):
    """Resolves names to public addresses only; the connection is made to what was checked here."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [place for place in found if is_public(place["host"])]
        if not public:
            raise _Private(f"{host} is no public address; the hook may allow_private")
        return public

    async def close(self) -> None:
        await self._resolver.close()


def is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(found, "ipv4_mapped", None) or found
    return bool(inner.is_global and not inner.is_multicast)


def unrecorded(name: str, value: float, *labels: str) -> None:
    """Metrics that nobody reads."""


class Deliverer:
    """Posts notes to one hook. ``sleep``: tests bring their own."""

    def __init__(
        self,
        hook: Hook,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        attempts: int = ATTEMPTS,
        record: Record = unrecorded,
    ) -> None:
        self._hook, self._sleep, self._attempts = hook, sleep, attempts
        self._record = record
        resolver = None if hook.allow_private else PublicOnly()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit=4),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def deliver(self, note: Note) -> None:
        """Return when the target has it. Raises Undeliverable."""
        body = msgspec.json.encode(note)
        for attempt in range(1, self._attempts + 1):
            wait, reason = await self._once(note.event_id, body, attempt)
            if wait is None and reason is None:
                self._record("webhook_deliveries", 1, self._hook.name)
                return
            self._record("webhook_failures", 1, self._hook.name, _word(reason or ""))
            if wait is None or attempt == self._attempts:
                raise Undeliverable(reason or "", attempt)
            await self._sleep(wait)

    async def _once(
        self, event_id: str, body: bytes, attempt: int
    ) -> tuple[float | None, str | None]:
        """(None, None): taken. (seconds, reason): try again then. (None, reason): never."""
        host = urllib.parse.urlsplit(self._hook.url).hostname or ""
        literal = host.replace(".", "").replace(":", "").isalnum() and _is_address(host)
        if literal and not self._hook.allow_private and not is_public(host):
            return None, "the address is not public; the hook may allow_private"
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._hook.secret, event_id, timestamp, body),
        }
        backoff = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.8, 1.2)  # noqa: S311  # nosec B311
        try:
            async with self._session.post(
                self._hook.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status < 300:
                    return None, None
                reason = f"status {answer.status}"
                if 300 <= answer.status < 500 and answer.status not in LATER:
                    return None, reason
                said = answer.headers.get("retry-after", "")
                wait = float(said) if said.isdecimal() else backoff
                return min(wait, LONGEST_WAIT), reason
        except _Private as error:
            return None, str(error)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return backoff, type(error).__name__


def _word(reason: str) -> str:
    """A reason as a label: a status, the name of an error, or that the address is not public."""
    return reason if " " not in reason.removeprefix("status ") else "not public"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- from Kafka ----------------------------------------------------------------------------------


class HookReader:
    """One hook's group on the topic of summaries."""

    def __init__(
        self,
        settings: Settings,
        hook: Hook,
        tenant_of: TenantOf,
        sender: Sender,
        record: Record = unrecorded,
    ) -> None:
        self._settings, self._hook, self._tenant_of = settings, hook, tenant_of
        self._sender, self._record = sender, record
        record("webhook_deliveries", 0, hook.name)  # seen at 0 from the start
        record("webhook_dead_letters", 0, hook.name)

    async def run(self) -> None:
        """Until cancelled. A group that is new begins with what comes from then on."""
        consumer = aiokafka.AIOKafkaConsumer(
            self._settings.topic_summaries,
            **client_options(self._settings),
            group_id=f"{self._settings.app_id}-webhook-{self._hook.name}",
            enable_auto_commit=False,
            auto_offset_reset="latest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=self._settings.max_message_bytes,
        )
        deliverer = Deliverer(self._hook, record=self._record)
        known: set[Any] = set()
        try:
            await consumer.start()
            while True:
                for place in consumer.assignment() - known:
                    await self._begin(consumer, place)
                    known.add(place)
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=20)
                for place, records in batches.items():
                    for record in records:
                        await self.take(record, deliverer)
                        await self._commit(consumer, place, record.offset + 1)
        finally:
            await deliverer.close()
            await disconnect(consumer)

    async def _begin(self, consumer: aiokafka.AIOKafkaConsumer, place: Any) -> None:
        """Keep where a new group begins: else a crash before its first delivery would skip records."""
        if await consumer.committed(place) is None:
            await self._commit(consumer, place, await consumer.position(place))

    async def take(self, record: Any, deliverer: Deliverer) -> None:
        """Deliver what a record holds, or make it a dead letter; returns when it is either."""
        event = _summary(record.value)
        if event is None or not await self._concerns(event):
            return
        for note in notes_of(event, self._hook):
            try:
                await deliverer.deliver(note)
            except Undeliverable as error:
                self._record("webhook_dead_letters", 1, self._hook.name)
                log.warning("webhook %s: %s", self._hook.name, error)
                await self._bury(record, note, error)

    async def _concerns(self, event: SummaryEvent) -> bool:
        if not self._hook.tenants:
            return True
        return await self._tenant_of(event.stream_id) in self._hook.tenants

    async def _bury(self, record: Any, note: Note, error: Undeliverable) -> None:
        _, value, headers = dead_letter(
            record.key,
            msgspec.json.encode(note),
            [("webhook", self._hook.name.encode())],
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            stage="webhook",
            reason="undeliverable",
            message=f"webhook {self._hook.name}: {error}",
            attempts=error.attempts,
            retryable=False,
            failed_at_ms=now_ms(),
        )
        letter = [(value or b"", headers)]
        while True:
            try:
                await self._sender.send(self._settings.topic_dlq, note.stream_id, letter)  # type: ignore[arg-type]
                return
            except Unavailable:
                await asyncio.sleep(FIRST_WAIT)

    async def _commit(self, consumer: aiokafka.AIOKafkaConsumer, place: Any, offset: int) -> None:
        """A commit that fails leads to a repetition, no more: the partition may have a new owner."""
        try:
            await consumer.commit({place: offset})
        except KafkaError as error:
            log.warning("webhook %s: not committed (%s)", self._hook.name, type(error).__name__)


def _summary(value: bytes | None) -> SummaryEvent | None:
    try:
        event = decode_event(value) if value else None
    except LongstreamError:
        return None
    return event if isinstance(event, SummaryEvent) else None


async def run(settings: Settings, hooks: list[Hook], record: Record = unrecorded) -> None:
    """All hooks, until cancelled. Tenants are learnt from the segments, where a hook asks for them."""
    from pipelines.gateway.feed import Feed
    from pipelines.gateway.views import Views

    views = Views(settings)
    feed = Feed(settings, views)

    async def tenant_of(stream_id: str) -> str | None:
        deadline = time.monotonic() + TENANT_SECONDS
        while True:  # a summary can be read before the feed has come to its segments
            view = views.get(stream_id)
            if view is not None and view.tenant is not None:
                return view.tenant
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.2)

    sender = Sender(settings)
    readers = [HookReader(settings, hook, tenant_of, sender, record) for hook in hooks]
    try:
        async with asyncio.TaskGroup() as tasks:
            if any(hook.tenants for hook in hooks):
                tasks.create_task(feed.run())
                await feed.caught_up.wait()
            for reader in readers:
                tasks.create_task(reader.run())
    finally:
        await sender.close()
