"""``longstream chaos``: kill everything at any time, then check that the topics tell one story."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console

from operators.errors import LongstreamError
from pipelines.cli.output import JsonAnyway


def chaos(
    kills: Annotated[
        int, typer.Option(min=0, help="Workers and devices killed, and workers frozen (zombies).")
    ] = 20,
    seed: Annotated[int, typer.Option(help="The same seed makes the same plan.")] = 1,
    delivery: Annotated[
        Literal["exactly_once", "at_least_once"], typer.Option(help="How the workers deliver.")
    ] = "exactly_once",
    workers: Annotated[int, typer.Option(min=2, help="Workers kept running.")] = 2,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are spoken in.")] = 12,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of every topic.")] = 6,
    rate: Annotated[float, typer.Option(min=0.1, help="Segments a second, over all streams.")] = 4,
    model: Annotated[
        str,
        typer.Option(help="toy (a tiny random model), echo (no model), or a model as for worker."),
    ] = "toy",
    session_timeout: Annotated[
        float, typer.Option(min=6, help="Seconds until a silent worker loses its partitions.")
    ] = 10,
    between: Annotated[
        str, typer.Option(help="Least and most seconds between two events.")
    ] = "5,15",
    broker_restarts: Annotated[
        int, typer.Option(min=0, help="Restarts of the broker: by SIGKILL and in order, in turn.")
    ] = 2,
    idle: Annotated[
        int, typer.Option(min=0, help="Streams that say one segment and nothing more.")
    ] = 30,
    idle_timeout: Annotated[
        float,
        typer.Option(min=5, help="Seconds after which a silent stream is ended; above any pause."),
    ] = 45.0,
    grow: Annotated[
        int, typer.Option(min=0, help="Partitions added near the end, with all streams alive.")
    ] = 2,
    silent: Annotated[
        int,
        typer.Option(
            min=0, help="Streams that fall silent for good in the middle, without an end."
        ),
    ] = 3,
    max_stall: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that a partition which stays with a healthy worker may stand still.",
        ),
    ] = 20,
    calm: Annotated[
        float, typer.Option(min=0, help="Seconds of peace before the first event.")
    ] = 5,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the workers' logs; otherwise they are removed.")
    ] = None,
    as_json: JsonAnyway = False,
) -> None:
    """Run workers on a real Kafka while they are killed, frozen, joined, asked to leave, and the
    broker is restarted; then read all topics from their start and compare them with the input.

    The last line is a JSON object. The exit code is 1 when something that the delivery mode promises
    is broken, 2 when the run could not be carried out. The default takes about six minutes.

    With --kills 0 --broker-restarts 0 --calm 60 it measures what a delivery mode costs in peace.
    """
    from pipelines.lab.chaos.run import Options, run

    notes = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        notes.print(line, markup=False, style="dim", soft_wrap=True)

    try:
        least, most = sorted(float(part) for part in between.split(","))
    except ValueError:
        raise typer.BadParameter(
            "two numbers of seconds, as in 5,15", param_hint="--between"
        ) from None
    options = Options(
        kills=kills,
        seed=seed,
        delivery=delivery,
        workers=workers,
        streams=streams,
        partitions=partitions,
        rate=rate,
        model=model,
        session_timeout_s=session_timeout,
        least_s=least,
        most_s=most,
        broker_restarts=broker_restarts,
        silent=silent,
        idle=idle,
        idle_timeout_s=idle_timeout,
        grow=grow,
        max_stall_s=max_stall,
        calm_s=calm,
        keep=keep,
    )
    # So that the broker and the workers are stopped in order.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcome = run(options, say)
    except (LongstreamError, OSError) as error:
        notes.print(f"longstream chaos: {error}", markup=False)
        raise typer.Exit(2) from None
    for line in outcome.report:
        notes.print(f"  {line}", markup=False, soft_wrap=True)
    for promise in outcome.broken:
        notes.print(f"broken: {promise} ({delivery})", markup=False, style="bold red")
    typer.echo(json.dumps(outcome.summary))
    raise typer.Exit(1 if outcome.broken else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
