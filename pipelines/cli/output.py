"""What all commands share: options, errors as a sentence with an exit code, results as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from operators.errors import LongstreamError
from pipelines.worker import exit_codes

Config = Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")]
Bootstrap = Annotated[str | None, typer.Option(help="Kafka brokers, host:port,…")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.")]
JsonAnyway = Annotated[
    bool, typer.Option("--json", help="Standard output is JSON lines with and without this.")
]
"""For commands that write nothing else: a program may pass --json to all of them."""

INTERRUPTED = 130
PIPE_WIDTH = 160
"""Columns of a table where there is no terminal to ask: rich would fold it at 80."""


@contextmanager
def complaints(command: str) -> Iterator[None]:
    """An error made on purpose becomes one sentence on standard error, and its exit code."""
    try:
        yield
    except (LongstreamError, OSError) as error:
        typer.echo(f"longstream {command}: {error}", err=True)
        raise typer.Exit(exit_codes.code_of(error)) from None


def emit(result: Any) -> None:
    """One JSON value on a line of standard output."""
    typer.echo(json.dumps(result, ensure_ascii=False))


def table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def show(renderable: Any) -> None:
    """Print to standard output; colours and the terminal's width only where there is a terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(renderable, soft_wrap=isinstance(renderable, str))


def printable(text: str) -> str:
    """Safe for a terminal: what is not printable shows as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
