"""Whole JSON documents as events: an array of them, or what recognisers write for a recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from operators.errors import SegmentError
from pipelines.wire.adapters.base import child, first, joined, objects, plus, seconds, split


def events_of(whole: Any) -> list[dict[str, Any]]:
    """The events in a document, each for an adapter or of our own schema. Raises SegmentError."""
    if isinstance(whole, list):
        if not all(isinstance(each, dict) for each in whole):
            raise SegmentError("unknown_format", "the JSON array holds other things than objects")
        return whole
    if not isinstance(whole, dict):
        raise SegmentError("unknown_format", "neither a JSON object nor an array of them")
    found = list(_recording(whole))
    return found or [whole]


def _recording(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Whisper and WhisperX, whisper.cpp, AssemblyAI, Deepgram, Amazon Transcribe; else nothing."""
    if "uid" in whole or "type" in whole:
        return  # one live event
    results = child(whole, "results")
    if objects(whole.get("utterances")):
        yield from (_timed(each, 1) for each in objects(whole["utterances"]))
    elif objects(results.get("utterances")):
        yield from (_timed(each, 1000) for each in objects(results["utterances"]))
    elif objects(results.get("channels")):
        for number, channel in enumerate(objects(results["channels"])):
            yield from _deepgram(first(channel.get("alternatives")), number)
    elif objects(results.get("audio_segments")):
        yield from map(_amazon, objects(results["audio_segments"]))
    elif objects(whole.get("segments")) and all("text" in s for s in objects(whole["segments"])):
        yield from (_timed(each, 1000) for each in objects(whole["segments"]))
    elif objects(whole.get("transcription")):
        yield from map(_whisper_cpp, objects(whole["transcription"]))


def _timed(each: Any, factor: int) -> dict[str, Any]:
    def at(name: str) -> Any:
        value = each.get(name)
        return value if factor == 1 else seconds(value)

    speaker = each.get("speaker")
    return {
        "text": (each.get("text") or each.get("transcript") or "").strip(),
        "start_ms": at("start"),
        "end_ms": at("end"),
        "speaker": {"id": speaker} if isinstance(speaker, int) else speaker,
        "confidence": each.get("confidence"),
    }


def _deepgram(best: Any, channel: int) -> Iterator[dict[str, Any]]:
    words = objects(best.get("words"))
    fields = {"text": best.get("transcript") or "", "segment_id": joined("channel", channel)}
    pairs = [(word.get("punctuated_word", word.get("word")), word.get("speaker")) for word in words]
    for piece in split(fields, pairs):
        if piece["text"]:
            yield {name: value for name, value in piece.items() if name != "segment_id"}


def _amazon(each: Any) -> dict[str, Any]:
    speaker = each.get("speaker_label")
    return {
        "text": each.get("transcript") or "",
        "start_ms": seconds(each.get("start_time")),
        "end_ms": seconds(each.get("end_time")),
        "speaker": {"id": speaker} if speaker else None,
    }


def _whisper_cpp(each: Any) -> dict[str, Any]:
    times = child(each, "offsets")
    start = times.get("from")
    return {
        "text": (each.get("text") or "").strip(),
        "start_ms": start,
        "end_ms": times.get("to") if "to" in times else plus(start, None),
    }
