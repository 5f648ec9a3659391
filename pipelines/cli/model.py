"""``longstream model``: list, pull, locate, pin and calibrate models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from operators.errors import ModelError
from pipelines import models
from pipelines.cli.output import Json, complaints, emit, show, table
from pipelines.config.load import load_settings

app = typer.Typer(help="List, pull, locate and pin models.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="An alias (see list), a model folder, a .gguf file or a hub name.")
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Cache folder. Default: the setting cache, LONGSTREAM_CACHE."),
]
PLAIN_EVERY_S = 5.0
"""Without a terminal a line is printed for every new kind of work, and at most this often."""


@app.command("list")
def list_(cache: Cache = None, as_json: Json = False) -> None:
    """Show the aliases, what they take and whether they are here."""
    with complaints("model"):
        folder = _cache(cache)
    rows = [
        {
            "alias": alias.name,
            "download_mb": round(alias.download_size / 1e6),
            "on_disk_mb": round(alias.converted_size / 1e6),
            "licence": alias.licence,
            "cached": models.cached(alias.name, folder) is not None,
            "note": alias.note,
        }
        for alias in models.ALIASES.values()
    ]
    if as_json:
        emit(rows)
        return
    shown = table("alias", "download", "on disk", "licence", "state", "note")
    shown.columns[0].no_wrap = True
    for row in rows:
        shown.add_row(
            str(row["alias"]),
            f"{row['download_mb']:,} MB",
            f"{row['on_disk_mb']:,} MB",
            str(row["licence"]),
            "cached" if row["cached"] else "not cached",
            str(row["note"]),
        )
    show(shown)


@app.command()
def pull(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take the alias's GGUF bytes from this file (sha256-checked)."),
    ] = None,
    gguf_dir: Annotated[
        Path | None,
        typer.Option(help="Look here for a file with the alias's bytes before downloading."),
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Fetch a model, check it, convert it once; print its folder."""
    with complaints("model"):
        folder = _cache(cache)
        with _progress() as progress:
            path = models.resolve(
                name,
                progress,
                folder,
                source=source,
                gguf_dir=gguf_dir,
                pin=models.Pin(needed="never"),  # nothing is loaded here
            )
    _tell("path", str(path), as_json)


@app.command()
def path(name: Name, cache: Cache = None, as_json: Json = False) -> None:
    """Print the folder of a model that is here; fetches nothing, exits 3 if it is not."""
    with complaints("model"):
        found = models.cached(name, _cache(cache))
        if found is None:
            raise ModelError(f"{name} is not here: longstream model pull {name}")
    _tell("path", str(found), as_json)


@app.command()
def sha256(name: Name, as_json: Json = False) -> None:
    """Print what a model that is here can be pinned to: the setting model_sha256 or draft_model_sha256.

    Of a file it is its sha256. Of a folder it is that of the lines which, run in it, this prints:
    find -L . -type f \\( -name '*.safetensors' -o -name '*.json' -o -name '*.txt' -o -name '*.jinja' -o
    -name '*.model' \\) | cut -c3- | LC_ALL=C sort | xargs -d '\\n' sha256sum
    """
    with complaints("model"):
        found = models.sha256_of_model(name)
    _tell("sha256", found, as_json)


def _tell(name: str, value: str, as_json: bool) -> None:
    if as_json:
        emit({name: value})
    else:
        typer.echo(value)


@app.command()
def calibrate(
    name: Name,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Answers at once. Default: operator.branches.")
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Measure each type of weights on this machine; print what to pin, so that all workers of a
    deployment write the same texts."""
    with complaints("model"):
        settings = load_settings(cache=cache)
        from pipelines.device import calibration  # needs torch: only here

        def say(line: str) -> None:
            typer.echo(line, err=True)

        with _progress() as progress:
            path = models.resolve(name, progress, settings.cache, pin=models.Pin(needed="never"))
            models.ensure_four_bits(name, path, settings.cache)
        found = calibration.report(
            path, name, settings.threads, rows or settings.operator.branches, say
        )
        if as_json:
            emit(found)
        else:
            typer.echo(calibration.in_words(found))


def _cache(given: Path | None) -> Path:
    return load_settings(cache=given).cache


@contextmanager
def _progress() -> Iterator[models.Progress]:
    """A bar on the terminal's stderr, else plain lines; standard output keeps the result only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines()
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def show(message: str, fraction: float | None) -> None:
            # rich keeps the old total when given None, so an unknown share needs a fresh task.
            nonlocal task
            if fraction is None and bar.tasks[-1].total is not None:
                bar.remove_task(task)
                task = bar.add_task(message, total=None)
            elif fraction is None:
                bar.update(task, description=message)
            else:
                bar.update(task, description=message, completed=fraction, total=1.0)

        yield show


class _PlainLines:
    """Progress as lines on stderr: one per new kind of work, then one every few seconds."""

    def __init__(self) -> None:
        self._kind = ""
        self._last = 0.0

    def __call__(self, message: str, fraction: float | None) -> None:
        kind, now = message.split("(")[0], time.monotonic()
        if kind != self._kind or now - self._last >= PLAIN_EVERY_S:
            self._kind, self._last = kind, now
            share = "" if fraction is None else f" {fraction:.0%}"
            typer.echo(f"{message}{share}", err=True)
