"""A tiny model with random weights and a byte tokenizer: for smoke runs, and for what depends on the
engine alone (whether memory grows over millions of tokens). Its words make no sense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from operators.model.loader import DecoderModel
from operators.model.tokenizer import Examples

BYTES = 256
EOS = 256


class ByteTokenizer:
    """UTF-8 bytes as tokens, and one end token."""

    eos_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < BYTES).decode(errors="replace")

    def vocabulary(self) -> dict[str, int]:
        return {str(i): i for i in range(BYTES + 1)}

    def first(self, word: str) -> int:
        return self.encode(word)[0]

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        """A few tokens in front; the instructions proper would fill a byte tokenizer's window."""
        before, after = user.split("{window}")
        return self.encode(f"{system[:3]}|{before}"[:4]), self.encode(f"{after}\n>")


def toy_network() -> LlamaForCausalLM:
    """Two layers, four query heads over two KV heads, fp32; equal weights every time."""
    config = LlamaConfig(
        vocab_size=BYTES + 1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=16_384,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:  # livelier than the usual start: the context changes the output
                parameter.data.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    network.eval()
    network.requires_grad_(False)
    return network


def toy_decoder(dtype: str = "fp32", generation: str | None = None) -> DecoderModel:
    return DecoderModel(
        toy_network(),
        ByteTokenizer(),
        name="toy",
        dtype_prefill=dtype,
        dtype_decode=generation or dtype,
    )
