"""Milliseconds per token of a stream that has long filled its cache, four ways, in the same number type.

``ours``: one token into the engine. ``recompute``: the whole cache's tokens through transformers for
every token (the paper's sliding window with re-computation). ``hop``: transformers with a growing
cache that is computed anew from the newest half whenever it is full: its share of that, and a token
at three quarters. ``rerotate``: keys kept unrotated and all of them rotated for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.model.loader import DecoderModel
from pipelines.lab.benchmarks.harness import Result, Run, interleaved, medians
from pipelines.lab.benchmarks.rerotating import RerotatingStream

MODEL = "smollm2-135m"
SIZES = (256, 1024, 4096)
SINKS = 4
TOKENS = 8
"""Decoded one by one in each round; the times are per token."""
TOKEN = 7
"""Which token is fed: what a token costs does not depend on it."""
Step = Callable[[], object]


def run(run: Run) -> Result:
    """``ratio_recompute``, ``ratio_hop``, ``ratio_rerotate`` (theirs over ours) at the largest cache;
    ``per_token_ms`` and ``ratios`` for every size."""
    sizes = (32, 64) if run.quick else SIZES
    ours, stock, other = run.load(), run.stock(), run.stock()
    per_token: dict[int, dict[str, float]] = {}
    for size in sizes:
        run.say(f"cache of {size} tokens")
        steps = contenders(ours, stock, other, size)
        times = medians(interleaved(steps, 2 if run.quick else 5, run.say))
        per_token[size] = {
            "ours": times["ours"] / TOKENS,
            "recompute": times["recompute"],
            "hop": times["hop: decode"] / TOKENS + times["hop: prefill"] / (size // 2),
            "rerotate": times["rerotate"] / TOKENS,
        }
    ratios = {
        size: {name: row[name] / row["ours"] for name in row if name != "ours"}
        for size, row in per_token.items()
    }
    return {
        **{f"ratio_{name}": round(value, 2) for name, value in ratios[max(sizes)].items()},
        "per_token_ms": {
            str(size): {name: round(seconds * 1000, 2) for name, seconds in row.items()}
            for size, row in per_token.items()
        },
        "ratios": {
            str(size): {name: round(value, 2) for name, value in row.items()}
            for size, row in ratios.items()
        },
        "dtype": "bf16",
        "sinks": SINKS,
    }


def contenders(
    ours: DecoderModel, stock: PreTrainedModel, other: PreTrainedModel, size: int
) -> dict[str, Step]:
    """The work of one round each, behind a cache of ``size`` tokens. Changes ``other`` for good."""
    return {
        "ours": _ours(ours, size),
        "recompute": _recompute(stock, size),
        "hop: prefill": _prefill(stock, size // 2),
        "hop: decode": _decode(stock, size * 3 // 4),
        "rerotate": _rerotate(other, size),
    }


def _ours(model: DecoderModel, size: int) -> Step:
    layout = KvLayout(SINKS, size - SINKS, slack=128, branch_tokens=1)
    cache = model.new_cache(layout, slots=1, branches=1)
    slot = cache.allocate()
    while slot.length < layout.slot_tokens:
        block = min(layout.slack, layout.slot_tokens - slot.length)
        model.forward("prefill", cache, [Row(slot, [TOKEN] * block)])

    def step() -> None:
        for _ in range(TOKENS):
            model.forward("decode", cache, [Row(slot, [TOKEN], num_logits=1)])

    return step


def _recompute(network: Any, size: int) -> Step:
    ids = torch.full((1, size), TOKEN)
    return _without_gradients(lambda: network(ids, use_cache=False, logits_to_keep=1))


def _prefill(network: Any, size: int) -> Step:
    ids = torch.full((1, size), TOKEN)
    return _without_gradients(
        lambda: network(ids, past_key_values=DynamicCache(), logits_to_keep=1)
    )


def _decode(network: Any, size: int) -> Step:
    cache = DynamicCache()
    ids = torch.full((1, size), TOKEN)
    _without_gradients(lambda: network(ids, past_key_values=cache, logits_to_keep=1))()

    def step() -> None:
        for _ in range(TOKENS):
            network(ids[:, :1], past_key_values=cache)
        cache.crop(-TOKENS)

    return _without_gradients(step)


def _rerotate(network: PreTrainedModel, size: int) -> Step:
    stream = RerotatingStream(network, SINKS, size - SINKS)
    stream.append([TOKEN] * size)

    def step() -> None:
        for _ in range(TOKENS):
            stream.append([TOKEN])

    return step


def _without_gradients(step: Step) -> Step:
    return torch.inference_mode()(step)
