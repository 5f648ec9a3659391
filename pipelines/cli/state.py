"""``longstream state``: what the workers remember of a stream, as it lies on the sessions topic."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from operators.errors import LongstreamError
from operators.state import SessionState
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit, printable
from pipelines.cli.screen import item_text
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.tools import KafkaError, Reader, no_broker
from pipelines.wire.codec import decode_state

app = typer.Typer(help="What is kept of a stream.", no_args_is_help=True)


@app.callback()
def state() -> None:
    """What is kept of a stream."""


@app.command("show")
def show_state(
    stream: Annotated[str, typer.Argument(help="Stream id.")],
    config: Config = None,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Show the last committed state of a stream: its place, its notes, its memory."""
    with complaints("state"):
        found = read_state(load_settings(config, bootstrap=bootstrap), stream)
    if as_json:
        emit(msgspec.to_builtins(found))
        return
    for name, value in summary_of(found).items():
        typer.echo(f"{name}: {value}")
    for item in found.items:
        typer.echo(f"  {item.id} {item.state} {item_text(item).plain}")


def read_state(settings: Settings, stream: str) -> SessionState:
    """The newest state of a stream. Reads the topic to its end. Raises LongstreamError."""
    newest: Any = None
    reader = Reader(settings, [settings.topic_sessions], [settings.topic_sessions])
    try:
        for record in reader.read_to_end():
            if record.key == stream.encode():
                newest = record
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        reader.close()
    if newest is None or newest.value is None:
        raise LongstreamError(f"no state of {stream!r} on {settings.topic_sessions}")
    found, why = decode_state(newest.value)
    if found is None:
        raise LongstreamError(f"the state of {stream!r} cannot be read: {why}")
    return found


def summary_of(state: SessionState) -> dict[str, str]:
    """The state in lines: name -> value."""
    held = sum(part.tokens for part in state.window)
    return {
        "stream": printable(state.stream_id),
        "life": f"{state.epoch}{', ended' if state.ended else ''}",
        "finished to offset": str(state.cursor),
        "segments": str(state.next_seq),
        "summarised to segment": f"{state.covered_seq} {printable(state.covered_segment_id)}".strip(),
        "tokens": f"{state.tokens_total} in all, {held} in the window",
        "revisions": ", ".join(f"{k} {v}" for k, v in state.revisions.items()) or "none",
        "snapshot": printable(state.snapshot or "none"),
        "degraded": ", ".join(state.degraded) or "no",
        "items": str(len(state.items)),
    }
