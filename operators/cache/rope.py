"""Rotary positions: the angles of any position, and the rotation itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Rope:
    """Rotary angles in float64, cast at the end.

    In fp32 the angle of position 4,000,000 is off by up to 0.14 rad; in fp64 the error is flat.
    ``inv_freq`` ``[rot/2]`` is the model's own, frozen at load (length-dependent variants at cache
    size); ``scaling`` is the variant's attention factor, applied to cos and sin as the model does.
    """

    def __init__(self, inv_freq: Tensor, scaling: float) -> None:
        self.scaling = scaling
        self._inv_freq64 = inv_freq.to(torch.float64)
        self.rotated = 2 * len(inv_freq)

    def cos_sin(self, positions: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What :func:`rotate` needs at ``positions`` long ``[T]``: cos and sin ``[T, 1, dim]``, the
        sine with the sign of its half. Dimensions beyond the rotated ones stay as they are. Where
        positions are on a device without float64 (:func:`has_float64`), ask with host positions and
        move the result."""
        inv = self._inv_freq64 = self._inv_freq64.to(positions.device)
        phase = torch.remainder(positions.to(torch.float64)[:, None] * inv, 2 * math.pi)
        cos, sin = phase.cos() * self.scaling, phase.sin() * self.scaling
        rest = torch.zeros(
            len(positions), dim - 2 * len(inv), dtype=torch.float64, device=positions.device
        )
        whole_cos = torch.cat((cos, cos, rest + 1), dim=-1)[:, None]
        return whole_cos.to(dtype), torch.cat((-sin, sin, rest), dim=-1)[:, None].to(dtype)


def has_float64(device: torch.device) -> bool:
    """Apple's GPUs have no float64."""
    return device.type != "mps"


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: int) -> Tensor:
    """Rotate ``x`` ``[T, heads, dim]`` by :meth:`Rope.cos_sin`: channel c with c + rotated / 2 (both
    within the first ``rotated``). ``x`` may have any shape that broadcasts with cos and sin."""
    half = rotated // 2
    swapped = torch.cat((x[..., half:rotated], x[..., :half], x[..., rotated:]), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)
