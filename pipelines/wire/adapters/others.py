"""OpenAI's realtime transcription, and Vosk."""

from __future__ import annotations

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    joined,
    objects,
    origin,
    seconds,
    text_in,
)

TRANSCRIPTION = "conversation.item.input_audio_transcription."
OPENAI_SILENT = ("session.", "transcription_session.", "input_audio_buffer.", "conversation.item.",
                 "rate_limits.", "response.")  # fmt: skip
MAX_OPEN = 32


def _is_openai(event: Event) -> bool:
    kind = event.get("type")
    return (isinstance(kind, str) and kind.startswith(OPENAI_SILENT) and "event_id" in event) or (
        isinstance(kind, str) and kind.startswith(TRANSCRIPTION)
    )


def _openai(event: Event, memory: Memory) -> list[Fields]:
    """Drafts come as differences: what was said before is remembered by its item."""
    kind, item = event["type"], str(event.get("item_id"))[:200]
    said: dict[str, str] = memory.setdefault("said", {})
    if kind == f"{TRANSCRIPTION}delta":
        said[item] = said.pop(item, "") + text_in(event, "delta")
        while len(said) > MAX_OPEN:
            del said[next(iter(said))]
        return [{"segment_id": event.get("item_id"), "text": said[item], "is_final": False}]
    if kind in (f"{TRANSCRIPTION}completed", f"{TRANSCRIPTION}failed"):
        said.pop(item, None)
        text = text_in(event, "transcript")
        return [{"segment_id": event.get("item_id"), "text": text, "is_final": True}]
    return []


def _is_vosk(event: Event) -> bool:
    if isinstance(event.get("partial"), str):
        return "text" not in event
    words = objects(event.get("result"))
    return bool(words) and "text" in event and all("word" in word for word in words)


def _vosk(event: Event, memory: Memory) -> list[Fields]:
    """No id, no start before the end: utterances are counted by their finals."""
    number = memory.get("utterances", 0)
    name = joined(origin(memory), "utterance", number)
    if isinstance(event.get("partial"), str):
        return [{"segment_id": name, "text": event["partial"], "is_final": False}]
    memory["utterances"] = number + 1
    words = objects(event["result"])
    return [
        {
            "segment_id": name,
            "text": event["text"],
            "is_final": True,
            "start_ms": seconds(words[0].get("start")),
            "end_ms": seconds(words[-1].get("end")),
        }
    ]


OPENAI = Adapter("openai-realtime", "OpenAI realtime transcription", _is_openai, _openai)
VOSK = Adapter("vosk", "Vosk", _is_vosk, _vosk)
