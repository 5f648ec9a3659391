"""AssemblyAI v3 (universal streaming): ``Turn``. The formatted repeat of a turn is a revision of it.

Turns are counted per connection; ``Begin`` names the connection, which then qualifies the ids. Where no
``Begin`` is sent on, a turn 0 behind several others begins another (behind one it may be its repeat).
"""

from __future__ import annotations

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    joined,
    objects,
    split,
    start_anew,
)

SILENT = ("Begin", "Termination", "SpeechStarted")


def _is(event: Event) -> bool:
    if event.get("type") == "Turn":
        return "turn_order" in event
    return (event.get("type") == "Begin" and "id" in event and "expires_at" in event) or (
        event.get("type") == "Termination" and "audio_duration_seconds" in event
    )


def _read(event: Event, memory: Memory) -> list[Fields]:
    if event.get("type") == "Begin":
        memory["session"] = str(event["id"])[:100]
    if event.get("type") != "Turn":
        return []
    turn = event.get("turn_order")
    if "session" not in memory and turn == 0 and memory.get("turn", 0) > 1:
        start_anew(memory)
    if isinstance(turn, int):
        memory["turn"] = max(turn, memory.get("turn", 0))
    words = objects(event.get("words"))
    final = event.get("end_of_turn", True)
    fields: Fields = {
        "segment_id": joined(memory.get("session", memory.get("origin")), "turn", turn),
        "text": event.get("transcript") or "",
        "revision": 1 if event.get("turn_is_formatted") is True else 0,
        "is_final": final,
        "end_of_turn": final,
        "start_ms": words[0].get("start") if words else None,
        "end_ms": words[-1].get("end") if words else None,
        "language": event.get("language_code"),
    }
    if event.get("speaker_label") is not None:
        fields["speaker"] = {"id": event["speaker_label"]}
    if not final:
        # The words that are spoken but not settled are in the list only.
        fields["text"] = " ".join(str(w.get("text", "")) for w in words) or fields["text"]
        return [fields]
    return split(fields, [(w.get("text"), w.get("speaker")) for w in words])


ADAPTER = Adapter("assemblyai", "AssemblyAI v3, Turn", _is, _read)
