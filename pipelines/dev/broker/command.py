"""``longstream kafka``: a Kafka in the foreground, with our topics, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from functools import partial
from types import FrameType
from typing import Annotated, Literal

import typer

from pipelines.cli.output import Json, complaints, emit
from pipelines.dev import broker
from pipelines.kafka.topics import DEFAULT_PARTITIONS, TOPICS, TopicSpec, create_topics


def kafka(
    port: Annotated[
        int | None, typer.Option(help="Loopback port to listen on. Default: a free one.")
    ] = None,
    kind: Annotated[
        Literal["auto", "docker", "jvm"],
        typer.Option(help="How to run it: Docker, a JVM, or what is there (auto, in this order)."),
    ] = "auto",
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of every topic.")
    ] = DEFAULT_PARTITIONS,
    as_json: Json = False,
) -> None:
    """Run Kafka on this machine with the topics created; Ctrl-C stops it and removes its data."""
    with complaints("kafka"):
        run(port=port, kind=kind, partitions=partitions, as_json=as_json)


def run(
    *,
    port: int | None = None,
    kind: Literal["auto", "docker", "jvm"] = "auto",
    partitions: int = DEFAULT_PARTITIONS,
    topics: Iterable[TopicSpec] = TOPICS,
    as_json: bool = False,
) -> None:
    """Start a broker, say how to reach it, and block until SIGINT or SIGTERM.

    Does not look at LONGSTREAM_BOOTSTRAP: who asks for a broker gets one.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    with broker.start(kind, port=port, log=partial(typer.echo, err=as_json)) as kafka_broker:
        created = create_topics(kafka_broker.bootstrap, topics, partitions)
        # Only now: until here the default, an exception, is what ends a slow start at once.
        previous = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
        if as_json:
            emit({"bootstrap": kafka_broker.bootstrap, "partitions": partitions, "topics": created})
        else:
            typer.echo(f"topics, {partitions} partitions each: {', '.join(created)}")
            typer.echo(
                f"\nin another terminal:\n  export LONGSTREAM_BOOTSTRAP={kafka_broker.bootstrap}"
            )
            typer.echo("  longstream worker\n\nCtrl-C stops the broker and removes its data.")
        try:
            stop.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    typer.echo("stopped")


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
