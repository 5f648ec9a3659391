"""The dead letter of a refused record: the record itself, with the reason in headers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

Header = tuple[str, bytes]
Headers = Iterable[tuple[str, bytes | None]] | Mapping[str, bytes | None] | None
"""As clients hand them over: pairs (aiokafka), a mapping (Faust), or none."""

MESSAGE_CHARS = 500
HEADER_BYTES = 10
"""What a header takes on the wire besides its name and value, at most: the lengths of both."""
CUT = "longstream.dlq.truncated"
"""Begins the names of the headers that say what was cut."""
TOLD_BYTES = 512
"""For the headers that say what was cut."""
_OWN_HEADERS = ("__streams.errors.", "longstream.dlq.")


def header(headers: Headers, name: str) -> bytes | None:
    """The value of a header; the last one if it occurs more than once, as in Kafka's own API."""
    found = None
    for key, value in pairs(headers):
        if key == name:
            found = value
    return found


def original_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """A dead letter's headers without those :func:`dead_letter` added: what the producer sent."""
    return [(k, v) for k, v in pairs(headers) if not k.startswith(_OWN_HEADERS)]


def pairs(headers: Headers) -> Iterable[tuple[str, bytes | None]]:
    """Names and values, however a client hands them over."""
    if headers is None:
        return ()
    return headers.items() if isinstance(headers, Mapping) else headers


def dead_letter(
    record_key: bytes | None,
    record_value: bytes | None,
    record_headers: Headers,
    *,
    topic: str,
    partition: int,
    offset: int,
    stage: str,
    reason: str,
    message: str,
    attempts: int,
    retryable: bool,
    failed_at_ms: int,
    max_bytes: int | None = None,
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Key, value and headers of the dead letter for one input record.

    Key, value and headers are the producer's, verbatim; ours follow, ``__streams.errors.*`` as in
    Kafka Streams (KIP-1034) and ``longstream.dlq.*``. A record that fails again after a replay
    carries the latest failure only. ``message`` must not quote the input (those of
    :mod:`pipelines.wire.codec` never do); it is cut to 500 characters on one line.

    ``max_bytes``: a record with our headers on top can exceed the broker's message limit, and a dead
    letter that cannot be written blocks its partition for good. So of a record of more bytes (key,
    value and headers together) only so many are kept, and ``longstream.dlq.truncated…`` tell size and
    sha256 of what was cut (:func:`_fit`): the source topic still has the whole record at ``offset``.
    """
    key, value, headers, cut = _fit(
        record_key, record_value, original_headers(record_headers), max_bytes
    )
    ours = {
        "__streams.errors.exception": reason,
        "__streams.errors.message": _one_line(message),
        "__streams.errors.topic": topic,
        "__streams.errors.partition": str(partition),
        "__streams.errors.offset": str(offset),
        "longstream.dlq.stage": stage,
        "longstream.dlq.reason": reason,
        "longstream.dlq.attempts": str(attempts),
        "longstream.dlq.retryable": "true" if retryable else "false",
        "longstream.dlq.failed_at": str(failed_at_ms),
        **cut,
    }
    headers.extend((name, text.encode()) for name, text in ours.items())
    return key, value, headers


def cut_again(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], max_bytes: int
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """A dead letter that is too large after all, with less of its record in it. What was cut before is
    told as it was then."""
    ours = [(name, content) for name, content in headers if name.startswith(_OWN_HEADERS)]
    told = {name for name, _ in ours}
    key, value, kept, cut = _fit(
        key,
        value,
        original_headers(headers),
        max(0, max_bytes - size_of(None, None, ours) - TOLD_BYTES),
    )
    ours += [(name, text.encode()) for name, text in cut.items() if name not in told]
    return key, value, [*kept, *ours]


def _fit(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    limit: int | None,
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], dict[str, str]]:
    """A record in at most ``limit`` bytes, and what has to be told of what was cut.

    Key and headers have a quarter of the room each: a longer key is cut to its first bytes
    (``…_key``), headers that do not fit are left out (``…_headers``; the sha256 is of their names and
    values in order). The value has the rest and is cut to its first bytes.
    """
    if limit is None or size_of(key, value, headers) <= limit:
        return key, value, headers, {}
    cut, quarter = {}, max(0, limit // 4)
    if key is not None and len(key) > quarter:
        cut[f"{CUT}_key"] = _told([key])
        key = key[:quarter]
    kept: list[tuple[str, bytes | None]] = []
    left: list[tuple[str, bytes | None]] = []
    room = quarter
    for name, content in headers:
        size = size_of(None, None, [(name, content)])
        (kept if size <= room else left).append((name, content))
        room -= size if size <= room else 0
    if left:
        parts = [part for name, content in left for part in (name.encode(), content or b"")]
        cut[f"{CUT}_headers"] = f"count={len(left)} {_told(parts)}"
    rest = max(0, limit - size_of(key, None, kept))
    if value is not None and len(value) > rest:
        cut[CUT] = _told([value])
        value = value[:rest]
    return key, value, kept, cut


def size_of(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> int:
    """Bytes on the wire, at most."""
    told = sum(len(name.encode()) + len(content or b"") + HEADER_BYTES for name, content in headers)
    return len(key or b"") + len(value or b"") + told


def _told(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"size={sum(map(len, parts))} sha256={digest.hexdigest()}"


def _one_line(message: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in message)
    return " ".join(printable.split())[:MESSAGE_CHARS]
