"""``longstream worker``: consume, summarise, translate, publish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from operators.errors import ConfigError, LongstreamError
from pipelines.config.load import Settings, describe, load_settings
from pipelines.dev import broker
from pipelines.device.client import test_operator_named
from pipelines.kafka.clients import client_options, turned_away
from pipelines.worker import exit_codes

log = logging.getLogger(__name__)

LEAVE_SECONDS = 5.0
MESSAGE_LIMIT = "max.message.bytes"
ACCESS_DENIED = TopicAuthorizationFailedError.errno


def settings_help() -> str:
    """Exit codes and all settings for the end of ``--help``, one paragraph each."""
    lines = [
        exit_codes.explained(),
        "Settings, from the environment or a TOML/YAML file (names without LONGSTREAM_):",
    ]
    for row in describe():
        default = f"; default {row.default}" if row.default else ""
        description = " ".join(row.description.split())
        lines.append(f"{row.env} ({row.type}{default})\n{description}")
    return "\n\n".join(lines)


def worker(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka brokers, host:port.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model alias, hub name, folder or GGUF file.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /live and /ready.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="plain or json.")] = None,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C."""
    from pipelines.config.logs import configure_logging

    try:
        settings = load_settings(
            config, bootstrap=bootstrap, model=model, http_port=http_port, log_format=log_format
        )
        configure_logging(settings.log_format, settings.log_level)
        for caution in settings.cautions:
            log.warning("%s", caution)
        code = asyncio.run(run(settings))
    except LongstreamError as error:
        typer.echo(f"longstream worker: {error}", err=True)
        raise typer.Exit(exit_codes.code_of(error)) from None
    raise typer.Exit(code)


async def run(settings: Settings) -> int:
    """Run a worker in this event loop, stopped by SIGTERM and SIGINT."""
    from pipelines.worker.app import Worker  # imports Faust, which takes a moment: not for --help

    settings = await check_topics(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    code = await Worker(settings, toy=test_operator_named()).run(stop)
    if code == exit_codes.BROKER:
        try:
            await check_topics(settings)  # a missing topic or access is a cause worth naming
        except LongstreamError as error:
            typer.echo(f"longstream worker: {error}", err=True)
            code = exit_codes.code_of(error)
    if code != exit_codes.OK:
        _end_in_time(code)
    return code


def _end_in_time(code: int) -> None:
    """Faust's consumer has a thread of its own, which may wait for a broker that is away."""
    timer = threading.Timer(LEAVE_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def topic_specs(settings: Settings) -> list[broker.TopicSpec]:
    """The topics a worker needs, with the policies they need."""
    compacted = {settings.topic_summaries_latest, settings.topic_sessions}
    # State is deleted by tombstones once its stream has ended, never by its age alone.
    hours = {settings.topic_dlq: settings.dlq_retention_h, settings.topic_sessions: None}
    specs = []
    for name in settings.topics:
        kept = hours.get(name, settings.text_retention_h)
        specs.append(
            broker.TopicSpec(
                name,
                compact=name in compacted,
                retention_ms=None if kept is None else int(kept * 3_600_000),
                max_message_bytes=settings.max_message_bytes,
            )
        )
    return specs


async def check_topics(settings: Settings, timeout: float = 20.0) -> Settings:
    """See that all topics exist with as many partitions as the input, and how large their messages may
    be: the settings, with ``max_message_bytes`` no larger than that.

    Raises BrokerError when Kafka does not answer, ConfigError when the topics do not fit.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        async with asyncio.timeout(timeout):
            await admin.start()
            answer = await admin.describe_topics(list(settings.topics))
            limits = await _message_limits(admin, settings)
    except (KafkaError, TimeoutError) as error:
        if (refusal := await turned_away(settings)) is not None:
            raise refusal from refusal.__cause__
        if exit_codes.hopeless(error):
            raise broker.BrokerError(
                f"{settings.bootstrap}: {exit_codes.in_words(error)}"
            ) from error
        raise broker.BrokerError(
            f"no Kafka at {settings.bootstrap} ({error or 'no answer'}); set LONGSTREAM_BOOTSTRAP, or "
            "start one with `longstream kafka`"
        ) from (error if isinstance(error, KafkaError) else exit_codes.Waited())
    finally:
        await admin.close()
    _check_partitions(settings, answer)
    return _within(settings, limits)


def _check_partitions(settings: Settings, answer: list[dict[str, Any]]) -> None:
    denied = [topic["topic"] for topic in answer if topic.get("error_code") == ACCESS_DENIED]
    if denied:
        denial = TopicAuthorizationFailedError(*denied)
        raise broker.BrokerError(f"{settings.bootstrap}: {exit_codes.in_words(denial)}") from denial
    counts = {topic["topic"]: len(topic["partitions"]) for topic in answer}
    if missing := [name for name in settings.topics if not counts.get(name)]:
        raise ConfigError(
            f"no topic {', '.join(missing)} at {settings.bootstrap}; make them with "
            "`longstream topics create`"
        )
    wanted = counts[settings.topic_segments]
    if other := {name: count for name, count in counts.items() if count != wanted}:
        raise ConfigError(
            f"{settings.topic_segments} has {wanted} partitions, but "
            + ", ".join(f"{name} has {count}" for name, count in other.items())
            + ": all must have the same number"
        )


async def _message_limits(admin: AIOKafkaAdminClient, settings: Settings) -> dict[str, int | None]:
    """``max.message.bytes`` of the topics that are written to (the input is only read); None where the
    broker does not tell."""
    written = [name for name in settings.topics if name != settings.topic_segments]
    limits: dict[str, int | None] = dict.fromkeys(written)
    asked = [
        ConfigResource(ConfigResourceType.TOPIC, name, {MESSAGE_LIMIT: None}) for name in written
    ]
    try:
        answers = await admin.describe_configs(asked)
    except (KafkaError, NotImplementedError):  # a broker that does not know the question
        return limits
    for answer in answers:
        for error, _, _, topic, entries in answer.resources:
            values = [int(entry[1]) for entry in entries if entry[0] == MESSAGE_LIMIT]
            if error == 0 and values:
                limits[topic] = values[0]
    return limits


def _within(settings: Settings, limits: dict[str, int | None]) -> Settings:
    """Else the first large record would end the worker, and every one after it."""
    if untold := [name for name, limit in limits.items() if limit is None]:
        log.warning(
            "the broker does not say %s of %s (the right DescribeConfigs is needed to ask): if it is "
            "below max_message_bytes=%d, a large record will end this worker",
            MESSAGE_LIMIT,
            ", ".join(untold),
            settings.max_message_bytes,
        )
    told = {name: limit for name, limit in limits.items() if limit is not None}
    name, least = min(told.items(), key=lambda item: item[1], default=("", inf))
    if least >= settings.max_message_bytes:
        return settings
    if least <= settings.operator.max_text_bytes:
        raise ConfigError(
            f"{MESSAGE_LIMIT} of {name} is {least}, too small for segments of up to "
            f"operator.max_text_bytes={settings.operator.max_text_bytes}: raise one or lower the other"
        )
    log.warning(
        "%s of %s is %d: this worker writes no larger messages (max_message_bytes=%d)",
        MESSAGE_LIMIT,
        name,
        least,
        settings.max_message_bytes,
    )
    return settings.model_copy(update={"max_message_bytes": least})
