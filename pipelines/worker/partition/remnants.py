"""What is left of a forgotten stream: under a hash of its name, the number of its next epoch.

Without it a stream that speaks again would start in epoch 0 once more, and revisions that consumers
may still hold would get a second content. The hash tells nobody the name who does not guess it.
"""

from __future__ import annotations

import hashlib

import msgspec

from pipelines.config.load import Settings
from pipelines.kafka.publishers import Message

SCHEMA = "insight.forgotten.v1"


class _Remnant(msgspec.Struct):
    epoch: int
    schema: str = SCHEMA


def remnant_key(stream_id: str) -> str:
    """Its key on the session topic. The control character keeps it apart from every stream id."""
    return "\x00" + hashlib.sha256(stream_id.encode()).hexdigest()


def is_remnant(key: str) -> bool:
    return key.startswith("\x00")


def remnant(epoch: int) -> bytes:
    """Its value; ``epoch`` is that of the stream's next life."""
    return msgspec.json.encode(_Remnant(epoch))


def epoch_of(value: bytes) -> int:
    """The epoch in a remnant. Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(value, type=_Remnant).epoch


def farewell(settings: Settings, stream_id: str, epoch: int) -> list[Message]:
    """The records that take away a stream's latest summary and leave its remnant. Its session's
    tombstone is written with the states (``Entry.forgotten``)."""
    return [
        Message(settings.topic_summaries_latest, stream_id.encode(), None),
        Message(settings.topic_sessions, remnant_key(stream_id).encode(), remnant(epoch)),
    ]
