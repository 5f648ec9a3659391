"""``longstream demo``: real meetings through a real Kafka and a real worker, counted at the end.

Called by ``make demo``. The environment variables MODEL, STREAMS, SEGMENTS, TRANSLATE, SPEED and
TRANSCRIPT mean the same as the options.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from operators.errors import LongstreamError
from pipelines.cli.output import Json
from pipelines.cli.replaying import parse_speed
from pipelines.dev import broker
from pipelines.dev.broker.base import free_ports
from pipelines.dev.demo.plan import DEMO, DemoPlan, transcripts, with_choices
from pipelines.dev.demo.report import (
    RunFacts,
    closing_table,
    json_line,
    markdown,
    problems,
    remarks,
)
from pipelines.dev.demo.run import DemoRun
from pipelines.dev.demo.tally import Tally
from pipelines.dev.demo.worker import PageProcess, WorkerProcess, settings_with
from pipelines.kafka.tools import connection
from pipelines.kafka.topics import create_topics, topic_specs

APP_ID = "longstream-demo"
PIPE_WIDTH = 120
PAGE_PORT = 8080
NO_TRANSACTIONS = (
    "NOTE: {} is not Apache Kafka. It has no transactions and its state is lost when it stops:\n"
    "nothing is guaranteed here about lost, repeated or reordered results. It only shows the flow."
)


def demo(
    model: Annotated[
        str | None, typer.Option(envvar="MODEL", help="Model alias, name or file.")
    ] = None,
    streams: Annotated[int | None, typer.Option(envvar="STREAMS", help="Meetings at once.")] = None,
    segments: Annotated[
        int | None, typer.Option(envvar="SEGMENTS", help="Segments of each meeting.")
    ] = None,
    translate: Annotated[
        str | None, typer.Option(envvar="TRANSLATE", help="Languages, fr,de; none: off.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(envvar="SPEED", help="20x real time, or max.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines, also in a terminal.")] = False,
    page: Annotated[
        bool,
        typer.Option(
            "--page/--no-page",
            help="Show the meetings on a page too, until Ctrl-C; never without a terminal.",
        ),
    ] = True,
    transcript_out: Annotated[
        Path | None,
        typer.Option(
            envvar="TRANSCRIPT", help="Write the whole run verbatim to this Markdown file."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay meetings as parallel streams and show what comes out. Last line: one JSON object."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        targets = _languages(translate)
        plan = with_choices(
            DEMO, model=model, streams=streams, segments=segments, targets=targets, speed=speed
        )
        parse_speed(plan.speed)
        code = run(plan, plain, transcript_out, page, as_json)
    except KeyboardInterrupt:
        typer.echo("longstream demo: interrupted; everything it started is stopped", err=True)
        raise typer.Exit(130) from None
    except (LongstreamError, OSError) as error:
        typer.echo(f"longstream demo: {error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def run(
    plan: DemoPlan,
    plain: bool = False,
    transcript_out: Path | None = None,
    page: bool = False,
    as_json: bool = False,
) -> int:
    """The whole demo: 0 if all that went in came out, 1 if not. With ``page`` and a terminal the worker
    and the page stay until Ctrl-C. ``as_json``: all but the last line goes to standard error."""
    started = time.monotonic()
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=PIPE_WIDTH)
    live = console.is_terminal and not plain

    def log(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False)

    with broker.from_environment(allow_tansu=True, log=log) as kafka:  # 1. a broker
        if not kafka.transactions:
            console.print(NO_TRANSACTIONS.format(kafka.description), style="bold yellow")
        environment = _environment(plan, kafka)
        settings = settings_with(environment)
        login = connection(settings, "longstream-demo")
        create_topics(  # 2. topics
            kafka.bootstrap, topic_specs(settings), settings.partitions, login=login
        )
        tally = Tally(plan.targets, exactly_once=kafka.transactions)
        demo_run = DemoRun(plan, settings, tally, console, started)
        # 3. the worker and the page, 4. the meetings
        with contextlib.ExitStack() as running:
            worker = running.enter_context(WorkerProcess(environment, free_ports(1)[0]))
            shown = _page(environment) if page and _at_a_terminal(console) else None
            if shown is not None:
                running.enter_context(shown)
                demo_run.page = shown.address
                console.print(f"the meetings on a page: {shown.address}", style="bold")
            with _screen(console, live) as area:
                demo_run.showing(area)
                demo_run.wait_for_worker(worker)
                # On a broker that outlives the demo, every run needs streams of its own.
                suffix = f"-{time.time_ns():x}"[-8:] if kafka.kind == "external" else ""
                failure = demo_run.run(worker, transcripts(plan, suffix))
            if shown is None:
                running.close()
            facts = _facts(demo_run, kafka, failure)
            code = _close(console, tally, facts, environment, transcript_out)
            if shown is not None:
                _stay(console, shown)
    return code


def _at_a_terminal(console: Console) -> bool:
    return console.is_terminal and sys.stdin.isatty()


def _page(environment: dict[str, str]) -> PageProcess | None:
    """The gateway on its usual port, or on a free one; None where its extra is not installed."""
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        return None
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PAGE_PORT))
            port = PAGE_PORT
        except OSError:
            port = free_ports(1)[0]
    return PageProcess(environment, port)


def _stay(console: Console, page: PageProcess) -> None:
    """Until Ctrl-C, or the gateway ends by itself (raises DeviceError)."""
    with contextlib.suppress(KeyboardInterrupt):
        said = f"{page.address} stays, with a worker that answers questions, until Ctrl-C."
        console.print(said, soft_wrap=True)
        while True:
            page.check()
            time.sleep(1.0)


def _close(
    console: Console,
    tally: Tally,
    facts: RunFacts,
    environment: dict[str, str],
    transcript_out: Path | None,
) -> int:
    """5. The closing table, what went wrong, and as the last line the JSON object."""
    if transcript_out is not None:
        transcript_out.parent.mkdir(parents=True, exist_ok=True)
        shown = {k: v for k, v in environment.items() if k.startswith("LONGSTREAM_OPERATOR")}
        transcript_out.write_text(markdown(tally, facts, shown), encoding="utf-8")
        console.print(f"the run verbatim: {transcript_out}", markup=False, highlight=False)
    console.print(closing_table(tally))
    found = problems(tally, facts)
    for problem in found:
        console.print(f"FAILED: {problem}", style="bold red", markup=False, highlight=False)
    for remark in remarks(tally, facts, DEMO.first_summary_seconds):
        console.print(f"NOTE: {remark}", style="yellow", markup=False, highlight=False)
    print(json_line(tally, facts), flush=True)
    return 1 if found else 0


def _facts(demo_run: DemoRun, kafka: broker.Broker, failure: str | None) -> RunFacts:
    now = time.monotonic()
    sending = demo_run.sending or now
    return RunFacts(
        broker=kafka.description,
        model=demo_run.plan.model,
        wall_seconds=now - demo_run.started,
        working_seconds=(demo_run.last_result or now) - sending,
        first_summary_seconds=demo_run.first_summary,
        measured=demo_run.measured,
        failure=failure,
    )


def _environment(plan: DemoPlan, kafka: broker.Broker) -> dict[str, str]:
    """The worker's settings: the plan's, under whatever the user set in the environment."""
    chosen = {name: os.environ.get(name) or value for name, value in plan.environment().items()}
    chosen["LONGSTREAM_MODEL"] = plan.model
    chosen["LONGSTREAM_OPERATOR__TARGETS"] = ",".join(plan.targets)
    return chosen | {
        "LONGSTREAM_BOOTSTRAP": kafka.bootstrap,
        "LONGSTREAM_APP_ID": APP_ID,
        "LONGSTREAM_DELIVERY": "exactly_once" if kafka.transactions else "at_least_once",
        "LONGSTREAM_HTTP_HOST": "127.0.0.1",
    }


@contextlib.contextmanager
def _screen(console: Console, live: bool) -> Iterator[Live | None]:
    if not live:
        yield None
        return
    with Live(console=console, screen=True, auto_refresh=False) as area:
        yield area


def _languages(text: str | None) -> tuple[str, ...] | None:
    """ "fr,de" as a tuple; "none" as an empty one; None stays None (not chosen)."""
    if text is None:
        return None
    if text.strip().lower() in ("none", "-"):
        return ()
    return tuple(code.strip() for code in text.split(",") if code.strip())


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
