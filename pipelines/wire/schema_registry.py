"""Avro schemas by their number: from a schema registry or one local file, and records read by them.

Fetching and reading are apart: :meth:`Schemas.fetch` talks to the registry and may wait, :meth:`read`
never does. A schema's number stands for the same schema for ever, so what was fetched is kept.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, SegmentError

MAX_SCHEMAS = 1000
MAX_SCHEMA_BYTES = 1 << 20
MAX_REFERENCES = 32
TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3
RETRY_SECONDS = 30.0
"""For so long a schema that could not be fetched is not asked for again."""


class Schemas:
    """``url``: a Confluent-compatible registry. ``file``: an .avsc that stands for every number.

    Raises ConfigError for a file that is no schema.
    """

    def __init__(
        self,
        url: str = "",
        file: Path | None = None,
        login: tuple[str, str] | None = None,
        cafile: Path | None = None,
    ) -> None:
        self._url, self._login, self._cafile = url.rstrip("/"), login, cafile
        self._parsed: dict[int, Any] = {}
        self._refused: dict[int, tuple[float, str]] = {}
        """Why a schema cannot be had, and until when (monotonic) that is believed."""
        self._only = _schema_of_file(file) if file else None

    @property
    def known(self) -> bool:
        """Whether Avro can be read at all."""
        return bool(self._url) or self._only is not None

    def missing(self, number: int | None) -> bool:
        """Whether :meth:`fetch` should be called before a record with this schema is read."""
        if number is None or not self._url or self._only is not None or number in self._parsed:
            return False
        until, _ = self._refused.get(number, (0.0, ""))
        return time.monotonic() >= until

    def read(self, number: int, body: bytes) -> Mapping[str, Any]:
        """The record behind a frame. Raises SegmentError: schema_unavailable, malformed_avro."""
        schema = self._only if self._only is not None else self._parsed.get(number)
        if schema is None:
            _, why = self._refused.get(number, (0.0, "it was not fetched"))
            raise SegmentError("schema_unavailable", f"Avro schema {number}: {why}")
        return read_avro(schema, body)

    async def fetch(self, number: int) -> None:
        """Get a schema from the registry. Never raises: :meth:`read` says why it is missing."""
        for attempt in range(ATTEMPTS):
            try:
                parsed = _parse(*await self._get_schema(number))
            except _Never as error:
                self._refuse(number, str(error))
                return
            except Exception as error:  # the network's, or a registry's that answers nonsense
                self._refuse(number, f"the registry does not answer ({type(error).__name__})")
                await asyncio.sleep(0.2 * 2**attempt)
            else:
                self._keep(number, parsed)
                return

    def _keep(self, number: int, parsed: Any) -> None:
        while len(self._parsed) >= MAX_SCHEMAS:
            del self._parsed[next(iter(self._parsed))]
        self._refused.pop(number, None)
        self._parsed[number] = parsed

    def _refuse(self, number: int, why: str) -> None:
        while len(self._refused) >= MAX_SCHEMAS:
            del self._refused[next(iter(self._refused))]
        self._refused[number] = (time.monotonic() + RETRY_SECONDS, why)

    async def _get_schema(self, number: int) -> tuple[str, list[str]]:
        """The schema's text, and those of the schemas it refers to, the innermost first."""
        import aiohttp

        login = aiohttp.BasicAuth(*self._login) if self._login else None
        connector = aiohttp.TCPConnector(ssl=_ssl_context(self._cafile))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, auth=login, timeout=timeout) as http:
            answer = await self._get(http, f"/schemas/ids/{number}")
            texts: list[str] = []
            await self._collect(http, answer, texts)
            return texts[-1], texts[:-1]

    async def _collect(self, http: Any, answer: Mapping[str, Any], texts: list[str]) -> None:
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise _Never(f"it is a schema of type {str(answer['schemaType'])[:20]!r}, not Avro")
        for place in answer.get("references") or []:
            if len(texts) >= MAX_REFERENCES:
                raise _Never(f"it refers to more than {MAX_REFERENCES} others")
            import urllib.parse

            subject = urllib.parse.quote(str(place["subject"]), safe="")
            inner = await self._get(http, f"/subjects/{subject}/versions/{int(place['version'])}")
            await self._collect(http, inner, texts)
        texts.append(str(answer["schema"]))

    async def _get(self, http: Any, path: str) -> Mapping[str, Any]:
        # A redirect would carry the login elsewhere.
        async with http.get(self._url + path, allow_redirects=False) as response:
            if response.status == 404:
                raise _Never("the registry does not know it")
            if response.status in (401, 403):
                raise _Never(f"the registry refuses us (HTTP {response.status})")
            response.raise_for_status()
            if response.status != 200:
                raise _Never(f"the registry answers HTTP {response.status}")
            data = await response.content.read(MAX_SCHEMA_BYTES + 1)
            while len(data) <= MAX_SCHEMA_BYTES and not response.content.at_eof():
                data += await response.content.read(MAX_SCHEMA_BYTES + 1 - len(data))
            if len(data) > MAX_SCHEMA_BYTES:
                raise _Never(f"it has more than {MAX_SCHEMA_BYTES} bytes")
            found = json.loads(data)
            if not isinstance(found, dict):
                raise _Never("the registry's answer is no object")
            return found


class _Never(Exception):
    """Asking again will not help for a while. The message names no credentials."""


def read_avro(schema: Any, body: bytes) -> Mapping[str, Any]:
    """One record. Raises SegmentError("malformed_avro")."""
    import fastavro

    stream = io.BytesIO(body)
    try:
        found = fastavro.schemaless_reader(stream, schema, None)
    except Exception as error:  # whatever its reader makes of bytes that do not fit the schema
        raise SegmentError(
            "malformed_avro", f"the value does not fit its Avro schema ({type(error).__name__})"
        ) from None
    if stream.tell() != len(body):
        left = len(body) - stream.tell()
        raise SegmentError("malformed_avro", f"{left} bytes are left behind the Avro record")
    if not isinstance(found, dict):
        raise SegmentError("malformed_avro", "the Avro schema is not a record's")
    return found


def _schema_of_file(path: Path) -> Any:
    try:
        return _parse(path.read_text(), [])
    except (OSError, ValueError, _Never) as error:
        raise ConfigError(f"input_schema_file: {path} is no Avro schema: {error}") from None


def _parse(text: str, before: list[str]) -> Any:
    """Raises _Never for what is no Avro schema, or one whose records could be nested without end."""
    import fastavro.schema

    named: dict[str, Any] = {}
    try:
        for each in before:
            fastavro.schema.parse_schema(json.loads(each), named_schemas=named)
        raw = json.loads(text)
        parsed = fastavro.schema.parse_schema(raw, named_schemas=named)
    except (fastavro.schema.SchemaParseException, ValueError, TypeError, KeyError) as error:
        raise _Never(f"it is no Avro schema ({type(error).__name__})") from None
    _check(parsed, named, ())
    return parsed


def _check(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...]) -> None:
    """No type within itself: such a record may nest as deep as it has bytes. No array of what takes no
    bytes: a few of those may stand for billions."""
    if isinstance(schema, list):
        for branch in schema:
            _check(branch, named, inside)
        return
    if isinstance(schema, str):
        if schema in named:
            _check(named[schema], named, inside)
        return
    kind, name = schema["type"], schema.get("name", "")
    if not isinstance(kind, str):
        _check(kind, named, inside)
        return
    if kind in ("record", "error"):
        if name in inside:
            raise _Never("its type contains itself")
        for field in schema["fields"]:
            _check(field["type"], named, (*inside, name))
    elif kind in ("array", "map"):
        items = schema["items" if kind == "array" else "values"]
        if kind == "array" and _least_bytes(items, named) == 0:
            raise _Never("it has an array of items that take no bytes")
        _check(items, named, inside)
    elif kind in named and kind != name:
        _check(named[kind], named, inside)


def _least_bytes(schema: Any, named: Mapping[str, Any]) -> int:
    """0 if a value of the schema may take no bytes at all, else 1."""
    if isinstance(schema, list):
        return 1  # the branch's number
    if isinstance(schema, str):
        return _least_bytes(named[schema], named) if schema in named else int(schema != "null")
    if schema["type"] in ("record", "error"):
        return max((_least_bytes(f["type"], named) for f in schema["fields"]), default=0)
    if schema["type"] == "fixed":
        return int(schema["size"] > 0)
    return int(schema["type"] != "null")


def _ssl_context(cafile: Path | None) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(cafile) if cafile else None)
