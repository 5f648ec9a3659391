"""``longstream webhooks``: post notes and endings to configured addresses."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit
from pipelines.config.load import load_settings
from pipelines.config.logs import configure_logging
from pipelines.observability.catalogue import WEBHOOK_SPECS
from pipelines.observability.metrics import SideMetrics


def webhooks(
    hooks: Annotated[Path, typer.Argument(help="TOML file with a table [[webhook]] for each.")],
    config: Config = None,
    bootstrap: Bootstrap = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve /metrics on this port of 127.0.0.1; 0 takes a free one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Post new notes and endings of streams, at least once, until SIGTERM or Ctrl-C.

    Any number may run side by side: they share the work.
    """
    from pipelines.gateway.webhooks import read_hooks, run

    with complaints("webhooks"):
        settings = load_settings(config, bootstrap=bootstrap)
        configure_logging(settings.log_format, settings.log_level)
        found = read_hooks(hooks)
        metrics = SideMetrics(WEBHOOK_SPECS)
        port = _serve(metrics, metrics_port) if metrics_port is not None else None
        names = [hook.name for hook in found]
        if as_json:
            emit({"webhooks": names, "metrics_port": port})
        else:
            where = f"; metrics: http://127.0.0.1:{port}/metrics" if port else ""
            typer.echo(f"longstream webhooks: {', '.join(names)}{where}")

        async def until_stopped() -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            await run(settings, found, metrics.record)

        try:
            asyncio.run(until_stopped())
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise typer.Exit(0) from None


def _serve(metrics: SideMetrics, port: int) -> int:
    """/metrics in a thread of its own, on loopback; the port. Raises OSError."""
    from prometheus_client import start_http_server

    server, _ = start_http_server(port, "127.0.0.1", metrics.registry)
    return int(server.server_port)
