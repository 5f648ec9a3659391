"""Final segments, or their translations, as subtitles: SRT and WebVTT. webvtt-py writes them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from operators.events import Segment, TranslationEvent

CHARS_PER_SECOND = 15
"""How fast subtitles are read, which stands for times that are missing."""
LEAST_MS = 1000


class Cue(NamedTuple):
    """One subtitle. ``speaker``: "" where it is not known."""

    start_ms: int
    end_ms: int
    text: str
    speaker: str = ""


def cues_of(
    segments: Iterable[Segment], translations: Mapping[str, str] | None = None
) -> list[Cue]:
    """The cues of final segments, by start. ``translations``: segment id -> text in its place; what has
    none is left out. A segment without times follows the one before it."""
    found: list[Cue] = []
    at = 0
    for segment in segments:
        text = segment.text
        if translations is not None:
            text = translations.get(segment.segment_id, "")
        if not text.strip():
            continue
        start = max(0, at if segment.start_ms is None else segment.start_ms)
        end = segment.end_ms
        if end is None or end <= start:
            end = start + max(LEAST_MS, len(text) * 1000 // CHARS_PER_SECOND)
        at = end
        who = segment.speaker and (segment.speaker.name or segment.speaker.id)
        found.append(Cue(start, end, " ".join(text.split()), who or ""))
    return sorted(found, key=lambda cue: cue.start_ms)


def translated(events: Iterable[TranslationEvent], language: str) -> dict[str, str]:
    """Segment id -> its newest translation; that of several segments stands under the first."""
    newest: dict[str, tuple[tuple[int, int], str]] = {}
    for event in events:
        if event.target_lang != language or not event.is_final:
            continue
        ids = event.source_segment_ids or (event.unit_id,)
        order = (event.epoch, event.revision)
        if ids[0] not in newest or newest[ids[0]][0] < order:
            newest[ids[0]] = (order, event.committed + event.tail)
    return {name: text for name, (_, text) in newest.items()}


def write_captions(cues: Sequence[Cue], form: str) -> str:
    """``cues`` as "srt" (speakers as "Name: ") or "vtt" (speakers as voice tags)."""
    import webvtt

    captions = webvtt.WebVTT()
    for cue in cues:
        text = _escaped(cue.text) if form == "vtt" else cue.text
        if cue.speaker and form == "vtt":
            text = f"<v {_escaped(cue.speaker)}>{text}</v>"
        elif cue.speaker:
            text = f"{cue.speaker}: {text}"
        caption = webvtt.Caption(_time(cue.start_ms), _time(cue.end_ms), text)
        captions.captions.append(caption)
    out = io.StringIO()
    captions.write(out, format=form, keep_formatting=True)
    return out.getvalue().rstrip("\n") + "\n"


def _time(ms: int) -> str:
    hours, rest = divmod(ms, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"


def _escaped(text: str) -> str:
    """Nothing of it is markup, nor an arrow that would end the cue."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
