"""Azure Speech: ``speech.hypothesis`` and ``speech.phrase``, simple and detailed. Times are ticks of
100 ns; a hypothesis and its phrase begin at the same one."""

from __future__ import annotations

from pipelines.wire.adapters.base import (
    Adapter,
    Event,
    Fields,
    Memory,
    child,
    first,
    joined,
    plus,
    ticks,
)

NOTHING = ("NoMatch", "InitialSilenceTimeout", "BabbleTimeout", "EndOfDictation")


def _is(event: Event) -> bool:
    return "Offset" in event and ("RecognitionStatus" in event or "Text" in event)


def _read(event: Event, memory: Memory) -> list[Fields]:
    start = ticks(event.get("Offset"))
    status = event.get("RecognitionStatus")
    best = first(event.get("NBest"))
    final = status is not None
    text = (
        event.get("DisplayText") or best.get("Display") or (not final and event.get("Text")) or ""
    )
    speaker, channel = event.get("SpeakerId"), event.get("Channel")
    if final and status != "Success" and status not in NOTHING:
        return []
    return [
        {
            "segment_id": joined(f"c{channel}" if channel else None, event.get("Offset")),
            "text": text,
            "is_final": final,
            "start_ms": start,
            "end_ms": plus(start, ticks(event.get("Duration"))),
            "confidence": best.get("Confidence"),
            "language": child(event, "PrimaryLanguage").get("Language"),
            "speaker": {"id": speaker} if speaker not in (None, "", "Unknown") else None,
        }
    ]


ADAPTER = Adapter("azure", "Azure Speech, hypotheses and phrases", _is, _read)
