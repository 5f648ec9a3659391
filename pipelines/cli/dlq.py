"""``longstream dlq``: what was refused, why, and putting it back once the cause is gone."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import aiokafka
import typer
from aiokafka.errors import KafkaError

from operators.errors import ConfigError, LongstreamError
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit, printable, table
from pipelines.cli.output import show as print_table
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.clients import client_options, compression
from pipelines.kafka.tools import Reader
from pipelines.wire.dead_letters import CUT, header, original_headers, pairs

MARK = "longstream.dlq.replayed"
"""Header of a record on the dead-letter topic that says which letter was put back."""
SHOWN_CHARS = 4000
REQUEST_ROOM = 1 << 20
PAGE_ROWS = 500
TRANSACTION_TIMEOUT_MS = 600_000
SINCE_HELP = "Only those refused since then: 15m, 2h, 3d (ago), or a time in ISO form."

app = typer.Typer(help="Dead letters: list, show, put back.", no_args_is_help=True)


@dataclass(frozen=True)
class Letter:
    """A dead letter as it lies on the topic; ``id`` is "partition:offset" there."""

    record: Any
    replayed: bool

    @property
    def id(self) -> str:
        return place_of(self.record)

    def said(self, name: str) -> str:
        """A header's text, "" if it is missing."""
        return printable((header(self.record.headers, name) or b"").decode(errors="replace"))

    @property
    def failed_at(self) -> int:
        """Unix milliseconds at which it was refused; without that header, when it was written."""
        failed = self.said("longstream.dlq.failed_at")
        plain = failed.isascii() and failed.isdigit() and len(failed) < 15
        return int(failed) if plain else int(self.record.timestamp)

    @property
    def cut(self) -> dict[str, str]:
        """What was cut of the record ("truncated", "truncated_key" …), each with size and sha256."""
        names = {name for name, _ in pairs(self.record.headers) if name.startswith(CUT)}
        return {name.removeprefix("longstream.dlq."): self.said(name) for name in sorted(names)}

    def row(self) -> dict[str, str | int | bool]:
        when = datetime.datetime.fromtimestamp(self.failed_at / 1000, datetime.UTC)
        return {
            "id": self.id,
            "when": when.isoformat(timespec="seconds"),
            "reason": self.said("longstream.dlq.reason"),
            "stage": self.said("longstream.dlq.stage"),
            "stream": printable((self.record.key or b"").decode(errors="replace"))[:80],
            "bytes": len(self.record.value or b""),
            "source": f"{self.said('__streams.errors.topic')} "
            f"{self.said('__streams.errors.partition')}:{self.said('__streams.errors.offset')}",
            "replayed": self.replayed,
        }


@app.callback()
def dlq() -> None:
    """Dead letters: list, show, put back."""


@app.command("ls")
def list_letters(
    reason: Annotated[str | None, typer.Option(help="Only those refused for this.")] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    config: Config = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List all dead letters, those of each partition oldest first. They are read and shown a page at a
    time, however many there are."""
    with complaints("dlq"):
        settings = load_settings(config, bootstrap=bootstrap)
        rows = (x.row() for x in chosen(read_letters(settings), reason, since))
        if as_json:
            for row in rows:
                emit(row)
            return
        count = 0
        while page := list(itertools.islice(rows, PAGE_ROWS)):
            shown = table("id", "when", "reason", "stage", "stream", "bytes", "source", "replayed")
            for row in page:
                shown.add_row(*(str(value) for value in row.values()))
            print_table(shown)
            count += len(page)
        if not count:
            print_table(f"no dead letters on {settings.topic_dlq}")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="Its id, partition:offset, from `dlq ls`.")],
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Show a dead letter: why it was refused, its headers, its value."""
    with complaints("dlq"):
        (found,) = list(choose(read_letters(load_settings(config, bootstrap=bootstrap)), [letter]))
    headers = [
        (name, (raw or b"").decode(errors="replace"))
        for name, raw in original_headers(found.record.headers)
    ]
    if as_json:
        value = (found.record.value or b"").decode(errors="replace")
        message = found.said("__streams.errors.message")
        emit({**found.row(), "message": message, "headers": dict(headers), "value": value})
        return
    for name, value in (*found.row().items(), ("message", found.said("__streams.errors.message"))):
        typer.echo(f"{name}: {value}")
    for name, told in found.cut.items():
        typer.echo(f"{name}: {told}")
    for name, value in headers:
        typer.echo(f"header {printable(name)}: {printable(value)}")
    text = printable((found.record.value or b"").decode(errors="replace"))
    more = f" … ({len(text)} characters)" if len(text) > SHOWN_CHARS else ""
    typer.echo(f"value: {text[:SHOWN_CHARS]}{more}")


@app.command()
def replay(
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Ids from `dlq ls`.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="All that were refused for this.")] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those put back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Put dead letters back on the topic and partition they came from, as they were sent.

    They join the end of their stream. What was put back is marked, and not put back twice.
    """
    with complaints("dlq"):
        if sum((bool(letters), reason is not None or since is not None, every)) != 1:
            raise ConfigError("say which: ids, or --reason and --since, or --all")
        settings = load_settings(config, bootstrap=bootstrap)
        found = read_letters(settings)
        found = choose(found, letters) if letters else chosen(found, reason, since)
        done = Replay([], [], 0)
        wanted = done.wanted(found, again=again)
        if dry_run:
            for _ in wanted:
                pass
        else:
            put_back(wanted, settings)
    if as_json:
        emit({"put_back": done.put_back, "dry_run": dry_run, "cut": [x for x, _ in done.cut],
              "before": done.before})  # fmt: skip
        return
    for place, source in done.cut:
        typer.echo(f"{place}: not put back, it was cut; the whole is at {source}")
    verb = "would be put back" if dry_run else "put back"
    typer.echo(f"{len(done.put_back)} {verb}, {done.before} were before")


@dataclass
class Replay:
    """What became of the chosen letters, by their ids."""

    put_back: list[str]
    cut: list[tuple[str, str]]
    """With the place of the whole record."""
    before: int

    def wanted(self, letters: Iterable[Letter], *, again: bool) -> Iterator[Letter]:
        """Those to be put back, as they come; the others are noted."""
        for letter in letters:
            if letter.replayed and not again:
                self.before += 1
            elif letter.cut:
                self.cut.append((letter.id, str(letter.row()["source"])))
            else:
                self.put_back.append(letter.id)
                yield letter


def read_letters(settings: Settings) -> Iterator[Letter]:
    """All dead letters the topic holds now, as they are read: the topic is read twice, first for the
    marks of those that were put back. Raises LongstreamError without a broker or topic."""
    marks = {
        mark.decode()
        for record in _records(settings)
        if (mark := header(record.headers, MARK)) is not None
    }
    for record in _records(settings):
        if header(record.headers, MARK) is None:
            yield Letter(record, place_of(record) in marks)


def _records(settings: Settings) -> Iterator[Any]:
    reader = Reader(settings, [settings.topic_dlq], [settings.topic_dlq])
    try:
        yield from reader.read_to_end()
    finally:
        reader.close()


def put_back(letters: Iterator[Letter], settings: Settings) -> None:
    """Send each record and its mark, all in one transaction: after an error or a crash none was put
    back. Two at once do not mix: the later one ends the earlier. Brokers without transactions
    (delivery = at_least_once) get one after the other; a crash in between then sends a record once more
    next time. Raises LongstreamError.

    By aiokafka: kafka-python refuses headers without a value, which a record may well have."""
    asyncio.run(_put_back(letters, settings))


async def _put_back(letters: Iterator[Letter], settings: Settings) -> None:
    whole = settings.delivery == "exactly_once"
    options: dict[str, Any] = {"enable_idempotence": True}
    if whole:
        options["transactional_id"] = f"{settings.app_id}-dlq-replay"
        options["transaction_timeout_ms"] = TRANSACTION_TIMEOUT_MS
    client = aiokafka.AIOKafkaProducer(
        **client_options(settings),
        **options,
        max_request_size=settings.max_message_bytes + REQUEST_ROOM,
        compression_type=compression(settings),
    )
    place = "the first"
    try:
        await client.start()
        if whole:
            await client.begin_transaction()
        try:
            # In a thread: reading waits for the broker, and so does what is sent.
            while (letter := await asyncio.to_thread(next, letters, None)) is not None:
                place = letter.id
                await _send(client, letter, settings)
        except BaseException:
            if whole:
                with suppress(KafkaError, AssertionError):
                    await client.abort_transaction()
            raise
        if whole:
            await client.commit_transaction()
    except (KafkaError, ValueError, AssertionError) as error:
        rest = "nothing was put back" if whole else "it and those behind it were not"
        raise LongstreamError(
            f"dead letter {place} could not be put back, {rest}: {error}"
        ) from error
    finally:
        await client.stop()


async def _send(client: aiokafka.AIOKafkaProducer, letter: Letter, settings: Settings) -> None:
    """A record, and behind it its mark."""
    await client.send_and_wait(
        letter.said("__streams.errors.topic"),
        key=letter.record.key,
        value=letter.record.value,
        headers=original_headers(letter.record.headers),
        partition=int(letter.said("__streams.errors.partition")),
    )
    await client.send_and_wait(
        settings.topic_dlq,
        key=letter.record.key,
        value=b"",
        headers=[(MARK, letter.id.encode())],
        partition=letter.record.partition,
    )


def chosen(letters: Iterable[Letter], reason: str | None, since: str | None) -> Iterator[Letter]:
    """Those refused for ``reason`` and not before ``since``. Raises ConfigError."""
    after = moment(since) if since is not None else 0.0
    return (
        x
        for x in letters
        if x.failed_at / 1000 >= after and reason in (None, x.said("longstream.dlq.reason"))
    )


def moment(text: str) -> float:
    """Unix seconds of "90s", "15m", "2h", "3d" (so long ago) or an ISO time (UTC unless it says
    otherwise). Raises ConfigError."""
    now = datetime.datetime.now(datetime.UTC)
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text.strip()):
        seconds = int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
        return now.timestamp() - seconds
    try:
        when = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"--since {text!r}: 15m, 2h, 3d, or a time as 2026-01-31T12:00") from None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()


def choose(letters: Iterable[Letter], ids: list[str]) -> Iterator[Letter]:
    """Those with the ids, as they come. Raises ConfigError at the end if one does not exist."""
    missing = dict.fromkeys(ids)
    for letter in letters:
        if letter.id in missing:
            del missing[letter.id]
            yield letter
    if missing:
        raise ConfigError(f"no dead letter {', '.join(missing)}; see `longstream dlq ls`")


def place_of(record: Any) -> str:
    return f"{record.partition}:{record.offset}"
