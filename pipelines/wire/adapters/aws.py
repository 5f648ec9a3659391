"""Amazon Transcribe streaming, and the events of Live Call Analytics and Live Meeting Assistant."""

from __future__ import annotations

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    child,
    first,
    objects,
    seconds,
    split,
)


def _results(event: Event) -> object:
    inner = child(event, "TranscriptEvent") or event
    return child(inner, "Transcript").get("Results")


def _is_transcribe(event: Event) -> bool:
    return isinstance(_results(event), list)


def _transcribe(event: Event, memory: Memory) -> list[Fields]:
    return [piece for result in objects(_results(event)) for piece in _result(result)]


def _result(result: Event) -> list[Fields]:
    best = first(result.get("Alternatives"))
    fields: Fields = {
        "segment_id": result.get("ResultId"),
        "text": best.get("Transcript") or "",
        "is_final": result.get("IsPartial") is not True,
        "start_ms": seconds(result.get("StartTime")),
        "end_ms": seconds(result.get("EndTime")),
        "language": result.get("LanguageCode"),
    }
    if result.get("ChannelId") is not None:
        fields["speaker"] = {"id": result["ChannelId"]}
    if not fields["is_final"] or not fields["segment_id"]:
        return [fields]
    return split(fields, [(i.get("Content"), i.get("Speaker")) for i in objects(best.get("Items"))])


def _is_lma(event: Event) -> bool:
    return isinstance(event.get("EventType"), str) and "CallId" in event


def _lma(event: Event, memory: Memory) -> list[Fields]:
    kind = event["EventType"]
    if kind in ("START", "END"):
        mark = "session_start" if kind == "START" else "session_end"
        return [{"stream_id": event["CallId"], "type": mark}]
    if kind != "ADD_TRANSCRIPT_SEGMENT":
        return []
    speaker = {"id": event.get("Channel"), "name": event.get("Speaker") or None}
    return [
        {
            "stream_id": event["CallId"],
            "segment_id": event.get("SegmentId"),
            "text": event.get("Transcript") or "",
            "is_final": event.get("IsPartial") is not True,
            "start_ms": seconds(event.get("StartTime")),
            "end_ms": seconds(event.get("EndTime")),
            "speaker": speaker if any(speaker.values()) else None,
        }
    ]


TRANSCRIBE = Adapter(
    "aws-transcribe", "Amazon Transcribe, streaming results", _is_transcribe, _transcribe
)
LMA = Adapter("aws-lma", "AWS Live Meeting Assistant / Live Call Analytics", _is_lma, _lma)
