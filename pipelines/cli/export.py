"""``longstream export``: one stream's notes or captions as a file for other programs."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from operators.errors import ConfigError, LongstreamError, SegmentError
from operators.events import (
    NO_SETTINGS,
    AnswerEvent,
    AnyEvent,
    Segment,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
)
from operators.render import render
from pipelines.cli.output import Bootstrap, Config, complaints
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.tools import KafkaError, Reader, no_broker, read
from pipelines.wire.captions import cues_of, translated, write_captions
from pipelines.wire.codec import SEGMENT_SCHEMA, decode_event, decode_state
from pipelines.wire.decoding import RecordDecoder
from pipelines.wire.framing import parse_json
from pipelines.wire.todo_calendar import write_calendar

Form = Literal["md", "json", "srt", "vtt", "ics"]
CAPTIONS = ("srt", "vtt")
ALL_TEXT = 1 << 62


@dataclass
class Export:
    """What is known of one stream, records in order. Only its last life counts."""

    stream: str
    summary: SummaryEvent | None = None
    settings: StreamSettings = NO_SETTINGS
    segments: dict[str, Segment] = field(default_factory=dict)
    translations: list[TranslationEvent] = field(default_factory=list)
    ended: bool = False

    def add(self, record: Segment | AnyEvent) -> None:
        if record.stream_id != self.stream:
            return
        if isinstance(record, Segment):
            self._add_segment(record)
        elif isinstance(record, SummaryEvent):
            before = self.summary
            if not before or (record.epoch, record.revision) > (before.epoch, before.revision):
                self.summary = record
        elif isinstance(record, TranslationEvent):
            self.translations.append(record)

    def _add_segment(self, segment: Segment) -> None:
        if segment.type == "session_end":
            self.ended = True
        elif segment.type == "forget" or (segment.type == "session_start" and self.ended):
            self.segments.clear()
            self.ended = False
        elif segment.type == "segment" and segment.is_final:
            if self.ended:
                self.segments.clear()
                self.ended = False
            known = self.segments.get(segment.segment_id)
            if known is None or segment.revision >= known.revision:
                self.segments[segment.segment_id or f"line-{len(self.segments)}"] = segment


def export(
    stream: Annotated[str, typer.Argument(help="Stream id.")],
    form: Annotated[
        Form, typer.Option("--format", help="Notes: md, json, ics. Captions: srt, vtt.")
    ] = "md",
    language: Annotated[
        str | None, typer.Option(help="Captions in this translation, such as fr.")
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            help="Read this file (- is stdin) of JSON lines, not Kafka: what `run` writes."
        ),
    ] = None,
    front_matter: Annotated[
        bool, typer.Option("--front-matter/--no-front-matter", help="Properties above Markdown.")
    ] = True,
    said_on: Annotated[
        str | None,
        typer.Option("--date", help="Day of the conversation (2026-11-29); default: of the notes."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    config: Config = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Write a stream's notes as Markdown (ready for Obsidian), JSON or iCalendar to-dos with due dates;
    or its transcript, or a translation of it, as captions."""
    form = "json" if as_json else form
    with complaints("export"):
        day = _day(said_on)
        if events is not None:
            found = gathered(stream, _lines(events))
        else:
            settings = load_settings(config, bootstrap=bootstrap)
            found = from_kafka(settings, stream, captions=form in CAPTIONS)
        text = rendered(found, form, language, front_matter, day)
        if out is not None:
            out.write_text(text, "utf-8")
        else:
            sys.stdout.write(text)


def rendered(
    found: Export,
    form: Form,
    language: str | None = None,
    front_matter: bool = True,
    day: datetime.date | None = None,
) -> str:
    """The stream in a format. Raises LongstreamError where it has nothing of the kind."""
    if form in CAPTIONS:
        texts = translated(found.translations, language) if language else None
        cues = cues_of(found.segments.values(), texts)
        if not cues:
            what = f"translation into {language}" if language else "segments"
            raise LongstreamError(f"no {what} of {found.stream!r}")
        return write_captions(cues, form)
    if found.summary is None:
        raise LongstreamError(f"no notes of {found.stream!r} yet")
    day = day or _day_of(found.summary)
    if form == "ics":
        return write_calendar(found.summary, day, found.settings.summary_language)
    if form == "json":
        return render(found.summary, found.settings, "json") + "\n"
    text = render(found.summary, found.settings, "markdown")
    return _front_matter(found, day) + text if front_matter else text


def _front_matter(found: Export, day: datetime.date) -> str:
    """YAML properties as Obsidian and static site generators read them."""
    summary = found.summary
    assert summary is not None
    fields = {
        "title": found.settings.title or found.stream,
        "date": day,
        "stream": found.stream,
        "participants": list(found.settings.participants or ()),
        "status": summary.status,
        "revision": summary.revision,
        "tags": ["minutes"],
    }
    text = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)
    return f"---\n{text}---\n\n"


def _day(text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--date {text!r}: a day such as 2026-11-29") from None


def _day_of(summary: SummaryEvent) -> datetime.date:
    """The day the notes were written; today for notes of `longstream run`, which carry no time."""
    if not summary.emitted_at_ms:
        return datetime.datetime.now(datetime.UTC).date()
    return datetime.datetime.fromtimestamp(summary.emitted_at_ms / 1000, datetime.UTC).date()


# --- where it is read from ---------------------------------------------------------------------------


def gathered(stream: str, records: Iterable[Segment | AnyEvent]) -> Export:
    found = Export(stream)
    for record in records:
        found.add(record)
    return found


def _lines(path: str) -> Iterator[Segment | AnyEvent]:
    """Events and segments of a file; answers, and what is neither, are skipped."""
    decoder = RecordDecoder(max_text_bytes=ALL_TEXT, input_adapter="longstream")
    with sys.stdin.buffer if path == "-" else Path(path).open("rb") as lines:
        for line in lines:
            try:
                if SEGMENT_SCHEMA.encode() in line[:200]:
                    yield from decoder.read(parse_json(line.decode()), None, "").segments
                else:
                    event = decode_event(line)
                    if not isinstance(event, AnswerEvent):
                        yield event
            except (SegmentError, LongstreamError, UnicodeDecodeError):
                continue


def from_kafka(settings: Settings, stream: str, captions: bool) -> Export:
    """The stream as the topics hold it now. Raises LongstreamError."""
    topics = [settings.topic_sessions, settings.topic_summaries_latest]
    if captions:
        topics = [settings.topic_segments, settings.topic_translations]
    found, key = Export(stream), stream.encode()
    reader = Reader(settings, topics, topics)
    try:
        for record in reader.read_to_end():
            if record.key != key:
                continue
            if record.topic == settings.topic_sessions:
                state, _ = decode_state(record.value)
                found.settings = state.settings if state else NO_SETTINGS
            elif (value := read(record, settings)) is not None:
                found.add(value)
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        reader.close()
    return found
