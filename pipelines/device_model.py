"""From a model's name to a running engine; imported in the device process only (it needs torch)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from operators.config import OperatorConfig
from operators.model import load_model
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from pipelines import model_store, protocol

PROGRESS_SECONDS = 5.0


def load_operator(
    load: protocol.Load,
    config: OperatorConfig,
    observer: Observer,
    progress: Callable[[str], None],
) -> tuple[StreamOperator, protocol.Ready]:
    """Find (fetch, convert) the model, load it, allocate the cache.

    Raises ModelError or ConfigError.
    """
    progress(f"looking for {load.model}")
    gguf_dir = Path(load.gguf_dir) if load.gguf_dir else None
    path = model_store.resolve(load.model, _throttled(progress), gguf_dir=gguf_dir)
    progress(f"loading {load.model} from {path}")
    started = time.monotonic()
    model = load_model(
        path,
        name=load.model,
        device=load.device,
        dtype_ingest=config.dtype_ingest,
        dtype_generation=config.dtype_generation,
        rows=config.branches,
    )
    operator = StreamOperator(model, config, clock=time.monotonic, observer=observer)
    return operator, describe(operator, time.monotonic() - started)


def _throttled(tell: Callable[[str], None]) -> Callable[[str, float | None], None]:
    """Pass on every new message, and its percentage at most every few seconds."""
    said, said_at = "", 0.0

    def progress(message: str, fraction: float | None) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if message != said or now - said_at >= PROGRESS_SECONDS:
            said, said_at = message, now
            tell(message if fraction is None else f"{message} ({fraction:.0%})")

    return progress


def describe(operator: StreamOperator, seconds: float) -> protocol.Ready:
    """The report that says what was loaded and what it costs."""
    model, slots = operator.model, operator.config.slots
    per_stream = operator.bytes_per_stream
    return protocol.Ready(
        model=model.name,
        device=str(model.device),
        dtype_ingest=model.dtypes["ingest"],
        dtype_generation=model.dtypes["generation"],
        slots=slots,
        bytes_per_stream=per_stream,
        bytes_total=per_stream * slots,
        description=f"loaded in {seconds:.1f} s",
    )
