"""Rows for which a backend of attention is compared with the reference."""

from __future__ import annotations

import random

import torch

from operators.cache.attention import AttentionBackend, TorchAttention
from operators.cache.batch import ForwardBatch, Row
from operators.model.loader import DecoderModel
from tests.engine import SINKS, Driver, layout, random_tokens


def difference(backend: AttentionBackend, model: DecoderModel, *, wrapped: bool) -> float:
    """The largest difference over branches of unequal length, one with its region elsewhere, branches
    that see no stream, and a stream's own row. ``wrapped``: windows have run full, so sinks are asked by
    queries rotated for them, but for the row of a stream that has just begun."""
    driver = Driver(model, layout(), slots=4, branches=6)
    slots = [driver.stream(SINKS) for _ in range(4)]
    if wrapped:
        for slot in slots[:3]:
            driver.feed(slot, random_tokens(60, slot.index), random.Random(slot.index))
    branches = [driver.cache.fork(slots[at]) for at in (1, 0, 2)]
    driver.append(branches[0], [3, 4, 5])
    alone = [driver.cache.fork(slots[at], alone=True) for at in (3, 1)]
    driver.append(alone[1], [6, 7])
    rows = [
        *(Row(b.stream, random_tokens(n, n), b) for b, n in zip(branches, (2, 3, 4), strict=True)),
        *(Row(b.stream, random_tokens(n, n), b) for b, n in zip(alone, (4, 3), strict=True)),
        Row(slots[3], [9, 8]),
        Row(slots[0], [7, 6]),
    ]
    heads = model.heads + model.shape.kv_heads
    generator = torch.Generator().manual_seed(4)
    tokens = sum(len(row.tokens) for row in rows)
    qk = torch.randn(tokens, heads, model.shape.head_dim, generator=generator)
    v = torch.randn(tokens, model.shape.kv_heads, model.shape.head_dim, generator=generator)
    qk, v = (x.to(model.device, model.dtype) for x in (qk, v))
    seen, groups = [], []
    for each in (TorchAttention(), backend):
        batch = ForwardBatch(driver.cache, rows, model.rope, each)
        groups.append(len(batch._groups))
        with torch.inference_mode():
            seen.append(batch.attend(0, qk, v, 0.3))
    assert groups[1] < groups[0]  # slots 0 and 2 with a longer row between them are one group
    return float((seen[0] - seen[1]).abs().max())
