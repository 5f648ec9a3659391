"""The ``longstream`` program: one subcommand per module of ``COMMANDS``.

A module offers either ``app`` (a Typer of its own, with subcommands) or a function of its own name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from importlib import metadata

import typer

from pipelines.device.torch_env import TORCH
from pipelines.worker import exit_codes

COMMANDS = {
    "demo": "pipelines.dev.demo.command",
    "run": "pipelines.cli.run",
    "decode": "pipelines.cli.decode",
    "convert": "pipelines.cli.convert",
    "listen": "pipelines.cli.listen",
    "init": "pipelines.cli.init",
    "config": "pipelines.cli.config",
    "topics": "pipelines.cli.topics",
    "worker": "pipelines.cli.worker",
    "replay": "pipelines.cli.replay",
    "watch": "pipelines.cli.watch",
    "export": "pipelines.cli.export",
    "lag": "pipelines.cli.lag",
    "state": "pipelines.cli.state",
    "gateway": "pipelines.cli.gateway",
    "webhooks": "pipelines.cli.webhooks",
    "mcp": "pipelines.cli.mcp",
    "dlq": "pipelines.cli.dlq",
    "forget": "pipelines.cli.forget",
    "kafka": "pipelines.dev.broker.command",
    "doctor": "pipelines.cli.doctor",
    "plan": "pipelines.lab.plan.command",
    "model": "pipelines.cli.model",
    "bench": "pipelines.lab.benchmarks.command",
    "conformance": "pipelines.lab.conformance.command",
    "eval": "pipelines.lab.eval.command",
    "soak": "pipelines.lab.soak.command",
    "chaos": "pipelines.lab.chaos.command",
}
"""Name → module. Named here and imported late: dev and lab are known to nothing else."""

FIRST_STEPS = """First steps, without Kafka: `longstream run FILE --model smollm2-135m`. With it:
`longstream kafka` in one terminal, `longstream worker` and `longstream replay FILE` in others.
`longstream init` writes a settings file. `longstream --install-completion` completes commands."""


def make_cli() -> typer.Typer:
    """The program with all commands that this installation has."""
    cli = typer.Typer(
        help="Rolling summaries and translations of endless text on Kafka.",
        no_args_is_help=True,
        epilog=f"{FIRST_STEPS}\n\n{exit_codes.explained()}",
        pretty_exceptions_show_locals=False,  # locals may hold credentials
    )

    @cli.callback()
    def longstream(
        version: bool = typer.Option(
            False,
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ) -> None:
        """Rolling summaries and translations of endless text on Kafka."""

    for name, path in COMMANDS.items():
        if importlib.util.find_spec(path) is not None:
            _mount(cli, name, path)
    return cli


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longstream {metadata.version('longstream')}")
        raise typer.Exit


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
