"""A draft head: a small network that reads a model's last hidden states and guesses the next one.

EAGLE-1 (Li et al. 2024, arXiv 2401.15077). For every token it is given the model's *feature* at that
token (what the output matrix reads: behind the final norm) and the embedding of the token chosen after
it. One linear layer ``fc`` makes one vector of both, one decoder layer of the model's kind makes the
next feature of it, and the model's own output matrix the logits of the token after that. Embedding and
output matrix are the model's, not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from operators.cache.batch import ForwardBatch
from operators.errors import ModelError
from operators.model.loader import DecoderModel
from operators.model.network import Layer, Network, Norm

FILE = "model.safetensors"
_LAYER = "layers.0."
_ATTENTION = f"{_LAYER}self_attn."
_MLP = f"{_LAYER}mlp."
_TOGETHER = (
    ("fc.bias",),
    (f"{_LAYER}input_layernorm.weight",),
    tuple(f"{_ATTENTION}{part}_proj.bias" for part in "qkv"),
    tuple(f"{_ATTENTION}{part}_norm.weight" for part in "qk"),
)
"""Tensors that a head may have or not, all of a group or none."""
_SHARED = "embed_tokens.weight"
"""In published heads a copy of the model's."""


@dataclass(frozen=True, eq=False)
class Head:
    """``fc`` ``[tokens, 2 * hidden]`` → ``[tokens, hidden]``, and a layer."""

    fc: nn.Linear
    layer: Layer

    def forward(
        self, batch: ForwardBatch, features: Tensor, target: Network
    ) -> tuple[Tensor, Tensor]:
        """Features ``[m, hidden]`` behind the batch's wanted tokens, and their logits ``[m, vocab]``.
        ``features`` ``[T, hidden]``: before each token. Mutates the batch's cache."""
        embedded = nn.functional.embedding(batch.tokens, target.embedding)
        hidden = self.fc(torch.cat((embedded, features), dim=-1))
        qk, v = target.project(self.layer, hidden, batch.cache.shape)
        hidden = hidden + self.layer.output(batch.attend(0, qk, v, self.layer.scaling))
        hidden = target.mlp(self.layer, hidden[batch.wanted])
        logits: Tensor = target.head(hidden)
        return hidden, logits

    @property
    def numbers(self) -> int:
        """How many numbers its matrices have."""
        matrices = (self.layer.qkv, self.layer.output, self.layer.gate_up, self.layer.down, self.fc)
        return sum(weight.numel() for matrix in matrices for weight in matrix.parameters())


def load_head(path: Path | str, target: DecoderModel) -> Head:
    """A head of ``target`` from a safetensors file, or a folder with ``model.safetensors``. Raises
    ModelError when it is no head, or one of another model."""
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    try:
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name != _SHARED]  # noqa: SIM118
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read a draft head from {file}: {error}. It is a safetensors file, or a folder with "
            f"{FILE}; convert pickled heads (.bin) first"
        ) from error
    return make_head(tensors, target, name=str(path))


def make_head(tensors: Mapping[str, Tensor], target: DecoderModel, *, name: str = "head") -> Head:
    """A head of these tensors, named as in published EAGLE-1 heads. Raises ModelError."""
    like = target.network("prefill").layers[0]
    _check(tensors, target, name)
    kept = {
        key: tensor.to(target.device, target.dtype)
        for key, tensor in tensors.items()
        if key != _SHARED
    }

    def norm(key: str) -> Norm | None:
        return Norm(kept[key], like.mlp_norm.epsilon) if key in kept else None

    mlp_norm = norm(f"{_LAYER}post_attention_layernorm.weight")
    assert mlp_norm is not None
    layer = Layer(
        attention_norm=norm(f"{_LAYER}input_layernorm.weight"),
        qkv=_linear(kept, *(f"{_ATTENTION}{part}_proj" for part in "qkv")),
        query_norm=norm(f"{_ATTENTION}q_norm.weight"),
        key_norm=norm(f"{_ATTENTION}k_norm.weight"),
        output=_linear(kept, f"{_ATTENTION}o_proj"),
        mlp_norm=mlp_norm,
        gate_up=_linear(kept, f"{_MLP}gate_proj", f"{_MLP}up_proj"),
        down=_linear(kept, f"{_MLP}down_proj"),
        activation=like.activation,
        scaling=like.scaling,
        sources={},
    )
    return Head(_linear(kept, "fc"), layer)


def _linear(tensors: Mapping[str, Tensor], *names: str) -> nn.Linear:
    """One linear layer that gives the outputs of all named ones side by side."""
    weight = torch.cat([tensors[f"{name}.weight"] for name in names])
    biases = [tensors[f"{name}.bias"] for name in names if f"{name}.bias" in tensors]
    linear = nn.Linear(weight.shape[1], len(weight), bias=bool(biases), device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        linear.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return linear


def _shapes(tensors: Mapping[str, Tensor], target: DecoderModel) -> Iterator[tuple[str, list[int]]]:
    """What a head of ``target`` has, and the shapes. The width of its MLP is its own."""
    hidden = target.network("prefill").embedding.shape[1]
    dim = target.shape.head_dim
    widths = {"q": target.heads * dim, "k": target.shape.kv_heads * dim}
    widths["v"] = widths["k"]
    gate = tensors.get(f"{_MLP}gate_proj.weight")
    inner = len(gate) if gate is not None else 0
    yield "fc.weight", [hidden, 2 * hidden]
    yield "fc.bias", [hidden]
    for part, width in widths.items():
        yield f"{_ATTENTION}{part}_proj.weight", [width, hidden]
        yield f"{_ATTENTION}{part}_proj.bias", [width]
    yield from ((f"{_ATTENTION}{part}_norm.weight", [dim]) for part in "qk")
    yield f"{_ATTENTION}o_proj.weight", [hidden, widths["q"]]
    yield from ((f"{_MLP}{part}_proj.weight", [inner, hidden]) for part in ("gate", "up"))
    yield f"{_MLP}down_proj.weight", [hidden, inner]
    for part in ("input", "post_attention"):
        yield f"{_LAYER}{part}_layernorm.weight", [hidden]


def _check(tensors: Mapping[str, Tensor], target: DecoderModel, name: str) -> None:
    """Raise ModelError unless these are the tensors of a head of ``target``."""
    shapes = dict(_shapes(tensors, target))
    spared = {key for group in _TOGETHER if not tensors.keys() & set(group) for key in group}
    if missing := sorted(shapes.keys() - spared - tensors.keys()):
        raise ModelError(f"{name} is no EAGLE-1 draft head: it has no {', '.join(missing)}")
    if unknown := sorted(tensors.keys() - shapes.keys() - {_SHARED}):
        raise ModelError(
            f"{name} is no EAGLE-1 draft head: what is {', '.join(unknown[:3])}? Heads of other kinds, "
            "such as EAGLE-3 and Medusa, cannot be used"
        )
    for key, shape in shapes.items():
        if key in tensors and list(tensors[key].shape) != shape:
            raise ModelError(
                f"{name} cannot draft for {target.name}: its {key} is {list(tensors[key].shape)}, not "
                f"{shape}; choose a head that was trained for this model"
            )
        if key in tensors and not bool(torch.isfinite(tensors[key]).all()):
            raise ModelError(f"{name}: {key} has numbers that are not finite; convert it again")
