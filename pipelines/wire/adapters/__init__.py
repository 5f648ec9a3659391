"""The adapters: events of recognisers and meeting platforms as segments. One registry, in the order in
which an event is tried; what no adapter knows is a segment of our own schema."""

from __future__ import annotations

import re

from pipelines.wire.adapters import (
    assemblyai,
    aws,
    azure,
    deepgram,
    google,
    meetings,
    others,
    whisper,
)
from pipelines.wire.adapters.base import Adapter, Event, Fields, Memory
from pipelines.wire.dead_letters import Headers, header
from pipelines.wire.segments import OWN_FIELDS, OWN_TYPES

__all__ = ["ADAPTERS", "Adapter", "Event", "Fields", "Memory", "detect", "of_content_type"]

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        deepgram.V1,
        deepgram.V2,
        assemblyai.ADAPTER,
        aws.TRANSCRIBE,
        aws.LMA,
        google.ADAPTER,
        azure.ADAPTER,
        whisper.LIVE,
        whisper.LIVEKIT,
        whisper.SIMUL,
        meetings.VEXA,
        meetings.LIVEKIT,
        meetings.JITSI,
        meetings.BIGBLUEBUTTON,
        others.OPENAI,
        others.VOSK,
    )
}
_CONTENT_TYPE = re.compile(r"application/vnd\.([a-z0-9-]+)(?:\.event)?\+json")
_PARAMETER = re.compile(r';\s*adapter="?([a-z0-9-]+)"?')


def detect(event: Event) -> Adapter | None:
    """The adapter whose event this is; None for a segment of our own schema, or what nobody knows."""
    if "schema" in event or is_own(event):
        return None
    return next((adapter for adapter in ADAPTERS.values() if adapter.detect(event)), None)


def is_own(event: Event) -> bool:
    """Whether the event has only fields of our own schema, and a type of it: no provider's has."""
    return event.keys() <= OWN_FIELDS and event.get("type", "segment") in OWN_TYPES


def of_content_type(headers: Headers) -> Adapter | None:
    """The adapter a producer names: ``application/vnd.deepgram+json``, or any JSON type with
    ``; adapter=deepgram``."""
    given = (header(headers, "content-type") or b"").decode("latin-1").strip().lower()
    found = _CONTENT_TYPE.match(given) or _PARAMETER.search(given)
    return ADAPTERS.get(found[1]) if found else None
