"""The model that all sides run, with its draft model: one set of fp32 weights, in two file formats."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.lab.benchmarks.harness import TOY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 0.03
"""Of the draft model's weights, which are the model's otherwise: it is often right, and not always."""


class Material:
    """A llama model of transformers (``model``), a worse copy of it (``draft``), and both as GGUF.

    All in fp32, with matrices rounded to fp16 once, so that every file holds the same numbers.
    ``folder``: where files are written, once each. Nobody may change the weights afterwards.
    """

    def __init__(self, name: str, model: PreTrainedModel, folder: Path) -> None:
        _round(model)
        self.name, self.model, self.folder = name, model, folder
        self._draft: PreTrainedModel | None = None

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def draft(self) -> PreTrainedModel:
        """Made when it is first asked for; equal every time."""
        if self._draft is None:
            self._draft = noisy(self.model)
        return self._draft

    def gguf(self, *, draft: bool = False, half: bool = False) -> Path:
        """The model (or the draft) as a GGUF file, alone in its folder. ``half``: matrices in fp16, for
        engines that read no fp32; the numbers are the same."""
        folder = self.folder / f"{'draft' if draft else 'model'}-{16 if half else 32}"
        folder.mkdir(exist_ok=True)
        file = folder / "model.gguf"
        if not file.exists():
            write_gguf(self.draft if draft else self.model, file, half)
        return file


def load(name: str, folder: Path) -> Material:
    """The material of a model's name. Raises ModelError, ConfigError for one that is no llama."""
    from operators.errors import ConfigError

    if name == TOY:
        from pipelines.lab.benchmarks.toy import toy_network

        return Material(name, toy_network(), folder)
    from transformers import AutoModelForCausalLM

    from pipelines import models

    path = models.resolve(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    if model.config.model_type != "llama":
        raise ConfigError(f"{name} is a {model.config.model_type} model: the kit takes llama only")
    return Material(name, model.eval().requires_grad_(False), folder)


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with noise on every matrix."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator) * parameter.std()
            parameter.add_(NOISE * noise)
    _round(made)
    return made


def _round(model: PreTrainedModel) -> None:
    """Every matrix to numbers that fp16 holds."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(parameter.half())


# --- GGUF -----------------------------------------------------------------------------------------


def write_gguf(model: PreTrainedModel, file: Path, half: bool) -> None:
    """Weights with a vocabulary of names only: engines are asked in token ids."""
    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    kind = gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    _add_vocabulary(writer, config.vocab_size)
    for name, tensor in _tensors(model):
        writer.add_tensor(name, tensor.astype(np.float16) if half and tensor.ndim > 1 else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, size: int) -> None:
    import gguf

    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{at}" for at in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * size)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _tensors(model: Any) -> list[tuple[str, np.ndarray]]:
    config, body = model.config, model.model
    found = [
        ("token_embd.weight", body.embed_tokens.weight),
        ("output_norm.weight", body.norm.weight),
        ("output.weight", model.lm_head.weight),
    ]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for at, layer in enumerate(body.layers):
        for ours, theirs in _NAMES.items():
            weight = layer.get_submodule(ours).weight
            if theirs in heads:
                weight = _interleaved(weight, heads[theirs])
            found.append((f"blk.{at}.{theirs}.weight", weight))
    return [(name, tensor.detach().contiguous().numpy()) for name, tensor in found]


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp's rotation, which pairs neighbours; transformers pairs halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


# --- text -----------------------------------------------------------------------------------------


def tokens(material: Material, count: int) -> Sequence[int]:
    """``count`` tokens to feed: of a real model words, of the toy anything. No token follows itself:
    an engine that finds its place by comparing tokens must not be misled."""
    if material.name == TOY:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(material.vocabulary - 1, (4 * count,), generator=generator).tolist()
    else:
        from transformers import AutoTokenizer

        from pipelines import models
        from pipelines.lab.benchmarks.talk import speech

        tokenizer = AutoTokenizer.from_pretrained(models.resolve(material.name))
        ids, lines = [], speech("conformance")
        while len(ids) < 2 * count:
            ids += tokenizer.encode(next(lines).text + "\n", add_special_tokens=False)
    kept = [token for at, token in enumerate(ids) if not at or ids[at - 1] != token]
    return kept[:count]
