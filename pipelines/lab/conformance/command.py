"""``longstream conformance``: which engine remembers an endless stream exactly."""

from __future__ import annotations

import datetime
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from operators.errors import ConfigError
from pipelines.cli.output import Json, complaints, emit, show, table

ENGINES = {
    "ours": "pipelines.lab.conformance.ours:Ours",
    "transformers": "pipelines.lab.conformance.hf:Transformers",
    "llamacpp": "pipelines.lab.conformance.llamacpp:LlamaCpp",
    "openvino": "pipelines.lab.conformance.openvino:OpenVino",
}
"""Name → module and class of the adapter, imported late: each wants a package of its own."""
BAD = ("differs", "fails")


def conformance(
    engine: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(ENGINES)}; may be given more than once. [default: ours]"),
    ] = None,
    model: Annotated[
        str, typer.Option(help="toy (seconds), or a llama model by alias, folder or file.")
    ] = "toy",
    as_json: Json = False,
) -> None:
    """Ask engines what a slow reference knows the answer to: sinks and rolling window after the wrap,
    drafts on and off, snapshot and restore.

    The reference recomputes StreamingLLM for every token. All run in fp32, so tokens must be equal.
    What an engine does not have is "not offered". "unproven": equal, but no draft was accepted: the toy
    repeats nothing that could be looked up. llamacpp and openvino need the extra: peers.

    An engine of your own: a class with the methods of pipelines/lab/conformance/engine.py, given as
    module:Class.

    Exit code 0: nothing differs or fails; 1: something does; 2: an unknown or missing engine; 3: no such
    model.
    """
    import torch

    from pipelines.lab.conformance.cases import CASES, Kit, check
    from pipelines.lab.conformance.material import load

    notes = Console(stderr=True)
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    with complaints("conformance"), tempfile.TemporaryDirectory() as folder:
        makers = {name: _maker(name) for name in engine or ["ours"]}
        material = load(model, Path(folder))
        for name, make in makers.items():
            kit = Kit(make, material)
            rows: list[dict[str, str]] = []
            for case in CASES:
                notes.print(f"{name}: {case.name}", style="dim", highlight=False)
                verdict = check(case, kit)
                row = {"case": case.name, "what": case.what, "result": verdict.result}
                rows.append({**row, "detail": verdict.detail})
            found.append({"engine": name, "version": kit.version, "cases": rows})
    result = {
        "model": model,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "engines": found,
    }
    if as_json:
        emit(result)
    else:
        _show(result)
    raise typer.Exit(any(row["result"] in BAD for one in found for row in one["cases"]))


def _maker(name: str) -> Callable[[], Any]:
    """What makes a fresh engine. Raises ConfigError."""
    module, _, kind = ENGINES.get(name, name).partition(":")
    if not kind:
        raise ConfigError(f"--engine {name}: one of {', '.join(ENGINES)}, or module:Class")
    try:
        maker: Callable[[], Any] = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--engine {name}: {error}") from None
    return maker


def _show(result: dict[str, Any]) -> None:
    for one in result["engines"]:
        rows = table("case", "result", "detail", "what")
        for row in one["cases"]:
            rows.add_row(*(Text(row[name]) for name in ("case", "result", "detail", "what")))
        show(f"{one['engine']} {one['version']} on {result['model']}")
        show(rows)
