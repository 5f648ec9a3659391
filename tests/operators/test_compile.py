"""The layers through torch.compile: the same logits, or a clear word where there is no compiler."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.errors import ModelError
from operators.model.network import Sources
from operators.model.quantization import Int8Linear
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import SINKS, Driver, assert_same_logits, layout, random_tokens, toy_decoder
from tests.toy import toy_model

# Torch's own, when it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled before; one process that compiles."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


@pytest.mark.slow
def test_the_logits_are_the_same_and_no_block_size_compiles_anew() -> None:
    model = toy_decoder("qwen3", compile=True, layers=3)  # norms on queries and keys too
    driver, reference = (
        Driver(model, layout()),
        StreamReference(toy_model("qwen3", layers=3), SINKS, window=24),
    )
    slot = driver.stream(SINKS)
    for block in ([1], random_tokens(3, seed=1)):
        assert_same_logits(driver.run([Row(slot, block)])[0], reference.ingest(block))
    tokens = random_tokens(60, seed=2)
    with torch.compiler.set_stance("fail_on_recompile"):
        got = driver.feed(slot, tokens, random.Random(3))
    assert_same_logits(got, reference.ingest(tokens))


def test_quantised_weights_run_as_they_are() -> None:
    plain = toy_decoder(dtype="bf16")._networks["prefill"]
    compiled = plain.compiled()
    assert compiled.project is not plain.project

    def made(weight: Tensor, bias: Tensor | None, _: Sources) -> Int8Linear:
        return Int8Linear(weight, bias)

    quantised = compiled.requantised(made, made)
    assert (quantised.project, quantised.mlp) == (plain.project, plain.mlp)


def test_without_a_compiler_the_model_is_refused() -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ModelError, match=r"C\+\+ compiler: install it or switch compile off"),
    ):
        toy_decoder(compile=True)
