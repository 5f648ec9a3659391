"""What the bytes of a record are: an object (JSON, or Avro behind a schema registry's frame), or text.

``auto`` decides by the frame's magic byte, then the content type, then the content. What is none of
these is refused with a sentence that says what it looks like, for whoever wrote the producer. Nothing
that is recognisably something else is taken as speech, and speech that begins with a brace
(``{inaudible} so we agreed``) is not taken as broken JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import msgspec

from operators.errors import SegmentError
from pipelines.wire.dead_letters import Headers, header
from pipelines.wire.schema_registry import Schemas

InputFormat = Literal["auto", "json", "text", "registry-json", "avro"]

FRAME_BYTES = 5
"""Confluent's wire format: a zero byte and the schema's number, big-endian."""
_BINARY = (
    (rb"\x1f\x8b", "gzip"),
    (rb"\x28\xb5\x2f\xfd", "zstd"),
    (rb"\x04\x22\x4d\x18", "lz4"),
    (rb"\xff\x06\x00\x00sNaPpY", "snappy"),
    (rb"BZh[1-9]1AY&SY", "bzip2"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"Obj\x01", "an Avro container file"),
    (rb"\xc3\x01", "an Avro single object (only a schema registry's frame is read)"),
    (rb"PAR1[\x00-\x1f]", "Parquet"),
    (rb"RIFF.{4}WAVE", "audio (WAV)"),
    (rb"OggS\x00", "audio (Ogg)"),
    (rb"fLaC\x00", "audio (FLAC)"),
    (rb"ID3[\x02-\x04]\x00", "audio (MP3)"),
    (rb"\x1aE\xdf\xa3", "audio or video (WebM)"),
    (rb"\xac\xed\x00\x05", "a serialized Java object"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text; send UTF-8"),
)
_MAGIC = [(re.compile(magic, re.DOTALL), name) for magic, name in _BINARY]
_FILES = (
    (re.compile(r"WEBVTT(?=[\s\ufeff]|$)"), "a WebVTT file"),
    (re.compile(r"\d+\s*\r?\n\s*\d+:\d\d?:\d\d?[,.]\d+\s*-->"), "an SRT file"),
    (re.compile(r"\d+:\d\d:\d\d\.\d{3},\d+:\d\d:\d\d\.\d{3}\s*\r?\n"), "an SBV file"),
    (re.compile(r"<\?xml[\s>]"), "XML"),
)
_CONVERT = "; `longstream convert FILE` makes records of a file"
_BASE64 = re.compile(r"(eyJ|eyA|ewo|ewi)[A-Za-z0-9+/_-]{12,}={0,2}")
_NO_JSON = re.compile(r"\{\s*('|[A-Za-z_]\w*\s*:\s*[\"'\[{].*\}\s*$)", re.DOTALL)
"""An object as Python or JavaScript writes one: single quotes, names without quotes."""
_SPACES = "\t\n\x0b\x0c\r\x1b"


def unpack(
    value: bytes, headers: Headers, input_format: InputFormat, schemas: Schemas
) -> Mapping[str, Any] | str:
    """The record's value as an object's fields, or as text.

    Raises SegmentError: invalid_utf8, malformed_json, malformed_avro, schema_unavailable,
    unknown_format.
    """
    if input_format == "text":
        return utf8(value, "value")
    if input_format in ("registry-json", "avro"):
        return _framed(value, input_format, schemas)
    if value[:1] == b"\x00" and len(value) > FRAME_BYTES and input_format == "auto":
        return _framed(value, "auto", schemas)
    kind = content_type(headers)
    if kind == "text/plain" and input_format == "auto":
        return utf8(value, "value")
    if ("avro" in kind or "protobuf" in kind) and not kind.endswith("json"):
        _unknown(f"{_word(kind)} without a schema registry's frame")
    _check_binary(value)
    try:
        text = utf8(value, "value")
    except SegmentError:
        if looks_like_protobuf(value):
            _unknown("Protobuf")
        raise
    if input_format == "json" or kind.endswith("json"):
        return _object(text)
    return _by_content(text, value)


def content_type(headers: Headers) -> str:
    """The header ``content-type`` without its parameters, in lower case; "" if there is none."""
    given = header(headers, "content-type") or b""
    return given.decode("latin-1").partition(";")[0].strip().lower()


def schema_number(value: bytes | None) -> int | None:
    """The number of the schema in a registry's frame; None if this is no frame."""
    if value is None or len(value) <= FRAME_BYTES or value[0] != 0:
        return None
    return int.from_bytes(value[1:FRAME_BYTES])


def utf8(data: bytes, what: str) -> str:
    """Raises SegmentError("invalid_utf8"). A byte order mark is left out."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SegmentError(
            "invalid_utf8", f"the {what} is not UTF-8 (first bad byte at {error.start})"
        ) from None


def parse_json(text: str) -> Any:
    """Any JSON value. Also with NaN, Infinity, numbers beyond a double, and unpaired surrogates, which
    the standard forbids and producers write: what they stand in is looked at field by field later.

    Raises SegmentError("malformed_json").
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        strict = str(error)
    except RecursionError:
        raise SegmentError("malformed_json", "JSON is malformed: nested too deeply") from None
    except UnicodeEncodeError:
        strict = "JSON is malformed: unpaired surrogate"
    try:
        return json.loads(text, parse_int=_int)
    except RecursionError:
        raise SegmentError("malformed_json", "JSON is malformed: nested too deeply") from None
    except ValueError:
        raise SegmentError("malformed_json", strict) from None


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else math.inf  # Python refuses to read very long ones


def _object(text: str) -> Mapping[str, Any]:
    found = parse_json(text)
    if not isinstance(found, dict):
        _unknown(_json_name(found))
    return found


def _by_content(text: str, value: bytes) -> Mapping[str, Any] | str:
    """Text is speech unless it is an object, or recognisably something else."""
    bare = text.strip()
    if bare.startswith("{"):
        return _brace(bare) or text
    if bare.startswith(("[", '"')) or bare == "null":
        try:
            found = parse_json(bare)
        except SegmentError:
            return text  # [laughs] …, or a quotation
        if not isinstance(found, str) or found.lstrip().startswith(("{", "[")):
            _unknown(_json_name(found))
        return text
    if _BASE64.fullmatch(bare):
        _unknown("JSON in base64")
    for pattern, name in _FILES:
        if pattern.match(bare):
            _unknown(name + _CONVERT)
    if looks_like_protobuf(value):
        _unknown("Protobuf")
    if "\x00" in text or (text and ord(text[0]) < 0x20 and text[0] not in _SPACES):
        _unknown("binary data (Avro without a schema registry's frame, MessagePack or the like)")
    return text


def _brace(bare: str) -> Mapping[str, Any] | None:
    """The object; None for speech such as ``{laughs} …``. Raises where it is meant as an object."""
    try:
        return _object(bare)
    except SegmentError:
        inside = bare[1:].lstrip()
        if not inside or inside[0] in '"}':
            raise
        if _NO_JSON.match(bare):
            _unknown("an object, but not JSON: names and strings need double quotes")
        return None


def _framed(
    value: bytes, input_format: Literal["auto", "registry-json", "avro"], schemas: Schemas
) -> Mapping[str, Any]:
    number = schema_number(value)
    if number is None:
        raise SegmentError(
            "unknown_format",
            f"input_format is {input_format}, and the value has no schema registry's frame (a zero "
            "byte and the schema's number)",
        )
    body = value[FRAME_BYTES:]
    if input_format == "registry-json" or (input_format == "auto" and _is_object(body)):
        return _object(utf8(body, "value behind the frame"))
    if schemas.known:
        return schemas.read(number, body)
    return _unknown(
        f"a schema registry's frame (schema {number}) around Avro or Protobuf; to read Avro set "
        "input_schema_registry or input_schema_file"
    )


def _is_object(body: bytes) -> bool:
    """Whether the frame holds JSON. An Avro record of which the first byte is 0x7b (a string of 61
    bytes backwards, a number 61) is told apart by its end."""
    return body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"


def _check_binary(value: bytes) -> None:
    if value[:1] == b"{":  # the usual case, and none of these begin so
        return
    for magic, name in _MAGIC:
        if magic.match(value):
            _unknown(name)


def looks_like_protobuf(value: bytes) -> bool:
    """Whether the bytes are, from the first to the last, fields of Protobuf's wire format, and begin as
    no text does: with a control character, or a line break whose next byte is the length of a field."""
    if not value or value[0] >= 0x20 or value[0] in b"\t\r\x0b\x0c\x1b":
        return False
    at, fields = 0, 0
    while at < len(value):
        tag, at = _varint(value, at)
        if tag >> 3 == 0 or at < 0:
            return False
        at = _skip(value, at, tag & 7)
        if at < 0 or at > len(value):
            return False
        fields += 1
    return fields > 0


def _skip(value: bytes, at: int, wire_type: int) -> int:
    """The position behind a field's content; -1 if it has none."""
    if wire_type == 0:
        return _varint(value, at)[1]
    if wire_type == 2:
        size, at = _varint(value, at)
        return -1 if at < 0 else at + size
    return at + {1: 8, 5: 4}[wire_type] if wire_type in (1, 5) else -1


def _varint(value: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(value):
            break
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    return 0, -1


def _json_name(found: Any) -> str:
    if isinstance(found, list):
        return "a JSON array; send one object a record"
    if isinstance(found, str):
        return "doubly encoded JSON (an object inside a JSON string)"
    if found is None:
        return "the JSON value null; end a stream with type session_end"
    return "a JSON number or boolean; an object is needed"


def _word(kind: str) -> str:
    return "Avro" if "avro" in kind else "Protobuf"


def _unknown(name: str) -> NoReturn:
    raise SegmentError("unknown_format", f"the value looks like {name}")
