"""Records whose header names are not UTF-8, made readable.

A broker takes any bytes as a header's name, and some producers' clients send them. Python's decode them
strictly and fails the whole fetch, each time anew: one such record would stop its partition for good, in
every worker. Here such a batch is decoded once more, with the bytes that are no text as ``\\xff``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

NEWEST_FORMAT = 2
"""Older ones have no headers."""


def install() -> None:
    """For every aiokafka consumer of this process."""
    fetcher.MemoryRecords = Records


def install_for_tools() -> None:
    """The same for kafka-python, with which the commands read; its decoder is plain Python."""
    from kafka.record.default_records import DefaultRecordBatch as Batch

    strict = Batch._read_msg
    if getattr(strict, "lenient", False):
        return

    def read(self: Any, *args: Any) -> Any:
        try:
            return strict(self, *args)
        except UnicodeDecodeError:
            self._buffer = _Lenient(self._buffer)
            return strict(self, *args)

    read.lenient = True  # type: ignore[attr-defined]
    Batch._read_msg = read


class Records(_MemoryRecordsPy):  # type: ignore[misc]
    """The batches of one fetch."""

    def next_batch(self, *args: Any) -> Any:
        raw = self._next_slice
        batch = super().next_batch(*args)
        if batch is None or raw[self.MAGIC_OFFSET] < NEWEST_FORMAT:
            return batch
        return _Batch(batch, raw)


class _Batch:
    """A batch by the client's own fast decoder, or, where that fails, by the lenient one."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except (UnicodeDecodeError, CorruptRecordException):
            lenient = _DefaultRecordBatchPy(self._raw)
            iter(lenient)  # decompresses
            lenient._buffer = _Lenient(lenient._buffer)
            return iter(list(lenient))


class _Lenient(bytearray):
    """Bytes whose pieces decode whatever they are."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(at, slice) else found

    def decode(self, *_: Any, **__: Any) -> str:
        return super().decode("utf-8", "backslashreplace")
