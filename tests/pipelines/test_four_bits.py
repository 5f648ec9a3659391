"""A file's own four-bit weights: unpacked bit by bit, kept beside the model, multiplied as they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from operators.errors import ModelError
from operators.model.loader import FOUR_BITS, DecoderModel, load_model
from operators.model.quantization import GROUP, Int4Linear, Int8Linear, SplitLinear, dequantise_int4
from pipelines import models
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.weights import read
from pipelines.models import four_bits
from tests.engine import ToyTokenizer
from tests.toy import toy_model

BLOCKS = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144)}
"""Weights and bytes of a block."""


def blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes of a tensor, its fp16 factors being ordinary numbers."""
    rng = np.random.default_rng(seed)
    weights, size = BLOCKS[kind]
    data = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    for at in range(0, 2 if kind == "Q4_0" else 4, 2):
        factors = rng.normal(0, 0.05, data.shape[:2]).astype(np.float16)
        data[..., at : at + 2] = factors[..., None].view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_weight_is_the_file_s_to_the_last_bit(kind: str) -> None:
    data = blocks(kind, 48, 512)
    steps, scale, minimum = four_bits.unpack(kind, data)
    want = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert torch.equal(four_bits.weights(steps, scale, minimum), torch.from_numpy(want.copy()))
    assert int(steps.max()) <= 15


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_kernel_multiplies_by_the_file_s_weights(kind: str) -> None:
    """Fed with one at one place and nothing elsewhere, its product is that column."""
    steps, scale, minimum = four_bits.unpack(kind, blocks(kind, 32, 256))
    scales = torch.stack((scale, minimum + 8 * scale), dim=-1).bfloat16()
    linear = Int4Linear.of_steps(steps, scales)
    columns = linear(torch.eye(256, dtype=torch.bfloat16))
    want = dequantise_int4(steps, scales)
    assert torch.equal(columns, want.t().bfloat16())
    exact = four_bits.weights(steps, scale, minimum)
    off = (want - exact).abs().view(32, -1, GROUP).amax(-1)
    assert (off <= (8 * scale.abs() + (minimum + 8 * scale).abs()) * 2**-8).all()


def small(**changes: Any) -> dict[str, Any]:
    return {"hidden_size": 64, "intermediate_size": 96, **changes}


def kept_of(network: Any, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Four-bit tensors for these weights of a network, which is given the weights they stand for."""
    generator, kept, whole = torch.Generator().manual_seed(3), {}, {}
    state = network.state_dict()
    for name in names:
        out, size = state[name].shape
        steps = torch.randint(0, 16, (out, size), generator=generator).to(torch.uint8)
        scales = torch.rand(out, size // GROUP, 2, generator=generator).mul(0.02).bfloat16()
        scales[..., 1] -= 0.01
        whole[name] = dequantise_int4(steps, scales)
        state[name].copy_(whole[name])
        kept[f"{name}.steps"] = steps[:, ::2] | steps[:, 1::2] << 4
        kept[f"{name}.scales"] = scales
    return kept, whole


def test_a_model_takes_four_bits_where_the_file_has_them(tmp_path: Path) -> None:
    """As in a Q4_K_M file: values in six bits beside queries and keys in four."""
    network = toy_model(**small())
    with torch.no_grad():
        names = [
            f"model.layers.{layer}.{part}.weight"
            for layer in range(network.config.num_hidden_layers)
            for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
        ]
        kept, whole = kept_of(network, names)
    save_file(kept, tmp_path / FOUR_BITS)
    model = DecoderModel(
        network,
        ToyTokenizer(),
        name="toy",
        dtype_prefill="bf16",
        dtype_decode="q4",
        four_bits=tmp_path / FOUR_BITS,
    )
    layer = model._networks["decode"].layers[0]
    assert isinstance(layer.qkv, SplitLinear)
    assert [type(part) for part in layer.qkv.parts] == [Int4Linear, Int8Linear]
    assert isinstance(layer.gate_up, Int4Linear)
    assert isinstance(layer.down, Int8Linear)
    x = torch.eye(64, dtype=torch.bfloat16)
    want = torch.cat((whole[names[2]], whole[names[3]]))
    assert torch.equal(layer.gate_up(x), want.t().bfloat16())
    rows = len(whole[names[0]])
    assert torch.equal(layer.qkv(x)[:, :rows], whole[names[0]].t().bfloat16())
    assert model.dtypes["decode"] == "q4"


def test_a_model_without_four_bits_says_so() -> None:
    with pytest.raises(ModelError, match="no four-bit weights of its own"):
        DecoderModel(
            toy_model(), ToyTokenizer(), name="toy", dtype_prefill="bf16", dtype_decode="q4"
        )


@pytest.mark.model
def test_smollm_in_its_own_four_bits_reads_as_well_as_in_bf16(tmp_path: Path) -> None:
    folder = models.resolve("smollm2-135m")
    for file in folder.iterdir():
        if file.name != FOUR_BITS:
            (tmp_path / file.name).symlink_to(file)
    models.ensure_four_bits("smollm2-135m", tmp_path)
    kept = load_file(tmp_path / FOUR_BITS)
    assert (
        len(kept) == 2 * 7 * 30
    )  # every matrix of every layer; rows of rotated heads were put back
    model = load_model(tmp_path, dtype_prefill="bf16", dtype_decode="bf16")
    whole = model.weight_bytes
    text = model.tokenizer.encode("The committee met again and talked about the budget. " * 2)
    text += model.tokenizer.encode((folder / "tokenizer_config.json").read_text()[:600])
    run = Run(model="smollm2-135m", say=lambda line: None)
    bf16 = read(model, text, run)
    model.use_for_decode("q4")
    four = read(model, text, run)
    assert math.exp(float((four - bf16).mean())) < 1.01  # 2,048 tokens: see docs/benchmarks.md
    assert model.weight_bytes - whole < 0.45 * whole
