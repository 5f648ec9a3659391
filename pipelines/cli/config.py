"""``longstream config``: the settings in force, where each comes from, and whether a file is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from operators.errors import ConfigError
from pipelines.cli.output import Config, Json, complaints, emit, printable, show, table
from pipelines.config.load import explain, load_settings
from pipelines.worker import exit_codes

app = typer.Typer(help="Settings: show, validate.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """Settings: show, validate."""


@app.command("show")
def show_settings(
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those that are not the default.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show every setting: its value, and where that was set. Secrets are masked."""
    with complaints("config"):
        rows = [row for row in explain(config) if not (changed and row.source == "default")]
    if as_json:
        emit([row._asdict() for row in rows])
        return
    shown = table("setting", "value", "source")
    for row in rows:
        value = "" if row.value is None else str(row.value)
        shown.add_row(row.name, printable(value), row.source)
    show(shown if rows else "all settings have their defaults")


@app.command()
def validate(
    file: Annotated[
        Path | None, typer.Argument(help="TOML or YAML; default: LONGSTREAM_CONFIG, if set.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a settings file together with the environment. Exit code 2 if something is wrong."""
    problems: list[str] = []
    cautions: list[str] = []
    try:
        cautions = list(load_settings(file).cautions)
    except ConfigError as error:
        problems = str(error).splitlines()
    if as_json:
        emit({"ok": not problems, "problems": problems, "cautions": cautions})
    else:
        for line in (*problems, *cautions):
            typer.echo(f"longstream config: {line}", err=True)
        if not problems:
            typer.echo(f"{file or 'settings'}: ok")
    raise typer.Exit(exit_codes.CONFIG if problems else exit_codes.OK)
