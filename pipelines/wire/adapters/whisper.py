"""Servers around Whisper: WhisperLive, WhisperLiveKit, SimulStreaming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from operators.errors import SegmentError
from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    clock,
    joined,
    objects,
    seconds,
    start_anew,
    text_in,
)

LONG_LINE_CHARS = 240
"""A line of WhisperLiveKit that only grows is committed in pieces of about this length."""
SILENCE = -2
"""The speaker of a WhisperLiveKit line that says nothing."""


# --- WhisperLive: the last segments again and again ------------------------------------------------


def _is_live(event: Event) -> bool:
    if "uid" not in event or event.get("type") == "transcription":  # Vexa's envelope of the same
        return False
    segments = event.get("segments")
    if isinstance(segments, list):
        return all("text" in each and "start" in each for each in objects(segments))
    return "text" not in event and ("message" in event or "language" in event)


def _live(event: Event, memory: Memory) -> list[Fields]:
    uid = str(event["uid"])[:100]
    if memory.get("uid") != uid:
        start_anew(memory)
        memory["uid"] = uid
    if isinstance(event.get("language"), str):
        memory["language"] = event["language"][:20]
    found = []
    for segment in objects(event.get("segments")):
        start, end = seconds(segment.get("start")), seconds(segment.get("end"))
        final = segment.get("completed") is True
        if final and isinstance(end, float):
            if end <= memory.get("until", -1.0):
                continue
            memory["until"] = end
        found.append(
            {
                "segment_id": joined(uid, round(start) if isinstance(start, float) else None),
                "text": text_in(segment, "text").strip(),
                "is_final": final,
                "start_ms": start,
                "end_ms": end,
                "language": memory.get("language"),
                "speaker": segment.get("speaker"),
            }
        )
    return found


# --- WhisperLiveKit: the whole transcript every time, its last line growing ------------------------


def _is_livekit(event: Event) -> bool:
    if event.get("type") == "ready_to_stop":
        return "text" not in event
    return "buffer_transcription" in event and ("lines" in event or event.get("type") == "diff")


def _livekit(event: Event, memory: Memory) -> list[Fields]:
    if event.get("type") == "ready_to_stop":
        last = memory.get("last")
        start_anew(memory)
        return [last | {"is_final": True, "end_of_turn": True}] if last else []
    if "lines" not in event:
        raise SegmentError(
            "unknown_event", "WhisperLiveKit's differences are not read; ask it for full states"
        )
    lines = [
        (str(line.get("start", line.get("beg", f"line-{at}"))), line)
        for at, line in enumerate(objects(event["lines"]))
    ]
    if _begins_anew(memory, lines):
        start_anew(memory)
        _begins_anew(memory, lines)  # notes where it stands
    done: dict[str, int] = memory.setdefault("done", {})
    found = []
    memory.pop("last", None)

    def ids(name: str) -> str:
        return joined(memory.get("origin"), name)

    for at, (name, line) in enumerate(lines):
        said = text_in(line, "text")
        if line.get("speaker") == SILENCE or not said.strip():
            continue
        is_last = at == len(lines) - 1
        end = _committed(said, done.get(name, 0), is_last)
        if end > done.get(name, 0):
            found.append(_piece(line, ids(name), said, done.get(name, 0), end, final=True))
            done[name] = end
        if is_last:
            draft = _piece(line, ids(name), said, done.get(name, 0), len(said), final=False)
            memory["last"] = draft if draft["text"] else None
            found.append(draft | {"text": (draft["text"] + _buffer(event)).strip()})
    memory["done"] = {name: done[name] for name, _ in lines if name in done}
    return [piece for piece in found if piece["text"] or not piece["is_final"]]


def _begins_anew(memory: Memory, lines: Sequence[tuple[str, Event]]) -> bool:
    """Whether the transcript is another connection's: much shorter than the last one, and not because
    its beginning was left out. Within a connection it only grows."""
    total = sum(len(text_in(line, "text")) for _, line in lines)
    start = clock(lines[0][0]) if lines else None
    before, began = memory.get("total", 0), memory.get("began")
    memory["total"] = max(total, before)
    if isinstance(start, float):
        memory["began"] = start if began is None else min(start, began)
    return bool(lines) and 2 * total < before and start == memory.get("began")


def _committed(said: str, done: int, is_last: bool) -> int:
    """How far a line is settled for good: to its end once another follows; while it grows, to the last
    space, where there is one, of a piece that has become long."""
    if not is_last:
        return len(said)
    if len(said) - done < LONG_LINE_CHARS:
        return done
    space = said.rfind(" ", done)
    return space if space > done else len(said)


def _piece(line: Event, name: str, said: str, begin: int, end: int, final: bool) -> Fields:
    speaker = line.get("speaker")
    return {
        "segment_id": joined(name, begin),
        "text": said[begin:end].strip(),
        "is_final": final,
        "end_of_turn": False if not final else None,
        "start_ms": clock(line.get("start", line.get("beg"))),
        "end_ms": clock(line.get("end")),
        "speaker": {"id": speaker} if speaker not in (None, -1, 0) else None,
        "language": line.get("detected_language"),
    }


def _buffer(event: Event) -> str:
    return text_in(event, "buffer_diarization") + text_in(event, "buffer_transcription")


# --- SimulStreaming: text that is only added to ----------------------------------------------------


def _is_simul(event: Event) -> bool:
    return "emission_time" in event and "text" in event and "start" in event


def _simul(event: Event, memory: Memory) -> list[Fields]:
    """``is_final`` says that the voice ended; the text is settled in either case."""
    text: Any = event.get("text")
    if isinstance(text, str) and not text.strip():
        return []
    start = seconds(event.get("start"))
    return [
        {
            "segment_id": joined(
                round(start) if isinstance(start, float) else None, event.get("emission_time")
            ),
            "text": text.strip() if isinstance(text, str) else text,
            "is_final": True,
            "end_of_turn": event.get("is_final"),
            "start_ms": start,
            "end_ms": seconds(event.get("end")),
            "language": event.get("language"),
        }
    ]


LIVE = Adapter("whisperlive", "WhisperLive", _is_live, _live)
LIVEKIT = Adapter("whisperlivekit", "WhisperLiveKit, full states", _is_livekit, _livekit)
SIMUL = Adapter("simulstreaming", "SimulStreaming", _is_simul, _simul)
