"""``longstream decode``: what records become, without Kafka or a model. For writers of producers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from operators.errors import SegmentError
from pipelines.cli.output import Config, Json, complaints
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.wire.codec import encode_segment
from pipelines.wire.decoding import RecordDecoder, decoder_of, prepare, schemas_of, single

FIELDS = ("key", "value", "hex", "headers")


class Given(NamedTuple):
    """A record as a line of the input has it."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def decode(
    file: Annotated[
        str, typer.Argument(help='JSON lines {"key", "value" or "hex", "headers"}; - is stdin.')
    ],
    config: Config = None,
    input_format: Annotated[
        str | None, typer.Option(help="auto, json, text, registry-json or avro.")
    ] = None,
    input_adapter: Annotated[str | None, typer.Option(help="Whose events they are.")] = None,
    partition: Annotated[int, typer.Option(help="Partition the records are on.")] = 0,
    partitions: Annotated[
        int | None, typer.Option(help="Of the topic; records without a key are then checked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a worker makes of records: the segment, or the dead letter with its reason.

    A "value" that is text is the record's bytes as they are; another value is sent as JSON; null is a
    record without a value. "hex" holds bytes. Settings are read as a worker reads them. One JSON object
    a record goes to standard output, with or without --json.
    """
    with complaints("decode"):
        settings = load_settings(config, input_format=input_format, input_adapter=input_adapter)
        bad = show(_lines(file), settings, partition=partition, partitions=partitions)
    if bad:
        typer.echo(f"longstream decode: {bad} lines of the input are no records", err=True)
        raise typer.Exit(1)


def _lines(file: str) -> Iterator[bytes]:
    if file == "-":
        yield from sys.stdin.buffer
        return
    with Path(file).open("rb") as lines:
        yield from lines


def show(
    lines: Iterable[bytes], settings: Settings, *, partition: int, partitions: int | None
) -> int:
    """Write what each line becomes; how many lines are no records, which are named on standard error."""
    schemas = schemas_of(settings)
    decoder, bad = decoder_of(settings, schemas), 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = read_record(line)
        except ValueError as error:
            typer.echo(f"longstream decode: line {number}: {error}; left out", err=True)
            bad += 1
            continue
        asyncio.run(prepare(schemas, record.value))
        made = outcome(decoder, record, partition, number - 1, partitions)
        typer.echo(json.dumps({"line": number, **made}, ensure_ascii=False))
    return bad


def outcome(
    decoder: RecordDecoder, record: Given, partition: int, offset: int, partitions: int | None
) -> dict[str, Any]:
    """What the worker does with a record: a ``segment`` (null for an event without words), or a
    ``dead_letter``."""
    try:
        decoded = decoder.decode(*record, partition=partition, offset=offset, partitions=partitions)
        segment = single(decoded)
    except SegmentError as error:
        return {"dead_letter": {"reason": error.reason, "message": str(error)}}
    shown = None if segment is None else msgspec.json.decode(encode_segment(segment))
    return {"segment": shown, "adapter": decoded.adapter, "dropped": list(decoded.dropped)}


def read_record(line: bytes) -> Given:
    """Raises ValueError for a line that describes no record."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(given, dict) or not set(given) <= set(FIELDS):
        raise ValueError(f"an object of {', '.join(FIELDS)} is needed")
    if ("value" in given) == ("hex" in given):
        raise ValueError('give "value" or "hex"')
    headers = given.get("headers") or {}
    pairs = headers.items() if isinstance(headers, dict) else headers
    try:
        named = [(str(name), _bytes(content)) for name, content in pairs]
    except (TypeError, ValueError):
        raise ValueError("headers: an object, or a list of pairs, of text") from None
    return Given(_bytes(given.get("key")), _value(given), named)


def _value(given: dict[str, Any]) -> bytes | None:
    if "hex" in given:
        try:
            return bytes.fromhex(given["hex"])
        except (TypeError, ValueError):
            raise ValueError("hex: expected hexadecimal digits") from None
    value = given["value"]
    if value is None or isinstance(value, str):
        return _bytes(value)
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _bytes(value: Any) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("key and headers are text")
    return value.encode("utf-8", "surrogatepass")
