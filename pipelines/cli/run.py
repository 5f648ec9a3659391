"""``longstream run``: the operator on a file or a pipe, no broker needed."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import msgspec
import typer
from pydantic import ValidationError

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.events import Segment
from operators.state import Failure
from pipelines.cli.convert import Bad, From
from pipelines.cli.output import JsonAnyway, complaints
from pipelines.config.fields import Settings
from pipelines.wire.codec import read_transcript
from pipelines.wire.questions import question_fields

if TYPE_CHECKING:
    from operators.stream import Stream
    from operators.stream_operator import StreamOperator


def run(
    file: Annotated[
        str,
        typer.Argument(
            help="Transcript in any known format (JSON lines, VTT, SRT, text …); - is stdin."
        ),
    ],
    file_format: From = "auto",
    model: Annotated[
        str,
        typer.Option(help="Model alias, hub name, folder or GGUF file.", envvar="LONGSTREAM_MODEL"),
    ] = "qwen2.5-coder-1.5b",
    model_sha256: Annotated[
        str, typer.Option(help="What a model that is no alias must be; needed for a hub's.")
    ] = "",
    translate: Annotated[str, typer.Option(help="Language codes, e.g. fr,de.")] = "",
    ask: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask every stream this before it ends; repeatable. Also decisions, open_items or "
            "catch_up, with for=NAME, since_revision=N, since_ms=N."
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of transcript that stay visible.")] = 1024,
    update_tokens: Annotated[int, typer.Option(help="A summary after this many new tokens.")] = 384,
    stream: Annotated[
        str | None, typer.Option(help="Stream id; default: the one in the lines, or file name.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="local, openai (a server) or transformers.")
    ] = "local",
    server_url: Annotated[
        str, typer.Option(help="The server; its key is LONGSTREAM_SERVER_KEY_FILE.")
    ] = "",
    server_model: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this snapshot (its stream only).")
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="Keep the stream open at the end and save it here.")
    ] = None,
    as_json: JsonAnyway = False,
) -> None:
    """Summarise, translate and answer on a transcript; events go to standard output as JSON lines.

    Input is read as it comes, so a pipe without end works: `tail -f talk.txt | longstream run -`.
    """
    reader = Bad("run")
    options: dict[str, Any] = {
        "window": window,
        "update_tokens": min(update_tokens, window),
        "targets": tuple(code.strip() for code in translate.split(",") if code.strip()),
    }
    with complaints("run"):
        # What can be wrong without the model is said before minutes are spent on loading it.
        OperatorConfig.from_dict(dict(options))
        _check(device=device, model=model, model_sha256=model_sha256)
        resumed = resume.read_bytes() if resume is not None else None
        if snapshot is not None and not snapshot.absolute().parent.is_dir():
            raise ConfigError(f"--snapshot {snapshot}: no such folder")
        found = read_transcript(
            file, stream, file_format=file_format, on_bad=reader.bad, on_note=reader.note
        )
        segments = begun(file, found)
        from pipelines.local import load_operator  # imports torch
        from pipelines.served.options import chosen_server

        server = chosen_server(backend, server_url, server_model)
        typer.echo(f"loading {server.url if server else model} …", err=True)
        operator = load_operator(
            model,
            model_sha256=model_sha256.lower(),
            device=device,
            backend=backend,
            server=server,
            **options,
        )
        follow(operator, segments, sys.stdout, ask or [], resumed, snapshot)
    reader.leave()


def _check(**given: Any) -> None:
    """Raises ConfigError for values that a worker's settings would refuse."""
    try:
        Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][-1])
        told = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--{name.replace('_', '-')} {given.get(name, '')}: {told}") from None


def begun(file: str, segments: Iterator[Segment]) -> Iterator[Segment]:
    """The same segments, of a file with the first one read: a format that is not known is told now. A
    pipe is not waited for. Raises SegmentError, OSError; ConfigError for a file without a segment."""
    if file == "-" or stat.S_ISFIFO(Path(file).stat().st_mode):
        return segments
    first = next(segments, None)
    if first is None:
        raise ConfigError(f"{file}: there is no segment in it")
    return itertools.chain([first], segments)


def follow(
    operator: StreamOperator,
    segments: Iterable[Segment],
    out: TextIO,
    questions: list[str],
    resume: bytes | None = None,
    snapshot: Path | None = None,
) -> None:
    """Feed every segment and write what comes of it, a JSON object a line, as soon as it is there.

    At the end of the input each stream is asked the questions and closed; with ``snapshot`` the one
    stream is saved instead. Raises LongstreamError, OSError.
    """
    streams: dict[str, Stream] = {}
    ended: set[str] = set()
    for segment in segments:
        name = segment.stream_id
        if name not in streams:
            if streams and (snapshot is not None or resume is not None):
                raise ConfigError("--snapshot and --resume take a transcript of one stream")
            streams[name] = operator.open(name, snapshot=resume)
        if segment.type == "session_end":
            _ask(streams[name], questions, out)
        ended = ended | {name} if segment.type == "session_end" else ended - {name}
        streams[name].feed_segment(segment)
        _write(streams.values(), out)
    for name, stream in streams.items():
        if name in ended:
            continue
        _ask(stream, questions, out)
        if snapshot is not None:
            _save(snapshot, stream.snapshot())
        else:
            stream.close()
        _write(streams.values(), out)


def _ask(stream: Stream, questions: list[str], out: TextIO) -> None:
    for question in questions:
        fields = question_fields(question)
        answer = stream.ask(fields.pop("text", ""), **fields)
        _write([stream], out)
        out.write(msgspec.json.encode(answer).decode() + "\n")


def _write(streams: Iterable[Stream], out: TextIO) -> None:
    for stream in streams:
        for event in stream.results():
            if isinstance(event, Failure):
                what = f"segment {event.ticket} was not worked off: {event.message}"
                typer.echo(f"{stream.id}: {what}", err=True)
                continue
            out.write(msgspec.json.encode(event).decode() + "\n")
            out.flush()


def _save(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    half = path.with_name(path.name + ".part")
    half.write_bytes(data)
    os.replace(half, path)
    typer.echo(f"saved {path} ({len(data)} bytes)", err=True)
