"""The operator without Kafka, on a model by its name.

    from pipelines.live import load_operator

    operator = load_operator("smollm2-135m", targets=("fr",))  # a StreamOperator
    meeting = operator.open("meeting")
    meeting.feed("The review moves to Friday at ten.", speaker="Ana")
    for event in meeting.results():
        print(event)
    print(meeting.summarize(), meeting.translate("See you on Friday.", "de"))
    print(meeting.ask("When is the review?").text)
    snapshot = meeting.snapshot()  # operator.open("meeting", snapshot=snapshot) goes on from it
    meeting.close()

See :class:`operators.stream.Stream` for what a stream can do. With a loaded model, a draft model, a
store or an observer of your own: :class:`operators.stream_operator.StreamOperator`.
"""

from __future__ import annotations

import time
from typing import Any

from operators.config import OperatorConfig
from operators.stream_operator import StreamOperator
from pipelines import model_store
from pipelines.calibration import load_calibrated
from pipelines.spill import idle_store


def load_operator(
    model: str, *, device: str = "auto", spill_url: str = "", **settings: Any
) -> StreamOperator:
    """An operator on ``model`` (whatever ``longstream model pull`` takes), ready for streams.

    ``settings`` are those of OperatorConfig. ``spill_url``: a folder or object store (fsspec) for
    streams that have nothing to do, beyond ``host_streams``. Raises ModelError or ConfigError.
    """
    config = OperatorConfig.from_dict(settings)
    path, cache = model_store.resolve(model), model_store.default_cache()
    loaded = load_calibrated(path, config, cache, name=model, device=device)
    return StreamOperator(loaded, config, clock=time.monotonic, store=idle_store(spill_url))
