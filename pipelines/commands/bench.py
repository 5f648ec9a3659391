"""``longstream bench NAME``: measure, print a table, and one JSON object as the last line."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def bench(
    name: Annotated[str, typer.Argument(help="forward, speculation, or all.")] = "all",
    model: Annotated[str | None, typer.Option(help="Alias, folder, file or hub name.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    threads: Annotated[int, typer.Option(help="torch threads; at most the cores.")] = 2,
) -> None:
    """Measure the engine on this machine."""
    import torch

    from pipelines import model_store
    from pipelines.benchmarks import BENCHMARKS, machine

    if name != "all" and name not in BENCHMARKS:
        raise typer.BadParameter(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, all")
    torch.set_num_threads(threads)
    console, notes = Console(), Console(stderr=True)
    result: dict[str, object] = {"date": datetime.date.today().isoformat(), **machine()}
    for each in BENCHMARKS if name == "all" else [name]:
        default, run = BENCHMARKS[each]
        path = model_store.resolve(model or default)
        measured = run(path, lambda line: notes.print(f"[dim]{line}[/dim]"))
        result[each] = {"model": path.name, **measured}
        console.print(_table(each, path.name, measured))
    line = json.dumps(result)
    if json_file is not None:
        json_file.write_text(line + "\n", "utf-8")
    typer.echo(line)


def _table(name: str, model: str, measured: dict[str, object]) -> Table:
    """A row per measure; nested values side by side."""
    table = Table("measure", "values", title=f"{name} ({model})", title_justify="left")
    for key, value in measured.items():
        cells = value.items() if isinstance(value, dict) else [("", value)]
        table.add_row(key, "   ".join(f"{k} {v}".strip() for k, v in cells))
    return table
