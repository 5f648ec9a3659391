"""A causal language model ready to run packed rows: loading, roles, weights per role.

``DecoderModel.forward`` is the only way a token gets through the network. It has two *roles*:

* ``prefill``: transcript and prompt tokens, many per forward (compute bound);
* ``decode``: decode and verify, a few per forward (bound by reading the weights).

Each role has its own weights (fp32, bf16 or fp16; for both also w8a8, for generation int8, int4 and q4,
see operators.model.quantization), fixed at load. A token's weights depend on its role only, never on
block length or neighbours, so that draft length cannot change the text. Roles of the same type share
their weights.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from operators.cache.attention import TORCH, AttentionBackend
from operators.cache.attention_flashinfer import FlashInferAttention, load_flashinfer
from operators.cache.batch import ForwardBatch, Row
from operators.cache.kv_cache import KvCache, KvLayout, KvShape
from operators.cache.rope import Rope
from operators.errors import ModelError
from operators.model import quantization
from operators.model.families import AUTO
from operators.model.network import Network, check_compiler, from_transformers
from operators.model.tokenizer import HubTokenizer, Tokenizer

Role = Literal["prefill", "decode"]
FOUR_BITS = "four_bits.safetensors"
"""In a model's folder: see :class:`operators.model.quantization.FourBits`."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""Architectures (``model_type``) with a conformity test against the slow reference."""


class DecoderModel:
    """One causal LM on one device, run through :class:`ForwardBatch` rows.

    Attributes of interest: ``shape`` (what the KV cache needs), ``dtype`` (of activations and KV),
    ``max_context`` (trained positions), ``tokenizer``, ``name``, ``dtypes`` per role.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        dtype_prefill: str = "fp32",
        dtype_decode: str = "fp32",
        device: str = "cpu",
        compile: bool = False,
        four_bits: Path | None = None,
    ) -> None:
        config: Any = network.config
        check_supported(config)
        self.name, self.tokenizer, self.device = name, tokenizer, torch.device(device)
        loaded = "bf16" if dtype_prefill == "w8a8" else dtype_prefill
        if loaded not in DTYPES:
            raise ModelError(
                f"dtype_prefill={dtype_prefill} is slower than bf16 for blocks: use bf16 or w8a8"
            )
        self.dtypes: dict[str, str] = {"prefill": loaded, "decode": loaded}
        self.dtype = DTYPES[loaded]
        self.max_context = int(config.max_position_embeddings)
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.shape = KvShape(config.num_hidden_layers, kv_heads, head_dim)
        self.heads = int(heads)
        self.vocab_size = int(config.vocab_size)
        self._config, self._four_bits = config, four_bits
        self.attention: AttentionBackend = TORCH
        network = network.to(self.dtype).eval()
        network.requires_grad_(False)
        self._fingerprint = _fingerprint(network)  # of the weights where they were loaded
        ingest = from_transformers(network.to(self.device))
        if compile:
            check_compiler(self.device)
            ingest = ingest.compiled()
        self._loaded, self._loaded_dtype = ingest, loaded
        self._networks: dict[str, Network] = {"prefill": ingest, "decode": ingest}
        self.use_for_prefill(dtype_prefill)
        self.use_for_decode(dtype_decode)

    def network(self, role: Role) -> Network:
        """What runs the forwards of this role, for measurements of its parts."""
        return self._networks[role]

    @property
    def has_four_bits(self) -> bool:
        """Whether the four-bit weights of the file it was made from lie beside the model."""
        return self._four_bits is not None and self._four_bits.is_file()

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding itself, held once."""
        network = self._networks["prefill"]
        head = network.head
        return (
            isinstance(head, nn.Linear) and head.weight.data_ptr() == network.embedding.data_ptr()
        )

    @property
    def one_forward(self) -> bool:
        """Whether rows of both roles may be in one forward: the weights are the same, and their products
        exact whatever other rows there are."""
        return set(self.dtypes.values()) == {"w8a8"}

    def attend_with(self, name: str) -> None:
        """Make this the attention backend, torch, triton or flashinfer. Raises ModelError where it does
        not run."""
        if name == TORCH.name:
            self.attention = TORCH
            return
        if name == FlashInferAttention.name:
            self.attention = load_flashinfer(self.device, self.dtype, self.heads, self.shape)
            return
        if self.device.type != "cuda" or importlib.util.find_spec("triton") is None:
            raise ModelError("attention=triton needs a CUDA device and Triton: use torch")
        from operators.cache.attention_triton import TritonAttention

        self.attention = TritonAttention()

    def use_for_prefill(self, dtype: str) -> None:
        """Make this the weights of reading: the type that was loaded, or w8a8 beside bf16. The same
        conditions as for :meth:`use_for_decode`."""
        if dtype not in (self._loaded_dtype, "w8a8"):
            raise ModelError(
                f"dtype_prefill={dtype} does not go with weights loaded as {self._loaded_dtype}: "
                "use the same, or w8a8 beside bf16"
            )
        self._use("prefill", dtype)

    def use_for_decode(self, dtype: str) -> None:
        """Make this the weights of generation: int8, w8a8, int4 or q4 beside bf16, or the type that was
        loaded.

        Takes seconds to a minute for the quantised ones. Call it before anything is generated: the
        weights must not change while a stream is open. Raises ModelError for types that do not go
        together, and after :meth:`release`.
        """
        self._use("decode", dtype)

    def release(self) -> None:
        """Free the weights that were loaded where no role uses them. No other type can be chosen
        afterwards."""
        self._loaded, self._loaded_dtype = self._networks["prefill"], self.dtypes["prefill"]

    def _use(self, role: Role, dtype: str) -> None:
        self._networks[role] = self._loaded  # free the old ones before making others
        self.dtypes[role] = self._loaded_dtype
        shared = [self._networks[r] for r, kind in self.dtypes.items() if kind == dtype]
        self._networks[role] = shared[0] if shared else self._made(dtype)
        self.dtypes[role] = dtype

    def _made(self, dtype: str) -> Network:
        """The network that was loaded, with another type of weights."""
        loaded = self._loaded
        if dtype == "w8a8" and not quantization.runs_w8a8(self.device):
            raise ModelError("w8a8 weights need a CPU with VNNI instructions: use bf16")
        if dtype == "q4" and not self.has_four_bits:
            raise ModelError(
                f"dtype_decode=q4: {self.name} has no four-bit weights of its own beside it; use int4, "
                "or pull it from a GGUF file of four bits"
            )
        if self._loaded_dtype != "bf16" or dtype not in (*quantization.BODY, "q4"):
            raise ModelError(
                f"dtype_decode={dtype} does not go with dtype_prefill={self.dtypes['prefill']}:"
                " use the same, or int8, w8a8 or int4 beside bf16"
            )
        if dtype == "q4" and self._four_bits is not None:
            kept = quantization.FourBits(self._four_bits)
            return loaded.requantised(kept.linear, kept.linear)
        body, head = quantization.BODY[dtype], quantization.HEAD[dtype]
        return loaded.requantised(body, lambda weight, *_: head(weight))

    def shallow(self, layers: int) -> DecoderModel:
        """The first ``layers`` layers of this model and the same share of its output matrix. A forward
        takes about that share of the time, so that costs can be measured on it; its answers mean
        nothing. Shares the weights that were loaded; has types of its own, chosen anew."""
        made = copy.copy(self)
        made.shape = replace(self.shape, layers=layers)
        made.dtypes = dict.fromkeys(self.dtypes, self._loaded_dtype)
        made._loaded = self._loaded.shallow(layers)
        made._networks = dict.fromkeys(self._networks, made._loaded)
        return made

    def new_cache(self, layout: KvLayout, *, slots: int, branches: int) -> KvCache:
        """Allocate a cache for this model; freezes length-dependent RoPE at the cache's size.

        Raises ModelError when S + W + B exceeds the context the model was trained for, or the window
        of its own sliding-window layers. (Within it such a layer sees all there is, as any other.)
        """
        size = layout.sinks + layout.window + layout.branch_tokens
        if size > self.max_context:
            raise ModelError(
                f"sinks {layout.sinks} + window {layout.window} + branch {layout.branch_tokens} = "
                f"{size} tokens, but {self.name} was trained for {self.max_context}: lower `window`"
            )
        sliding = own_window(self._config)
        if sliding is not None and size > sliding:
            raise ModelError(
                f"sinks {layout.sinks} + window {layout.window} + branch {layout.branch_tokens} = "
                f"{size} tokens, but layers of {self.name} see only {sliding} tokens: lower `window`"
            )
        self.rope = make_rope(self._config, size)
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
        """Append all rows' tokens; return logits ``[sum of num_logits, vocab]`` in row order, in the
        type of the activations.

        Mutates the cache and, only after the network ran through, the rows' frontiers: if this
        raises, nothing has been appended.
        """
        batch = ForwardBatch(cache, rows, self.rope, self.attention)
        logits = self._networks[role].forward(batch)
        batch.commit()
        return logits

    @property
    def fingerprint(self) -> str:
        """Short hash of the architecture and of samples of every weight: equal for equal models."""
        return self._fingerprint

    @property
    def weights(self) -> str:
        """The model and the number types of both roles: equal for workers that write equal texts."""
        return f"{self._fingerprint} {self.dtypes['prefill']}+{self.dtypes['decode']}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights held, shared ones once."""
        held: dict[int, int] = {}
        for network in (self._loaded, *self._networks.values()):
            for tensor in network.tensors():
                if tensor.is_mkldnn:  # laid out by a library, never shared with another tensor
                    held[id(tensor)] = tensor.numel() * tensor.element_size()
                else:
                    storage = tensor.untyped_storage()
                    held[storage.data_ptr()] = storage.nbytes()
        return sum(held.values())


def _fingerprint(network: Any) -> str:
    unlike = {"_name_or_path", "transformers_version", "dtype"}  # may differ for equal models
    config = {k: v for k, v in network.config.to_dict().items() if k not in unlike}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in network.named_parameters():
        flat = tensor.detach().flatten()
        middle = flat[flat.numel() // 2 :]
        sample = torch.cat((flat[:64], middle[:64], flat[-64:])).float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_supported(config: Any) -> None:
    """Refuse what cannot be run exactly; one sentence says why (raises ModelError)."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise ModelError(
            f"model type {kind!r} is not supported; known to run exactly: {', '.join(SUPPORTED)}"
        )
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if others := types - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"this {kind} model has layers of {', '.join(sorted(others))}, which cannot be run: use a "
            "model with softmax attention in every layer"
        )
    if "sliding_attention" in types and not getattr(config, "sliding_window", None):
        raise ModelError(
            f"this {kind} model has sliding-window layers and does not say how long their window is: "
            "its config.json is incomplete"
        )


def own_window(config: Any) -> int | None:
    """How many tokens, itself included, a query of the model's own sliding-window layers sees; None
    where every layer sees all."""
    sliding = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return int(sliding) if sliding and "sliding_attention" in types else None
    return int(sliding) if sliding and config.model_type in ("mistral", "phi3") else None


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself (CUDA below 8.0, and older Apple GPUs, do not)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(1, dtype=torch.bfloat16, device=device)
        return one.add(one).dtype == torch.bfloat16
    except (RuntimeError, TypeError):
        return False


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
    dtype_prefill: str = "auto",
    dtype_decode: str = "auto",
    compile: bool = False,
    prompt_pack: str = AUTO,
) -> DecoderModel:
    """Load a local folder (or hub name) of safetensors + tokenizer.

    ``device`` auto: CUDA where there is one, else CPU. Types auto: bf16, or fp16 on a device without
    it, for generation the same as for ingest (a measured choice is up to the caller:
    :meth:`DecoderModel.use_for_decode`).
    ``compile``: see :meth:`Network.compiled`; unmeasured. ``prompt_pack``: the model's family
    (:mod:`operators.model.families`), told by its chat template.
    Raises ModelError with what to do when the model is missing or cannot be run exactly.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype_prefill == "auto":
        half = "bf16" if has_bf16(torch.device(device)) else "fp16"
        dtype_prefill = dtype_decode if dtype_decode in ("fp32", "fp16") else half
    if dtype_decode == "auto":
        dtype_decode = dtype_prefill
    dtype = DTYPES.get(dtype_prefill, torch.bfloat16)  # w8a8 is made of bf16
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
        HubTokenizer(tokenizer, network.config, network.generation_config, prompt_pack),
        name=name or Path(path).name,
        dtype_prefill=dtype_prefill,
        dtype_decode=dtype_decode,
        device=device,
        compile=compile,
        four_bits=Path(path) / FOUR_BITS,
    )
