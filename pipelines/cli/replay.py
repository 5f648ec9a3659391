"""``longstream replay``: transcript files to the segments topic, at the pace of speech or faster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from operators.errors import ConfigError
from pipelines.cli.convert import From
from pipelines.cli.output import INTERRUPTED, Bootstrap, Config, Json, complaints, emit
from pipelines.cli.replaying import Due, Pacer, Replay, merged, parse_speed, timeline
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.tools import partition_count, producer
from pipelines.wire.codec import read_transcript


def replay(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Transcripts in any known format; - is stdin."),
    ],
    file_format: From = "auto",
    speed: Annotated[str, typer.Option(help="20x: twenty times real time. max: at once.")] = "max",
    stream: Annotated[
        str | None, typer.Option(help="Stream id; default: the one in the lines, or file name.")
    ] = None,
    bootstrap: Bootstrap = None,
    topic: Annotated[str | None, typer.Option(help="Topic; default: the segments topic.")] = None,
    end: Annotated[
        bool, typer.Option("--end/--no-end", help="Close each stream with a session_end.")
    ] = True,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Produce transcripts to Kafka. Several files run in parallel, as streams of their own."""
    with complaints("replay"):
        factor = parse_speed(speed)
        settings = load_settings(config, bootstrap=bootstrap, topic_segments=topic)
        run(files, factor, stream, settings, end, as_json, file_format)


def run(
    files: Sequence[str],
    speed: float,
    stream: str | None,
    settings: Settings,
    end: bool,
    as_json: bool = False,
    file_format: str = "auto",
) -> None:
    """Replay ``files`` and print how many segments the broker acknowledged.

    Files are read to their end before anything is sent, so a broken line is found first; standard
    input is sent as it comes. Raises ``LongstreamError`` or ``OSError``.
    """
    total = _count(files, stream, file_format)
    started = time.monotonic()
    with producer(settings) as client:
        partitions = partition_count(client, settings.topic_segments, settings)
        with _bar() as bar:
            task = bar.add_task("replay", total=total)
            sender = Replay(
                client,
                settings.topic_segments,
                partitions,
                on_sent=lambda sent: bar.advance(task, sent.segment.type == "segment"),
            )
            lines = [
                timeline(read_transcript(file, stream, file_format=file_format), end)
                for file in files
            ]
            interrupted = _send(sender, merged(lines), Pacer(speed))
    seconds = time.monotonic() - started
    if as_json:
        emit({"topic": settings.topic_segments, "segments": sender.acked, "marks": sender.marks,
              "streams": sorted(sender.streams), "interrupted": interrupted})  # fmt: skip
        raise typer.Exit(INTERRUPTED if interrupted else 0)
    typer.echo(
        f"{'stopped: ' if interrupted else ''}{sender.acked} segments of {len(sender.streams)} "
        f"streams acknowledged on {settings.topic_segments} at {settings.bootstrap}"
        f" ({sender.marks} marks, {seconds:.1f} s)"
    )
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _send(sender: Replay, dues: Iterator[Due], pacer: Pacer) -> bool:
    """True if the user stopped it; what was handed over is acknowledged in either case."""
    try:
        sender.run(dues, pacer)
    except KeyboardInterrupt:
        return True
    return False


def _count(files: Sequence[str], stream: str | None, file_format: str) -> int | None:
    """Segments in all files, None if standard input is among them."""
    if files.count("-") > 1:
        raise ConfigError("- (standard input) can be given once")
    counts = [
        sum(1 for _ in read_transcript(file, stream, file_format=file_format))
        for file in files
        if file != "-"
    ]
    return None if "-" in files else sum(counts)


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
