"""Deepgram: v1 ``Results`` (live), v2 ``TurnInfo`` (Flux).

v1 has no id: results of the same words, growing, begin at the same time. ``is_final`` (these words will
not change) is not ``speech_final`` (the speaker paused).
"""

from __future__ import annotations

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    child,
    first,
    joined,
    objects,
    plus,
    seconds,
    split,
)

V1_SILENT = ("Metadata", "SpeechStarted", "UtteranceEnd", "Finalize", "CloseStream", "KeepAlive")
V2_SILENT = ("Connected", "FatalError")


def _is_v1(event: Event) -> bool:
    if event.get("type") == "Results":
        return bool(child(event, "channel"))
    return event.get("type") in V1_SILENT and "text" not in event


def _v1(event: Event, memory: Memory) -> list[Fields]:
    if event.get("type") != "Results":
        return []
    best = first(child(event, "channel").get("alternatives"))
    start = seconds(event.get("start"))
    channel = first([{"n": n} for n in (event.get("channel_index") or [])[:1]]).get("n")
    request = child(event, "metadata").get("request_id")
    words = objects(best.get("words"))
    languages = best.get("languages")
    fields: Fields = {
        "segment_id": joined(request, f"c{channel}" if channel else None, _whole(start)),
        "text": best.get("transcript") or "",
        "is_final": event.get("is_final", True),
        "end_of_turn": event.get("speech_final"),
        "start_ms": start,
        "end_ms": plus(start, seconds(event.get("duration"))),
        "confidence": best.get("confidence"),
        "language": languages[0] if isinstance(languages, list) and languages else None,
    }
    if channel:
        fields["speaker"] = {"id": f"channel-{channel}"}
    if not fields["is_final"]:
        return [fields]
    return split(
        fields, [(w.get("punctuated_word", w.get("word")), w.get("speaker")) for w in words]
    )


def _whole(value: object) -> object:
    return round(value) if isinstance(value, float) else value


def _is_v2(event: Event) -> bool:
    if event.get("type") == "TurnInfo":
        return "turn_index" in event or "event" in event
    return event.get("type") in V2_SILENT and "sequence_id" in event


def _v2(event: Event, memory: Memory) -> list[Fields]:
    if event.get("type") != "TurnInfo":
        return []
    ends = event.get("event") == "EndOfTurn"
    return [
        {
            "segment_id": joined(event.get("request_id"), event.get("turn_index")),
            "text": event.get("transcript") or "",
            "revision": event.get("sequence_id"),
            "is_final": ends,
            "end_of_turn": ends,
            "start_ms": seconds(event.get("audio_window_start")),
            "end_ms": seconds(event.get("audio_window_end")),
            "confidence": event.get("end_of_turn_confidence") if ends else None,
        }
    ]


V1 = Adapter("deepgram", "Deepgram v1, live results", _is_v1, _v1)
V2 = Adapter("deepgram-v2", "Deepgram v2 (Flux), TurnInfo", _is_v2, _v2)
