"""The dead letter of a refused record: the record itself, with the reason in headers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

Header = tuple[str, bytes]
Headers = Iterable[tuple[str, bytes | None]] | Mapping[str, bytes | None] | None
"""As clients hand them over: pairs (aiokafka), a mapping (Faust), or none."""

MESSAGE_CHARS = 500
_OWN_HEADERS = ("__streams.errors.", "longstream.dlq.")


def header(headers: Headers, name: str) -> bytes | None:
    """The value of a header; the last one if it occurs more than once, as in Kafka's own API."""
    found = None
    for key, value in _pairs(headers):
        if key == name:
            found = value
    return found


def original_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """A dead letter's headers without those :func:`dead_letter` added: what the producer sent."""
    return [(k, v) for k, v in _pairs(headers) if not k.startswith(_OWN_HEADERS)]


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
    max_value_bytes: int | None = None,
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Key, value and headers of the dead letter for one input record.

    Key, value and headers are the producer's, verbatim; ours follow, ``__streams.errors.*`` as in
    Kafka Streams (KIP-1034) and ``longstream.dlq.*``. A record that fails again after a replay
    carries the latest failure only. ``message`` must not quote the input (those of
    :mod:`pipelines.codec` never do); it is cut to 500 characters on one line.

    ``max_value_bytes``: a record with our headers on top can exceed the broker's message limit, and
    a dead letter that cannot be written blocks its partition for good. So a larger value (the
    original headers count too) is cut to its first bytes, and ``longstream.dlq.truncated`` keeps
    the original's size and sha256: the source topic still has the whole record at ``offset``.
    """
    headers = original_headers(record_headers)
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
    }
    if record_value is not None and max_value_bytes is not None:
        room = max(0, max_value_bytes - sum(len(k) + len(v or b"") for k, v in headers))
        if len(record_value) > room:
            digest = hashlib.sha256(record_value).hexdigest()
            ours["longstream.dlq.truncated"] = f"size={len(record_value)} sha256={digest}"
            record_value = record_value[:room]
    headers.extend((name, text.encode()) for name, text in ours.items())
    return record_key, record_value, headers


def _pairs(headers: Headers) -> Iterable[tuple[str, bytes | None]]:
    if headers is None:
        return ()
    return headers.items() if isinstance(headers, Mapping) else headers


def _one_line(message: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in message)
    return " ".join(printable.split())[:MESSAGE_CHARS]
