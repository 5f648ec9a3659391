"""What an adapter is, and what several of them need.

An adapter reads one event of a recogniser or meeting platform as the fields of the input schema
(:mod:`pipelines.wire.segments` coerces and checks those, so a value that is wrong may be handed on as
it is). It is a pure function of the event and of ``memory``, a small dict that belongs to one stream:
what the events of some providers leave out has to be remembered. Memory is lost with the worker; an
adapter goes on without it, and the engine knows what comes again by its segment_id.

Where a provider gives no ids, utterances are counted from :func:`origin`: the place of the record where
the counting began. So counting anew, after a restart or a new connection, never repeats an id; an id
given twice to different words would make the second a mere correction of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
Fields = dict[str, Any]
Memory = dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """``detect``: whether an event is one of this provider's, and of no other's. ``read``: the segments
    in it, in order; none for an event that carries no words."""

    name: str
    title: str
    detect: Callable[[Event], bool]
    read: Callable[[Event, Memory], list[Fields]]


def seconds(value: Any) -> Any:
    """Seconds, also as a string or as "1.5s", in milliseconds; anything else as it is."""
    return _scaled(value.removesuffix("s") if isinstance(value, str) else value, 1000)


def ticks(value: Any) -> Any:
    """Units of 100 ns in milliseconds; anything else as it is."""
    return _scaled(value, 1e-4)


def _scaled(value: Any, factor: float) -> Any:
    if value is None or isinstance(value, bool):
        return value
    try:
        return float(value) * factor
    except (TypeError, ValueError, OverflowError):
        return value


def plus(start: Any, length: Any) -> Any:
    """``start + length`` where both are numbers; None where one is not."""
    if isinstance(start, int | float) and isinstance(length, int | float):
        return start + length
    return None


def clock(value: Any) -> Any:
    """ "0:01:02.5" or "01:02" in milliseconds; anything else as it is."""
    if not isinstance(value, str):
        return seconds(value)
    total = 0.0
    try:
        for part in value.split(":"):
            total = total * 60 + float(part.replace(",", "."))
    except ValueError:
        return value
    return total * 1000


def objects(value: Any) -> list[Event]:
    """The objects in a list; none where there is no list."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def first(value: Any) -> Event:
    """The first object of a list, or an empty one."""
    found = objects(value)
    return found[0] if found else {}


def child(event: Event, *path: str) -> Event:
    """An object within objects, or an empty one."""
    found: Any = event
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text_in(event: Event, name: str) -> str:
    """A field that should be text; "" if it is not."""
    value = event.get(name)
    return value if isinstance(value, str) else ""


def joined(*parts: Any) -> str:
    """An id of several parts; those that are missing are left out."""
    return "-".join(str(part) for part in parts if part is not None and part != "")


def origin(memory: Memory) -> str:
    """Where this counting of utterances began: the id of its first record, "" in a file."""
    return str(memory.setdefault("origin", memory.get("at", "")))


def start_anew(memory: Memory) -> None:
    """Forget what belongs to a connection that has ended, and count from this record."""
    number = memory.get("connection", 0) + 1
    at = memory.get("at", "")
    memory.clear()
    memory.update(at=at, connection=number, origin=at or f"connection-{number}")


def by_speaker(text: str, words: Sequence[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    """``text`` cut where the speaker of its words changes: pieces with their speaker.

    ``words``: (word, speaker) in order, as they stand in the text; spaces are the text's own, so this
    serves scripts without them. One piece, with the speaker None, if a word is not found.
    """
    cuts: list[tuple[int, Any]] = []
    at = 0
    for word, speaker in words:
        if not isinstance(word, str) or (found := text.find(word, at)) < 0:
            return [(text, None)]
        if speaker is not None and (not cuts or cuts[-1][1] != speaker):
            cuts.append((found, speaker))
        at = found + len(word)
    if not cuts:
        return [(text, None)]
    starts = [0, *(start for start, _ in cuts[1:]), len(text)]
    pieces = zip(starts, starts[1:], cuts, strict=False)
    return [(text[start:end].strip(), speaker) for start, end, (_, speaker) in pieces]


def split(fields: Fields, words: Sequence[tuple[Any, Any]]) -> list[Fields]:
    """A segment as one per speaker. The first keeps the id, so that it replaces the draft shown."""
    pieces = by_speaker(str(fields.get("text") or ""), words)
    found = []
    for number, (text, speaker) in enumerate(pieces):
        piece = fields | {"text": text, "speaker": fields.get("speaker", speaker)}
        if speaker is not None:
            piece["speaker"] = {"id": speaker}
        if number:
            piece["segment_id"] = f"{fields['segment_id']}/{number}"
        found.append(piece)
    return found
