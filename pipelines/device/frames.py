"""Frames on the socket pair to the device: 4 bytes of length, then one msgpack object."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from operators.errors import DeviceError
from pipelines.device.protocol import MAX_FRAME_BYTES

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """One message as bytes. Raises DeviceError if it is larger than a frame may be."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise DeviceError(f"{type(message).__name__} message of {len(body)} bytes: too large")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Messages out of a stream of bytes, whatever the pieces it arrives in."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages complete with ``data``. Raises DeviceError for what is no message."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise DeviceError(f"a frame claims {size} bytes: the stream is out of step")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            except msgspec.DecodeError as error:
                raise DeviceError(f"unreadable frame: {error}") from None
