"""Plain text with speakers, and often times: as Otter, Teams, Google Meet and people write it.

Two shapes. *Headed*: a line with the name and the time, what was said below, wrapped as it may be.
*Inline*: each line begins with a time, a name, or both. A file is one of these only where nearly all of
it is; a colon or a time in ordinary prose is prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipelines.wire.adapters.base import clock
from pipelines.wire.subtitles import PREFIXED_SHARE, name_in_front

_TIME = r"(?:\d{1,3}:)?\d{1,2}:\d{2}(?:[.,]\d{1,3})?"
_SPAN = rf"(?P<time>{_TIME})(?:\s*(?:-->|-|–)\s*(?P<end>{_TIME}))?"
_HEAD = re.compile(
    rf"(?P<name>[^\s\[(][^\t]{{0,79}}?)(?P<gap>\s*\t\s*|\s{{1,}})[\[(]?{_SPAN}[\])]?\s*"
)
_HEAD_TIME = re.compile(rf"[\[(]?{_SPAN}[\])]?\s*")
_INLINE = re.compile(rf"\s*[\[(]?{_SPAN}[\])]?\s*(?:[-–|]\s+|\t)?(?P<rest>\S.*)")
_NAME_TIME = re.compile(rf"(?P<name>[^\[\]():]{{1,64}}?)\s*[\[(]{_SPAN}[\])]\s*:?\s*(?P<rest>\S.*)")
_SENTENCE_END = re.compile(r"[.!?…。！？।؟]\s*$")
HEAD_WITHIN = 10
"""A headed file names its first speaker within so many lines."""
MIN_LINES = 2


class SpeakerText(NamedTuple):
    fields: list[dict[str, Any]]
    before: int
    """Lines before the first speaker, a title perhaps: they were not said, and are left out."""


def looks_headed(line: str) -> bool:
    """Whether one line alone is a speaker's heading for sure: name, a wide gap, time."""
    match = _HEAD.fullmatch(line.rstrip())
    return match is not None and (len(match["gap"]) >= 2 or "\t" in match["gap"])


def read_speaker_text(text: str) -> SpeakerText | None:
    """None if the text is not of either shape."""
    lines = text.splitlines()
    return _headed(lines) or _inline(lines)


# --- headed -------------------------------------------------------------------------------------------


def _headed(lines: list[str]) -> SpeakerText | None:
    heads = {at: match for at, line in enumerate(lines) if (match := _head(lines, at, line))}
    spoken = [at for at, line in enumerate(lines) if line.strip() and at not in heads]
    if not heads or not spoken or min(heads) > HEAD_WITHIN:
        return None
    if not _sure(lines, heads):
        return None
    places = sorted(heads)
    fields = []
    for place, following in zip(places, [*places[1:], len(lines)], strict=True):
        said = " ".join(" ".join(lines[place + 1 : following]).split())
        if said:
            fields.append(_fields(said, heads[place].groupdict()))
    before = sum(bool(line.strip()) for line in lines[: places[0]])
    return SpeakerText(fields, before) if fields else None


def _head(lines: list[str], at: int, line: str) -> re.Match[str] | None:
    """A heading stands at the start or behind an empty line, and has something below it."""
    if not line.strip() or at + 1 >= len(lines) or not lines[at + 1].strip():
        return None
    if looks_headed(line):
        return _HEAD.fullmatch(line.rstrip())
    if at and lines[at - 1].strip():
        return None
    match = _HEAD_TIME.fullmatch(line.strip()) or _HEAD.fullmatch(line.strip())
    if match is None or _SENTENCE_END.search(match.groupdict().get("name") or ""):
        return None
    return match


def _sure(lines: list[str], heads: dict[int, re.Match[str]]) -> bool:
    """One heading may be a sentence that ends in a time; several whose times do not go back are not."""
    if any(looks_headed(lines[at]) for at in heads):
        return True
    times = [clock(match["time"]) for _, match in sorted(heads.items())]
    return len(times) >= MIN_LINES and times == sorted(times)


# --- inline -------------------------------------------------------------------------------------------


def _inline(lines: list[str]) -> SpeakerText | None:
    spoken = [line for line in lines if line.strip()]
    read = [_inline_fields(line) for line in spoken]
    hits = sum(each is not None for each in read)
    if len(spoken) < MIN_LINES or hits < PREFIXED_SHARE * len(spoken) or not read[0]:
        return None
    if not any("start_ms" in each for each in read if each) and not _names_return(read):
        return None
    fields: list[dict[str, Any]] = []
    for line, each in zip(spoken, read, strict=True):
        if each is not None:
            fields.append(each)
        else:  # a wrapped line
            fields[-1]["text"] += " " + " ".join(line.split())
    return SpeakerText(fields, 0)


def _names_return(read: list[dict[str, Any] | None]) -> bool:
    """Without times: a conversation names its speakers again; a list of definitions does not."""
    names = [each["speaker"]["name"] for each in read if each and "speaker" in each]
    return len(set(names)) <= len(names) / 2


def _inline_fields(line: str) -> dict[str, Any] | None:
    line = line.strip()
    if match := _NAME_TIME.fullmatch(line):
        return _fields(match["rest"], match.groupdict())
    times: dict[str, Any] = {}
    if match := _INLINE.fullmatch(line):
        times, line = match.groupdict(), match["rest"]
    if (named := name_in_front(line)) is not None:
        return _fields(named[1], {**times, "name": named[0]})
    return _fields(line, times) if times else None


def _fields(said: str, found: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": " ".join(said.split())}
    if name := (found.get("name") or "").strip(" \t-–:"):
        fields["speaker"] = {"name": name}
    if found.get("time"):
        fields["start_ms"] = clock(found["time"])
    if found.get("end"):
        fields["end_ms"] = clock(found["end"])
    return fields


def fields_of(text: str) -> Iterator[dict[str, Any]]:
    """One segment a line: text of no shape."""
    for line in text.splitlines():
        if line.strip():
            yield {"text": line.strip()}
