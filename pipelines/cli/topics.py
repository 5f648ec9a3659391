"""``longstream topics create``: make what a worker needs before it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from operators.errors import LongstreamError
from pipelines.config.load import load_settings
from pipelines.kafka.clients import turned_away
from pipelines.kafka.errors import TopicError
from pipelines.kafka.tools import connection
from pipelines.kafka.topics import create_topics, topic_specs

app = typer.Typer(help="Kafka topics.", no_args_is_help=True)


@app.callback()
def topics() -> None:
    """Kafka topics."""


@app.command()
def create(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka brokers, host:port.")] = None,
    partitions: Annotated[int | None, typer.Option(help="Partitions of every topic.")] = None,
    replication: Annotated[int | None, typer.Option(help="Replicas of every topic.")] = None,
) -> None:
    """Create the missing topics; check those that exist."""
    try:
        settings = load_settings(
            config, bootstrap=bootstrap, partitions=partitions, replication=replication
        )
        created = create_topics(
            settings.bootstrap,
            topic_specs(settings),
            settings.partitions,
            replication_factor=settings.replication,
            login=connection(settings, "longstream-topics"),
        )
    except LongstreamError as error:
        if isinstance(error, TopicError):
            error = asyncio.run(turned_away(settings)) or error
        typer.echo(f"longstream topics: {error}", err=True)
        raise typer.Exit(2) from None
    for name in settings.topics:
        typer.echo(f"{name}: {'created' if name in created else 'exists'}")
