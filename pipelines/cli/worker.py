"""``longstream worker``: consume, summarise, translate, publish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from operators.errors import LongstreamError
from pipelines.config.load import Settings, describe, load_settings
from pipelines.device.client import test_operator_named
from pipelines.kafka.topic_check import check_topics
from pipelines.worker import exit_codes

LEAVE_SECONDS = 5.0


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
    as_json: Annotated[bool, typer.Option("--json", help="The same as --log-format json.")] = False,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C."""
    from pipelines.config.logs import configure_logging

    log = logging.getLogger(__name__)
    log_format = "json" if as_json else log_format
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
