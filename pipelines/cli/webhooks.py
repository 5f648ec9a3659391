"""``longstream webhooks``: post notes and endings to configured addresses."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import Bootstrap, Config, complaints
from pipelines.config.load import load_settings
from pipelines.config.logs import configure_logging


def webhooks(
    hooks: Annotated[Path, typer.Argument(help="TOML file with a table [[webhook]] for each.")],
    config: Config = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Post new notes and endings of streams, at least once, until SIGTERM or Ctrl-C.

    Any number may run side by side: they share the work.
    """
    from pipelines.gateway.webhooks import read_hooks, run

    with complaints("webhooks"):
        settings = load_settings(config, bootstrap=bootstrap)
        configure_logging(settings.log_format, settings.log_level)
        found = read_hooks(hooks)
        typer.echo(f"longstream webhooks: {', '.join(hook.name for hook in found)}")

        async def until_stopped() -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            await run(settings, found)

        try:
            asyncio.run(until_stopped())
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise typer.Exit(0) from None
