"""The slow specification of streaming attention: what the fast engine has to equal.

StreamingLLM (arXiv 2309.17453, section 3.2) with positions *inside the cache*, for one stream and
its branches. One token at a time; keys are kept as they were before rotation, and for every new
token the whole cache is re-positioned from nothing, with angles in float64. There is no ring, no
block, no mask and no stored rotation, so nothing here can go stale. Nothing is shared with the
engine.

The rule, for S sink tokens and a window of W (previous tokens, the query itself excluded):

    stream token at absolute position t >= S      (sinks are 0..S-1, transcript token k is S + k)
        sees     sinks, transcript p with max(S, t - W) <= p <= t
        sits at  q = min(t, S + W)
        keys at  sink i: i        transcript p: q - (t - p)

    branch token j, forked at frontier f          (f = absolute position of the next stream token)
        sees     sinks, transcript p with max(S, f - W) <= p < f, branch tokens 0..j
        sits at  q = min(f, S + W) + j
        keys at  sink i: i        transcript p: min(f, S + W) - (f - p)
                 branch token i: min(f, S + W) + i

Keys and values of a token are computed once, when it arrives. Above the first layer they carry
context that has since left the window; that is part of the method, not an error.

Slow by intent: about 1 ms per token on a 2-layer toy, under 0.1 s on a model of 135M parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SUPPORTED_MODELS = ("llama", "mistral", "phi3", "qwen2", "qwen3")
STATIC_ROPE_TYPES = ("linear", "llama3", "yarn")  # besides "default", which is computed here


@dataclass(frozen=True)
class CachedToken:
    """What the cache keeps of one token: keys before rotation, and values.

    `position` is absolute for sinks and transcript, and the index in the branch for branch tokens.
    `keys`, `values`: [layers, kv_heads, head_dim]; never written to after creation.
    """

    position: int
    keys: Tensor
    values: Tensor


class StreamReference:
    """One endless stream: pinned sinks and a rolling window.

    `offset` starts the stream as if that many transcript tokens had gone by and left no key
    behind: the first token has absolute position t0 = S + offset and an empty window. Visible are
    the keys that exist, i.e. `max(t0, t - W) <= p <= t`; everything else follows the rule above
    unchanged: transcript tokens keep their distances, and sinks are read from min(t, S + W). So
    offset >= W means "saturated from the first token on" (the S-to-window gap is there although
    the window is still filling), and **all** offsets >= W give bit-identical logits.

    `dtype` is that of weights and arithmetic (float32 or float64; the model is copied if it
    differs). Raises ValueError for a model or a setting this specification does not cover.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sinks: Sequence[int],
        window: int,
        *,
        offset: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 token, not {window}")
        if offset < 0:
            raise ValueError(f"offset must not be negative, not {offset}")
        self._forward = _TokenForward(model, dtype)
        self.window = window
        self._sinks: list[CachedToken] = []
        rows = []
        for i, token in enumerate(sinks):
            logits, cached = self._forward(token, i, self._sinks, list(range(i)), i)
            self._sinks.append(cached)
            rows.append(logits)
        self.sink_logits = self._forward.stack(rows)
        """[S, vocab]: logits after each sink token."""
        self._transcript: list[CachedToken] = []  # only what the next token may see
        self.frontier = len(sinks) + offset
        """Absolute position of the next token."""

    @property
    def capacity(self) -> int:
        """S + W: the in-cache position of the query once the window is full."""
        return len(self._sinks) + self.window

    def ingest(self, tokens: Sequence[int]) -> Tensor:
        """Append transcript tokens; returns logits [len(tokens), vocab] after each of them."""
        return self._forward.stack([self._ingest_one(token) for token in tokens])

    def _ingest_one(self, token: int) -> Tensor:
        t = self.frontier
        query = min(t, self.capacity)
        positions = [s.position for s in self._sinks]
        positions += [query - (t - e.position) for e in self._transcript]
        logits, cached = self._forward(token, t, self._sinks + self._transcript, positions, query)
        self.frontier = t + 1
        oldest = self.frontier - self.window
        self._transcript = [e for e in [*self._transcript, cached] if e.position >= oldest]
        return logits

    def fork(self) -> BranchReference:
        """A branch at the current frontier. Its view is frozen; the stream may go on."""
        base = min(self.frontier, self.capacity)
        frozen = self._sinks + self._transcript
        positions = [s.position for s in self._sinks]
        positions += [base - (self.frontier - e.position) for e in self._transcript]
        return BranchReference(self._forward, frozen, positions, base)


class BranchReference:
    """A throw-away continuation of a stream; made by `StreamReference.fork`.

    `frozen` and `positions` are the sinks and window seen at the fork and their in-cache
    positions; `base` is the in-cache position of the branch's first token.
    """

    def __init__(
        self,
        forward: _TokenForward,
        frozen: list[CachedToken],
        positions: list[int],
        base: int,
    ) -> None:
        self._forward = forward
        self._frozen = frozen
        self._positions = positions
        self._base = base
        self._own: list[CachedToken] = []

    def __len__(self) -> int:
        """Number of tokens in the branch."""
        return len(self._own)

    def append(self, tokens: Sequence[int]) -> Tensor:
        """Append branch tokens; returns logits [len(tokens), vocab] after each of them."""
        return self._forward.stack([self._append_one(token) for token in tokens])

    def _append_one(self, token: int) -> Tensor:
        j = len(self._own)
        positions = self._positions + [self._base + e.position for e in self._own]
        past = self._frozen + self._own
        logits, cached = self._forward(token, j, past, positions, self._base + j)
        self._own.append(cached)
        return logits

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens. Raises ValueError if the branch has fewer."""
        if not 0 <= n <= len(self._own):
            raise ValueError(f"cannot roll back {n} of {len(self._own)} branch tokens")
        del self._own[len(self._own) - n :]

    def greedy(self, prompt: Sequence[int], count: int, eos_id: int | None = None) -> list[int]:
        """Append `prompt`, then up to `count` most likely tokens, one by one; returns those.

        Stops after `eos_id`, which is the last token returned then. The last returned token is
        not appended to the branch. This is the text that speculation must not change. Raises
        ValueError for an empty prompt: there would be no logits to start from.
        """
        if not prompt:
            raise ValueError("greedy needs at least one prompt token")
        logits = self.append(prompt)[-1]
        output: list[int] = []
        while len(output) < count:
            output.append(int(logits.argmax()))
            if output[-1] == eos_id or len(output) == count:
                break
            logits = self.append(output[-1:])[-1]
        return output


class _TokenForward:
    """One token through the model by hand, against a cache that is positioned for it alone."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        _refuse_unsupported(model.config)
        if model.dtype != dtype:
            model = copy.deepcopy(model).to(dtype)
        self._model = model
        self._dtype = dtype
        config = model.config
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._layers = config.num_hidden_layers
        self._head_dim = model.model.layers[0].self_attn.head_dim
        self._frequencies, self._rope_scale = _rope(config, self._head_dim)

    def stack(self, rows: list[Tensor]) -> Tensor:
        """Rows of logits as [n, vocab]; n may be 0."""
        empty = torch.empty(0, self._model.config.vocab_size, dtype=self._dtype)
        return torch.stack(rows) if rows else empty

    @torch.no_grad()
    def __call__(
        self,
        token: int,
        position: int,
        past: list[CachedToken],
        past_positions: list[int],
        query_position: int,
    ) -> tuple[Tensor, CachedToken]:
        """Logits [vocab] after `token`, and what the cache has to keep of it as `position`.

        `past_positions[i]` is the in-cache position of `past[i]`; the token itself sits, and asks,
        at `query_position`. Mutates nothing.
        """
        body = self._model.model
        past_keys, past_values = self._reposition(past, past_positions)
        hidden = body.embed_tokens.weight[token]  # [hidden]
        new_keys, new_values = [], []
        for index, layer in enumerate(body.layers):
            attention = layer.self_attn
            q, k, v = self._project(attention, _rms_norm(layer.input_layernorm, hidden))
            new_keys.append(k)
            new_values.append(v)
            keys = torch.cat([past_keys[:, index], self._rotate(k[None], [query_position])])
            values = torch.cat([past_values[:, index], v[None]])
            query = self._rotate(q[None], [query_position])[0]
            mixed = self._attend(query, keys, values, attention.scaling)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(_rms_norm(layer.post_attention_layernorm, hidden))
        logits = self._model.lm_head(_rms_norm(body.norm, hidden))
        return logits, CachedToken(position, torch.stack(new_keys), torch.stack(new_values))

    def _reposition(self, past: list[CachedToken], positions: list[int]) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of all layers, both [len(past), layers, kv_heads, head_dim]."""
        if not past:
            empty = torch.empty(0, self._layers, self._kv_heads, self._head_dim, dtype=self._dtype)
            return empty, empty
        keys = torch.stack([e.keys for e in past])
        return self._rotate(keys, positions), torch.stack([e.values for e in past])

    def _project(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [heads, head_dim], key and value [kv_heads, head_dim], not rotated."""
        if hasattr(attention, "qkv_proj"):
            width = self._kv_heads * self._head_dim
            parts = attention.qkv_proj(x).split([self._heads * self._head_dim, width, width])
        else:
            parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        q, k, v = (part.view(-1, self._head_dim) for part in parts)
        if hasattr(attention, "q_norm"):
            q, k = _rms_norm(attention.q_norm, q), _rms_norm(attention.k_norm, k)
        return q, k, v

    def _rotate(self, x: Tensor, positions: list[int]) -> Tensor:
        """Rotary embedding of x [n, ..., head_dim] at `positions` [n]; angles in float64.

        Channel c is paired with channel c + rotary_dim / 2; channels past rotary_dim stay.
        """
        angles = torch.tensor(positions, dtype=torch.float64)[:, None] * self._frequencies
        angles = angles.view(len(positions), *[1] * (x.dim() - 2), -1)
        cos = (angles.cos() * self._rope_scale).to(x.dtype)
        sin = (angles.sin() * self._rope_scale).to(x.dtype)
        half = self._frequencies.numel()
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Softmax attention of one query over n keys; returns [heads * head_dim].

        query: [heads, head_dim]; keys, values: [n, kv_heads, head_dim].
        """
        grouped = query.view(self._kv_heads, -1, self._head_dim)  # heads of one KV head together
        scores = torch.einsum("kgd,nkd->kgn", grouped, keys) * scaling
        return torch.einsum("kgn,nkd->kgd", scores.softmax(dim=-1), values).reshape(-1)


def _rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Root-mean-square norm in the dtype of x (the library's own would drop to float32)."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    scaled: Tensor = norm.weight * (x * scale)
    return scaled


def _rope(config: Any, head_dim: int) -> tuple[Tensor, float]:
    """Angular frequencies [rotary_dim / 2] in float64 and the factor on cos and sin."""
    parameters = config.rope_parameters
    if parameters["rope_type"] == "default":
        rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
        return float(parameters["rope_theta"]) ** -exponents, 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return frequencies.double(), float(scale)


def _refuse_unsupported(config: Any) -> None:
    if config.model_type not in SUPPORTED_MODELS:
        known = ", ".join(SUPPORTED_MODELS)
        raise ValueError(f"the reference does not know {config.model_type!r} models, only {known}")
    rope_type = config.rope_parameters["rope_type"]
    if rope_type != "default" and rope_type not in STATIC_ROPE_TYPES:
        raise ValueError(f"rope type {rope_type!r} depends on the length; freeze it first")
    if getattr(config, "sliding_window", None) is not None:
        raise ValueError("the model has a sliding window of its own; set sliding_window to None")
