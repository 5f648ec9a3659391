"""What the gateway answers and takes, as types, which the OpenAPI document describes."""

from __future__ import annotations

import msgspec

from operators.events import Covers, Evidence, LedgerItem, ModelInfo, Usage
from pipelines.gateway.views import Asked, Line, Point


class Problem(msgspec.Struct):
    """Why a request was refused (RFC 9457)."""

    title: str
    status: int
    detail: str


class StreamInfo(msgspec.Struct, kw_only=True):
    """One stream in the list. Times are milliseconds since 1970."""

    stream_id: str
    title: str | None
    ended: bool
    revision: str
    """Of its notes: epoch and revision."""
    languages: list[str]
    """Languages it is translated into."""
    segments: int
    """Final segments held."""
    last_segment_at_ms: int | None
    last_result_at_ms: int | None
    uncovered_segments: int
    """Final segments that the notes do not cover yet."""
    uncovered_since_ms: int | None
    """When the oldest of them arrived."""
    lag_ms: int | None
    """How far the notes were behind the speech when they were made."""
    behind: bool
    """The oldest uncovered segment is older than gateway_behind_s."""


class StreamList(msgspec.Struct):
    streams: list[StreamInfo]
    more: bool
    """There are others; ask with a higher limit."""


class Summary(msgspec.Struct, kw_only=True):
    """A stream's notes. With ``since``: only the items that changed after that revision."""

    stream_id: str
    epoch: int
    revision: int
    status: str
    text: str
    items: list[LedgerItem]
    since: str | None
    item_ids: list[str]
    """All items there are now, in order."""
    covers: Covers
    trigger: str
    model: ModelInfo
    usage: Usage
    degraded: list[str]
    emitted_at_ms: int


class Transcript(msgspec.Struct, kw_only=True):
    stream_id: str
    revision: int
    """Give it as ``since`` to get what came after."""
    segments: list[Line]
    drafts: list[Line]
    """What may still change."""
    truncated: bool
    """Older segments are no longer held."""


class Unit(msgspec.Struct, kw_only=True):
    """A translated segment. ``committed`` never changes; ``tail`` may."""

    unit_id: str
    revision: str
    committed: str
    tail: str
    is_final: bool
    source_segment_ids: list[str]
    source_lang: str | None


class Translation(msgspec.Struct, kw_only=True):
    stream_id: str
    language: str
    revision: str
    units: list[Unit]


class Stream(msgspec.Struct, kw_only=True):
    """All that a page needs at once; ``cursor`` goes to ``events?after=``."""

    info: StreamInfo
    cursor: str
    summary: Summary | None
    transcript: Transcript
    translations: list[Translation]
    answers: list[Asked]
    activity: list[Point]


class Taken(msgspec.Struct, kw_only=True):
    """A segment that Kafka has. ``known``: it was there already, nothing was written."""

    segment_id: str
    partition: int | None = None
    offset: int | None = None
    known: bool = False


class TakenList(msgspec.Struct):
    segments: list[Taken]


class Answers(msgspec.Struct):
    """Questions of the last time, in order, with their answers."""

    answers: list[Asked]


class Forgotten(msgspec.Struct):
    """What is left of a stream and for how long, by topic."""

    stream_id: str
    left: dict[str, str]


__all__ = [
    "Answers",
    "Asked",
    "Evidence",
    "Forgotten",
    "Problem",
    "Stream",
    "StreamInfo",
    "StreamList",
    "Summary",
    "Taken",
    "TakenList",
    "Transcript",
    "Translation",
    "Unit",
]
