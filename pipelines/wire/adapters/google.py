"""Google Cloud Speech-to-Text v1 and v2, streaming responses, as their JSON.

They have neither an id nor a start: a result begins where the final one before it on its channel ended.
A connection lasts five minutes at most; the next one counts time anew, which its request id tells.
Several hypotheses in one response are pieces of one.
"""

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
    start_anew,
)

RESULT_KEYS = ("isFinal", "is_final", "stability", "resultEndTime", "result_end_time",
               "resultEndOffset", "result_end_offset")  # fmt: skip
SILENT = ("speechEventType", "speech_event_type")


def _is(event: Event) -> bool:
    results = objects(event.get("results"))
    if results:
        known = any(key in result for result in results for key in RESULT_KEYS)
        return known and all("alternatives" in result for result in results)
    return "text" not in event and any(key in event for key in SILENT)


def _end(result: Event) -> Any:
    """Both names of both versions; a duration is "1.5s" or {"seconds", "nanos"}."""
    names = ("resultEndTime", "result_end_time", "resultEndOffset", "result_end_offset")
    value = next((result[name] for name in names if name in result), None)
    if isinstance(value, dict):
        whole, nanos = seconds(value.get("seconds", 0)), value.get("nanos", 0)
        return whole + nanos / 1e6 if isinstance(whole, float) and isinstance(nanos, int) else None
    return seconds(value)


def _read(event: Event, memory: Memory) -> list[Fields]:
    found: list[Fields] = []
    drafts: dict[str, Fields] = {}
    request = event.get("requestId", event.get("request_id"))
    request = request or child(event, "metadata").get("request_id")
    if request is not None and memory.setdefault("request", request) != request:
        start_anew(memory)
        memory["request"] = request
    for result in objects(event.get("results")):
        channel = joined(result.get("channelTag", result.get("channel_tag")))
        ended = memory.setdefault("ended", {}).get(channel, 0)
        final = result.get("isFinal", result.get("is_final")) is True
        end = _end(result)
        if (
            final and end is not None and end == ended
        ):  # finals end later each: this one is repeated
            ended = memory.get("began", {}).get(channel, ended)
        best = first(result.get("alternatives"))
        fields: Fields = {
            "segment_id": joined(
                request or origin(memory), f"c{channel}" if channel else None, "from", ended
            ),
            "text": best.get("transcript") or "",
            "is_final": final,
            "start_ms": ended,
            "end_ms": end,
            "confidence": best.get("confidence") if final else None,
            "language": result.get("languageCode", result.get("language_code")),
            "speaker": {"id": f"channel-{channel}"} if channel else None,
        }
        if not final and channel in drafts:
            drafts[channel]["text"] += fields["text"]
            continue
        if final:
            _remember(memory, channel, ended, fields["end_ms"])
        else:
            drafts[channel] = fields
        found.append(fields)
    return found


def _remember(memory: Memory, channel: str, ended: int, end: Any) -> None:
    """A response without a time still ends something: the next id must be another."""
    later = round(end) if isinstance(end, float) else ended + 1
    memory["ended"][channel] = later if later != ended else ended + 1
    memory.setdefault("began", {})[channel] = ended


ADAPTER = Adapter("google", "Google Speech-to-Text v1 and v2", _is, _read)
