"""Models by name. ``store`` keeps them, ``source`` fetches their bytes, ``pins`` says which bytes they
are, ``convert`` reads GGUF."""

from pipelines.models.convert import Progress
from pipelines.models.gguf import ensure_four_bits, gguf_file
from pipelines.models.pins import Pin, digest
from pipelines.models.source import ALIASES, Alias, HubFile, Wheel
from pipelines.models.store import cached, default_cache, resolve, sha256_of_model

__all__ = [
    "ALIASES",
    "Alias",
    "HubFile",
    "Pin",
    "Progress",
    "Wheel",
    "cached",
    "default_cache",
    "digest",
    "ensure_four_bits",
    "gguf_file",
    "resolve",
    "sha256_of_model",
]
