"""From a model's name to a running engine; imported in the device process only (it needs torch)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from operators.config import OperatorConfig
from operators.errors import ModelError
from operators.model.head import load_head
from operators.model.loader import DecoderModel
from operators.observer import Observer
from operators.served_operator import ServedOperator
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.device import memory, protocol
from pipelines.device.calibration import alignment_heads, load_calibrated, measured_costs
from pipelines.served.load import load_text_model, served_operator
from pipelines.storage.idle import idle_store

PROGRESS_SECONDS = 5.0

log = logging.getLogger(__name__)


def load_operator(
    load: protocol.Load,
    config: OperatorConfig,
    observer: Observer,
    progress: Callable[[str], None],
) -> tuple[StreamOperator, protocol.Ready]:
    """Find (fetch, convert) the model, load it, allocate the cache.

    Raises ModelError or ConfigError, or DeviceError when a server is away.
    """
    started = time.monotonic()
    if load.backend != "local":
        served = _load_served(load, config, observer, progress)
        return served, describe(served, time.monotonic() - started)
    draft_name = config.draft_model
    pin = models.Pin(load.model_sha256, "model_sha256", "always")
    draft_pin = models.Pin(load.draft_model_sha256, "draft_model_sha256", "always")
    path = _find(load.model, load, pin, progress)
    draft_path = _find(draft_name, load, draft_pin, progress) if draft_name else None
    head_path = draft_pin.found(config.draft_head) if config.draft_head else None
    model = _load(load.model, path, load, config, progress)
    progress(f"{load.model}: {weights(model)}")
    draft = _load(draft_name, draft_path, load, config, progress) if draft_path else None
    check_memory(model, draft, config, progress)
    operator = StreamOperator(
        model,
        config,
        clock=time.monotonic,
        observer=observer,
        draft=draft,
        costs=measured_costs(model, draft, config, models.default_cache(), progress),
        store=idle_store(load.offload_url, load.again),
        heads=alignment_heads(model, config, models.default_cache(), progress),
        draft_head=load_head(head_path, model) if head_path else None,
    )
    return operator, describe(operator, time.monotonic() - started)


def _load_served(
    load: protocol.Load,
    config: OperatorConfig,
    observer: Observer,
    progress: Callable[[str], None],
) -> ServedOperator:
    """The operator on a server, or on transformers."""
    folder = draft = None
    if load.server is None:
        pin = models.Pin(load.model_sha256, "model_sha256", "always")
        draft_pin = models.Pin(load.draft_model_sha256, "draft_model_sha256", "always")
        folder = _find(load.model, load, pin, progress)
        if config.draft_model:
            draft = _find(config.draft_model, load, draft_pin, progress)
    text = load_text_model(
        load.server,
        config,
        name=load.model,
        folder=folder,
        draft=draft,
        device=load.device,
        say=progress,
    )
    return served_operator(text, config, observer=observer)


def _find(name: str, load: protocol.Load, pin: models.Pin, progress: Callable[[str], None]) -> Path:
    progress(f"looking for {name}")
    gguf_dir = Path(load.gguf_dir) if load.gguf_dir else None
    return models.resolve(name, _throttled(progress), gguf_dir=gguf_dir, pin=pin)


def _load(
    name: str,
    path: Path,
    load: protocol.Load,
    config: OperatorConfig,
    progress: Callable[[str], None],
) -> DecoderModel:
    progress(f"loading {name} from {path}")
    with _corrupt(name):
        cache = models.default_cache()
        return load_calibrated(
            path,
            config,
            cache,
            name=name,
            device=load.device,
            say=progress,
            known=load.known_weights,
        )


@contextmanager
def _corrupt(name: str) -> Iterator[None]:
    """What the libraries say of files they cannot read becomes a ModelError: trying again would not
    help. Too little memory stays what it is: another time there may be more."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "memory" in str(error).lower():
            raise
        raise ModelError(
            f"{name} cannot be loaded, its files may be torn: {type(error).__name__}: {error}"
        ) from error


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


def check_memory(
    model: DecoderModel,
    draft: DecoderModel | None,
    config: OperatorConfig,
    progress: Callable[[str], None],
) -> None:
    """Refuse, before anything is allocated, what cannot fit. Raises ConfigError."""
    sizes = [memory.size_of_loaded(m, config) for m in (model, draft) if m is not None]
    need = memory.footprint(config, *sizes, device=str(model.device))
    if (caution := memory.admit(need, memory.memory_of(str(model.device)))) is not None:
        log.warning("%s", caution)
        progress(caution)


def describe(operator: StreamOperator, seconds: float) -> protocol.Ready:
    """The report that says what was loaded and what it costs."""
    model, slots = operator.model, operator.config.slots
    config, per_stream = operator.config, operator.bytes_per_stream
    draft = config.draft_model or config.draft_head
    served = isinstance(operator, ServedOperator)
    what = "the model runs elsewhere" if served else weights(model)
    loaded = f"loaded in {seconds:.1f} s, {what}"
    return protocol.Ready(
        model=model.name,
        device=str(model.device),
        dtype_prefill=model.dtypes["prefill"],
        dtype_decode=model.dtypes["decode"],
        slots=slots,
        bytes_per_stream=per_stream,
        bytes_total=per_stream * slots,
        description=loaded + (f", drafts by {draft}" if draft else ""),
    )


def weights(model: DecoderModel) -> str:
    """Bytes of all weights held, every one counted once, and their types."""
    kinds = " + ".join(dict.fromkeys(model.dtypes.values()))
    tied = ", output tied to the embedding" if model.tied else ""
    return f"{model.weight_bytes / 1e9:.2f} GB of weights ({kinds}{tied})"
