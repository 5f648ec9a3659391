"""The C functions around a product of bytes give what torch's operators give, to the last bit."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.model import rows
from operators.model.rows import from_product, to_bytes

compiled = pytest.mark.skipif(
    not rows.is_compiled(),
    reason="NOT TESTED HERE: longstream was installed without GCC 11 or newer",
)


def has_gcc(folder: Path) -> bool:
    """Whether GCC 11 or newer makes a library here, of something else than what is tested."""
    source = folder / "some.c"
    source.write_text(
        "#include <string.h>\n#if __GNUC__ < 11 || defined(__clang__)\n#error\n#endif\nint x;\n"
    )
    make = ["gcc", "-shared", "-fPIC", "-o", str(folder / "some.so"), str(source)]
    try:
        return subprocess.run(make, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="for Linux on x86-64"
)
def test_they_are_there_where_a_compiler_is(tmp_path: Path) -> None:
    if not has_gcc(tmp_path):
        pytest.skip("NOT TESTED HERE: no GCC 11 or newer")
    assert rows.is_compiled()


def random_rows(tokens: int, width: int, seed: int, spread: float) -> torch.Tensor:
    """Rows of very different sizes, some values far out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator)
    x *= torch.exp(spread * torch.randn(tokens, 1, generator=generator))
    x[torch.rand(tokens, width, generator=generator) < 0.05] *= 500
    return x.bfloat16()


@compiled
@given(
    tokens=st.integers(1, 9),
    width=st.integers(1, 200),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([0.1, 5.0, 40.0]),
    fine=st.booleans(),
    bias=st.booleans(),
)
def test_every_bit_is_the_same(
    tokens: int, width: int, seed: int, spread: float, fine: bool, bias: bool
) -> None:
    x = random_rows(tokens, width, seed, spread)
    generator = torch.Generator().manual_seed(seed)
    product = torch.randn((1 + fine) * tokens, width, generator=generator) * 1000
    added = torch.randn(width, generator=generator).bfloat16() if bias else None

    def both() -> list[torch.Tensor]:
        bytes_, scale = to_bytes(x, fine=fine)
        out = from_product(product.clone(), scale, added, torch.bfloat16, fine=fine)
        return [bytes_, scale, out]

    here = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_compiled", None)
        there = both()
    assert [(t.shape, t.dtype) for t in here] == [(t.shape, t.dtype) for t in there]
    assert all(torch.equal(*pair) for pair in zip(here, there, strict=True))


@pytest.mark.parametrize("way", [pytest.param("C", marks=compiled), "torch"])
@pytest.mark.parametrize("fine", [False, True])
def test_zeros_stay_zeros_and_what_is_not_finite_is_seen(
    way: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "torch":
        monkeypatch.setattr(rows, "_compiled", None)
    x = torch.ones(4, 40).bfloat16()
    x[1], x[2, 7], x[3, 7] = 0, math.nan, math.inf
    bytes_, scale = to_bytes(x, fine=fine)
    assert (bytes_[1] == 128).all()
    product = torch.ones((1 + fine) * 4, 40)
    product[1::4] = 0
    out = from_product(product, scale, None, torch.bfloat16, fine=fine)
    assert out[0].isfinite().all()
    assert (out[1] == 0).all()
    assert not out[2:].isfinite().any(), "the network's check for finite logits must see it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_stand_for_the_row(dtype: torch.dtype) -> None:
    """Also for types and layouts that the C functions do not take."""
    x = random_rows(64, 5, 3, 0.1).to(dtype).t()
    assert not x.is_contiguous()
    coarse, scale = to_bytes(x, fine=False)
    assert ((coarse.float() - 128) * scale - x).abs().max() <= 0.51 * scale.max()
    fine, scale = to_bytes(x, fine=True)
    whole = (fine[:5].float() - 128) + (fine[5:].float() - 128) / rows.REST
    assert (whole * scale - x).abs().max() <= 0.51 * scale.max() / rows.REST
