"""``longstream forget``: remove what is known of a stream, and say plainly what stays for how long."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from operators.errors import ConfigError
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit
from pipelines.config.load import load_settings
from pipelines.forgetting import forget_stream, look


def forget(
    stream: Annotated[str, typer.Argument(help="Stream id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is, no more.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker.")] = 60.0,
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Forget a stream: its memory, state, snapshots, latest summary, and records where Kafka can.

    A mark joins the end of the stream's input. The worker that owns the stream works off what was
    said before it, then removes everything; the stream may start anew at any time. Kafka cannot
    delete single records of the other topics: they go with the topics' retention, and how long that
    takes at most is said. The topics are read from start to end to find the stream's records.
    """
    with complaints("forget"):
        settings = load_settings(config, bootstrap=bootstrap)
        found = look(settings, stream)
        before = {topic: found.records(topic) for topic in settings.topics}
        for topic, records in before.items():
            typer.echo(f"{topic}: {records} records of the stream", err=as_json)
        if dry_run:
            if as_json:
                emit({"stream": stream, "forgotten": False, "records": before})
            return
        if not yes:
            _ask(stream)
        left = forget_stream(settings, stream, timeout, found)
    for topic, what in left.items():
        typer.echo(f"{topic}: {what}", err=as_json)
    if as_json:
        emit({"stream": stream, "forgotten": True, "records": before, "left": left})
    else:
        typer.echo(f"{stream}: forgotten")


def _ask(stream: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("this cannot be undone: say --yes (or --dry-run to only look)")
    if not typer.confirm(f"Forget the stream {stream!r} for good?"):
        raise typer.Exit(1)
