"""Weights of fewer bits: what they stand for, what the kernels make of them, what is held."""

from __future__ import annotations

import pytest
import torch

from operators.cache.batch import Row
from operators.errors import ModelError
from operators.model.loader import DecoderModel
from operators.model.quantization import (
    GROUP,
    Int4Linear,
    Int8Linear,
    W8A8Linear,
    dequantise_int4,
    fits_int4,
    quantise_int4,
    runs_w8a8,
)
from tests.engine import SINKS, Driver, ToyTokenizer, layout, random_tokens
from tests.toy import ARCHITECTURES, toy_model

vnni = pytest.mark.skipif(
    not runs_w8a8(torch.device("cpu")), reason="NOT TESTED HERE: w8a8 needs a CPU with VNNI"
)


def random_weight(out: int = 48, size: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, size, generator=generator).bfloat16()


def decoder(arch: str = "llama", generation: str = "bf16", **changes: object) -> DecoderModel:
    return DecoderModel(
        toy_model(arch, **changes),
        ToyTokenizer(),
        name=arch,
        dtype_prefill="bf16",
        dtype_decode=generation,
    )


def test_int4_gives_back_weights_that_have_sixteen_steps() -> None:
    """A weight from a four-bit file with the same groups loses nothing but bf16's rounding."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(2, 14, (32, 64), generator=generator).to(torch.uint8)  # not the ends
    scales = torch.rand(32, 2, 2, generator=generator).bfloat16() + 0.5
    weight = dequantise_int4(steps, scales)
    kept = dequantise_int4(*quantise_int4(weight))
    assert (kept - weight).abs().max() <= 0.02 * scales[..., 0].max()


def test_int4_errs_by_at_most_half_a_step() -> None:
    weight = random_weight()
    steps, scales = quantise_int4(weight)
    groups = weight.float().view(48, -1, GROUP)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (dequantise_int4(steps, scales) - weight.float()).view_as(groups).square().mean(-1)
    assert (error <= (0.52 * step).square()).all()


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_kernels_multiply_by_what_is_kept(tokens: int, bias: bool) -> None:
    weight = random_weight()
    x = random_weight(tokens, 96, seed=2)
    added = random_weight(1, 48, seed=3)[0] if bias else None
    eight, four = Int8Linear(weight, added), Int4Linear(weight, added)
    kept = {
        eight: eight.weight.float() * eight.scales.float()[:, None],
        four: dequantise_int4(*quantise_int4(weight)),
    }
    for linear, whole in kept.items():
        want = x.float() @ whole.t() + (added.float() if added is not None else 0)
        assert (linear(x).float() - want).abs().max() <= 0.02 * want.abs().max()
    portable = Int4Linear(weight.to("meta"))  # as on another device
    assert portable.weight.shape == (48, 48)


@vnni
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_w8a8_rounds_activations_per_token_and_multiplies_exactly(tokens: int, bias: bool) -> None:
    weight, x = random_weight(), random_weight(tokens, 96, seed=2)
    x[0, 5] = 40.0  # an outlier in one token must not cost the others their digits
    added = random_weight(1, 48, seed=3)[0] if bias else None
    eight = Int8Linear(weight)
    scale = x.float().abs().amax(1, keepdim=True) / 127
    steps = (x.float() / scale).round()
    want = steps @ eight.weight.float().t() * eight.scales.float() * scale
    if added is not None:
        want = want + added.float()
    got = W8A8Linear(weight, added)(x).float()
    assert (got - want).abs().max() <= 2**-7 * want.abs().max()


@vnni
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_w8a8_of_sixteen_bits_loses_nothing_beside_an_outlier(tokens: int) -> None:
    """One channel is a thousand times larger: with eight bits the others would be 0."""
    weight, x = random_weight(), random_weight(tokens, 96, seed=2)
    x[:, 5] = 1000 * x.abs().max()
    plain = Int8Linear(weight)
    want = x.float() @ (plain.weight.float() * plain.scales.float()[:, None]).t()
    got = W8A8Linear(weight, fine=True)(x).float()
    assert (got - want).abs().max() <= 2**-8 * want.abs().max() + 1e-6
    weight[:, 5] = 0  # now the others alone count
    plain = Int8Linear(weight)
    want = x.float() @ (plain.weight.float() * plain.scales.float()[:, None]).t()
    coarse, fine = (
        (W8A8Linear(weight, fine=fine)(x).float() - want).abs().max() for fine in (False, True)
    )
    assert fine < coarse / 20


@vnni
def test_layers_behind_no_norm_have_the_finer_activations() -> None:
    model = decoder()
    model.use_for_decode("w8a8")
    layer = model._networks["decode"].layers[0]
    assert [m.fine for m in (layer.qkv, layer.output, layer.gate_up, layer.down)] == [
        *(False, True),
        *(False, True),
    ]


@vnni
@pytest.mark.parametrize("fine", [False, True])
def test_w8a8_gives_a_token_the_same_in_any_company(fine: bool) -> None:
    linear, x = W8A8Linear(random_weight(256, 512), fine=fine), random_weight(33, 512, seed=5)
    alone = torch.cat([linear(x[at : at + 1]) for at in range(33)])
    assert torch.equal(linear(x), alone)
    assert torch.equal(linear(torch.zeros(2, 512).bfloat16()), torch.zeros(2, 256).bfloat16())


def test_w8a8_is_refused_where_it_would_be_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match="VNNI"):
        decoder().use_for_decode("w8a8")
    with pytest.raises(ValueError, match="VNNI"):
        W8A8Linear(random_weight())


def test_int4_away_from_the_cpu_stands_for_the_same_weights() -> None:
    weight = random_weight()
    linear = Int4Linear(weight)
    steps, scales = quantise_int4(weight)
    linear.weight = steps[:, ::2] << 4 | steps[:, 1::2]
    assert torch.equal(linear._dequantised(), dequantise_int4(steps, scales))


def test_shapes_that_do_not_fit_int4_are_said_and_stay_int8() -> None:
    weight = random_weight(48, 80)
    assert not fits_int4(weight)
    with pytest.raises(ValueError, match="does not fit"):
        Int4Linear(weight)
    layers = decoder(generation="int4", intermediate_size=80)._networks["decode"].layers
    assert isinstance(layers[0].qkv, Int4Linear)
    assert isinstance(layers[0].down, Int8Linear)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@pytest.mark.parametrize("kind", ["int8", pytest.param("w8a8", marks=vnni), "int4"])
def test_generation_weights_change_generation_only(arch: str, kind: str) -> None:
    plain, quantised = decoder(arch), decoder(arch, kind)
    drivers = [Driver(model, layout()) for model in (plain, quantised)]
    slots = [driver.stream(SINKS) for driver in drivers]
    tokens = random_tokens(8, seed=4)
    same = [driver.run([Row(slot, tokens)])[0] for driver, slot in zip(drivers, slots, strict=True)]
    assert torch.equal(*same)
    logits = []
    for driver, slot in zip(drivers, slots, strict=True):
        row = Row(slot, tokens[:4], driver.cache.fork(slot), num_logits=4)
        logits.append(driver.model.forward("decode", driver.cache, [row]))
    difference = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert 0 < difference < (0.6 if kind == "int4" else 0.1)


def test_every_weight_is_held_once_and_counted() -> None:
    for tied in (False, True):
        network = toy_model(tie_word_embeddings=tied)
        own = {p.data_ptr(): p.numel() for p in network.parameters()}
        model = DecoderModel(network, ToyTokenizer(), name="toy", dtype_prefill="bf16",
                             dtype_decode="bf16")  # fmt: skip
        assert model.tied is tied
        assert model.weight_bytes == 2 * sum(own.values())
    before = model.weight_bytes
    model.use_for_decode("int8")
    matrices = [p for n, p in network.named_parameters() if p.dim() > 1 and "embed" not in n]
    head = network.lm_head.weight
    added = sum(p.numel() + 2 * len(p) for p in [*matrices, head])
    assert model.weight_bytes == before + added
    if runs_w8a8(torch.device("cpu")):
        model.use_for_decode("w8a8")
        more = sum(
            (4 + 8 - 2) * len(p) for p in [*matrices, head]
        )  # fp32 scales, a zero point each
        assert model.weight_bytes == before + added + more
    model.use_for_decode("bf16")
    assert model.weight_bytes == before


def test_types_that_do_not_go_together_are_refused() -> None:
    model = DecoderModel(toy_model(), ToyTokenizer(), name="toy")
    for kind in ("int8", "w8a8", "int4", "bf16"):
        with pytest.raises(ModelError, match="does not go with dtype_prefill=fp32"):
            model.use_for_decode(kind)
    with pytest.raises(ModelError, match="dtype_prefill=int4"):
        DecoderModel(toy_model(), ToyTokenizer(), name="toy", dtype_prefill="int4",
                     dtype_decode="int4")  # fmt: skip


@vnni
def test_both_roles_share_w8a8_and_what_was_loaded_can_be_freed() -> None:
    model = decoder()
    loaded = model.weight_bytes
    model.use_for_prefill("w8a8")
    model.use_for_decode("w8a8")
    assert model.one_forward
    held = model.weight_bytes
    assert held > loaded  # what was loaded is still there
    model.release()
    assert model.weight_bytes < loaded
    assert model.dtypes == {"prefill": "w8a8", "decode": "w8a8"}
    with pytest.raises(ModelError, match="dtype_decode=int8"):
        model.use_for_decode("int8")
    with pytest.raises(ModelError, match="dtype_prefill=bf16"):
        model.use_for_prefill("bf16")


@vnni
def test_what_is_read_with_w8a8_does_not_depend_on_its_block_or_its_neighbours() -> None:
    """Products of integers are exact: any cut of a text and any company give the same keys."""
    model = decoder()
    model.use_for_prefill("w8a8")
    tokens, other = random_tokens(24, seed=1), random_tokens(3, seed=2)
    caches = []
    for cuts, company in (((8, 8, 8), False), ((1, 7, 5, 3, 8), False), ((8, 8, 8), True)):
        driver = Driver(model, layout())
        slot, beside, at = driver.cache.allocate(), driver.cache.allocate(), 0
        for cut in cuts:
            rows = [Row(slot, tokens[at : at + cut])]
            if company:
                rows.append(Row(beside, other))
            model.forward("prefill", driver.cache, rows)
            at += cut
        caches.append(driver.cache.export(slot))
    reference = caches[0].float()
    for kept in caches[1:]:
        assert (
            kept.float() - reference
        ).norm() <= 0.01 * reference.norm()  # attention's own rounding


def test_the_first_layers_alone_are_a_model_to_measure() -> None:
    whole = decoder(num_hidden_layers=4)
    part = whole.shallow(1)
    assert part.shape.layers == 1
    assert part.dtypes == {"prefill": "bf16", "decode": "bf16"}
    part.use_for_decode("int8")
    assert whole.dtypes["decode"] == "bf16"
    cache = part.new_cache(layout(), slots=1, branches=1)
    slot = cache.allocate()
    part.forward("prefill", cache, [Row(slot, random_tokens(8, seed=1))])
    logits = part.forward("decode", cache, [Row(slot, [1], cache.fork(slot), num_logits=1)])
    assert logits.shape == (1, -(-whole.vocab_size // 4))
