"""A stream's whole memory as bytes: KV tensors and what belongs to them, in one safetensors file.

The KV of a window is not a function of the window's text: above the first layer it carries context
that was evicted. So a snapshot holds the tensors, and a stream restored from it continues token for
token. The file names the model, types and sizes it was made with, and an operator with others refuses
it; a checksum detects torn and altered files. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from operators.cache.kv_cache import KvLayout
from operators.config import OperatorConfig
from operators.engine.known_segments import Known
from operators.errors import SnapshotError
from operators.model.loader import DecoderModel
from operators.state import SessionState, WindowSegment

LAYOUT_VERSION = 3
"""Of the tensors ``[2, layers, kv_heads, used, head_dim]`` and of :class:`StreamMemory`."""
_KEY, _CHECKSUM_CHARS = "longstream", 64
_PROBE = "Guten Tag, 12:30 \u2014 \u4f60\u597d <|im_end|>"
_SHAPE_ANSWERS = (
    *("update_tokens", "update_interval_s", "summary_method", "summary_tokens", "ledger_tokens"),
    *("ledger_bytes", "archive_bytes", "view_notes", "branch_tokens", "skip_behind"),
    *("targets", "translation_unit_tokens", "translation_noise", "translation_policy"),
    *("topic_shift", "update_adaptive", "update_silence_s"),
    *("prompts", "prompt_pack", "temperature", "top_k", "top_p"),
    *("repetition_penalty", "sampling_seed", "sampling_acceptance", "sampled_tasks"),
)


class DraftRecord(msgspec.Struct, frozen=True):
    """Whose KV the tensor ``draft`` is, and where it begins (``origin`` of StreamSlot)."""

    model: str
    origin: int


class PartRecord(msgspec.Struct, frozen=True):
    """A part of transcript in the window: its place, and which segment it is."""

    start: int
    tokens: tuple[int, ...]
    said: str
    info: WindowSegment


class StreamMemory(msgspec.Struct, kw_only=True):
    """All of a quiet stream but its tensors.

    A quiet stream has no token that was chosen and not yet written, and no random state: samples
    follow from the seed (in ``settings``), the stream's name and the position (``state``).
    """

    identity: dict[str, str]
    """Which operators can read the tensors: see :func:`identity`."""
    settings: str
    """Hash of the settings that shape answers: with others the stream continues, marked
    ``settings_changed``."""
    state: SessionState
    length: int
    """Tokens ever appended; the absolute position of the next one."""
    covered: int
    last_fork: int
    window: list[PartRecord]
    index: list[int]
    """Tokens of the draft index, oldest first."""
    draft_arms: dict[str, dict[str, tuple[float, float, float]]]
    """Per kind of answer what is known of each way to draft."""
    known: list[Known]
    """Segments taken lately, oldest first."""
    draft: DraftRecord | None = None


def identity(model: DecoderModel, layout: KvLayout, prefix: list[int]) -> dict[str, str]:
    """What has to be equal for a snapshot to be valid, by name."""
    return {
        "layout version": str(LAYOUT_VERSION),
        "model": model.fingerprint,
        "tokenizer": _hash(repr(model.tokenizer.encode(_PROBE)).encode()),
        "pinned prefix": _hash(repr(prefix).encode()),
        "dtype_prefill": model.dtypes["prefill"],
        "dtype_decode": model.dtypes["decode"],
        "sinks": str(layout.sinks),
        "window": str(layout.window),
        "slack": str(layout.slack),
    }


def draft_identity(draft: DecoderModel) -> str:
    """What has to be equal for the draft model's KV to be of use."""
    return f"{draft.fingerprint} {draft.dtypes['prefill']}"


def settings_hash(config: OperatorConfig) -> str:
    """Equal for settings under which the same memory gives the same answers."""
    return _hash(json.dumps({name: getattr(config, name) for name in _SHAPE_ANSWERS}).encode())


def to_bytes(memory: StreamMemory, kv: Tensor, draft: Tensor | None = None) -> bytes:
    """One safetensors file. Tensors on the host, as :meth:`KvCache.export` gives them."""
    text = msgspec.json.encode(memory).decode()
    tensors = {"kv": kv.contiguous()}
    if draft is not None:
        tensors["draft"] = draft.contiguous()
    # One entry: the order of several is not fixed, and equal memories must give equal bytes.
    data: bytes = save(tensors, metadata={_KEY: _checksum(text, tensors) + text})
    return data


def from_bytes(data: bytes, want: dict[str, str]) -> tuple[StreamMemory, Tensor, Tensor | None]:
    """Memory, KV and the draft model's KV of a snapshot; ``want``: the reader's :func:`identity`.

    Raises SnapshotError when the file is torn or altered, or was made by something else.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])["__metadata__"][_KEY]
        checksum, text = entry[:_CHECKSUM_CHARS], entry[_CHECKSUM_CHARS:]
        tensors = load(data)
        kv = tensors["kv"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"this is no whole snapshot ({type(error).__name__}: {error})"
        ) from error
    if _checksum(text, tensors) != checksum:
        raise SnapshotError("the snapshot's content does not match its checksum")
    try:
        found: dict[str, str] = json.loads(text)["identity"]
        for name, value in want.items():
            if found.get(name) != value:
                raise SnapshotError(
                    f"the snapshot was made with another {name} ({found.get(name)}; here {value})"
                )
        return msgspec.json.decode(text, type=StreamMemory), kv, tensors.get("draft")
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise SnapshotError(f"the snapshot cannot be read: {error}") from error


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
