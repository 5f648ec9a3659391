"""What a run leaves: a table on the screen, one JSON object, pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PAUSE_S = 5.0
"""Between two lines of progress."""


def speaker(command: str) -> Callable[[str], None]:
    """Progress on standard error, a line every few seconds at most."""
    console = Console(stderr=True)
    said_at = -PAUSE_S

    def say(line: str) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= PAUSE_S:
            said_at = now
            console.print(f"{command}: {line}", style="dim", markup=False, highlight=False)

    return say


def show(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
    """One row per side; a figure that a side has not is left empty."""
    screen = Console(width=max(120, Console().width))
    table = Table("side", *columns, title=title, title_justify="left")
    for name, figures in rows.items():
        table.add_row(name, *(Text(_cell(figures.get(column))) for column in columns))
    screen.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(result: Mapping[str, Any], json_file: Path | None) -> None:
    """The JSON object, on the last line and in a file if one was named."""
    line = json.dumps(result, ensure_ascii=False)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(line + "\n", "utf-8")
    typer.echo(line)
