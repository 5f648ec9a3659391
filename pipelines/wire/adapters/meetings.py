"""Meeting platforms and bots: Vexa, LiveKit, Jitsi, BigBlueButton."""

from __future__ import annotations

from typing import Any

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    child,
    first,
    joined,
    objects,
    origin,
    seconds,
)

# --- Vexa -------------------------------------------------------------------------------------------

VEXA_TIMES = ("start_time", "absolute_start_time", "end_time")


def _is_vexa(event: Event) -> bool:
    kind = event.get("type")
    if kind == "transcript":
        return isinstance(event.get("confirmed", event.get("pending")), list)
    if isinstance(kind, str) and kind.startswith("transcript."):
        return isinstance(child(event, "payload").get("segments"), list)
    if kind == "transcription":
        return isinstance(event.get("segments"), list)
    return "completed" in event and "text" in event and any(name in event for name in VEXA_TIMES)


def _vexa(event: Event, memory: Memory) -> list[Fields]:
    kind = event.get("type")
    if kind == "transcript":
        settled = [_vexa_segment(s, event, True) for s in objects(event.get("confirmed"))]
        return settled + [_vexa_segment(s, event, False) for s in objects(event.get("pending"))]
    if kind == "transcription":
        return [_vexa_segment(s, event, None) for s in objects(event["segments"])]
    if isinstance(kind, str) and kind.startswith("transcript."):
        final = None if kind != "transcript.finalized" else True
        segments = objects(child(event, "payload")["segments"])
        return [_vexa_segment(s, event, final) for s in segments]
    return [_vexa_segment(event, {}, None)]


def _vexa_segment(segment: Event, around: Event, final: bool | None) -> Fields:
    start = segment.get("start_time", segment.get("start"))
    uid = segment.get("session_uid", around.get("uid"))
    named = segment.get("segment_id")
    begins = segment.get("absolute_start_time", start)
    return {
        "stream_id": segment.get("stream_id"),
        "segment_id": named if named is not None else joined(uid, begins) or None,
        "text": segment.get("text") or "",
        "is_final": segment.get("completed", False) if final is None else final,
        "revision": segment.get("revision"),
        "start_ms": seconds(start),
        "end_ms": seconds(segment.get("end_time", segment.get("end"))),
        "speaker": segment.get("speaker", around.get("speaker")),
        "language": segment.get("language"),
    }


# --- LiveKit ----------------------------------------------------------------------------------------

LIVEKIT_TEXT = ("interim_transcript", "preflight_transcript", "final_transcript")
LIVEKIT_SILENT = ("start_of_speech", "end_of_speech", "recognition_usage")


def _is_livekit(event: Event) -> bool:
    kind = event.get("type")
    if kind in LIVEKIT_TEXT:
        return isinstance(event.get("alternatives"), list)
    if kind in LIVEKIT_SILENT:
        return "text" not in event
    return bool(_rtc(event)) and all("id" in s and "final" in s for s in _rtc(event))


def _rtc(event: Event) -> list[Event]:
    """The segments of a room's transcription, which is another event than an agent's."""
    return objects(event.get("segments")) if "uid" not in event else []


def _livekit(event: Event, memory: Memory) -> list[Fields]:
    """An agent's speech events have no id of their own: utterances are counted by their finals."""
    who = event.get("participant_identity", event.get("participantIdentity"))
    if event.get("type") not in (*LIVEKIT_TEXT, *LIVEKIT_SILENT):
        return [_rtc_segment(segment, who) for segment in _rtc(event)]
    if event["type"] in LIVEKIT_SILENT:
        return []
    best = first(event.get("alternatives"))
    final = event["type"] == "final_transcript"
    number = memory.get("utterances", 0)
    memory["utterances"] = number + int(final)
    speaker = best.get("speaker_id") or who
    return [
        {
            "segment_id": joined(event.get("request_id") or origin(memory), "utterance", number),
            "text": best.get("text") or "",
            "is_final": final,
            "start_ms": seconds(best.get("start_time")) or None,
            "end_ms": seconds(best.get("end_time")) or None,
            "confidence": best.get("confidence"),
            "language": best.get("language") or None,
            "speaker": {"id": speaker} if speaker else None,
        }
    ]


def _rtc_segment(segment: Event, who: Any) -> Fields:
    return {
        "segment_id": segment.get("id"),
        "text": segment.get("text") or "",
        "is_final": segment.get("final"),
        "start_ms": segment.get("startTime", segment.get("start_time")) or None,
        "end_ms": segment.get("endTime", segment.get("end_time")) or None,
        "language": segment.get("language") or None,
        "speaker": {"id": who} if who else None,
    }


# --- Jitsi ------------------------------------------------------------------------------------------


def _is_jitsi(event: Event) -> bool:
    return event.get("type") == "transcription-result" and "transcript" in event


def _jitsi(event: Event, memory: Memory) -> list[Fields]:
    best = first(event.get("transcript"))
    who = child(event, "participant")
    return [
        {
            "segment_id": event.get("message_id"),
            "text": best.get("text") or "",
            "is_final": event.get("is_interim") is not True,
            "confidence": best.get("confidence"),
            "language": event.get("language"),
            "speaker": {"id": who.get("id"), "name": who.get("name")} if who else None,
            "emitted_at_ms": event.get("timestamp"),
        }
    ]


# --- BigBlueButton ----------------------------------------------------------------------------------

BBB = ("UpdateTranscriptPubMsg", "TranscriptUpdatedEvtMsg")


def _bbb_core(event: Event) -> Event:
    return child(event, "core") or event


def _is_bbb(event: Event) -> bool:
    return child(_bbb_core(event), "header").get("name") in BBB


def _bbb(event: Event, memory: Memory) -> list[Fields]:
    """``transcript`` is the whole text under its id; ``result`` says that it is settled."""
    header, body = child(_bbb_core(event), "header"), child(_bbb_core(event), "body")
    return [
        {
            "stream_id": header.get("meetingId"),
            "segment_id": body.get("transcriptId"),
            "text": body.get("transcript") or body.get("text") or "",
            "is_final": body.get("result", False),
            "language": body.get("locale"),
            "speaker": {"id": header["userId"]} if header.get("userId") else None,
        }
    ]


VEXA = Adapter("vexa", "Vexa, live transcripts", _is_vexa, _vexa)
LIVEKIT = Adapter(
    "livekit", "LiveKit, speech events and room transcriptions", _is_livekit, _livekit
)
JITSI = Adapter("jitsi", "Jitsi (Jigasi), transcription results", _is_jitsi, _jitsi)
BIGBLUEBUTTON = Adapter("bigbluebutton", "BigBlueButton, captions", _is_bbb, _bbb)
