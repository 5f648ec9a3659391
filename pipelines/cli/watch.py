"""``longstream watch``: follow one stream's transcript, ledger, translations and answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from operators.events import AnyEvent, Segment
from pipelines.cli.following import Follower
from pipelines.cli.output import Bootstrap, Config, complaints
from pipelines.cli.screen import Status, draw, plain_event, plain_segment
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.tools import Reader, read
from pipelines.wire.codec import encode_event, encode_segment

POLL_SECONDS = 0.25


def watch(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM...", help="Stream ids.")],
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Everything the topics still hold.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines, also in a terminal.")] = False,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Leave after every stream's closing summary.")
    ] = False,
    bootstrap: Bootstrap = None,
    config: Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Segments and events as JSON lines.")
    ] = False,
) -> None:
    """Follow streams: starts with the latest summary, then everything new. Ctrl-C leaves."""
    with complaints("watch"):
        settings = load_settings(config, bootstrap=bootstrap)
        try:
            run(streams, settings, from_beginning, plain, until_end, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def run(
    streams: list[str],
    settings: Settings,
    from_beginning: bool,
    plain: bool,
    until_end: bool,
    as_json: bool = False,
) -> None:
    """Follow ``streams`` until interrupted or, with ``until_end``, all have ended."""
    topics = [
        settings.topic_segments,
        settings.topic_summaries_latest,
        settings.topic_summaries,
        settings.topic_translations,
        settings.topic_answers,
    ]
    start = topics if from_beginning else [settings.topic_summaries_latest]
    follower = Follower(streams)
    reader = Reader(settings, topics, start)
    console = Console()
    try:
        changes = _changes(reader, follower, settings)
        if as_json:
            _json(changes, follower, until_end)
        elif plain or not console.is_terminal:
            _lines(changes, follower, until_end)
        else:
            _live(changes, follower, settings, console, until_end)
    finally:
        reader.close()


def _changes(
    reader: Reader, follower: Follower, settings: Settings
) -> Iterator[Segment | AnyEvent | None]:
    """What changed a view, in order; None after each poll, so that the caller can look up."""
    while True:
        for record in reader.poll(POLL_SECONDS):
            change = read(record, settings)
            if isinstance(change, Segment):
                if follower.take_segment(change):
                    yield change
            elif change is not None and follower.take_event(change):
                yield change
        yield None


def _ended(follower: Follower) -> bool:
    views = follower.views.values()
    return all(view.summary is not None and view.summary.status == "final" for view in views)


def _lines(
    changes: Iterator[Segment | AnyEvent | None], follower: Follower, until_end: bool
) -> None:
    for change in changes:
        if change is None:
            if until_end and _ended(follower):
                return
        elif isinstance(change, Segment):
            if change.type == "segment" and change.is_final:
                print(plain_segment(change), flush=True)
        else:
            for line in plain_event(change):
                print(line, flush=True)


def _json(
    changes: Iterator[Segment | AnyEvent | None], follower: Follower, until_end: bool
) -> None:
    for change in changes:
        if change is None:
            if until_end and _ended(follower):
                return
        else:
            value = encode_segment(change) if isinstance(change, Segment) else encode_event(change)
            print(value.decode(), flush=True)


def _live(
    changes: Iterator[Segment | AnyEvent | None],
    follower: Follower,
    settings: Settings,
    console: Console,
    until_end: bool,
) -> None:
    started = time.monotonic()

    def picture() -> Any:
        views = list(follower.views.values())
        status = Status(
            title=f"watch {', '.join(follower.views)}",
            note=f"{settings.bootstrap} · Ctrl-C leaves",
            behind=sum(view.behind for view in views),
            seconds=time.monotonic() - started,
        )
        return draw(views, status, console.size.height)

    with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
        for change in changes:
            if change is None:
                live.update(picture(), refresh=True)
                if until_end and _ended(follower):
                    return
