"""``longstream gateway``: streams over HTTP, server-sent events and a page."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from operators.errors import ConfigError, LongstreamError
from pipelines.cli.output import Json, emit
from pipelines.config.load import load_settings
from pipelines.config.logs import configure_logging


def gateway(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka brokers, host:port,…")] = None,
    host: Annotated[str | None, typer.Option(help="Address to serve on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on; 0 takes a free one.")] = None,
    as_json: Json = False,
) -> None:
    """Serve streams, their notes and a page until SIGTERM or Ctrl-C.

    Reads Kafka and keeps nothing of its own; any number may run side by side.
    """
    try:
        settings = load_settings(config, bootstrap=bootstrap, gateway_host=host, gateway_port=port)
        configure_logging(settings.log_format, settings.log_level)
        # Their lines repeat what the gateway says once, and may hold a request's path.
        for name in ("uvicorn", "uvicorn.error", "aiokafka"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            from pipelines.gateway.server import serve
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{error.name} is missing: pip install 'longstream[gateway]'"
            ) from None
        asyncio.run(serve(settings, partial(_announce, as_json)))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except (LongstreamError, OSError) as error:
        typer.echo(f"longstream gateway: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def _announce(as_json: bool, url: str) -> None:
    if as_json:
        emit({"url": f"{url}/"})
    else:
        typer.echo(f"longstream gateway: {url}/")
