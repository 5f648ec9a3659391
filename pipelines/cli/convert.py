"""``longstream convert``: a transcript file or a recogniser's events as segments, a JSON line each."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from operators.errors import SegmentError
from pipelines.cli.output import Json, complaints, emit
from pipelines.wire.adapters import ADAPTERS
from pipelines.wire.codec import encode_segment, read_transcript
from pipelines.wire.transcripts import FORMATS

From = Annotated[
    str, typer.Option("--from", help="The file's format, or whose events its JSON lines are.")
]
LEFT_OUT = 1


def convert(
    file: Annotated[str, typer.Argument(help="Transcript in any known format; - is stdin.")] = "-",
    file_format: From = "auto",
    stream: Annotated[
        str | None, typer.Option(help="Stream id; default: the one in the file, or its name.")
    ] = None,
    finals: Annotated[bool, typer.Option("--finals", help="Leave drafts out.")] = False,
    formats: Annotated[bool, typer.Option("--formats", help="List the formats and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Write a transcript as segments in the input schema, a JSON line each: what `longstream replay`
    and any Kafka producer can send. With --json the list of formats is JSON; segments are anyway.

    What cannot be read is named on standard error and left out; the exit code is then 1.
    """
    if formats:
        _list(as_json)
        return
    reader = Bad("convert")
    with complaints("convert"):
        for segment in read_transcript(
            file, stream, file_format=file_format, on_bad=reader.bad, on_note=reader.note
        ):
            if segment.is_final or not finals:
                sys.stdout.write(encode_segment(segment).decode() + "\n")
                sys.stdout.flush()
    reader.leave()


class Bad:
    """Says at once which part of an input is left out, or was guessed; counts the former."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.count = 0

    def bad(self, error: SegmentError) -> None:
        self.count += 1
        typer.echo(f"longstream {self._command}: {error}; left out", err=True)

    def note(self, note: str) -> None:
        typer.echo(f"longstream {self._command}: {note}", err=True)

    def leave(self) -> None:
        """Exit with 1 if anything was left out."""
        if self.count:
            typer.echo(
                f"longstream {self._command}: {self.count} parts of the input were left out",
                err=True,
            )
            raise typer.Exit(LEFT_OUT)


def _list(as_json: bool) -> None:
    known = dict.fromkeys(FORMATS, "file") | {name: a.title for name, a in ADAPTERS.items()}
    if as_json:
        emit(known)
        return
    for name, title in known.items():
        typer.echo(f"{name}: {title}")
