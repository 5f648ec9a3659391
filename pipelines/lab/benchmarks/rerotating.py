"""A cache that re-rotates everything for every token: StreamingLLM's own way, as a yardstick.

Keys are kept as they were before rotation. A step appends the new token, rotates *all* keys to their
places inside the cache, attends, and evicts by putting sinks and the recent rest together anew, as
``StartRecentKVCache`` and ``enable_llama_pos_shift_attention`` of mit-han-lab/streaming-llm do. The
attention itself is torch's fused one, which is faster than theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from operators.cache.rope import Rope, rotate
from operators.model.loader import make_rope

NAME = "rerotating"


class _NoRotation(nn.Module):
    """Stands in for the model's rotary embedding, so that attention gets unrotated keys."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        size = (*position_ids.shape, 1)
        return torch.ones(size, dtype=x.dtype), torch.zeros(size, dtype=x.dtype)


class RerotatingStream:
    """One stream: ``sinks`` tokens pinned, ``window`` tokens behind every query. Changes ``network``
    for good: it runs through :meth:`append` only."""

    def __init__(self, network: PreTrainedModel, sinks: int, window: int) -> None:
        self.sinks, self.window = sinks, window
        self._network: Any = network
        self._network.config._attn_implementation = NAME
        self._network.model.rotary_emb = _NoRotation()
        rope: Rope = make_rope(network.config, sinks + window)
        places = torch.arange(sinks + window + 1)
        config = network.config
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.rotated = rope.rotated
        self.cos, self.sin = (x[:, 0] for x in rope.cos_sin(places, dim, network.dtype))
        layers = config.num_hidden_layers
        self.keys: list[Tensor | None] = [None] * layers  # [1, kv_heads, used, head_dim]
        self.values: list[Tensor | None] = [None] * layers

    @torch.inference_mode()
    def append(self, tokens: Sequence[int]) -> Tensor:
        """Logits fp32 ``[vocab]`` after the last of ``tokens``: one of them, or a first block that
        fills the cache."""
        ids = torch.tensor([list(tokens)])
        out = self._network(
            ids,
            position_ids=torch.arange(len(tokens))[None],
            use_cache=False,
            logits_to_keep=1,
            stream=self,
        )
        logits: Tensor = out.logits[0, -1].float()
        self._evict()
        return logits

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """``q``, ``k``, ``v`` ``[1, heads, n, dim]`` unrotated → ``[1, n, heads, dim]``."""
        old_keys, old_values = self.keys[layer], self.values[layer]
        first = old_keys is None
        keys = k if old_keys is None else torch.cat((old_keys, k), dim=2)
        values = v if old_values is None else torch.cat((old_values, v), dim=2)
        self.keys[layer], self.values[layer] = keys, values
        used, n = keys.shape[2], q.shape[2]
        turned = rotate(keys[0], self.cos[:used], self.sin[:used], self.rotated)[None]
        cos, sin = self.cos[used - n : used], self.sin[used - n : used]
        query = rotate(q[0], cos, sin, self.rotated)[None]
        out = nn.functional.scaled_dot_product_attention(
            query, turned, values, is_causal=first and n > 1, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)

    def _evict(self) -> None:
        for pool in (self.keys, self.values):
            for layer, kept in enumerate(pool):
                if kept is not None and kept.shape[2] > self.sinks + self.window:
                    parts = (kept[:, :, : self.sinks], kept[:, :, -self.window :])
                    pool[layer] = torch.cat(parts, dim=2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    stream: RerotatingStream,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for every layer."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    return stream.attend(layer, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
