"""Rows of activations to bytes and back, around a product of bytes.

``rows.c`` does each in one pass. It is compiled when longstream is installed, if GCC 11 or newer is
there (Linux on x86-64); without it torch's operators give the same bits in a dozen passes.
"""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any

import torch
from torch import Tensor

REST = 254
"""How many times finer the second eight bits are: what is left is half a step at most."""


def _library() -> Any:
    found = importlib.util.find_spec("operators.model._rows")
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
    except OSError:  # compiled for another machine
        return None
    address, size = ctypes.c_void_p, ctypes.c_int64
    of_rows: list[Any] = [address, size, size, ctypes.c_float, address]
    library.longstream_to_bytes.argtypes = [*of_rows, address]
    library.longstream_from_product.argtypes = [*of_rows, address, address]
    library.longstream_to_bytes.restype = library.longstream_from_product.restype = None
    return library


_compiled = _library()


def is_compiled() -> bool:
    """Whether the C functions are there."""
    return _compiled is not None


def to_bytes(x: Tensor, *, fine: bool) -> tuple[Tensor, Tensor]:
    """``x`` ``[tokens, in]`` → bytes uint8 ``[tokens, in]``, 128 standing for 0, and one scale a token,
    fp32 ``[tokens, 1]``. With ``fine`` the bytes have as many rows again: what the first ones left, REST
    times finer, so that one product of twice the rows reads the weights once."""
    if _compiled is not None and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x = x.contiguous()
        tokens, width = x.shape
        bytes_ = torch.empty((1 + fine) * tokens, width, dtype=torch.uint8)
        scale = torch.empty(tokens, 1)
        _compiled.longstream_to_bytes(
            x.data_ptr(), tokens, width, REST * fine, bytes_.data_ptr(), scale.data_ptr()
        )
        return bytes_, scale
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-8).div_(127)
    exact = x / scale
    steps = exact.round()
    if fine:
        rest = exact.sub_(steps).mul_(REST).round_()
        steps = torch.cat((steps, rest))
    return steps.add_(128).to(torch.uint8), scale


def from_product(
    product: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fine: bool
) -> Tensor:
    """``product`` fp32, a row for every row of :func:`to_bytes` → ``[tokens, out]`` of ``dtype``, bias
    ``[out]`` added. ``product`` is overwritten."""
    tokens, width = len(scale), product.shape[1]
    fits = bias is None or (bias.dtype == torch.bfloat16 and bias.is_contiguous())
    if _compiled is not None and fits and dtype == torch.bfloat16 and product.device.type == "cpu":
        out = torch.empty(tokens, width, dtype=dtype)
        added = None if bias is None else bias.data_ptr()
        _compiled.longstream_from_product(
            product.data_ptr(), tokens, width, REST * fine, scale.data_ptr(), added, out.data_ptr()
        )
        return out
    if fine:
        product, finer = product.chunk(2)
        product = product.add_(finer, alpha=1 / REST)
    product = product.mul_(scale)
    return (product if bias is None else product.add_(bias)).to(dtype)
