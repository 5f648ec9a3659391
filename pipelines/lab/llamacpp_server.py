"""llama.cpp's own HTTP server in this process (``xllamacpp``): a real server to measure against."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines import models
from pipelines.local import BACKENDS
from pipelines.served.options import chosen_server
from pipelines.served.settings import ServerSettings

HERE = "llamacpp"
CONTEXT = 4096
"""Tokens of one answer's prompt and output."""
_SERVERS: list[Any] = []
"""They live as long as the process."""


def serve(
    file: Path,
    *,
    parallel: int = 4,
    context: int = CONTEXT,
    threads: int = 1,
    save_to: Path | None = None,
) -> str:
    """Serve a GGUF file on a free port of the loopback; returns the address. ``save_to``: the folder for
    slots that it is asked to save. Raises ConfigError where the package is missing."""
    params = parameters(file, parallel=parallel, context=context, threads=threads, save_to=save_to)
    _SERVERS.append(package().Server(params))
    return str(_SERVERS[-1].listening_address)


def package() -> Any:
    """``xllamacpp``. Raises ConfigError where it is missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError("llama.cpp is not installed: pip install 'longstream[peers]'")
    return importlib.import_module("xllamacpp")


def parameters(
    file: Path, *, parallel: int, context: int, threads: int, save_to: Path | None
) -> Any:
    """The server's own parameters, as :func:`serve` sets them."""
    params = package().CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel = context * parallel, parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port, params.verbosity, params.warmup = 0, 0, False
    if save_to is not None:
        params.endpoint_slots, params.slot_save_path = True, f"{save_to}/"
    return params


def server_for(
    backend: str, url: str, name: str, *, model: str, streams: int, threads: int = 0
) -> ServerSettings | None:
    """The server of a command's options; ``llamacpp`` as its address starts one on ``model``'s file.
    Raises ConfigError."""
    if backend not in BACKENDS:
        raise ConfigError(f"--backend {backend}: one of {', '.join(BACKENDS)}")
    if url == HERE:
        import torch

        file = models.gguf_file(model)
        url = serve(file, parallel=4 * streams, threads=threads or torch.get_num_threads())
    return chosen_server(backend, url, name)
