"""Plain decoding: one stream, one token a forward, no drafts. Ours by type of weights, beside llama.cpp.

Every side runs in a process of its own, one after the other in every round, behind a context of about
270 tokens, with as many threads as there are cores. Loading is not timed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from importlib.util import find_spec

from pipelines import models
from pipelines.lab.benchmarks.contention import Contender
from pipelines.lab.benchmarks.harness import TOY, Result, Run

MODEL = "qwen2.5-coder-1.5b"
TYPES = ("int8", "w8a8", "q4")
"""The types of fewer bits that a worker may choose by itself."""
LLAMACPP = "llama.cpp"
SECONDS, ROUNDS = 10.0, 3


def run(run: Run) -> Result:
    """``tokens_s``: the median of every side; ``plain_vs_llamacpp``: our fastest type over llama.cpp,
    None without it; ``rounds``: every round's figure."""
    seconds, rounds = (0.3, 1) if run.quick else (SECONDS, run.rounds or ROUNDS)
    missing: dict[str, str] = {}
    sides = _sides(run, missing)
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds):
        for name, (side, model) in sides.items():
            with Contender(side, model) as process:
                found[name].append(round(process.speed(seconds), 2))
            run.say(f"round {turn + 1}, {name}: {found[name][-1]} tokens/s")
    speeds = {name: statistics.median(values) for name, values in found.items()}
    ours = max(speed for name, speed in speeds.items() if name != LLAMACPP)
    theirs = speeds.get(LLAMACPP)
    return {
        "plain_vs_llamacpp": round(ours / theirs, 2) if theirs else None,
        "tokens_s": speeds,
        "rounds": dict(found),
        "missing": missing,
    }


def _sides(run: Run, missing: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name → what :mod:`contender` calls it, and its model."""
    if run.model == TOY:
        missing[LLAMACPP] = "the toy model has no GGUF file"
        return {"int8": ("longstream", TOY)}
    folder = run.folder()
    types = TYPES if models.ensure_four_bits(run.model, folder) else TYPES[:-1]
    sides = {dtype: (f"longstream/{dtype}", str(folder)) for dtype in types}
    if find_spec("xllamacpp") is None:
        missing[LLAMACPP] = "not installed: pip install longstream[peers]"
    else:
        sides[LLAMACPP] = (LLAMACPP, str(models.gguf_file(run.model)))
    return sides
