"""Linear layers with fewer bits per weight, for the few tokens of a generation step.

A short forward costs what reading its weights costs, so fewer bits make it faster; a long one costs
arithmetic, where bf16 is better. Weights are quantised when loaded, without data:

* ``int8``: one scale per output channel, symmetric, round to nearest;
* ``w8a8``: the same weights, and activations rounded to eight bits too, one scale per token. Products
  are then of integers: exact, so a token's result does not depend on its neighbours in the forward,
  and as fast for sixteen tokens as for one (needs a CPU with VNNI). In the layers of FINE what the
  rounding leaves is rounded to eight bits once more;
* ``int4``: one scale and one zero per 32 input channels of an output channel. Per group that number
  of steps is taken which reproduces the weights best, so a model that comes from a four-bit file
  with the same groups mostly gets its own steps back;
* ``q4``: the four-bit steps of the very file that the model was made from, where they were kept beside
  it (:class:`FourBits`); what the file holds in more bits becomes int8. Nothing is quantised twice.

On a CPU torch's own kernels run; elsewhere weights are dequantised on the fly (unmeasured).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from operators.errors import ModelError
from operators.model.network import Remake, Sources
from operators.model.rows import from_product, to_bytes

GROUP = 32
"""Input channels that share a scale and a zero in int4."""
STEPS = range(15, 7, -1)
"""How many steps a group's range may be cut into; the best of these is kept."""
INT8_CHUNK, CHUNK = 128, 2048
"""Output channels quantised at a time, to int8 and int4: bounds the memory that it takes."""
FINE = ("o_proj.weight", "down_proj.weight")
"""Parameters whose inputs no norm has levelled: a few channels are far larger than the others, and eight
bits with one scale lose these others."""


class Int8Linear(nn.Module):
    """``weight`` int8 ``[out, in]``, ``scales`` bf16 ``[out]``; activations bf16 in and out."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        quantised = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(weight.shape[0], dtype=torch.bfloat16, device=weight.device)
        room = torch.empty(INT8_CHUNK, weight.shape[1], device=weight.device)
        for at in range(0, weight.shape[0], INT8_CHUNK):
            rows = weight[at : at + INT8_CHUNK].detach()
            full = room[: len(rows)].copy_(rows)  # in place from here: new memory takes longer
            scale = torch.maximum(full.amax(dim=1), -full.amin(dim=1)).div_(127).clamp_(min=1e-8)
            full.div_(scale[:, None]).round_().clamp_(-127, 127)
            quantised[at : at + len(rows)], scales[at : at + len(rows)] = full, scale
        self.register_buffer("weight", quantised)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[tokens, in]`` → ``[tokens, out]``."""
        if x.device.type == "cpu":
            out = torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scales)
        else:
            out = (x @ self.weight.to(x.dtype).t()) * self.scales
        return out if self.bias is None else out + self.bias


class W8A8Linear(nn.Module):
    """``weight`` int8 in the kernel's order, ``scales`` fp32 ``[out]``; bf16 in and out, in between
    eight bits per activation, or with ``fine`` twice eight. Raises ValueError where :func:`runs_w8a8`
    says no."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, fine: bool = False) -> None:
        super().__init__()
        self.fine = fine
        if not runs_w8a8(weight.device):
            raise ValueError("w8a8 weights need a CPU with VNNI instructions")
        plain = Int8Linear(weight)
        packed = torch.ops.onednn.qlinear_prepack(plain.weight, None)
        self.register_buffer("weight", packed)
        self.register_buffer("scales", plain.scales.float())
        self.register_buffer("zeros", torch.zeros(weight.shape[0], dtype=torch.int64))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[tokens, in]`` → ``[tokens, out]``."""
        bytes_, scale = to_bytes(x, fine=self.fine)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_, 1.0, 128, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return from_product(product, scale, self.bias, x.dtype, fine=self.fine)


def runs_w8a8(device: torch.device) -> bool:
    """Whether products of bytes are both fast and exact here."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())


class Int4Linear(nn.Module):
    """``weight``: four-bit steps in the kernel's order; ``scales`` bf16 ``[in / 32, out, 2]``: scale and
    zero, a weight being ``(step - 8) * scale + zero``. Activations bf16 in and out.

    Raises ValueError unless ``in`` is a multiple of 32 and ``out`` of 16 (see :func:`fits_int4`).
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if not fits_int4(weight):
            raise ValueError(f"a weight of shape {tuple(weight.shape)} does not fit int4 groups")
        parts = [quantise_int4(rows.detach()) for rows in torch.split(weight, CHUNK)]
        steps = torch.cat([steps for steps, _ in parts])
        self._take(steps, torch.cat([scales for _, scales in parts]), bias)

    @classmethod
    def of_steps(cls, steps: Tensor, scales: Tensor, bias: Tensor | None = None) -> Int4Linear:
        """From steps uint8 ``[out, in]`` of 0 to 15, and scale and zero bf16 ``[out, in / 32, 2]``."""
        if not fits_int4(steps):
            raise ValueError(f"steps of shape {tuple(steps.shape)} do not fit int4 groups")
        made = cls.__new__(cls)
        made._take(steps, scales, bias)
        return made

    def _take(self, steps: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = steps.shape
        if steps.device.type == "cpu":
            packed = torch._convert_weight_to_int4pack_for_cpu(steps.int(), 1)
        else:
            packed = steps[:, ::2] << 4 | steps[:, 1::2]
        self.register_buffer("weight", packed)
        self.register_buffer("scales", scales.transpose(0, 1).contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[tokens, in]`` → ``[tokens, out]``."""
        if x.device.type == "cpu":
            out = torch._weight_int4pack_mm_for_cpu(x.contiguous(), self.weight, GROUP, self.scales)
        else:
            out = x @ self._dequantised().to(x.dtype).t()
        return out if self.bias is None else out + self.bias

    def _dequantised(self) -> Tensor:
        steps = torch.stack((self.weight >> 4, self.weight & 15), dim=-1)
        return dequantise_int4(
            steps.view(self.out_features, self.in_features), self.scales.transpose(0, 1)
        )


def fits_int4(weight: Tensor) -> bool:
    """Whether the int4 kernel takes a weight ``[out, in]`` of this shape."""
    return weight.shape[1] % GROUP == 0 and weight.shape[0] % 16 == 0


def quantise_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[out, in]`` → steps uint8 ``[out, in]`` of 0 to 15, and scale and zero bf16
    ``[out, in / 32, 2]``."""
    out, size = weight.shape
    groups = weight.float().view(out, size // GROUP, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    best_steps = torch.zeros(groups.shape, dtype=torch.uint8, device=weight.device)
    best_scales = torch.zeros(*groups.shape[:2], 2, dtype=torch.bfloat16, device=weight.device)
    best_error = torch.full(groups.shape[:2], torch.inf, device=weight.device)
    for count in STEPS:
        scale = ((high - low) / count).clamp(min=1e-8)
        steps = ((groups - low) / scale).round().clamp(0, 15).to(torch.uint8)
        scales = torch.cat((scale, low + 8 * scale), dim=-1).to(torch.bfloat16)
        kept = dequantise_int4(steps.view(out, size), scales).view_as(groups)
        error = (kept - groups).square().sum(dim=-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_steps = torch.where(better[..., None], steps, best_steps)
        best_scales = torch.where(better[..., None], scales, best_scales)
    return best_steps.view(out, size), best_scales


def dequantise_int4(steps: Tensor, scales: Tensor) -> Tensor:
    """What steps ``[out, in]`` with scale and zero ``[out, in / 32, 2]`` stand for, fp32."""
    grouped = steps.float().view(*scales.shape[:2], GROUP)
    scale, zero = scales.float().unbind(-1)
    return ((grouped - 8) * scale[..., None] + zero[..., None]).view(steps.shape)


class SplitLinear(nn.Module):
    """Several linear layers on one input, their outputs side by side."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[tokens, in]`` → ``[tokens, sum of out]``."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


class FourBits:
    """The four-bit tensors of the file that a model was made from, by the names of the model's weights:
    ``NAME.steps`` uint8 ``[out, in / 2]`` (the even column in the low half) and ``NAME.scales`` bf16
    ``[out, in / 32, 2]``, scale and zero. Raises ModelError for a file that cannot be read."""

    def __init__(self, file: Path) -> None:
        try:
            opened: Any = safe_open(file, framework="pt")
            self.names = {name.removesuffix(".steps") for name in opened.keys()}  # noqa: SIM118
            self._file = opened
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error

    def linear(self, weight: Tensor, bias: Tensor | None, sources: Sources) -> nn.Module:
        """The layer of ``weight`` ``[out, in]``, whose rows are those of ``sources`` one after the
        other: four bits where the file has them, int8 elsewhere."""
        parts: list[nn.Module] = []
        at = 0
        for four, group in itertools.groupby(sources, key=lambda source: source[0] in self.names):
            names, counts = zip(*group, strict=True)
            end = at + sum(counts)
            own = bias[at:end] if bias is not None else None
            rows = weight[at:end]
            parts.append(self._of_file(names, counts, own) if four else Int8Linear(rows, own))
            at = end
        return parts[0] if len(parts) == 1 else SplitLinear(parts)

    def _of_file(
        self, names: Sequence[str], counts: Sequence[int], bias: Tensor | None
    ) -> nn.Module:
        def first_rows(part: str) -> Tensor:
            slices = zip(names, counts, strict=True)
            return torch.cat([self._file.get_slice(f"{n}.{part}")[:count] for n, count in slices])

        packed, scales = first_rows("steps"), first_rows("scales")
        steps = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
        return Int4Linear.of_steps(steps, scales, bias)


def int4_or_int8(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """int4 where the shape allows it, int8 elsewhere."""
    return (Int4Linear if fits_int4(weight) else Int8Linear)(weight, bias)


def _w8a8(weight: Tensor, bias: Tensor | None, sources: Sources) -> nn.Module:
    return W8A8Linear(weight, bias, fine=all(name.endswith(FINE) for name, _ in sources))


BODY: dict[str, Remake] = {
    "int8": lambda weight, bias, _: Int8Linear(weight, bias),
    "w8a8": _w8a8,
    "int4": lambda weight, bias, _: int4_or_int8(weight, bias),
}
"""Type of generation weights → what becomes of a layer's matrices."""
HEAD: dict[str, Callable[[Tensor], nn.Module]] = {
    "int8": Int8Linear,
    "w8a8": W8A8Linear,
    "int4": Int8Linear,
}
"""…and of the output matrix, whose errors go straight into the logits."""
