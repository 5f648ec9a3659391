"""``longstream mcp``: tools for agents, over standard input and output or HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from operators.errors import ConfigError
from pipelines.cli.output import complaints


def mcp(
    gateway: Annotated[str, typer.Option(help="Address of the gateway.")] = "http://127.0.0.1:8080",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the gateway's token, if it wants one.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Serve HTTP on this port of 127.0.0.1, path /mcp.")
    ] = None,
) -> None:
    """Meetings as tools: list them, read and search their notes, catch up, ask.

    Without --port it talks on standard input and output, as agents start it.
    """
    with complaints("mcp"):
        try:
            from pipelines.gateway.mcp_server import GatewayClient, serve
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error.name} is missing: pip install 'longstream[mcp]'") from None
        try:
            token = token_file.read_text().strip() if token_file else None
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"--token-file: cannot read {token_file}") from None
        http = None if port is None else ("127.0.0.1", port)
        try:
            asyncio.run(serve(GatewayClient(gateway, token), http))
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
