"""The operator without Kafka, on a model by its name.

    from longstream import load_operator

    operator = load_operator("qwen2.5-coder-1.5b", targets=("fr",))
    meeting = operator.open("meeting")
    meeting.feed("The review moves to Friday at ten.", speaker="Ana")
    for event in meeting.results():
        print(event)
    print(meeting.summarize(), meeting.translate("See you on Friday.", "de"))
    print(meeting.ask("When is the review?").text)
    snapshot = meeting.snapshot()  # operator.open("meeting", snapshot=snapshot) continues from here
    meeting.close()

See :class:`operators.stream.Stream` for what a stream can do. With a loaded model, a store
or an observer of your own: :class:`operators.stream_operator.StreamOperator`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.model.head import load_head
from operators.model.loader import DecoderModel
from operators.stream_operator import StreamOperator
from operators.tasks.base import Task
from pipelines import models
from pipelines.device.calibration import alignment_heads, load_calibrated, measured_costs
from pipelines.served.load import load_text_model, served_operator
from pipelines.served.settings import ServerSettings
from pipelines.storage.idle import idle_store

BACKENDS = ("local", "openai", "transformers")


def load_operator(
    model: str,
    *,
    device: str = "auto",
    offload_url: str = "",
    model_sha256: str = "",
    draft_model_sha256: str = "",
    tasks: Sequence[Task] = (),
    backend: str = "local",
    server: ServerSettings | None = None,
    **settings: Any,
) -> StreamOperator:
    """An operator on ``model`` (whatever ``longstream model pull`` takes), ready for streams.

    ``backend``: local (this engine), transformers (plain ``generate``) or openai (a ``server``,
    docs/engines.md).

    ``settings`` are those of OperatorConfig, ``tasks`` further tasks beside the built-in ones.
    ``model_sha256``: digest of a model that is no alias, as ``longstream model sha256`` prints it;
    required for one of a model hub. ``draft_model_sha256``: the same for ``draft_model``,
    or ``draft_head``.
    ``offload_url``: a folder or object store (fsspec) for the KV of idle streams beyond
    ``host_streams``. Measures the model's costs on this machine on first use (some seconds).
    Raises ModelError or ConfigError, or DeviceError when a server is away.
    """
    config = OperatorConfig.from_dict(settings)
    pin = models.Pin(model_sha256, "model_sha256")
    draft_pin = models.Pin(draft_model_sha256, "draft_model_sha256")
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r}: one of {', '.join(BACKENDS)}")
    if backend != "local":
        here = backend == "transformers"
        drafts = here and config.draft_model
        text = load_text_model(
            None if here else server,
            config,
            name=model,
            folder=models.resolve(model, pin=pin) if here else None,
            draft=models.resolve(config.draft_model, pin=draft_pin) if drafts else None,
            device=device,
        )
        return served_operator(text, config, tasks=tasks)
    head = draft_pin.found(config.draft_head) if config.draft_head else None
    loaded = _load(model, config, device, pin)
    draft = _load(config.draft_model, config, device, draft_pin) if config.draft_model else None
    return StreamOperator(
        loaded,
        config,
        clock=time.monotonic,
        draft=draft,
        costs=measured_costs(loaded, draft, config, models.default_cache()),
        store=idle_store(offload_url),
        tasks=tasks,
        heads=alignment_heads(loaded, config, models.default_cache()),
        draft_head=load_head(head, loaded) if head else None,
    )


def _load(name: str, config: OperatorConfig, device: str, pin: models.Pin) -> DecoderModel:
    path, cache = models.resolve(name, pin=pin), models.default_cache()
    return load_calibrated(path, config, cache, name=name, device=device)
