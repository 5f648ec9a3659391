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


def show(title: str, sides: Mapping[str, Mapping[str, Any]], figures: Sequence[str]) -> None:
    """One column per side, one row per figure; what a side has not is left empty."""
    table = Table("", *sides, title=title, title_justify="left")
    for name in figures:
        cells = [_cell(found.get(name)) for found in sides.values()]
        if any(cells):
            table.add_row(name, *map(Text, cells))
    Console().print(table)


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
