"""The decoder itself, layer by layer, on weights loaded by transformers.

The supported architectures are one family: RMS norms, rotated queries and keys (grouped-query
attention), a gated MLP. Run here rather than in transformers' modules because a step of a few tokens
costs as much in small operations as in reading weights: query, key and value projections are one
product, gate and up are one, and the rotation of the queries for the sinks starts from what is
there. In fp32 it equals transformers' own modules (the slow reference uses those).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from operators.cache.batch import ForwardBatch
from operators.cache.kv_cache import KvShape
from operators.errors import ModelError

Project = Callable[[Tensor], Tensor]
"""``[tokens, in]`` → ``[tokens, out]``: nn.Linear or one of operators.model.quantization."""
Sources = tuple[tuple[str, int], ...]
"""The model's weights that a matrix consists of, by name, with their numbers of rows."""
Remake = Callable[[Tensor, Tensor | None, Sources], nn.Module]
"""Makes another kind of linear layer from weight, bias and sources."""


@dataclass(frozen=True, eq=False)
class Norm:
    """Root-mean-square norm over the last dimension."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer. ``qkv`` and ``gate_up`` are several projections in one."""

    attention_norm: Norm | None
    qkv: nn.Module
    query_norm: Norm | None
    key_norm: Norm | None
    output: nn.Module
    mlp_norm: Norm
    gate_up: nn.Module
    down: nn.Module
    activation: Project
    scaling: float
    sources: dict[str, Sources]
    """Of ``qkv``, ``output``, ``gate_up`` and ``down``."""


def _project(layer: Layer, hidden: Tensor, shape: KvShape) -> tuple[Tensor, Tensor]:
    """``hidden`` ``[T, hidden]`` → queries and keys ``[T, heads + kv_heads, dim]``, not rotated, and
    values ``[T, kv_heads, dim]``."""
    normed = layer.attention_norm(hidden) if layer.attention_norm is not None else hidden
    qkv = layer.qkv(normed).view(len(hidden), -1, shape.head_dim)
    qk, v = qkv.tensor_split((-shape.kv_heads,), dim=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        q, k = qk.tensor_split((-shape.kv_heads,), dim=1)
        qk = torch.cat((layer.query_norm(q), layer.key_norm(k)), dim=1)
    return qk, v


def _mlp(layer: Layer, hidden: Tensor) -> Tensor:
    """``hidden`` ``[T, hidden]`` plus the output of the layer's MLP."""
    gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
    done: Tensor = hidden + layer.down(layer.activation(gate) * up)
    return done


@dataclass(frozen=True, eq=False)
class Network:
    """Embedding, layers, norm and head; weights may be shared with other networks."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Norm
    head: nn.Module
    head_source: Sources
    project: Callable[[Layer, Tensor, KvShape], tuple[Tensor, Tensor]] = _project
    mlp: Callable[[Layer, Tensor], Tensor] = _mlp

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run the batch's tokens; logits ``[n, vocab]`` of those that ask for them. Mutates the batch's
        cache; leaves it the features that the logits are made of."""
        hidden: Tensor = nn.functional.embedding(batch.tokens, self.embedding)
        for index, layer in enumerate(self.layers):
            qk, v = self.project(layer, hidden, batch.cache.shape)
            hidden = hidden + layer.output(batch.attend(index, qk, v, layer.scaling))
            if index == len(self.layers) - 1:
                hidden = hidden[batch.wanted]  # the other tokens are done: their keys are written
                if not len(hidden):
                    return hidden.new_empty(0, self.embedding.shape[0])
            hidden = self.mlp(layer, hidden)
        batch.features = hidden = self.norm(hidden)
        if batch.of_logits is not None:
            hidden = hidden[batch.of_logits]
            if not len(hidden):
                return hidden.new_empty(0, self.embedding.shape[0])
        logits: Tensor = self.head(hidden)
        return logits

    def compiled(self) -> Network:
        """The same with torch.compile for what a layer does before and after attention, for any number
        of tokens. It compiles in the first forwards, which then take seconds."""
        return replace(
            self,
            project=torch.compile(_project, dynamic=True),
            mlp=torch.compile(_mlp, dynamic=True),
        )

    def requantised(self, body: Remake, head: Remake) -> Network:
        """A network with its own matrices, made by ``body`` and ``head``; the rest is shared. It is not
        compiled: torch's compiler fails on some of the kernels for quantised weights."""

        def made(linear: nn.Module, sources: Sources) -> nn.Module:
            assert isinstance(linear, nn.Linear)
            return body(linear.weight.detach(), linear.bias, sources)

        layers = tuple(
            replace(
                layer,
                qkv=made(layer.qkv, layer.sources["qkv"]),
                output=made(layer.output, layer.sources["output"]),
                gate_up=made(layer.gate_up, layer.sources["gate_up"]),
                down=made(layer.down, layer.sources["down"]),
            )
            for layer in self.layers
        )
        assert isinstance(self.head, nn.Linear)
        own_head = head(self.head.weight.detach(), None, self.head_source)
        return replace(self, layers=layers, head=own_head, project=_project, mlp=_mlp)

    def shallow(self, layers: int) -> Network:
        """The first ``layers`` layers with the same share of the output matrix. Shares the weights."""
        assert isinstance(self.head, nn.Linear)
        whole = self.head.weight.detach()
        rows = -(-len(whole) * layers // len(self.layers))
        head = nn.Linear(whole.shape[1], rows, bias=False, device="meta")
        head.weight = nn.Parameter(whole[:rows], requires_grad=False)
        source = ((self.head_source[0][0], rows),)
        return replace(self, layers=self.layers[:layers], head=head, head_source=source)

    def tensors(self) -> Iterator[Tensor]:
        """Every weight; shared ones may come more than once."""
        norms = [self.norm]
        modules = [self.head]
        for layer in self.layers:
            norms += [n for n in (layer.attention_norm, layer.mlp_norm) if n is not None]
            norms += [n for n in (layer.query_norm, layer.key_norm) if n is not None]
            modules += [layer.qkv, layer.output, layer.gate_up, layer.down]
        yield self.embedding
        yield from (norm.weight for norm in norms)
        for module in modules:
            yield from module.parameters()
            yield from module.buffers()


def from_transformers(model: Any) -> Network:
    """Take over the weights of a causal LM of transformers.

    Projections that run as one are joined; the model's own parameters become views of the joined
    ones, so every weight is held once. Raises ModelError for another kind of layer.
    """
    body = model.model
    try:
        layers = tuple(_layer(layer, at) for at, layer in enumerate(body.layers))
        embedding, norm, head = body.embed_tokens.weight, _norm(body.norm), model.lm_head
    except AttributeError as error:
        raise ModelError(
            f"this {model.config.model_type} model is not built as expected: {error}"
        ) from error
    tied = head.weight.data_ptr() == embedding.data_ptr()
    source = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return Network(embedding.detach(), layers, norm, head, ((source, len(head.weight)),))


def check_compiler(device: torch.device) -> None:
    """Compile something small; raises ModelError where torch.compile does not work."""
    try:
        torch.compile(torch.sin, dynamic=True)(torch.ones(3, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        need = "a C++ compiler" if device.type == "cpu" else "Triton"
        raise ModelError(
            f"compile is on, but torch.compile does not work here; it needs {need}: install it or"
            f" switch compile off ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        ) from error


def _layer(layer: Any, at: int) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    fused = hasattr(attention, "qkv_proj")  # Phi-3 has both as one already
    of_attention = (attention, "self_attn", "qkv_proj" if fused else "q_proj k_proj v_proj")
    of_mlp = (mlp, "mlp", "gate_up_proj" if fused else "gate_proj up_proj")

    def sources(module: Any, name: str, parts: str) -> Sources:
        return tuple(
            (f"model.layers.{at}.{name}.{part}.weight", len(getattr(module, part).weight))
            for part in parts.split()
        )

    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        qkv=attention.qkv_proj
        if fused
        else _joined(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=_norm(query_norm) if query_norm is not None else None,
        key_norm=_norm(key_norm) if key_norm is not None else None,
        output=attention.o_proj,
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=mlp.gate_up_proj if fused else _joined(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj,
        activation=mlp.activation_fn if fused else mlp.act_fn,
        scaling=attention.scaling,
        sources={
            "qkv": sources(*of_attention),
            "output": sources(attention, "self_attn", "o_proj"),
            "gate_up": sources(*of_mlp),
            "down": sources(mlp, "mlp", "down_proj"),
        },
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _joined(*parts: nn.Linear) -> nn.Linear:
    """One linear layer that gives the outputs of all side by side. The parts keep working: their
    parameters become views of the joined ones."""
    joined = nn.Linear(1, 1, bias=parts[0].bias is not None, device="meta")
    for name in ("weight", "bias"):
        own = [getattr(part, name) for part in parts]
        if own[0] is None:
            continue
        whole = torch.cat([tensor.detach() for tensor in own])
        setattr(joined, name, nn.Parameter(whole, requires_grad=False))
        for part, view in zip(parts, torch.split(whole, [len(t) for t in own]), strict=True):
            setattr(part, name, nn.Parameter(view, requires_grad=False))
    joined.out_features, joined.in_features = joined.weight.shape
    return joined
