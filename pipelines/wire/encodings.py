"""Text of a file's bytes: by its byte order mark, as UTF-8, or by a guess that is told."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from operators.errors import SegmentError

BOMS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GUESS_BYTES = 256 << 10
"""A guess is made from so many bytes, with the first that is not UTF-8 among them."""


class Text(NamedTuple):
    """``guess``: the encoding, where neither a mark nor UTF-8 itself told it; else ""."""

    text: str
    guess: str = ""


def decode_file(data: bytes) -> Text:
    """Raises SegmentError("invalid_utf8") for bytes that are no text in any encoding."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return Text(_decode(data, name))
    try:
        return Text(data.decode())
    except UnicodeDecodeError as error:
        return _guess(data, error.start)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guess(data: bytes, bad: int) -> Text:
    from charset_normalizer import from_bytes

    begin = max(0, min(bad - GUESS_BYTES // 2, len(data) - GUESS_BYTES))
    best = from_bytes(data[begin : begin + GUESS_BYTES]).best()
    name = best.encoding if best is not None else "cp1252"
    try:
        return Text(_decode(data, name), name)
    except SegmentError:
        return Text(data.decode("cp1252", "replace"), "cp1252")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise SegmentError(
            "invalid_utf8", f"the file says it is {name} and is not (byte {error.start})"
        ) from None
