"""Models by name. ``store`` keeps them, ``source`` fetches their bytes, ``convert`` reads GGUF."""

from pipelines.model_store.convert import Progress
from pipelines.model_store.gguf import gguf_file
from pipelines.model_store.source import ALIASES, Alias, Wheel
from pipelines.model_store.store import cached, default_cache, resolve

__all__ = [
    "ALIASES",
    "Alias",
    "Progress",
    "Wheel",
    "cached",
    "default_cache",
    "gguf_file",
    "resolve",
]
