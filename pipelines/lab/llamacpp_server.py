"""llama.cpp's own HTTP server (``xllamacpp``) in a process of its own: a real one to measure against.

In one process both would share one OpenMP library, which lets its threads sleep between any two
operators once it counts more of them than cores: an operator of ours took five times as long.

    python -m pipelines.lab.llamacpp_server FILE PARALLEL CONTEXT THREADS [FOLDER]

serves until its standard input ends, and prints its address.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import subprocess
import sys
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
PATIENCE_S = 20.0
"""For a server to end by itself."""
_SERVERS: dict[str, subprocess.Popen[str]] = {}
"""By address, those that run. They end with this process at the latest."""


def serve(
    file: Path,
    *,
    parallel: int = 4,
    context: int = CONTEXT,
    threads: int = 1,
    save_to: Path | None = None,
) -> str:
    """Serve a GGUF file on a free port of the loopback; returns the address. ``save_to``: the folder for
    slots that it is asked to save. Raises ConfigError where the package is missing, RuntimeError where
    the server does not start."""
    package()
    command = [sys.executable, "-m", __name__, str(file), str(parallel), str(context), str(threads)]
    process = subprocess.Popen(  # noqa: S603 - our own module
        [*command, *([str(save_to)] if save_to else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http"):
            _SERVERS[line.strip()] = process
            return line.strip()
    process.communicate()
    raise RuntimeError(f"llama.cpp's server ended with {process.returncode} before it listened")


def stop(address: str) -> None:
    """End the server at this address, if it is one of ours."""
    if address in _SERVERS:
        process = _SERVERS.pop(address)
        try:
            process.communicate(timeout=PATIENCE_S)  # ends its standard input
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@atexit.register
def _stop_all() -> None:
    for address in list(_SERVERS):
        stop(address)


def _main(file: str, parallel: str, context: str, threads: str, save_to: str = "") -> None:
    server = package().Server(
        parameters(
            Path(file),
            parallel=int(parallel),
            context=int(context),
            threads=int(threads),
            save_to=Path(save_to) if save_to else None,
        )
    )
    print(server.listening_address, flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on: a full pipe would stop it
    sys.stdin.read()


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


if __name__ == "__main__":
    _main(*sys.argv[1:])
