"""Scaled and length-dependent rotary variants run exactly, frozen at the size of the cache."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, PreTrainedConfig

from operators.errors import ModelError
from operators.model.loader import DecoderModel, check_supported, make_rope
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import SINKS, Driver, ToyTokenizer, assert_same_logits, layout, random_tokens
from tests.toy import toy_model

SCALED: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
]


def longrope(original: int) -> Any:
    """A toy Phi-3 whose frequencies depend on whether the text is longer than ``original``."""
    return toy_model(
        "phi3",
        original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [3.0, 4.0, 5.0, 6.0],
            "original_max_position_embeddings": original,
        },
    )


@pytest.mark.parametrize("rope", SCALED, ids=lambda rope: rope["rope_type"])
def test_scaled_variants_equal_the_reference(rope: dict[str, Any], device: str) -> None:
    model = toy_model(rope_parameters={"rope_theta": 10_000.0, **rope})
    driver = Driver(DecoderModel(model, ToyTokenizer(), name="scaled", device=device), layout())
    tokens = random_tokens(420, seed=3)
    got = driver.feed(driver.stream(SINKS, 1_000_000), tokens, random.Random(1))
    plain = toy_model(rope_parameters={"rope_theta": 10_000.0, **rope})
    want = StreamReference(plain, SINKS, window=24, offset=1_000_000).ingest(tokens)
    assert_same_logits(got, want)


def test_dynamic_ntk_is_frozen_however_long_the_stream_gets(device: str) -> None:
    """Inside the trained context dynamic NTK is plain RoPE, and a stream never leaves it."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    network = toy_model(rope_parameters=dynamic)
    model = DecoderModel(network, ToyTokenizer(), name="dynamic", device=device)
    driver = Driver(model, layout())
    tokens = random_tokens(420, seed=4)
    got = driver.feed(driver.stream(SINKS, 4_000_000), tokens, random.Random(2))
    want = StreamReference(toy_model(), SINKS, window=24, offset=4_000_000).ingest(tokens)
    assert_same_logits(got, want)


@pytest.mark.parametrize(("original", "factors"), [(64, (1.0, 1.5, 2.0, 2.5)), (32, (3, 4, 5, 6))])
def test_longrope_takes_the_factors_of_the_caches_size(
    original: int, factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """53 tokens of cache: short factors where 64 are trained, long ones where 32 are, for ever."""
    network = longrope(original)
    scale = math.sqrt(1 + math.log(4096 / original) / math.log(original))
    expected = 1 / (torch.tensor(factors, dtype=torch.float64) * 10_000 ** (torch.arange(4) / 4))
    driver = Driver(DecoderModel(network, ToyTokenizer(), name="longrope"), layout())
    assert torch.allclose(driver.model.rope._inv_freq64, expected)
    assert driver.model.rope.scaling == pytest.approx(scale)
    tokens = random_tokens(420, seed=5)
    got = driver.feed(driver.stream(SINKS, 100_000), tokens, random.Random(3))
    monkeypatch.setattr("pipelines.lab.conformance.reference._rope", lambda *_: (expected, scale))
    want = StreamReference(toy_model("phi3"), SINKS, window=24, offset=100_000).ingest(tokens)
    assert_same_logits(got, want)


def test_an_unknown_variant_is_refused_in_one_sentence() -> None:
    config = toy_model().config
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(ModelError, match="spiral"):
        make_rope(config, 64)


@pytest.mark.parametrize("config", [Gemma2Config(), Gemma3TextConfig()], ids=["gemma2", "gemma3"])
def test_models_with_windows_and_caps_of_their_own_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ModelError, match="not supported; known to run exactly: llama"):
        check_supported(config)
