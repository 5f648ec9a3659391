"""Subtitle files as segments: WebVTT (Zoom, Teams, YouTube), SRT, SBV. webvtt-py parses them.

What it leaves to us: who speaks (voice tags, or "Name: " in front, as Zoom writes it), the captions of
YouTube that roll (each cue repeats what the one before showed), markup within the text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from operators.errors import SegmentError

FORMATS = ("vtt", "srt", "sbv")
HOLD_MS = 50
"""A cue of a rolling caption that only holds what is shown lasts 10 ms."""
PREFIXED_SHARE = 0.6
"""Where so many cues begin with "Name: ", that is who speaks; elsewhere a colon is a colon."""

_VOICE = re.compile(r"<v(?:\.[^\s>]+)*\s+([^>]*)>")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_WORD_TIME = re.compile(r"<(?:\d+:)?\d\d:\d\d\.\d+>")
_ARROW = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s*-->", re.MULTILINE)
_SBV_TIME = re.compile(r"^\d+:\d\d:\d\d\.\d{3},\d+:\d\d:\d\d\.\d{3}\s*$", re.MULTILINE)
PREFIX = re.compile(r"\s*(?:-\s*)?([^\s:：<>][^:：<>\n]{0,63}?)(?::\s+|：\s*)(?=\S)")
MAX_NAME_WORDS = 6


class Cue(NamedTuple):
    """``lines``: what is shown, with its markup."""

    start_ms: int
    end_ms: int
    lines: list[str]


class Subtitles(NamedTuple):
    fields: list[dict[str, Any]]
    unread: int
    """Cues that are not as the format wants them."""


def read_subtitles(text: str, file_format: str) -> Subtitles:
    """The cues as fields of the input schema. Raises SegmentError("unknown_format")."""
    cues, unread = _parse(text, file_format)
    if is_rolling(cues):
        cues = list(unrolled(cues))
    fields = [segment for cue in cues for segment in _by_voice(cue)]
    if not any("speaker" in each for each in fields):
        _name_speakers(fields)
    return Subtitles(fields, unread)


def _parse(text: str, file_format: str) -> tuple[list[Cue], int]:
    import webvtt
    from webvtt.errors import MalformedCaptionError, MalformedFileError

    text = text.removeprefix("\ufeff").lstrip("\n\r ")
    times = len((_SBV_TIME if file_format == "sbv" else _ARROW).findall(text))
    if file_format == "srt" and not text.split("\n", 1)[0].strip().isdigit():
        file_format, text = "vtt", _as_vtt(text)
    elif file_format == "vtt" and not text.startswith("WEBVTT"):
        text = _as_vtt(text)
    try:
        captions = webvtt.from_buffer(io.StringIO(text), format=file_format)
    except (MalformedFileError, MalformedCaptionError) as error:
        raise SegmentError(
            "unknown_format", f"not a file of format {file_format}: {error}"
        ) from None
    cues = [
        Cue(c.start_time.in_milliseconds(), c.end_time.in_milliseconds(), list(c.lines))
        for c in captions.captions
    ]
    return cues, max(0, times - len(cues))


def _as_vtt(text: str) -> str:
    """SRT without its numbers, or WebVTT without its header."""
    fixed = re.sub(r"(\d\d:\d\d),(\d{3})", r"\1.\2", text)
    return f"WEBVTT\n\n{fixed}"


# --- rolling captions --------------------------------------------------------------------------------


def is_rolling(cues: list[Cue]) -> bool:
    """Whether the cues repeat each other to look as if the text rolled: the marks of YouTube's automatic
    captions. A line that is said twice in an ordinary file stays."""
    if any(_WORD_TIME.search(line) for cue in cues for line in cue.lines):
        return True
    holds = sum(cue.end_ms - cue.start_ms <= HOLD_MS for cue in cues)
    return holds > 0 and holds >= len(cues) // 4


def unrolled(cues: list[Cue]) -> Iterator[Cue]:
    """Each line once, in the cue that showed it first."""
    shown: list[str] = []
    for cue in cues:
        lines = [(plain(line), line) for line in cue.lines]
        lines = [(said, line) for said, line in lines if said]
        known = _overlap(shown, [said for said, _ in lines])
        shown = [said for said, _ in lines] or shown
        fresh = [line for _, line in lines[known:]]
        if fresh:
            yield cue._replace(lines=fresh)


def _overlap(before: list[str], now: list[str]) -> int:
    """How many lines at the start of ``now`` are those at the end of ``before``."""
    sizes = range(min(len(before), len(now)), 0, -1)
    return next((size for size in sizes if before[-size:] == now[:size]), 0)


# --- who speaks ---------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Without tags and with entities read, on one line."""
    return " ".join(html.unescape(_MARKUP.sub("", text)).split())


def _by_voice(cue: Cue) -> Iterator[dict[str, Any]]:
    whole = "\n".join(cue.lines)
    pieces = _VOICE.split(whole)  # text, name, text, name, text …
    voices = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    for name, said in voices:
        text = plain(said)
        if not text:
            continue
        fields: dict[str, Any] = {"text": text, "start_ms": cue.start_ms, "end_ms": cue.end_ms}
        if name.strip():
            fields["speaker"] = {"name": plain(name)}
        yield fields


def _name_speakers(fields: list[dict[str, Any]]) -> None:
    """Take "Name: " off the texts, if most of the file has it. Mutates the fields."""
    found = [name_in_front(each["text"]) for each in fields]
    named = sum(each is not None for each in found)
    if len(fields) < 2 or named < PREFIXED_SHARE * len(fields):
        return
    for each, prefix in zip(fields, found, strict=True):
        if prefix is not None:
            each["speaker"], each["text"] = {"name": prefix[0]}, prefix[1]


def name_in_front(text: str) -> tuple[str, str] | None:
    """ "Ana Ruiz: We move it." as name and words; None where no name is in front."""
    match = PREFIX.match(text)
    if match is None or len(match[1].split()) > MAX_NAME_WORDS or match[1].isdigit():
        return None
    return match[1].strip(), text[match.end() :]
