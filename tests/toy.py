"""A tiny random model and a byte tokenizer: the stand-ins for every test that needs no words.

Nothing here reads a file or touches the network, and the global random state is left as found.
The models are real `transformers` classes with grouped-query attention; only their size and
weights are invented. The weights are scaled so that a wrong key, position or mask shows: attention
is peaked, and the most likely token depends on the context, not only on the last token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases on q, k, v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # norms on q and k
    "phi3": (Phi3Config, Phi3ForCausalLM),  # q, k, v in one projection, partial rotation
}

# Gain over 1/sqrt(fan_in). Larger query/key gains make attention peaked.
_GAINS = {"q_proj": 1.7, "k_proj": 1.7, "qkv_proj": 1.5, "lm_head": 3.0}


class ByteTokenizer:
    """UTF-8 bytes as tokens 0..255, then the special tokens `bos_id` and `eos_id`.

    Lossless: `decode(encode(text)) == text` for every text that UTF-8 can hold. Ids that form no
    valid UTF-8 (a random model makes many) decode to U+FFFD; special tokens decode to nothing.
    """

    bos_id = 256
    eos_id = 257
    vocab_size = 258

    def encode(self, text: str) -> list[int]:
        """One id per UTF-8 byte; no special tokens are added."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Raises ValueError for an id outside the vocabulary."""
        listed = [int(i) for i in ids]
        for i in listed:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is not in the vocabulary of {self.vocab_size}")
        return bytes(i for i in listed if i < 256).decode("utf-8", errors="replace")


def toy_model(
    arch: str = "llama",
    seed: int = 0,
    vocab: int = ByteTokenizer.vocab_size,
    layers: int = 2,
    **kw: Any,
) -> PreTrainedModel:
    """A random causal LM: fp32, eval mode, no gradients, 4 query heads over 2 KV heads.

    `kw` goes to the `transformers` config and overrides the defaults below (`head_dim` 16;
    phi3 has no such setting, it derives 16 from `hidden_size` and rotates 8 of them).
    Equal arguments give equal weights. Raises ValueError for an unknown `arch`.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"no toy architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    config_class, model_class = ARCHITECTURES[arch]
    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if arch == "phi3":
        settings["rope_parameters"]["partial_rotary_factor"] = 0.5
    else:
        settings["head_dim"] = 16
    if arch in ("mistral", "phi3"):
        settings["sliding_window"] = None
    with torch.random.fork_rng(devices=[]):
        model = model_class(config_class(**{**settings, **kw}))
    _randomise(model, seed)
    return model.to(torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Overwrite every parameter of `model` from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        owner = name.split(".")[-2]
        if "norm" in owner:
            parameter.copy_(1.0 + 0.1 * noise)
        elif owner == "embed_tokens":
            parameter.copy_(noise)
        elif name.endswith("bias"):
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * _GAINS.get(owner, 1.0) / parameter.shape[-1] ** 0.5)
