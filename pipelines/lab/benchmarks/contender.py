"""One side of the contention benchmark, in a process of its own: it generates tokens for as many seconds
as a line on its standard input says, and answers with their number and the seconds they took.

    python -m pipelines.lab.benchmarks.contender SIDE MODEL THREADS [GROUP]

SIDE is ``longstream``, with its weights' type behind a slash (``longstream/q4``; int8 without), or
``llama.cpp``; MODEL a folder, a GGUF file or ``toy``; GROUP a control group
that the process joins before it counts its CPUs. THREADS 0: as many as the limits of the process allow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.config.cpu import cpu_limit
from pipelines.device.torch_env import TORCH

WARM_UP = 4
"""Tokens before anything is timed."""
PIECE = 32
"""Tokens that llama.cpp's server is asked for at a time; each time it also reads one of the prompt."""


def ours(model: str, dtype: str) -> Callable[[], int]:
    """Plain greedy decoding of one row behind a full window, under the governor."""
    import torch

    from operators.cache.batch import Row
    from operators.cache.kv_cache import KvLayout
    from operators.model.loader import load_model
    from pipelines.device.governor import Governor
    from pipelines.lab.benchmarks.toy import toy_decoder

    torch.set_num_threads(cpu_limit().threads)
    layout = KvLayout(sinks=4, window=256, slack=64, branch_tokens=64)
    decoder = (
        toy_decoder("bf16", dtype)
        if model == "toy"
        else load_model(model, device="cpu", dtype_prefill=_prefill(dtype), dtype_decode=dtype)
    )
    cache = decoder.new_cache(layout, slots=1, branches=1)
    slot = cache.allocate()
    while slot.length < layout.slot_tokens:
        decoder.forward("prefill", cache, [Row(slot, [7] * layout.slack)])
    governor, token = Governor(cpu_limit().threads, torch.set_num_threads), [7]

    def generate() -> int:
        with governor.step():
            logits = decoder.forward("decode", cache, [Row(slot, token, num_logits=1)])
        token[0] = int(logits.argmax())
        return 1

    return generate


def _prefill(dtype: str) -> str:
    """The type to read with: the same where that can be, for one copy of the weights."""
    return dtype if dtype == "w8a8" else "bf16"


def llamacpp(file: str, threads: int) -> Callable[[], int]:
    """llama.cpp's own server, one sequence, its prompt cached."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    prompt = "The committee met again and talked about the budget. " * 24

    def generate() -> int:
        wanted = {
            "prompt": prompt,
            "n_predict": PIECE,
            "ignore_eos": True,
            "cache_prompt": True,
            "temperature": 0.0,
        }
        answer = server.handle_completions(wanted)
        found = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return int(found.get("usage", {}).get("completion_tokens") or PIECE)

    return generate


def main(side: str, model: str, threads: int, group: str = "") -> None:
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    allowed = threads or cpu_limit().threads
    name, _, dtype = side.partition("/")
    generate = ours(model, dtype or "int8") if name == "longstream" else llamacpp(model, allowed)
    made = 0
    while made < WARM_UP:
        made += generate()
    print(json.dumps({"threads": allowed}), flush=True)
    for line in sys.stdin:
        seconds, tokens, began = float(line), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            tokens += generate()
        print(json.dumps({"tokens": tokens, "s": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    for name, value in TORCH.items():
        os.environ.setdefault(name, value)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:5])
