"""Header names that are not UTF-8, as aiokafka's decoder and ours see them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.record.memory_records import MemoryRecords

from pipelines.kafka.header_names import Records


class Name(str):
    """A name whose bytes are no text."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"caf\xe9\xff"


def batch(base: int, *headers: Any, compression: int = 0) -> bytes:
    """A batch of two records as it lies in a fetch; the second has the headers."""
    builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 1, b"k", b"first", [])
    builder.append(1, 1, None, b"second", list(headers))
    data = bytearray(builder.build())
    data[:8] = base.to_bytes(8, "big")
    return bytes(data)


def read(kind: Any, data: bytes) -> list[Any]:
    found, records = [], kind(data)
    while records.has_next():
        one = records.next_batch()
        assert one.validate_crc()
        assert not one.is_control_batch
        found += [(r.offset, r.key, r.value, list(r.headers)) for r in one]
    return found


@pytest.mark.parametrize("compression", [0, 1])
def test_names_that_are_no_text_show_their_bytes(compression: int) -> None:
    odd = [("é", b"1"), (Name("x"), b"\xff"), (Name("y"), None)]
    data = batch(0, ("h", None)) + batch(2, *odd, compression=compression) + batch(4)
    assert read(Records, data) == [
        (0, b"k", b"first", []),
        (1, None, b"second", [("h", None)]),
        (2, b"k", b"first", []),
        (3, None, b"second", [("é", b"1"), ("caf\\xe9\\xff", b"\xff"), ("caf\\xe9\\xff", None)]),
        (4, b"k", b"first", []),
        (5, None, b"second", []),
    ]
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        read(MemoryRecords, data)


def test_what_is_readable_is_read_as_by_the_client_itself() -> None:
    data = batch(0, ("a", b"1"), compression=1) + batch(2, ("é", b""))
    assert read(Records, data) == read(MemoryRecords, data)


def test_the_commands_read_them_too() -> None:
    """Else a stream on such a topic could not be forgotten."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
        from kafka.record.memory_records import MemoryRecords as Theirs

        from pipelines.kafka import tools as _  # noqa: F401

    data = batch(0, ("é", b"1"), (Name("x"), b"2"), compression=1)
    records = Theirs(data)
    headers = [list(record.headers) for record in records.next_batch()]
    assert headers == [[], [("é", b"1"), ("caf\\xe9\\xff", b"2")]]
