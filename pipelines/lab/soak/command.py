"""``longstream soak``: a long run watched. Memory, files, threads and tasks must stay flat."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from operators.errors import ConfigError, LongstreamError
from pipelines.cli.output import JsonAnyway
from pipelines.cli.replaying import parse_speed
from pipelines.config.fields import TOPIC_FIELDS, Settings
from pipelines.dev import broker
from pipelines.dev.broker.base import free_ports
from pipelines.dev.demo.worker import WorkerProcess, settings_with
from pipelines.kafka.tools import connection
from pipelines.kafka.topics import create_topics, topic_specs
from pipelines.lab.soak.plan import dealt, stretches
from pipelines.lab.soak.report import problems, table
from pipelines.lab.soak.resources import Sampler, plot, summary
from pipelines.lab.soak.run import Balance, Soak
from pipelines.wire.codec import read_transcript

READY_SECONDS = 600.0
NOTE_SECONDS = 60.0


def soak(
    file: Annotated[Path, typer.Argument(help="A long transcript (JSON lines with start_ms).")],
    speed: Annotated[str, typer.Option(help="1x: real time. 300x, max: faster.")] = "1x",
    minutes: Annotated[
        float | None, typer.Option(help="How long to send; default: the whole transcript.")
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, help="Stretches of the transcript sent side by side.")
    ] = 1,
    deal: Annotated[
        int | None,
        typer.Option(min=1, help="Deal the lines out to so many streams, all live to the end."),
    ] = None,
    speech_hours: Annotated[
        float, typer.Option(min=0.001, help="With --deal: hours of speech, over all streams.")
    ] = 2.0,
    model: Annotated[str, typer.Option(help="Model alias, folder or file.")] = "smollm2-135m",
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between samples.")] = 5.0,
    samples: Annotated[Path | None, typer.Option(help="Write the samples here (CSV).")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw them here.")] = None,
    max_growth: Annotated[
        float, typer.Option(help="Growth of a process's memory that fails the run.")
    ] = 0.05,
    as_json: JsonAnyway = False,
) -> None:
    """Replay a long transcript through Kafka and a worker and watch what the processes use.

    Starts a broker unless LONGSTREAM_BOOTSTRAP names one, and a worker whose other settings come
    from the environment. Last line: one JSON object. Exit code 1: something grew, or not all that
    went in came out.
    """
    console = Console(stderr=True)
    try:
        factor = parse_speed(speed)
        seconds = minutes * 60 * factor if minutes is not None else None
        if seconds is not None and math.isinf(seconds):
            raise ConfigError("--minutes needs a --speed that is not max")
        lines = list(read_transcript(file))
        if deal is not None:
            parts = dealt(lines, deal, speech_hours * 3600)
        else:
            parts = stretches(lines, streams, seconds)
        result = run(parts, factor, model, every, samples, plot_file, console)
    except (LongstreamError, OSError) as error:
        typer.echo(f"longstream soak: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    result = {"file": file.name, "speed": speed, "model": model, **result}
    found = problems(result, max_growth)
    console.print(table(result["processes"]))
    for problem in found:
        console.print(f"FAILED: {problem}", style="bold red")
    typer.echo(json.dumps({**result, "ok": not found}))
    raise typer.Exit(1 if found else 0)


def run(
    parts: list[Any],
    speed: float,
    model: str,
    every: float,
    samples: Path | None,
    plot_file: Path | None,
    console: Console,
) -> dict[str, Any]:
    """The run itself; what it measured, as it goes into the JSON line."""

    def log(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False)

    with broker.from_environment(log=log) as kafka:
        environment = _environment(kafka, model)
        settings = settings_with(environment)
        login = connection(settings, "longstream-soak")
        create_topics(kafka.bootstrap, topic_specs(settings), settings.partitions, login=login)
        with WorkerProcess(environment, free_ports(1)[0]) as worker:
            _wait(worker)
            sampler = Sampler(lambda: _pids(worker, kafka), worker.numbers, every, samples)
            watch = _watch(worker, sampler, log)
            soak_run = Soak(settings, parts, watch)
            soak_run.send(speed)
            sending = sampler.seconds
            log(f"all sent after {sending / 60:.1f} min; waiting for the last results")
            soak_run.finish()
            balance = soak_run.balance()
            memory = kv_memory(worker.numbers())
            busy = worker.cpu_seconds() / sampler.seconds
            sampler.close()
    if plot_file is not None:
        plot(sampler.samples, plot_file, f"{len(parts)} streams, {balance.segments} segments")
    return {**_result(balance, sampler, sending, busy), "kv": memory}


def _result(balance: Balance, sampler: Sampler, sending: float, busy: float) -> dict[str, Any]:
    return {
        "streams": balance.streams,
        "segments": balance.segments,
        "summaries": balance.summaries,
        "dead_letters": balance.dead_letters,
        "uncovered_streams": balance.uncovered,
        "checked": balance.checked,
        "lag_at_end": balance.lag,
        "sending_minutes": round(sending / 60, 2),
        "minutes": round(sampler.seconds / 60, 2),
        "cores_used_by_worker": round(busy, 3),
        "samples": len({s.seconds for s in sampler.samples}),
        "processes": summary(sampler.samples),
    }


def kv_memory(numbers: Mapping[str, float]) -> dict[str, float]:
    """What the device reserved for KV, and what idle streams take of host memory, beside its bound."""
    names = ("kv_slots", "kv_bytes", "host_streams", "host_kv_bytes", "host_kv_limit_bytes")
    return {name: numbers.get(f"longstream_{name}", 0.0) for name in names}


def _environment(kafka: broker.Broker, model: str) -> dict[str, str]:
    """The worker's settings; topics and group of this run alone, also on a broker that stays."""
    name = f"soak-{time.time_ns():x}"
    topics = {
        f"LONGSTREAM_{field.upper()}": f"{name}.{Settings.model_fields[field].default}"
        for field in TOPIC_FIELDS
    }
    return topics | {
        "LONGSTREAM_BOOTSTRAP": kafka.bootstrap,
        "LONGSTREAM_APP_ID": name,
        "LONGSTREAM_DELIVERY": "exactly_once" if kafka.transactions else "at_least_once",
        "LONGSTREAM_HTTP_HOST": "127.0.0.1",
        "LONGSTREAM_MODEL": model,
    }


def _wait(worker: WorkerProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not worker.ready():
        worker.check()
        if time.monotonic() > deadline:
            raise LongstreamError(f"the worker was not ready within {READY_SECONDS:.0f} s")
        time.sleep(0.5)


def _pids(worker: WorkerProcess, kafka: broker.Broker) -> dict[str, int]:
    found = {"soak": os.getpid(), "worker": worker.pid}
    for number, child in enumerate(worker.children()):
        found[f"device{number or ''}"] = child
    if (pid := getattr(kafka, "pid", None)) is not None:
        found["kafka"] = pid
    return found


def _watch(worker: WorkerProcess, sampler: Sampler, log: Callable[[str], None]) -> Any:
    said = 0.0

    def watch() -> None:
        nonlocal said
        if not sampler():
            return
        worker.check()
        if sampler.seconds - said >= NOTE_SECONDS:
            said = sampler.seconds
            newest = {s.process: s for s in sampler.samples[-6:]}
            use = ", ".join(f"{name} {s.rss_mb:.0f} MiB" for name, s in newest.items())
            log(f"{said / 60:.0f} min: lag {newest['worker'].lag}, {use}")

    return watch
