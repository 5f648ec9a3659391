"""``longstream init``: a settings file to start from, every line explained."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from operators.errors import ConfigError
from pipelines.cli.output import Json, complaints, emit
from pipelines.config.load import SettingRow, default_values, describe

COMMON = (
    *("bootstrap", "model", "threads", "delivery", "partitions", "snapshot_url", "http_port"),
    *("operator.targets", "operator.window", "operator.update_tokens"),
    *("operator.update_interval_s", "operator.slots"),
)
"""What most people set; --all writes the others too."""
COLUMNS = 98
HEAD = """\
# Settings of longstream. Every line is a default: take the # away and change it.
# Used by --config {name}, or by LONGSTREAM_CONFIG={name} in the environment.
# The command line wins over the environment, the environment over this file.
# Passwords belong in files of their own (…_password_file), not here.
# Check it: longstream config validate {name}
"""


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("longstream.toml"),
    everything: Annotated[bool, typer.Option("--all", help="All settings.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if there is one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a settings file with the common settings, their defaults, and what they mean."""
    with complaints("init"):
        if path.suffix != ".toml":
            raise ConfigError(f"{path}: the name must end in .toml")
        if path.exists() and not force:
            raise ConfigError(f"{path} exists; --force replaces it")
        rows = [row for row in describe() if everything or row.name in COMMON]
        path.write_text(settings_file(rows, path.name), "utf-8")
    if as_json:
        emit({"path": str(path), "settings": len(rows)})
        return
    typer.echo(f"wrote {path} with {len(rows)} settings, all at their defaults")
    typer.echo(f"next: longstream config validate {path}; longstream worker --config {path}")


def settings_file(rows: Iterable[SettingRow], name: str) -> str:
    """The settings as TOML. A line that begins with "#" and no space is a setting at its default."""
    rows = list(rows)
    own = [row for row in rows if "." not in row.name]
    engine = [row for row in rows if "." in row.name]
    parts = [HEAD.format(name=name), *_entries(own)]
    if engine:
        parts += ["[operator]\n", *_entries(engine)]
    return "\n".join(parts)


def _entries(rows: Iterable[SettingRow]) -> Iterator[str]:
    values = default_values()
    for row in rows:
        about = f"{' '.join(row.description.split())} ({row.type})".strip()
        lines = textwrap.wrap(about, COLUMNS, initial_indent="# ", subsequent_indent="# ")
        value = values.get(row.name)
        lines.append(f"#{row.name.rpartition('.')[2]} = {'' if value is None else _toml(value)}")
        yield "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A default as TOML writes it; JSON's strings, numbers and lists are TOML's as well."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
