"""What a step costs besides products and attention: planning, laying rows out, choosing tokens.

A step of ``--rows`` answers (64 and 512 if not said otherwise), each verifying a block, and idle streams
beside them. On the toy model, for nothing here depends on the size of the weights; the logits have the
vocabulary of a real model. Times are CPU time of one thread, the least of several rounds, so that other
work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from operators.cache.attention import TORCH, AttentionBackend, TorchAttention
from operators.cache.batch import ForwardBatch, Row
from operators.cache.kv_cache import KvLayout
from operators.config import OperatorConfig
from operators.decoding.acceptance import TYPICAL, Candidate, Choice, Costs
from operators.decoding.allocation import share_out
from operators.decoding.verify import most_likely
from operators.stream_operator import StreamOperator
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.toy import toy_decoder

MODEL = TOY
ROWS = (64, 512)
BLOCK = 4
"""Tokens of a verify block."""
VOCABULARY = 151_936
IDLE = 2_000
LAYOUT = KvLayout(sinks=16, window=96, slack=32, branch_tokens=32)


def run(run: Run) -> Result:
    """By number of rows: milliseconds of ``share_out``, of laying the rows out (``plan``), of choosing
    tokens from the logits (``winners``, of the smallest number of rows) and operators dispatched in a
    layer, here and with rows ``scattered`` over slots as the GPU's kernel takes them; ``idle_ms``: what
    idle streams add to a step."""
    rows = run.rows or ((4, 16) if run.quick else ROWS)
    rounds = 2 if run.quick else 5
    idle = 50 if run.quick else IDLE
    share, plan, dispatches, scattered = {}, {}, {}, {}
    for count in rows:
        share[count] = least(lambda count=count: _share(count), rounds)  # type: ignore[misc]
        plan[count], dispatches[count] = _plan(count, rounds, TORCH)
        _, scattered[count] = _plan(count, rounds, Scattered())
        run.say(f"{count} rows: share_out {share[count]} ms, plan {plan[count]} ms")
    vocabulary = 1_024 if run.quick else VOCABULARY
    logits = torch.randn(min(rows) * BLOCK, vocabulary).bfloat16()
    return {
        "share_out_ms": share,
        "plan_ms": plan,
        "dispatches_per_layer": dispatches,
        "dispatches_per_layer_scattered": scattered,
        "winners_ms": least(lambda: most_likely(logits), rounds),
        "winners_before_ms": least(lambda: _cast_and_check(logits), rounds),
        "idle_streams": idle,
        "idle_ms": _idle(idle, rounds),
    }


def least(step: Callable[[], object], rounds: int) -> float:
    """Milliseconds of CPU time, the least of several rounds behind one that warms up."""
    step()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        step()
        found.append(time.process_time() - began)
    return round(min(found) * 1000, 3)


def _share(rows: int) -> list[int]:
    choices = [Choice(Candidate("previous", 16), 0.5 + 0.4 * (at % 7) / 7) for at in range(rows)]
    return share_out(choices, Costs(TYPICAL), [1.0 + at % 3 for at in range(rows)])


class Scattered(TorchAttention):
    """The reference on groups as the Triton kernel has them."""

    scattered = True


def _plan(count: int, rounds: int, backend: AttentionBackend) -> tuple[float, int]:
    """Milliseconds of laying out a verify of so many branches, and operators dispatched by one layer."""
    model = toy_decoder("bf16")
    cache = model.new_cache(LAYOUT, slots=count, branches=count)
    rows = []
    for at in range(count):
        slot = cache.allocate()
        slot.length = LAYOUT.slot_tokens + 7 * at  # its content does not matter here
        rows.append(Row(slot, [5] * BLOCK, cache.fork(slot), num_logits=BLOCK))
    took = least(lambda: ForwardBatch(cache, rows, model.rope, backend), rounds)
    batch = ForwardBatch(cache, rows, model.rope, backend)
    heads, dim = model.shape.kv_heads * 2 + model.shape.kv_heads, model.shape.head_dim
    qk = torch.zeros(count * BLOCK, heads, dim, dtype=torch.bfloat16)
    v = torch.zeros(count * BLOCK, model.shape.kv_heads, dim, dtype=torch.bfloat16)
    with torch.inference_mode(), Counted() as seen:  # type: ignore[no-untyped-call]
        batch.attend(0, qk, v, 1.0)
    return took, seen.count


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that are dispatched inside."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _cast_and_check(logits: torch.Tensor) -> list[int]:
    """What most_likely replaced."""
    whole = logits.float()
    return whole.argmax(dim=-1).tolist() if bool(torch.isfinite(whole).all()) else []


def _idle(streams: int, rounds: int) -> float:
    """Milliseconds that asking for work and an empty step take with so many idle streams."""
    operator = StreamOperator(
        toy_decoder(),
        OperatorConfig(window=256, update_tokens=128, slots=1, branches=1, branch_tokens=2048),
    )
    for number in range(streams):
        operator.open(f"idle-{number}")

    def step() -> None:
        operator.has_work()
        operator.step()
        operator.idle_until()

    return least(step, rounds)
