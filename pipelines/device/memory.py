"""Will it fit: what a worker needs in memory, what there is, and how many streams that makes.

One arithmetic for three callers: the model's process, which refuses to start with more slots than its
memory can hold, ``longstream doctor`` and ``longstream plan``. To the KV of the cache's layout it adds
the weights, the idle streams in host memory and the processes themselves.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from operators.cache.kv_cache import KvLayout, KvShape, token_bytes
from operators.config import OperatorConfig
from operators.errors import ConfigError, ModelError
from operators.model.loader import DTYPES, DecoderModel, check_supported
from operators.model.tokenizer import HubTokenizer
from operators.tasks.prompts import Prompts

PROCESS_BYTES = 900 << 20
"""Resident memory of the worker's two processes before model and cache (docs/deployment.md)."""
DECODE_BYTES = {"int8": 1.02, "w8a8": 1.02, "int4": 0.62, "q4": 0.75}
"""Bytes per matrix element of a second copy of the weights for generation; other types have none. Of q4
as in a Q4_K_M file, a quarter of which becomes int8."""
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""A cgroup says "no limit" with a number near 2^63."""


@dataclass(frozen=True)
class Size:
    """What a model contributes to the arithmetic: bytes of its weights, shape of its KV.
    ``sinks``: tokens of the pinned prefix; a draft model has the target's."""

    weights: int
    shape: KvShape
    kv_dtype: torch.dtype
    sinks: int


@dataclass(frozen=True)
class Memory:
    """Bytes a process may have, and who says so."""

    total: int
    free: int
    source: str


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker. ``slot``: KV of one stream, on the device or, idle, in host memory.
    ``scratch``: all branch regions together."""

    weights: int
    slot: int
    scratch: int
    slots: int
    host_streams: int
    on_cpu: bool

    @property
    def fixed(self) -> int:
        """Bytes the device must have besides its slots."""
        return self.weights + self.scratch + (PROCESS_BYTES if self.on_cpu else 0)

    @property
    def device(self) -> int:
        """Bytes the device must have from the start."""
        return self.fixed + self.slot * self.slots

    @property
    def host(self) -> int:
        """Bytes of idle streams in host memory, reached when so many are open."""
        return self.slot * self.host_streams

    @property
    def total(self) -> int:
        """On a CPU everything is host memory."""
        return self.device + (self.host if self.on_cpu else 0)

    def slots_in(self, memory: int) -> int:
        """How many slots ``memory`` bytes hold beside the rest."""
        return max(0, (memory - self.fixed) // self.slot)

    def idle_in(self, memory: int) -> int:
        """How many idle streams ``memory`` bytes hold beside all slots."""
        return max(0, (memory - (self.device if self.on_cpu else PROCESS_BYTES)) // self.slot)


def footprint(
    config: OperatorConfig, model: Size, draft: Size | None = None, *, device: str = "cpu"
) -> Footprint:
    """What a worker with these settings and models needs."""
    layout = KvLayout(model.sinks, config.window, config.slack, config.branch_tokens)
    slot = scratch = weights = 0
    for size in (model, draft):
        if size is not None:
            token = token_bytes(size.shape, size.kv_dtype)
            slot += token * layout.slot_tokens
            scratch += token * config.branches * layout.branch_tokens
            weights += size.weights
    return Footprint(
        weights, slot, scratch, config.slots, config.host_streams, not device.startswith("cuda")
    )


def admit(need: Footprint, there: Memory) -> str | None:
    """Raise ConfigError when weights and slots can never fit; a sentence when they fit only once others
    have given memory back, or when idle streams will not fit later; None when all is well."""
    if need.device > there.total:
        raise ConfigError(
            f"{need.slots} slots of {_mb(need.slot)} and {_mb(need.weights)} of weights need"
            f" {_mb(need.device)}, but {there.source} gives {_mb(there.total)}: at most"
            f" {need.slots_in(there.total)} slots fit (operator.slots), or lower operator.window"
        )
    if need.total > there.total:
        return (
            f"with {need.host_streams} idle streams in host memory this worker needs"
            f" {_mb(need.total)}, and {there.source} gives {_mb(there.total)}: lower"
            f" operator.host_streams to {need.idle_in(there.total)}, or set offload_url"
        )
    if need.device > there.free:
        return f"{_mb(need.device)} are needed and only {_mb(there.free)} are free now"
    return None


def memory_of(device: str) -> Memory:
    """Of a CUDA device its own; else the smaller of this machine's memory and the cgroup's limit."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(torch.device(device))
        return Memory(total, free, torch.cuda.get_device_name(torch.device(device)))
    machine = psutil.virtual_memory()
    limit, used = cgroup_memory()
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.available, "this machine")
    return Memory(limit, min(machine.available, limit - used), "the container's memory limit")


def cgroup_memory(root: Path = CGROUP) -> tuple[int | None, int]:
    """(limit, used) in bytes of this process's control group; limit None where there is none."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            bytes_ = int((root / limit).read_text())  # "max" is no number: no limit
            if bytes_ < UNLIMITED:
                return bytes_, int((root / used).read_text())
    return None, 0


def size_of_loaded(model: DecoderModel, config: OperatorConfig) -> Size:
    """A loaded model's size, as it is."""
    sinks = len(Prompts(model.tokenizer, config.prompts).prefix)
    return Size(model.weight_bytes, model.shape, model.dtype, sinks)


def size_of_folder(path: Path, config: OperatorConfig) -> Size:
    """A model's size from its folder, without loading its weights: they are laid out on torch's meta
    device. With ``dtype_decode`` auto on a CPU the larger choice (a copy in bytes) is assumed.

    Raises ModelError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        shape = AutoConfig.from_pretrained(path)
        check_supported(shape)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(shape)
        tokenizer = AutoTokenizer.from_pretrained(path)
        generation = None
        with contextlib.suppress(OSError):
            generation = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read a model's config and tokenizer in {path}: {error}"
        ) from error
    heads = shape.num_attention_heads
    dtype = DTYPES["fp32" if "fp32" in (config.dtype_prefill, config.dtype_decode) else "bf16"]
    numel = sum(p.numel() for p in network.parameters())
    weights = numel * dtype.itemsize
    if dtype != DTYPES["fp32"] and config.dtype_decode not in ("bf16", "fp16"):
        kind = config.dtype_decode if config.dtype_decode != "auto" else "int8"
        matrices = sum(p.numel() for n, p in network.named_parameters() if p.dim() == 2)
        if not getattr(shape, "tie_word_embeddings", False):
            matrices -= (
                shape.vocab_size * shape.hidden_size
            )  # the embedding itself is only looked up
        weights += int(matrices * DECODE_BYTES[kind])
    framed = HubTokenizer(tokenizer, shape, generation, config.prompt_pack)
    prefix = Prompts(framed, config.prompts).prefix
    return Size(
        weights,
        KvShape(
            shape.num_hidden_layers,
            getattr(shape, "num_key_value_heads", None) or heads,
            getattr(shape, "head_dim", None) or shape.hidden_size // heads,
        ),
        dtype,
        len(prefix),
    )


def _mb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
