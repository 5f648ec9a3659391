"""The ``longstream`` program: one subcommand per module of :mod:`pipelines.commands`.

A module offers either ``app`` (a Typer of its own, with subcommands) or a function of its own name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import typer

from pipelines.threads import TORCH

COMMANDS = (
    "demo",
    "run",
    "worker",
    "replay",
    "watch",
    "topics",
    "dlq",
    "forget",
    "kafka",
    "model",
    "bench",
    "soak",
    "chaos",
)


def make_cli() -> typer.Typer:
    """The program with all commands that this installation has."""
    cli = typer.Typer(
        help="Rolling summaries and translations of endless text on Kafka.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,  # locals may hold credentials
    )

    @cli.callback()
    def longstream() -> None:
        """Rolling summaries and translations of endless text on Kafka."""

    for name in COMMANDS:
        path = f"pipelines.commands.{name}"
        if importlib.util.find_spec(path) is not None:
            _mount(cli, name, path)
    return cli


def _mount(cli: typer.Typer, name: str, path: str) -> None:
    module = importlib.import_module(path)
    if isinstance(app := getattr(module, "app", None), typer.Typer):
        cli.add_typer(app, name=name)
        return
    epilog = module.settings_help() if hasattr(module, "settings_help") else None
    cli.command(name, epilog=epilog)(getattr(module, name))


def main() -> None:
    """Entry point of the console script."""
    for name, value in TORCH.items():
        os.environ.setdefault(name, value)
    make_cli()()


if __name__ == "__main__":
    main()
