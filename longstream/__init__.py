"""longstream: rolling summaries, translations and answers from text that never ends.

    from longstream import load_operator

    operator = load_operator("qwen2.5-coder-1.5b", targets=("fr",))
    meeting = operator.open("meeting")
    meeting.feed("The review moves to Friday at ten.", speaker="Ana")
    for event in meeting.results():
        print(event)

These names are the public interface; everything else may change. Each is loaded when it is first used,
so ``import longstream`` needs no torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.config import OperatorConfig
    from operators.errors import (
        CapacityError,
        ConfigError,
        DeviceError,
        LongstreamError,
        ModelError,
        SegmentError,
        SnapshotError,
    )
    from operators.events import (
        AnswerEvent,
        Evidence,
        LedgerItem,
        Question,
        ResultEvent,
        Segment,
        Speaker,
        StreamSettings,
        SummaryEvent,
        TranslationEvent,
    )
    from operators.model.loader import load_model
    from operators.stream import Stream
    from operators.stream_operator import StreamOperator
    from operators.tasks.base import Outcome, Task
    from pipelines.local import load_operator

_HOMES = {
    "operators.config": ("OperatorConfig",),
    "operators.errors": (
        "CapacityError",
        "ConfigError",
        "DeviceError",
        "LongstreamError",
        "ModelError",
        "SegmentError",
        "SnapshotError",
    ),
    "operators.events": (
        "AnswerEvent",
        "Evidence",
        "LedgerItem",
        "Question",
        "ResultEvent",
        "Segment",
        "Speaker",
        "StreamSettings",
        "SummaryEvent",
        "TranslationEvent",
    ),
    "operators.model.loader": ("load_model",),
    "operators.stream": ("Stream",),
    "operators.stream_operator": ("StreamOperator",),
    "operators.tasks.base": ("Outcome", "Task"),
    "pipelines.local": ("load_operator",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = metadata.version("longstream")

__all__ = [
    "AnswerEvent",
    "CapacityError",
    "ConfigError",
    "DeviceError",
    "Evidence",
    "LedgerItem",
    "LongstreamError",
    "ModelError",
    "OperatorConfig",
    "Outcome",
    "Question",
    "ResultEvent",
    "Segment",
    "SegmentError",
    "SnapshotError",
    "Speaker",
    "Stream",
    "StreamOperator",
    "StreamSettings",
    "SummaryEvent",
    "Task",
    "TranslationEvent",
    "__version__",
    "load_model",
    "load_operator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'longstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
