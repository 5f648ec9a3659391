"""``longstream plan``: will it fit, and how many workers and partitions to choose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from operators.config import OperatorConfig
from operators.errors import ConfigError, LongstreamError
from pipelines.config.load import load_settings

if TYPE_CHECKING:
    from operators.model.loader import DecoderModel
    from pipelines.lab.plan.arithmetic import Costs, Plan, Speech

SIZES = (10, 1_000, 100_000)


def plan(
    model: Annotated[str | None, typer.Option(help="Alias, folder or hub name.")] = None,
    window: Annotated[int | None, typer.Option(help="operator.window, in tokens.")] = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams open at once.")] = 10,
    words_per_minute: Annotated[float, typer.Option(min=1, help="While somebody speaks.")] = 150.0,
    tokens_per_word: Annotated[float, typer.Option(min=0.5, help="Of model and language.")] = 1.35,
    speaking: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the time in which anybody speaks.")
    ] = 1.0,
    targets: Annotated[str, typer.Option(help="Translations, as fr,de.")] = "",
    check: Annotated[
        bool, typer.Option(help="Measure this model's work per token on a real meeting first.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option(help="Simulate 10, 1,000 and 100,000 streams; needs the extra plots.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the simulation's plots.")] = Path("plan"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML or YAML).")] = None,
) -> None:
    """What memory and this device's measured speed carry, and what to choose. Loads the model to measure
    it, once; the curves are those that the worker uses."""
    try:
        said = _plan(
            load_settings(config, model=model),
            {"window": window, "targets": tuple(t for t in targets.split(",") if t) or None},
            (streams, words_per_minute, tokens_per_word, speaking),
            check=check,
            simulate_to=out if simulate else None,
        )
    except (LongstreamError, ModuleNotFoundError) as error:
        typer.echo(f"longstream plan: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    typer.echo(json.dumps(said, indent=2) if as_json else _text(said))


def _plan(
    settings: Any,
    changes: dict[str, Any],
    asked: tuple[int, float, float, float],
    *,
    check: bool,
    simulate_to: Path | None,
) -> dict[str, Any]:
    import torch

    from pipelines.device import memory
    from pipelines.lab.plan.arithmetic import Speech, Work, make_plan
    from pipelines.lab.plan.work import device_costs, run_engine

    given = {name: value for name, value in changes.items() if value is not None}
    operator: OperatorConfig = dataclasses.replace(settings.operator, **given)
    torch.set_num_threads(settings.threads)
    loaded = _load(settings, operator)
    costs = device_costs(loaded, settings.cache, lambda line: typer.echo(line, err=True))
    work, source = Work(), "assumed, as measured on smollm2-135m; --check measures this model"
    if check:
        run = run_engine(loaded, operator, streams=1, tokens=2 * operator.update_tokens)
        work, source = run.work, f"measured on {run.transcript} tokens of a meeting"
    need = memory.footprint(
        operator, memory.size_of_loaded(loaded, operator), device=str(loaded.device)
    )
    there = memory.memory_of(str(loaded.device))
    speech = Speech(*asked[1:])
    count = len(operator.targets)

    def made(streams: int) -> Plan:
        stored = bool(settings.offload_url)
        return make_plan(
            streams, speech, work, costs, operator, need, there, targets=count, stored=stored
        )

    said: dict[str, Any] = {
        "model": loaded.name,
        "device": str(loaded.device),
        "threads": settings.threads,
        "window": operator.window,
        "targets": list(operator.targets),
        "memory": dataclasses.asdict(there),
        "weights": need.weights,
        "speech": dataclasses.asdict(speech),
        "work": {"source": source, **dataclasses.asdict(work)},
        **dataclasses.asdict(made(asked[0])),
    }
    if simulate_to is not None:
        plans = [made(n) for n in SIZES]
        said["simulation"] = _simulate(plans, speech, costs, operator, simulate_to)
    return said


def _load(settings: Any, operator: OperatorConfig) -> DecoderModel:
    from pipelines import models
    from pipelines.device.calibration import load_calibrated
    from pipelines.lab.benchmarks.toy import toy_decoder

    if settings.model == "toy":
        return toy_decoder()
    pin = models.Pin(settings.model_sha256, "model_sha256", "always")
    path = models.resolve(settings.model, cache=settings.cache, pin=pin)
    return load_calibrated(
        path, operator, settings.cache, name=settings.model, device=settings.device,
        say=lambda line: typer.echo(line, err=True),
    )  # fmt: skip


def _simulate(
    plans: list[Plan], speech: Speech, costs: Costs, operator: OperatorConfig, folder: Path
) -> dict[str, Any]:
    from pipelines.lab.plan.plots import draw
    from pipelines.lab.plan.simulate import ASSUMPTIONS, scenario_of, simulate

    restore = operator.window * costs.read
    outcomes = [simulate(scenario_of(plan, speech, restore)) for plan in plans]
    draw(plans, outcomes, folder)
    return {
        "assumptions": list(ASSUMPTIONS),
        "plots": [str(path) for path in sorted(folder.glob("*.png"))],
        "runs": [
            {"streams": p.streams, "workers": p.workers, "partitions": p.partitions, **o.summary()}
            for p, o in zip(plans, outcomes, strict=True)
        ],
    }


def _text(said: dict[str, Any]) -> str:
    memory = said["memory"]
    by_memory = said["streams_by_memory"]
    lines = [
        f"{said['model']} on {said['device']}, window {said['window']},"
        f" translations: {', '.join(said['targets']) or 'none'}",
        f"memory     {said['bytes_per_stream'] / 1e6:.1f} MB per stream, weights"
        f" {said['weights'] / 1e9:.2f} GB; {memory['source']} has {memory['total'] / 1e9:.1f} GB:"
        f" {'any number of' if by_memory < 0 else f'{by_memory:,}'} streams",
        f"time       {said['seconds_per_stream_second']:.3f} s per second of a stream:"
        f" {said['streams_by_time']:.1f} streams",
        f"tokens/s   read {said['read_per_s']:.0f} of {said['read_there']:.0f},"
        f" written {said['write_per_s']:.0f} of {said['write_there']:.0f} (per worker; there: alone)",
        f"choose     {said['workers']:,} workers of {said['streams_per_worker']:,} streams,"
        f" {said['partitions']:,} partitions; the fullest is {said['busy']:.0%} busy",
        f"           LONGSTREAM_PARTITIONS={said['partitions']} longstream topics create",
        f"work       {said['work']['source']}",
        "if wrong:",
        *(f"  {line}" for line in said["wrong"]),
    ]
    if (simulation := said.get("simulation")) is not None:
        lines += ["", "simulated:"]
        lines += [f"  {json.dumps(run)}" for run in simulation["runs"]]
        lines += ["assumptions:", *(f"  {line}" for line in simulation["assumptions"])]
        lines += ["plots:", *(f"  {path}" for path in simulation["plots"])]
    return "\n".join(lines)
