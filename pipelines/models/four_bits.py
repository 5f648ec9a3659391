"""The four-bit weights of a GGUF file, as the file has them, beside the model made from it.

Q4_0, Q4_1 and Q4_K all give 32 weights in a row one scale and one minimum: ``weight = step * scale +
minimum`` with a step of 0 to 15. That is what torch's product of four-bit weights takes, so the file's
own steps are kept and nothing is quantised a second time. Only scale and zero are rounded, to bf16.

Every tensor is compared with the converted model's before it is written: it must give the same bf16
weights. So the names' table and the order of rows (llama.cpp stores rotated heads in another one) are
checked and not trusted; a tensor that differs is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from operators.model.loader import FOUR_BITS as FILE

GROUP = 32
SUPER = 256
"""Weights of a Q4_K block, which has eight groups."""
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}  # nosec B105


def unpack(kind: str, data: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """A tensor's bytes ``[out, bytes]`` → steps uint8 ``[out, in]``, scale and minimum fp32
    ``[out, in / 32]``. Raises KeyError for a type that is not of four bits."""
    return _UNPACK[kind](np.ascontiguousarray(data))


def _q4_0(data: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    blocks = data.reshape(len(data), -1, 2 + 16)
    scale = _half(blocks[..., :2])
    return _nibbles(blocks[..., 2:]), scale, -8 * scale


def _q4_1(data: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    blocks = data.reshape(len(data), -1, 4 + 16)
    return _nibbles(blocks[..., 4:]), _half(blocks[..., :2]), _half(blocks[..., 2:4])


def _q4_k(data: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Two fp16 factors; six bits of scale and of minimum for each of eight groups, packed into 12
    bytes; 128 bytes of steps, the low halves of 32 bytes being one group and the high ones the next."""
    blocks = data.reshape(len(data), -1, 4 + 12 + 128)
    factor, least = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    a, b, c = np.split(blocks[..., 4:16], 3, axis=-1)
    scales = np.concatenate((a & 63, (c & 15) | ((a >> 6) << 4)), axis=-1)
    minima = np.concatenate((b & 63, (c >> 4) | ((b >> 6) << 4)), axis=-1)
    steps = blocks[..., 16:].reshape(*blocks.shape[:2], 4, 1, 32)
    steps = np.concatenate((steps & 15, steps >> 4), axis=-2)
    scale = factor[..., None] * torch.from_numpy(scales.astype(np.float32))
    minimum = least[..., None] * torch.from_numpy(minima.astype(np.float32))
    rows = len(data)
    return (
        torch.from_numpy(np.ascontiguousarray(steps.reshape(rows, -1))),
        scale.reshape(rows, -1),
        -minimum.reshape(rows, -1),
    )


_UNPACK: dict[str, Callable[[np.ndarray], tuple[Tensor, Tensor, Tensor]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}


def _half(pairs: np.ndarray) -> Tensor:
    """fp16 in two bytes ``[..., 2]`` → fp32 ``[...]``."""
    halves = np.ascontiguousarray(pairs).view(np.float16)[..., 0]
    return torch.from_numpy(halves.astype(np.float32))


def _nibbles(packed: np.ndarray) -> Tensor:
    """``[out, groups, 16]`` → ``[out, in]``: the low halves come before the high ones."""
    steps = np.concatenate((packed & 15, packed >> 4), axis=-1)
    return torch.from_numpy(np.ascontiguousarray(steps.reshape(len(packed), -1)))


def weights(steps: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """What they stand for, fp32 ``[out, in]``: equal to the last bit to what gguf dequantises."""
    grouped = steps.float().view(*scale.shape, GROUP)
    return (grouped * scale[..., None] + minimum[..., None]).view(steps.shape)


def rotary_rows(rows: int, heads: int) -> Tensor:
    """Where each row of a projection that llama.cpp stores for its rotation is in the file."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def four_bit_tensors(
    gguf: Path, model: Path, heads: tuple[int, ...]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, steps uint8 ``[out, in / 2]`` (the even column in the low half), and scale and zero bf16
    ``[out, in / 32, 2]`` of each tensor of four bits that equals the converted one. ``model``: the
    converted safetensors; ``heads``: numbers of heads whose rows may be in another order."""
    from gguf import GGUFReader

    with safe_open(model, framework="pt") as converted:
        names = set(converted.keys())
        for tensor in GGUFReader(gguf).tensors:
            name = _name(tensor.name)
            if tensor.tensor_type.name not in _UNPACK or name not in names:
                continue
            found = _ordered(
                unpack(tensor.tensor_type.name, tensor.data), converted.get_tensor(name), heads
            )
            if found is not None:
                steps, scale, minimum = found
                zero = minimum + 8 * scale
                scales = torch.stack((scale, zero), dim=-1).to(torch.bfloat16)
                yield name, steps[:, ::2] | steps[:, 1::2] << 4, scales


def _ordered(
    found: tuple[Tensor, Tensor, Tensor], want: Tensor, heads: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor] | None:
    whole = weights(*found).to(want.dtype)
    if torch.equal(whole, want):
        return found
    for count in heads:
        rows = len(want)
        if rows % (2 * count) == 0:
            order = rotary_rows(rows, count)
            if torch.equal(whole[order], want):
                steps, scale, minimum = found
                return steps[order], scale[order], minimum[order]
    return None


def _name(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        return _OTHERS.get(name, "")
    return f"model.layers.{match[1]}.{_PARTS.get(match[2], match[2])}.weight"


def write(gguf: Path, folder: Path, config: Any) -> int:
    """Write :data:`FILE` into the converted model's folder; how many tensors are in it (0: no file)."""
    heads = tuple({config.num_attention_heads, config.num_key_value_heads})
    tensors: dict[str, Tensor] = {}
    for name, steps, scales in four_bit_tensors(gguf, folder / "model.safetensors", heads):
        tensors[f"{name}.steps"], tensors[f"{name}.scales"] = steps.contiguous(), scales
    if tensors:
        partial = folder / f".{FILE}.partial"
        save_file(tensors, partial)
        partial.replace(folder / FILE)
    return len(tensors) // 2
