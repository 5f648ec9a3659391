"""``longstream topics``: make what a worker needs before it starts, and check it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from operators.errors import LongstreamError
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.clients import turned_away
from pipelines.kafka.errors import BrokerUnavailable, TopicError
from pipelines.kafka.growth import grow as grow_topics
from pipelines.kafka.tools import connection
from pipelines.kafka.topic_check import check_topics
from pipelines.kafka.topics import create_topics, topic_specs, wrong_policies
from pipelines.worker import exit_codes

app = typer.Typer(help="Kafka topics: create, grow, check.", no_args_is_help=True)


@app.callback()
def topics() -> None:
    """Kafka topics: create, grow, check."""


@app.command()
def create(
    config: Config = None,
    bootstrap: Bootstrap = None,
    partitions: Annotated[int | None, typer.Option(help="Partitions of every topic.")] = None,
    replication: Annotated[int | None, typer.Option(help="Replicas of every topic.")] = None,
    as_json: Json = False,
) -> None:
    """Create the missing topics; check those that exist."""
    with complaints("topics"):
        settings = load_settings(
            config, bootstrap=bootstrap, partitions=partitions, replication=replication
        )
        created = _create(settings)
    if as_json:
        emit([{"topic": name, "created": name in created} for name in settings.topics])
        return
    for name in settings.topics:
        typer.echo(f"{name}: {'created' if name in created else 'exists'}")


def _create(settings: Settings) -> list[str]:
    try:
        return create_topics(
            settings.bootstrap,
            topic_specs(settings),
            settings.partitions,
            replication_factor=settings.replication,
            login=connection(settings, "longstream-topics"),
        )
    except TopicError:
        if (refusal := asyncio.run(turned_away(settings))) is not None:
            raise refusal from refusal.__cause__  # which tells a refused login from a wrong setting
        raise


@app.command()
def grow(
    partitions: Annotated[int, typer.Argument(help="Partitions of every topic from then on.")],
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Add partitions and move what is kept of each stream to where its input goes then.

    Producers and workers have to be stopped, with nothing left unprocessed; otherwise it refuses.
    """
    with complaints("topics"):
        settings = load_settings(config, bootstrap=bootstrap)
        before, moved = grow_topics(settings, partitions)
    if as_json:
        emit({"before": before, "partitions": partitions, "moved": moved})
        return
    typer.echo(f"{before} partitions before, {partitions} now; {moved} streams moved")
    typer.echo(f"set partitions = {partitions}, then start the workers and the producers")


@app.command()
def check(config: Config = None, bootstrap: Bootstrap = None, as_json: Json = False) -> None:
    """Check that all topics exist and fit: partitions, cleanup policy, message size. Changes nothing.

    Exit code 2 if one does not.
    """
    with complaints("topics"):
        settings = load_settings(config, bootstrap=bootstrap)
        problems = problems_of(settings)
    if as_json:
        emit({"ok": not problems, "topics": list(settings.topics), "problems": problems})
    else:
        for problem in problems:
            typer.echo(f"longstream topics: {problem}", err=True)
        if not problems:
            typer.echo(f"{len(settings.topics)} topics at {settings.bootstrap}: ok")
    raise typer.Exit(exit_codes.CONFIG if problems else exit_codes.OK)


def problems_of(settings: Settings) -> list[str]:
    """What a worker would refuse, a sentence each. Raises LongstreamError if Kafka does not answer or
    refuses the login."""
    try:
        asyncio.run(check_topics(settings))
    except (BrokerUnavailable, TopicError):
        raise
    except LongstreamError as error:
        if exit_codes.code_of(error) == exit_codes.DENIED:
            raise
        return [str(error)]
    login = connection(settings, "longstream-topics")
    return wrong_policies(settings.bootstrap, topic_specs(settings), login=login)
