"""Transcript files as segments, whatever they are: JSON lines, JSON, WebVTT, SRT, SBV, text with
speakers, plain text. ``longstream run``, ``replay`` and ``convert`` read all of them directly.

The format is asked for, or told by the content, else by the file's name. A file with times and speakers
is never read as lines of speech: what is not understood is refused by its name.
"""

from __future__ import annotations

import itertools
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, SegmentError
from operators.events import Segment
from pipelines.wire import adapters
from pipelines.wire.decoding import RecordDecoder, unknown_adapter
from pipelines.wire.encodings import decode_file, is_utf8
from pipelines.wire.framing import parse_json, utf8
from pipelines.wire.json_files import events_of
from pipelines.wire.speaker_text import fields_of, looks_headed, read_speaker_text
from pipelines.wire.subtitles import FORMATS as SUBTITLES
from pipelines.wire.subtitles import read_subtitles

FORMATS = ("jsonl", "json", *SUBTITLES, "speakers", "text")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".vtt": "vtt", ".srt": "srt",
            ".sbv": "sbv"}  # fmt: skip
ALL_TEXT = 1 << 62

OnBad = Callable[[SegmentError], None]
OnNote = Callable[[str], None]

_STRANGERS = (
    (re.compile(rb"PK\x03\x04"), "an office document or archive: save it as text"),
    (re.compile(rb"%PDF-"), "a PDF: save it as text"),
    (re.compile(rb"\{\\rtf"), "an RTF document: save it as text"),
    (re.compile(rb"\s*<(\?xml|tt[\s>]|!doctype|html)", re.IGNORECASE), "XML or HTML (TTML?)"),
    (
        re.compile(rb"\s*\[Script Info\]"),
        "SubStation Alpha subtitles: convert them to SRT or WebVTT",
    ),
    (
        re.compile(
            rb"RIFF.{4}WAVE|OggS\x00|fLaC\x00|ID3[\x02-\x04]|\x1aE\xdf\xa3|.{4}ftyp", re.DOTALL
        ),
        "audio or video: a recogniser has to make text of it first",
    ),
    (re.compile(rb"\x1f\x8b|BZh[1-9]1AY|\x28\xb5\x2f\xfd"), "a compressed file: unpack it first"),
)
_ARROW = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s*-->\s*(?:\d+:)?\d+:\d+", re.MULTILINE)
_SBV = re.compile(r"\d+:\d\d:\d\d\.\d{3},\d+:\d\d:\d\d\.\d{3}\s*$")
_OPEN_JSON = re.compile(r"[\[{,]\s*$")


def read_transcript(
    path: str | Path,
    stream_id: str | None = None,
    *,
    file_format: str = "auto",
    on_bad: OnBad | None = None,
    on_note: OnNote = lambda note: None,
) -> Iterator[Segment]:
    """The segments of a transcript file, or of standard input (as it comes) if ``path`` is "-".

    ``file_format``: auto, one of :data:`FORMATS`, or an adapter's name for JSON lines of its events.
    ``stream_id`` wins over the one in the file; where neither gives one it is the file's name without
    suffix. ``segment_id`` stays empty unless given: it follows from the offset the record gets.

    A part that cannot be read goes to ``on_bad`` and is skipped; without it, it is raised. ``on_note``
    gets what was guessed or left out. Raises ConfigError for an unknown format, SegmentError whose
    message starts with "FILE, line N:" or "FILE:", OSError.
    """
    if file_format not in ("auto", *FORMATS, *adapters.ADAPTERS):
        raise ConfigError(f"{_known_formats()}; not {file_format!r}")
    reader = _Reader(file_format, stream_id, on_bad, on_note)
    if str(path) == "-":
        reader.name, reader.fallback = "standard input", "stdin"
        yield from reader.read_pipe(sys.stdin.buffer)
        return
    path = Path(path)
    reader.name, reader.fallback = path.name, path.stem
    if stat.S_ISFIFO(path.stat().st_mode):
        with path.open("rb") as lines:
            yield from reader.read_pipe(lines)
        return
    yield from reader.read_file(path.read_bytes(), SUFFIXES.get(path.suffix.lower(), ""))


def _known_formats() -> str:
    names = ", ".join(FORMATS)
    return f"a file's format is one of auto, {names}, or {', '.join(adapters.ADAPTERS)}"


class _Reader:
    """One file or pipe."""

    name = fallback = ""

    def __init__(
        self, file_format: str, stream_id: str | None, on_bad: OnBad | None, on_note: OnNote
    ) -> None:
        adapter = file_format if file_format in adapters.ADAPTERS else "auto"
        self._format = "jsonl" if adapter != "auto" else file_format
        self._stream_id, self._on_bad, self._on_note = stream_id, on_bad, on_note
        self._decoder = RecordDecoder(max_text_bytes=ALL_TEXT, input_adapter=adapter)

    # --- a whole file -----------------------------------------------------------------------------

    def read_file(self, data: bytes, by_name: str) -> Iterator[Segment]:
        self._refuse_strangers(data)
        if self._format == "jsonl" or (self._format == "auto" and _is_json_lines(data, by_name)):
            if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                data = self._text(data).encode()
            yield from self._json_lines(data.splitlines())
            return
        text = self._text(data)
        wanted = self._format if self._format != "auto" else _sniff(text, by_name)
        yield from self._whole(text, wanted)

    def _refuse_strangers(self, data: bytes) -> None:
        for pattern, what in _STRANGERS:
            if pattern.match(data):
                raise SegmentError("unknown_format", f"{self.name}: looks like {what}")

    def _text(self, data: bytes) -> str:
        try:
            text, guess = decode_file(data)
        except SegmentError as error:
            raise SegmentError(error.reason, f"{self.name}: {error}") from None
        if guess:
            self._on_note(f"{self.name}: not UTF-8; read as {guess}, which is a guess")
        return text

    def _whole(self, text: str, wanted: str) -> Iterator[Segment]:
        if wanted == "json":
            yield from self._json(text)
        elif wanted in SUBTITLES:
            found, unread = self._told(read_subtitles, text, wanted)
            if unread:
                self._on_note(f"{self.name}: {unread} cues could not be read and are left out")
            yield from self._numbered(found, "cue")
        elif wanted == "speakers":
            speakers = read_speaker_text(text)
            if speakers is None:
                raise SegmentError("unknown_format", f"{self.name}: no speakers and times in it")
            if speakers.before:
                self._on_note(
                    f"{self.name}: {speakers.before} lines before the first speaker are left out"
                )
            yield from self._numbered(speakers.fields, "part")
        else:
            if _ARROW.search(text) and wanted != "text":
                raise SegmentError(
                    "unknown_format",
                    f"{self.name}: has the times of subtitles, but is no file of {SUBTITLES}; "
                    "name its format, or say that it is text",
                )
            yield from self._numbered(fields_of(text), "line")

    def _told(self, read: Callable[..., Any], *args: Any) -> Any:
        try:
            return read(*args)
        except SegmentError as error:
            raise SegmentError(error.reason, f"{self.name}: {error}") from None

    # --- a pipe, as it comes ------------------------------------------------------------------------

    def read_pipe(self, lines: Iterable[bytes]) -> Iterator[Segment]:
        """Lines of text or JSON at once; what has to be read whole when it has ended."""
        lines = iter(lines)
        head: list[bytes] = []
        wanted = self._format if self._format != "auto" else None
        while wanted is None:
            line = next(lines, None)
            if line is None:
                break
            head.append(line)
            if len(head) == 1:
                self._refuse_strangers(line)
            wanted = _of_head([x for x in map(_lenient, head) if x])
        everything = itertools.chain(head, lines)
        if wanted == "jsonl":
            yield from self._json_lines(everything)
        elif wanted == "text":
            yield from self._text_lines(everything)
        elif wanted is not None:
            yield from self._whole(self._text(b"".join(everything)), wanted)

    def _text_lines(self, lines: Iterable[bytes]) -> Iterator[Segment]:
        for number, line in enumerate(lines, start=1):
            try:
                said = utf8(line, "line").strip()
                if said:
                    yield from self._segments({"text": said})
            except SegmentError as error:
                self._bad(error, f"line {number}")

    # --- parts -------------------------------------------------------------------------------------

    def _json_lines(self, lines: Iterable[bytes]) -> Iterator[Segment]:
        for number, line in enumerate(lines, start=1):
            try:
                text = utf8(line, "line").strip()
                if not text:
                    continue
                event = parse_json(text)
                if not isinstance(event, dict):
                    raise SegmentError("malformed_json", "an object is needed")
                yield from self._segments(event)
            except SegmentError as error:
                self._bad(error, f"line {number}")

    def _json(self, text: str) -> Iterator[Segment]:
        whole = self._told(parse_json, text)
        events = self._told(events_of, whole)
        yield from self._numbered(events, "part")

    def _numbered(self, parts: Iterable[dict[str, Any]], word: str) -> Iterator[Segment]:
        for number, fields in enumerate(parts, start=1):
            try:
                yield from self._segments(fields)
            except SegmentError as error:
                self._bad(error, f"{word} {number}")

    def _segments(self, event: dict[str, Any]) -> Iterator[Segment]:
        decoded = self._decoder.read(
            event, None, "", stream=self._stream_id, fallback=self.fallback
        )
        if decoded.dropped:
            self._on_note(f"{self.name}: unusable and left out: {', '.join(decoded.dropped)}")
        yield from decoded.segments

    def _bad(self, error: SegmentError, where: str) -> None:
        told = SegmentError(error.reason, f"{self.name}, {where}: {error}")
        if self._on_bad is None:
            raise told from None
        self._on_bad(told)


# --- which format ----------------------------------------------------------------------------------


def _lenient(line: bytes) -> str:
    return line.decode(errors="replace").removeprefix("\ufeff").strip()


def _is_json_lines(data: bytes, by_name: str) -> bool:
    """Whether each line is an object of its own; a broken line then costs that line alone."""
    if by_name == "jsonl":
        return True
    lines = (line for line in map(_lenient, data[: 1 << 20].splitlines()) if line)
    first = next(lines, "")
    if not first.startswith("{"):
        return False
    return _is_object(first) or (
        by_name == "json" and not _OPEN_JSON.search(first) and not _is_whole(data)
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except SegmentError:
        return False


def _is_whole(data: bytes) -> bool:
    return is_utf8(data) and _is_object(data.decode().removeprefix("\ufeff").strip())


def _of_head(lines: list[str]) -> str | None:
    """The format by the first lines that are not empty; None if one more is needed."""
    if not lines:
        return None
    first = lines[0]
    if first.startswith("WEBVTT"):
        return "vtt"
    if _SBV.match(first):
        return "sbv"
    if _ARROW.match(first):
        return "srt" if "," in first.partition("-->")[0] else "vtt"
    if first.isdecimal():
        return None if len(lines) < 2 else ("srt" if _ARROW.match(lines[1]) else "text")
    if first.startswith("{") and (_is_object(first) or first[1:].lstrip()[:1] == '"'):
        return "jsonl" if not _OPEN_JSON.search(first) else "json"
    if first in ("{", "[") or first.startswith("[{"):
        return "json"
    return "speakers" if looks_headed(first) else "text"


def _sniff(text: str, by_name: str) -> str:
    """The format of a whole file that is not JSON lines."""
    lines = [line for line in (raw.strip("\ufeff \t\r") for raw in text.splitlines()) if line]
    found = _of_head([line.strip() for line in lines[:2]]) if lines else None
    if found not in (None, "text", "jsonl", "speakers"):
        return str(found)
    if by_name:
        return by_name
    if read_speaker_text(text) is not None:
        return "speakers"
    return "auto"


def check_adapter(name: str) -> None:
    """Raises ConfigError for a name no adapter has."""
    if name not in adapters.ADAPTERS:
        raise ConfigError(unknown_adapter(name))
