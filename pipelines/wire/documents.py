"""Transcripts and translations as Markdown; notes are rendered by :mod:`operators.render`.

What was said is text in these files, never markup: :func:`escaped` takes the meaning from
characters that Markdown or HTML would read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from operators.events import (
    NO_SETTINGS,
    Segment,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
)
from operators.render import render

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_LIST = re.compile(r"^(\s*)(\d+)([.)])|^(\s*)([-+])", re.MULTILINE)


def escaped(text: str) -> str:
    """``text`` so that a Markdown reader shows it as it is, on one line."""
    text = _MARKUP.sub(r"\\\1", " ".join(text.splitlines()))
    return _LIST.sub(lambda m: f"{m[1] or m[4] or ''}{m[2] or ''}\\{m[3] or m[5]}", text)


def clock(ms: int | None) -> str:
    """Milliseconds from the start as 1:02:03 or 02:03; empty for None."""
    if ms is None:
        return ""
    seconds = max(0, ms) // 1000
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def speaker_of(segment: Segment) -> str:
    """The speaker's name, else the id, else empty."""
    return (segment.speaker and (segment.speaker.name or segment.speaker.id)) or ""


def transcript_markdown(segments: Iterable[Segment], title: str) -> str:
    """Final segments, a paragraph each, with time and speaker."""
    lines = [f"# {escaped(title)}", ""]
    for segment in segments:
        head = " ".join(filter(None, [clock(segment.start_ms), escaped(speaker_of(segment))]))
        lines += [f"**{head}** {escaped(segment.text)}" if head else escaped(segment.text), ""]
    return "\n".join(lines)


def translation_markdown(units: Iterable[TranslationEvent], title: str) -> str:
    """Translations, a paragraph each; what may still change is in italics."""
    lines = [f"# {escaped(title)}", ""]
    for unit in units:
        tail = f"*{escaped(unit.tail.strip())}*" if unit.tail.strip() else ""
        lines += [" ".join(filter(None, [escaped(unit.committed), tail])), ""]
    return "\n".join(lines)


def minutes_markdown(
    event: SummaryEvent | None,
    segments: Sequence[Segment],
    title: str,
    settings: StreamSettings = NO_SETTINGS,
) -> str:
    """Notes, as the stream asks for them, and transcript in one document."""
    settings = replace(settings, title=settings.title or title)
    notes = render(event, settings, "markdown") if event else f"# {escaped(title)}\n"
    said = transcript_markdown(segments, "Transcript").replace("# ", "## ", 1)
    return f"{notes}\n{said}" if segments else notes
