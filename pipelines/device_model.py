"""From a model's name to a running engine; imported in the device process only (it needs torch)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from operators.config import OperatorConfig
from operators.model import load_model
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from pipelines import model_store, protocol


def load_operator(
    load: protocol.Load,
    config: OperatorConfig,
    observer: Observer,
    progress: Callable[[str], None],
) -> tuple[StreamOperator, protocol.Ready]:
    """Find (fetch, convert) the model, load it, allocate the cache.

    Raises ModelError or ConfigError.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    progress(f"looking for {load.model}")
    path = model_store.resolve(load.model)
    progress(f"loading {load.model} from {path}")
    started = time.monotonic()
    model = load_model(
        path,
        name=load.model,
        device=load.device,
        dtype_ingest=config.dtype_ingest,
        dtype_generation=config.dtype_generation,
    )
    operator = StreamOperator(model, config, clock=time.monotonic, observer=observer)
    return operator, describe(operator, time.monotonic() - started)


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
