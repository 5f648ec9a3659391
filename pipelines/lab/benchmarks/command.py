"""``longstream bench NAME``: measure, print a table, and one JSON object as the last line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from operators.errors import ConfigError, LongstreamError
from pipelines.cli.output import Json, emit
from pipelines.lab.benchmarks import BENCHMARKS, TAKES, find
from pipelines.lab.benchmarks.harness import TOY, Result, Run, measure, set_threads
from pipelines.lab.benchmarks.plots import plot_all
from pipelines.lab.benchmarks.report import read_results, render, tables, verdicts

app = typer.Typer(
    help="Measure the engine on this machine: a table, and one JSON object as the last line.",
    no_args_is_help=True,
)


def _command(names: list[str]) -> Callable[..., None]:
    """The command that runs these benchmarks; all take the same options."""

    def bench(
        model: Annotated[
            str | None, typer.Option(help="Alias, folder, file or hub name, or toy.")
        ] = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="Also write the JSON object here.")
        ] = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="A smoke run in seconds, by default on a toy model.")
        ] = False,
        long: Annotated[
            bool, typer.Option("--long", help="The long version, if it has one.")
        ] = False,
        text: Annotated[
            Path | None, typer.Option(help="Plain text to read instead of ours.")
        ] = None,
        tokens: Annotated[
            int | None, typer.Option(min=1000, help="Length of the stream (memory, peers) or text.")
        ] = None,
        places: Annotated[
            int | None, typer.Option(min=16, help="Tokens to compare at (perplexity).")
        ] = None,
        rounds: Annotated[
            int | None,
            typer.Option(min=1, help="Rounds (forward, restore, speculation, streams, peers)."),
        ] = None,
        rows: Annotated[str, typer.Option(help="Rows of a step, such as 64,512 (step-cost).")] = "",
        threads: Annotated[int, typer.Option(help="torch threads; at most the cores.")] = 2,
        backend: Annotated[
            str, typer.Option(help="Run our tasks on openai or transformers too (peers).")
        ] = "local",
        server_url: Annotated[
            str, typer.Option(help="The server; `llamacpp` starts llama.cpp's on the same file.")
        ] = "",
        server_model: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
        draft_model: Annotated[
            str, typer.Option(help="The assistant model of transformers (peers, its backend).")
        ] = "",
        sides: Annotated[
            str, typer.Option(help="Only sides whose names begin so, such as `our tasks` (peers).")
        ] = "",
        streams: Annotated[
            str, typer.Option(help="Numbers of streams at once, such as 1,8 (peers).")
        ] = "",
        vllm: Annotated[
            Path | None,
            typer.Option(help="The folder vLLM lies in: pip install --target (peers)."),
        ] = None,
        dtype: Annotated[
            str, typer.Option(help="Weights of generation (retranslation); auto: bf16.")
        ] = "auto",
    ) -> None:
        notes = Console(stderr=True)
        set_threads(threads)
        results: dict[str, Result] = {}
        for name in names:
            try:
                benchmark = find(name)
                usual = getattr(benchmark, "LONG_MODEL", "") if long else ""
                chosen = model or (TOY if quick else usual or benchmark.MODEL)
                say = _speaker(notes, name)
                run = Run(
                    model=chosen,
                    say=say,
                    quick=quick,
                    long=long,
                    text=text,
                    tokens=tokens,
                    places=places,
                    rounds=rounds,
                    backend=backend,
                    server_url=server_url,
                    server_model=server_model,
                    draft_model=draft_model,
                    sides=tuple(part.strip() for part in sides.split(",") if part.strip()),
                    streams=_numbers("--streams", streams),
                    rows=_numbers("--rows", rows),
                    vllm=vllm,
                    dtype=dtype,
                )
                if backend != "local" and name != "peers":
                    raise ConfigError("--backend is for peers, and for longstream eval")
                results[name] = measure(name, benchmark.run, run)
            except (LongstreamError, OSError, ModuleNotFoundError) as error:
                notes.print(f"longstream bench {name}: {error}", markup=False)
                if len(names) == 1:
                    raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
                results[name] = {"benchmark": name, "failed": str(error)}
            _show(name, results[name], Console())
        line = json.dumps(results[names[0]] if len(names) == 1 else results)
        if json_file is not None:
            json_file.write_text(line + "\n", "utf-8")
        typer.echo(line)

    return bench


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """ "64,512" as numbers. Raises ConfigError for anything else."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} {text}: expected numbers with commas between") from None
    if any(number < 1 for number in found):
        raise ConfigError(f"{option} {text}: at least 1")
    return found


def _speaker(notes: Console, name: str) -> Callable[[str], None]:
    return lambda line: notes.print(f"{name}: {line}", style="dim", markup=False, highlight=False)


def _show(name: str, measured: Result, screen: Console) -> None:
    """A table of single values, one for each group of them, and what was aimed at."""
    screen.rule(f"{name} ({measured.get('model')})", align="left")
    for heads, rows in [*tables(measured, facts=True), verdicts(name, measured)]:
        table = Table(*heads)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        if rows:
            screen.print(table)


for _name, _help in BENCHMARKS.items():
    app.command(_name, help=f"{_help} {TAKES.get(_name, '')}".strip())(_command([_name]))
app.command("all", help="All of them, one after the other. Takes hours.")(_command([*BENCHMARKS]))


@app.command()
def report(
    results: Annotated[
        Path, typer.Option(help="Folder of NAME.json files, as --json writes them.")
    ] = Path("docs/benchmarks"),
    plots: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("docs/plots"),
    page: Annotated[Path, typer.Option(help="The Markdown page.")] = Path("docs/benchmarks.md"),
    as_json: Json = False,
) -> None:
    """Make docs/benchmarks.md and its plots from the JSON results (needs the extra: plots)."""
    try:
        found = read_results(results)
        page.write_text(render(found, results, plot_all(found, plots), page), "utf-8")
    except (LongstreamError, OSError) as error:
        typer.echo(f"longstream bench report: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    if as_json:
        emit({"page": str(page), "benchmarks": list(found)})
    else:
        typer.echo(f"{page}: {', '.join(found)}")
