"""Run by test_attention_backends in a process of its own: the Triton kernel, interpreted on the CPU,
beside the reference. Prints the largest difference of every case.

    TRITON_INTERPRET=1 python -m tests.triton_attention
"""

from __future__ import annotations

import random

import torch

from operators.cache.attention import TorchAttention
from operators.cache.attention_triton import TritonAttention
from operators.cache.batch import ForwardBatch, Row
from tests.engine import SINKS, Driver, layout, random_tokens, toy_decoder


def difference(arch: str, wrapped: bool) -> float:
    """Branches side by side, of unequal length, one with its region elsewhere; a stream's own row."""
    driver = Driver(toy_decoder(arch), layout(), slots=4, branches=4)
    slots = [driver.stream(SINKS) for _ in range(4)]
    if wrapped:
        for slot in slots[:3]:
            driver.feed(slot, random_tokens(60, slot.index), random.Random(slot.index))
    branches = [driver.cache.fork(slots[at]) for at in (1, 0, 2)]
    driver.append(branches[0], [3, 4, 5])
    rows = [
        *(Row(b.stream, random_tokens(n, n), b) for b, n in zip(branches, (2, 3, 4), strict=True)),
        Row(slots[3], [9, 8]),
    ]
    model, seen = driver.model, []
    heads = model._config.num_attention_heads + model.shape.kv_heads
    generator = torch.Generator().manual_seed(4)
    tokens = sum(len(row.tokens) for row in rows)
    qk = torch.randn(tokens, heads, model.shape.head_dim, generator=generator)
    v = torch.randn(tokens, model.shape.kv_heads, model.shape.head_dim, generator=generator)
    groups = []
    for backend in (TorchAttention(), TritonAttention()):
        batch = ForwardBatch(driver.cache, rows, model.rope, backend)
        groups.append(len(batch._groups))
        with torch.inference_mode():
            seen.append(batch.attend(0, qk, v, 0.3))
    assert groups[1] < groups[0]  # slots 0 and 2 with a longer row between them are one group
    return float((seen[0] - seen[1]).abs().max())


if __name__ == "__main__":
    for arch in ("llama", "phi3"):
        for wrapped in (False, True):
            print(difference(arch, wrapped), flush=True)
