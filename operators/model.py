"""A causal language model ready to run packed rows: loading, roles, weights per role.

``DecoderModel.forward`` is the only way a token gets through the network. It has two *roles*:

* ``ingest``: transcript and prompt tokens, many per forward (compute bound);
* ``generation``: decode and verify, a few per forward (bound by reading the weights).

Each role has its own weights (bf16, int8 or fp32), fixed at load. A token's weights depend on its
role only, never on block length or neighbours, so that draft length cannot change the text.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from operators.attention import ATTENTION_NAME, AttentionPlan, Rope, Row, streaming_attention
from operators.errors import ModelError
from operators.kv_cache import KvCache, KvLayout, KvShape
from operators.text import HubTokenizer, Tokenizer

AttentionInterface.register(ATTENTION_NAME, streaming_attention)

Role = Literal["ingest", "generation"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""Architectures (``model_type``) with a conformity test against the slow reference."""
INT8_ROWS = 3
"""Up to this many rows at once, int8 weights are the faster choice for generation on a CPU with
bf16 instructions: measured per forward of n tokens, int8 wins up to about 6, bf16 from 8 on, and a
row with drafts is two to three tokens (docs/benchmarks.md)."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale per output channel, bf16 activations.

    Weight-only quantisation (symmetric, round to nearest). Uses torch's own CPU kernel; on other
    devices the weight is dequantised on the fly. ``weight`` int8 ``[out, in]``, ``scales`` bf16
    ``[out]``.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        full = linear.weight.detach().float()
        scales = (full.abs().amax(dim=1) / 127).clamp(min=1e-8)
        quantised = (full / scales[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", quantised.to(torch.int8))
        self.register_buffer("scales", scales.to(torch.bfloat16))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if x.device.type == "cpu":
            out = torch._weight_int8pack_mm(flat.contiguous(), self.weight, self.scales)
        else:
            out = (flat @ self.weight.to(x.dtype).t()) * self.scales
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)


class DecoderModel:
    """One causal LM on one device, run through :class:`AttentionPlan` rows.

    Attributes of interest: ``shape`` (what the KV cache needs), ``dtype`` (of activations and KV),
    ``max_context`` (trained positions), ``tokenizer``, ``name``, ``dtypes`` per role.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        dtype_ingest: str = "fp32",
        dtype_generation: str = "fp32",
        device: str = "cpu",
    ) -> None:
        config: Any = network.config
        check_supported(config)
        self.name, self.tokenizer, self.device = name, tokenizer, torch.device(device)
        self.dtypes = {"ingest": dtype_ingest, "generation": dtype_generation}
        self.dtype = DTYPES["fp32" if dtype_ingest == "fp32" else "bf16"]
        self.max_context = int(config.max_position_embeddings)
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.shape = KvShape(config.num_hidden_layers, kv_heads, head_dim)
        self.vocab_size = int(config.vocab_size)
        self._config = config
        config._attn_implementation = ATTENTION_NAME
        network = network.to(self.device, self.dtype).eval()
        network.requires_grad_(False)
        self._networks: dict[str, Any] = {"ingest": network, "generation": network}
        if dtype_generation == "int8":
            self._networks["generation"] = _int8_twin(network)
        if dtype_ingest == "int8":
            raise ModelError("dtype_ingest=int8 is slower than bf16 for blocks: use bf16 or fp32")
        if dtype_generation not in ("int8", dtype_ingest):
            raise ModelError(
                f"dtype_generation={dtype_generation} does not go with dtype_ingest={dtype_ingest}:"
                " use the same, or int8 beside bf16"
            )

    def new_cache(self, layout: KvLayout, *, slots: int, branches: int) -> KvCache:
        """Allocate a cache for this model; freezes length-dependent RoPE at the cache's size.

        Raises ModelError when S + W + B exceeds the context the model was trained for.
        """
        size = layout.sinks + layout.window + layout.branch_tokens
        if size > self.max_context:
            raise ModelError(
                f"sinks {layout.sinks} + window {layout.window} + branch {layout.branch_tokens} = "
                f"{size} tokens, but {self.name} was trained for {self.max_context}: lower `window`"
            )
        self.rope = make_rope(self._config, size)
        for network in {id(n): n for n in self._networks.values()}.values():
            network.model.rotary_emb = self.rope
        return KvCache(
            self.shape,
            layout,
            slots=slots,
            branches=branches,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, role: Role, cache: KvCache, rows: Sequence[Row]) -> Tensor:
        """Append all rows' tokens; return logits fp32 ``[sum of want, vocab]`` in row order.

        Mutates the cache and, only after the network ran through, the rows' frontiers: if this
        raises, nothing has been appended.
        """
        plan = AttentionPlan(cache, rows, self.rope)
        network = self._networks[role]
        hidden = network.model(
            input_ids=plan.tokens, position_ids=plan.positions, use_cache=False, ctx=plan
        ).last_hidden_state
        logits: Tensor = network.lm_head(hidden[0, plan.wanted]).float()
        plan.commit()
        return logits

    @functools.cached_property
    def fingerprint(self) -> str:
        """Short hash of the architecture and of samples of every weight: equal for equal models."""
        unlike = {"_name_or_path", "transformers_version", "dtype"}  # may differ for equal models
        config = {k: v for k, v in self._config.to_dict().items() if k not in unlike}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in self._networks["ingest"].named_parameters():
            flat = tensor.detach().flatten()
            sample = (
                torch.cat((flat[:64], flat[flat.numel() // 2 :][:64], flat[-64:])).float().cpu()
            )
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights held, shared ones once."""
        seen: dict[int, int] = {}
        for network in self._networks.values():
            for tensor in (*network.parameters(), *network.buffers()):
                seen[tensor.data_ptr()] = tensor.nbytes
        return sum(seen.values())


def _int8_twin(network: nn.Module) -> nn.Module:
    """A copy of the network that shares everything but its linear layers, which become int8."""
    linears = {id(m): m for m in network.modules() if isinstance(m, nn.Linear)}
    memo: dict[int, Any] = {id(p): p for p in (*network.parameters(), *network.buffers())}
    memo[id(network.config)] = network.config
    twins: dict[int, Int8Linear] = {}
    for key, linear in linears.items():
        twins[key] = memo[key] = Int8Linear(linear)
    return copy.deepcopy(network, memo)


def check_supported(config: Any) -> None:
    """Refuse what cannot be run exactly; one sentence says why (raises ModelError)."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise ModelError(
            f"model type {kind!r} is not supported; known to run exactly: {', '.join(SUPPORTED)}"
        )
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None)
    if types != {"full_attention"} or (kind in ("mistral", "phi3") and sliding):
        raise ModelError(
            f"this {kind} model has sliding-window layers of its own ({sliding} tokens), which the "
            "fixed-size cache does not reproduce; use a model with full attention in every layer"
        )


def make_rope(config: Any, cache_size: int) -> Rope:
    """The model's rotary frequencies, frozen at ``cache_size`` tokens where they depend on length."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default") if parameters else "default"
    if kind == "default":
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        rot = int(dim * parameters.get("partial_rotary_factor", 1.0))
        exponent = torch.arange(0, rot, 2, dtype=torch.float32) / rot
        return Rope(1.0 / (parameters["rope_theta"] ** exponent), 1.0)
    if kind not in ROPE_INIT_FUNCTIONS:
        raise ModelError(f"rope type {kind!r} is not known to this transformers version")
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=cache_size)
    return Rope(inv_freq, scaling)


def load_model(
    path: Path | str,
    *,
    name: str = "",
    device: str = "auto",
    dtype_ingest: str = "auto",
    dtype_generation: str = "auto",
    rows: int = 1,
) -> DecoderModel:
    """Load a local folder (or hub name) of safetensors + tokenizer.

    ``device`` auto: CUDA where there is one, else CPU. Types auto: bf16 for ingest; for generation
    int8 on a CPU that decodes few ``rows`` at once, else bf16 (see INT8_ROWS).
    Raises ModelError with what to do when the model is missing or cannot be run exactly.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype_ingest == "auto":
        dtype_ingest = "fp32" if dtype_generation == "fp32" else "bf16"
    if dtype_generation == "auto":
        few = device == "cpu" and dtype_ingest == "bf16" and rows <= INT8_ROWS
        dtype_generation = "int8" if few else dtype_ingest
    dtype = DTYPES["fp32" if dtype_ingest == "fp32" else "bf16"]
    try:
        config = AutoConfig.from_pretrained(path)
        check_supported(config)
        network = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"cannot load a model from {path}: {error}. Run `longstream model list` to see what "
            "is available by name"
        ) from error
    return DecoderModel(
        network,
        HubTokenizer(tokenizer, network.config, network.generation_config),
        name=name or Path(path).name,
        dtype_ingest=dtype_ingest,
        dtype_generation=dtype_generation,
        device=device,
    )
