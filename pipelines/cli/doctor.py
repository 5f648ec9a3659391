"""``longstream doctor``: what would keep a worker from running here, and the command that mends it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from operators.errors import LongstreamError
from pipelines.cli.diagnosis import diagnose
from pipelines.config.load import load_settings

SIGNS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


def doctor(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka brokers, host:port.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model alias, hub name, folder or file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    offline: Annotated[bool, typer.Option(help="Leave Kafka out.")] = False,
) -> None:
    """Look at this machine, the settings and Kafka as a worker would meet them. Changes nothing.

    Exit code: 0 nothing is wrong (warnings may stand), 1 something is, 2 a setting is wrong.
    """
    try:
        settings = load_settings(config, bootstrap=bootstrap, model=model)
    except LongstreamError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "settings": str(error), "findings": []}))
        else:
            typer.echo(f"longstream doctor: {error}", err=True)
        raise typer.Exit(2) from None
    findings = []
    for finding in diagnose(settings, kafka=not offline):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{SIGNS[finding.status]} {finding.check}: {finding.detail}")
            if finding.mend and finding.status != "ok":
                typer.echo(f"        mend: {finding.mend}")
    failed = any(finding.status == "error" for finding in findings)
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        typer.echo(json.dumps({"ok": not failed, "findings": listed}, indent=2))
    raise typer.Exit(1 if failed else 0)
