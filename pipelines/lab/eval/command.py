"""``longstream eval NAME``: what the output is worth: a table, and one JSON object as the last line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from operators.errors import ConfigError, LongstreamError
from pipelines.lab.benchmarks.harness import Run, measure, set_threads
from pipelines.lab.eval.output import finish, show, speaker

if TYPE_CHECKING:
    from pipelines.lab.eval.engine import Engine

app = typer.Typer(
    help="Measure summaries, remembered facts and translations, beside other uses of the same model.",
    no_args_is_help=True,
)
DATA = Path(__file__).parent / "data"
Model = Annotated[str, typer.Option(help="Alias, folder, file or hub name, or toy.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the JSON object here.")]
Plots = Annotated[Path | None, typer.Option(help="Also draw pictures into this folder.")]
Dtype = Annotated[
    str, typer.Option(help="Weights of generation; auto: what a worker would choose.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the operator, NAME=VALUE; repeatable."),
]
BackendName = Annotated[
    str, typer.Option("--backend", help="local, openai (a server) or transformers.")
]
ServerUrl = Annotated[
    str,
    typer.Option(help="The server; `llamacpp` starts llama.cpp's on the same GGUF file."),
]
ServerModel = Annotated[str, typer.Option(help="The model's name at the server.")]
Threads = Annotated[int, typer.Option(help="torch threads; at most the cores.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Keep what each side made of each part of the data here, and begin with what it has."
    ),
]
MODEL = "qwen2.5-coder-1.5b"
TRANSLATION_FIGURES: tuple[str, ...] = (
    "chrf",
    "bleu",
    "numbers_kept",
    "terms_kept",
    "bad_output",
    "erasure",
    "retractions",
    "laal_s",
    "long_yaal_s",
    "prefilled",
    "generated",
    "seconds",
)
SUMMARY_FIGURES: tuple[str, ...] = (
    "rouge1",
    "rouge2",
    "rougeLsum",
    "r1_auc",
    "points",
    "points_anywhere",
    "precision",
    "evidence_valid",
    "false_notes",
    "repeated",
    "verbatim",
    "erasure",
    "words",
    "notes",
    "prefilled",
    "generated",
    "seconds",
)
FACT_FIGURES = ("retention", "supersession", "owner", "due", *SUMMARY_FIGURES)


def _settings(given: list[str] | None, dtype: str) -> dict[str, Any]:
    """Operator settings from the command line; values are read as their setting's type."""
    from operators.config import OperatorConfig

    usual = OperatorConfig()
    found: dict[str, Any] = {"dtype_decode": dtype}
    for entry in given or []:
        name, equals, value = entry.partition("=")
        if not equals or not hasattr(usual, name):
            raise ConfigError(f"--set {entry}: NAME=VALUE with a setting of the operator")
        kind = type(getattr(usual, name))
        try:
            found[name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
        except ValueError:
            raise ConfigError(f"--set {entry}: {name} is of type {kind.__name__}") from None
    return found


class Backend(NamedTuple):
    """The options that say where the model runs."""

    name: str
    server_url: str
    server_model: str


def _engine(
    model: str, settings: dict[str, Any], backend: Backend, say: Callable[[str], None]
) -> Engine:
    from pipelines.lab.eval.engine import load_engine, load_served_engine
    from pipelines.lab.llamacpp_server import server_for

    if backend.name == "local":
        return load_engine(model, settings, say)
    server = server_for(*backend, model=model, streams=1)
    return load_served_engine(model, backend.name, server, settings, say)


def _run(
    name: str,
    model: str,
    threads: int,
    json_file: Path | None,
    work: Callable[[Callable[[str], None]], dict[str, Any]],
    table: Callable[[dict[str, Any]], None],
) -> None:
    """What all commands share: threads, timing, errors, output."""
    for package in ("sacrebleu", "rouge_score", "regex", "py3langid"):
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"{package} is missing: pip install 'longstream[eval]'")
    set_threads(threads)
    say = speaker(f"eval {name}")
    try:
        result = measure(name, lambda run: work(run.say), Run(model=model, say=say))
    except (LongstreamError, OSError, ModuleNotFoundError) as error:
        Console(stderr=True).print(f"longstream eval {name}: {error}", markup=False)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    result["evaluation"] = result.pop("benchmark")
    table(result)
    finish(result, json_file)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def translation(
    data: Annotated[Path, typer.Option(help="Folder of SET.SOURCE-TARGET.jsonl files.")] = DATA
    / "parallel",
    pairs: Annotated[str, typer.Option(help="Pairs of languages.")] = "en-de",
    sets: Annotated[str, typer.Option(help="Only these sets; all of the folder without.")] = "",
    policy: Annotated[
        str, typer.Option(help="finals, retranslation, local-agreement-N, wait-K, alignatt.")
    ] = "finals",
    sentences: Annotated[int, typer.Option(help="At most so many of each set; 0: all.")] = 0,
    each: Annotated[int, typer.Option(help="At most so many of each document; 0: all.")] = 0,
    sides: Annotated[
        str, typer.Option(help="ours, offline, without context, plain, plain llama.cpp.")
    ] = "ours,offline,without context,plain",
    at_once: Annotated[
        int,
        typer.Option(
            min=1, help="Documents beside each other: faster, no figure of computing time."
        ),
    ] = 1,
    every_ms: Annotated[int, typer.Option(min=100, help="Simulated time between partials.")] = 1000,
    context: Annotated[int, typer.Option(help="Tokens of a plain prompt and its answer.")] = 4096,
    texts: Annotated[
        Path | None, typer.Option(help="Append every side's outputs to this file, as JSON lines.")
    ] = None,
    resume: Resume = None,
    model: Model = MODEL,
    dtype: Dtype = "auto",
    setting: Settings = None,
    json_file: JsonFile = None,
    plots: Plots = None,
    threads: Threads = 2,
    backend: BackendName = "local",
    server_url: ServerUrl = "",
    server_model: ServerModel = "",
) -> None:
    """Translations: chrF, BLEU, latency, stability, and what is plainly wrong with them."""

    def work(say: Callable[[str], None]) -> dict[str, Any]:
        from pipelines import models
        from pipelines.lab.eval import translation as evaluation
        from pipelines.lab.eval.parallel import find_corpora

        corpora = find_corpora(data, _split(pairs), _split(sets), sentences, each)
        engine = _engine(
            model, _settings(setting, dtype), Backend(backend, server_url, server_model), say
        )
        wanted = _split(sides)
        job = evaluation.Job(
            corpora=corpora,
            policy=policy,
            sides=wanted,
            every_ms=every_ms,
            context=context,
            gguf=models.gguf_file(model) if evaluation.LLAMACPP in wanted else None,
            threads=threads,
            texts=texts,
            at_once=at_once,
            resume=resume,
        )
        return evaluation.run(engine, job, say)

    def table(result: dict[str, Any]) -> None:
        for name, found in result["pairs"].items():
            show(f"{name} ({result['weights']})", found["sides"], TRANSLATION_FIGURES)
        if plots is not None:
            from pipelines.lab.eval.plots import draw_translation

            draw_translation(result, plots)

    _run("translation", model, threads, json_file, work, table)


Meetings = Annotated[
    str, typer.Option(help="Names, e.g. ES2006b,TS3009b; without: all that have a reference.")
]
Checkpoints = Annotated[
    int, typer.Option(min=1, help="Places along a meeting where its summary is looked at.")
]
Window = Annotated[int, typer.Option(help="Tokens of transcript that stay visible, on all sides.")]
Answer = Annotated[int, typer.Option(help="Tokens of a plain side's summary.")]
Context = Annotated[int, typer.Option(help="Tokens of a plain prompt and its answer.")]
Lines = Annotated[
    int, typer.Option("--lines", "--segments", help="Only so many lines of each meeting; 0: all.")
]


@app.command()
def summaries(
    data: Annotated[
        Path, typer.Option(help="Folder of meetings, summaries.jsonl, timed_points.jsonl.")
    ] = DATA / "meetings",
    meetings: Meetings = "",
    lines: Lines = 0,
    sides: Annotated[
        str, typer.Option(help="ours, last_window, refine, truncated, lead.")
    ] = "ours,last_window,refine,truncated,lead",
    checkpoints: Checkpoints = 10,
    window: Window = 1024,
    answer: Answer = 256,
    context: Context = 4096,
    resume: Resume = None,
    model: Model = MODEL,
    dtype: Dtype = "auto",
    setting: Settings = None,
    json_file: JsonFile = None,
    plots: Plots = None,
    threads: Threads = 2,
    backend: BackendName = "local",
    server_url: ServerUrl = "",
    server_model: ServerModel = "",
) -> None:
    """Summaries: ROUGE, points covered, grounding, repetition, stability, cost."""

    def work(say: Callable[[str], None]) -> dict[str, Any]:
        from pipelines.lab.eval import summaries as evaluation
        from pipelines.lab.eval.meetings import read_meetings
        from pipelines.lab.eval.summary_sides import Bounds

        job = evaluation.Job(
            meetings=read_meetings(data, _split(meetings), lines),
            sides=_split(sides),
            checkpoints=checkpoints,
            bounds=Bounds(window, answer, context),
            resume=resume,
        )
        settings = {"window": window, **_settings(setting, dtype)}
        return evaluation.run(
            _engine(model, settings, Backend(backend, server_url, server_model), say), job, say
        )

    def table(result: dict[str, Any]) -> None:
        show(f"{', '.join(_heard(result))} ({result['weights']})", result["sides"], SUMMARY_FIGURES)
        if plots is not None:
            from pipelines.lab.eval.plots import draw_summaries

            draw_summaries(result, plots)

    _run("summaries", model, threads, json_file, work, table)


def _heard(result: dict[str, Any]) -> list[str]:
    return sorted({name for found in result["texts"].values() for name in found})


@app.command()
def facts(
    data: Annotated[
        Path,
        typer.Option(help="Folder of meetings, as for summaries; `language` in a line counts."),
    ] = DATA / "meetings",
    meetings: Meetings = "",
    lines: Lines = 0,
    sheets: Annotated[Path, typer.Option(help="Folder of facts.LANGUAGE.json.")] = DATA,
    sides: Annotated[
        str, typer.Option(help="ours, last_window, refine, truncated, lead.")
    ] = "ours,last_window",
    checkpoints: Checkpoints = 10,
    window: Window = 1024,
    answer: Answer = 256,
    context: Context = 4096,
    resume: Resume = None,
    model: Model = MODEL,
    dtype: Dtype = "auto",
    setting: Settings = None,
    json_file: JsonFile = None,
    plots: Plots = None,
    threads: Threads = 2,
    backend: BackendName = "local",
    server_url: ServerUrl = "",
    server_model: ServerModel = "",
) -> None:
    """Memory: facts planted into transcripts, kept, superseded, owned, and answered."""

    def work(say: Callable[[str], None]) -> dict[str, Any]:
        from pipelines.lab.eval import facts as evaluation
        from pipelines.lab.eval.meetings import read_meetings
        from pipelines.lab.eval.plants import plant, read_sheet
        from pipelines.lab.eval.summaries import Job
        from pipelines.lab.eval.summary_sides import Bounds

        found = read_meetings(data, _split(meetings), lines)
        planted = [plant(meeting, read_sheet(sheets, meeting.language)) for meeting in found]
        job = Job(
            meetings=[p.meeting for p in planted],
            sides=_split(sides),
            checkpoints=checkpoints,
            bounds=Bounds(window, answer, context),
            resume=resume,
        )
        settings = {"window": window, **_settings(setting, dtype)}
        return evaluation.run(
            _engine(model, settings, Backend(backend, server_url, server_model), say),
            planted,
            job,
            say,
        )

    def table(result: dict[str, Any]) -> None:
        show(f"{', '.join(_heard(result))} ({result['weights']})", result["sides"], FACT_FIGURES)
        typer.echo(f"answered {result['answered']}, refused {result['refused']}")
        if plots is not None:
            from pipelines.lab.eval.plots import draw_facts

            draw_facts(result, plots)

    _run("facts", model, threads, json_file, work, table)
