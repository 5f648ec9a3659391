"""A GGUF file as a folder that transformers loads: bf16 safetensors, config, tokenizer.

Weights are dequantized and rounded to bf16, nothing else. transformers' own
``from_pretrained(gguf_file=...)`` would need accelerate and then refuses to save what it loaded,
so the tensors are read one level lower and written by safetensors directly. Converted tokenizers
are corrected where transformers loses what the file says: see :func:`_tokenizer`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from operators.errors import ModelError

Progress = Callable[[str, float | None], None]

VERSION = 1
"""Raise it whenever the same GGUF would give other files: folders of older versions are redone."""
CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that are matched as a whole, before the text is split."""
DTYPE = "bfloat16"
WEIGHTS = "model.safetensors"


def convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write ``model.safetensors``, ``four_bits.safetensors`` (where the file has such weights), the
    configs and the tokenizer of ``gguf`` into ``folder``.

    ``folder`` must exist. Raises ``ModelError`` for a file that is not GGUF, an architecture
    transformers cannot read, or tensors that do not fill the model exactly. Peak memory is the
    file, the bf16 model and twice its largest tensor in float32 (seen: 6.3 GB for 1.5B weights).
    """
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipelines.models import four_bits

    source = str(gguf.parent)
    try:
        fields = GGUFReader(gguf).fields
        config = AutoConfig.from_pretrained(source, gguf_file=gguf.name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        tokenizer = _tokenizer(gguf, fields)
        tensors = _tensors(gguf, model, progress)
    except (ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{gguf.name} cannot be converted: {error}") from error
    _check_complete(model, tensors)
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    progress("writing safetensors", None)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors makes it private
    tokenizer.save_pretrained(folder)
    progress("keeping the file's own four-bit weights", None)
    four_bits.write(gguf, folder, config)
    _write_generation_config(config, folder)


def _tensors(gguf: Path, model: Any, progress: Progress) -> dict[str, Any]:
    """The file's tensors by transformers name, dequantized, bf16, contiguous."""
    import torch
    from transformers import modeling_gguf_pytorch_utils as reader

    with _progress_of(reader, progress):
        loaded = reader.load_gguf_checkpoint(
            str(gguf), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
        )
    return {name: tensor.contiguous() for name, tensor in loaded["tensors"].items()}


@contextlib.contextmanager
def _progress_of(module: Any, progress: Progress) -> Iterator[None]:
    """Replace the module's bar on stderr by our callback while inside."""

    def steps(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        total = len(items)  # type: ignore[arg-type]
        for done, item in enumerate(items):
            progress("converting to bf16", done / total)
            yield item

    original = module.tqdm
    module.tqdm = steps
    try:
        yield
    finally:
        module.tqdm = original


def _check_complete(model: Any, tensors: dict[str, Any]) -> None:
    """Every weight of the model is there with its shape, and nothing besides."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)  # stored once, as the embedding
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := {n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n)}:
        raise ModelError(
            f"{len(wrong)} tensors do not fit {type(model).__name__}, first {min(wrong)}: "
            "this GGUF is of a kind that cannot be converted"
        )


def _tokenizer(gguf: Path, fields: Any) -> Any:
    """The tokenizer with its chat template, special tokens and digit splitting as in the file.

    transformers 5.17 sets the end token of a Llama GGUF to its *begin* token, knows three of
    Qwen's special tokens, and splits a Llama's text as GPT-2 does whatever ``tokenizer.ggml.pre``
    says: SmolLM2 was trained with single digits.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import AutoTokenizer

    def field(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokens = field("tokenizer.ggml.tokens")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = field(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            setattr(tokenizer, f"{name}_token", tokens[index])
    for token, kind in zip(tokens, field("tokenizer.ggml.token_type") or (), strict=False):
        if kind in (CONTROL, USER_DEFINED):
            whole = AddedToken(token, normalized=False, special=kind == CONTROL)
            tokenizer.add_tokens([whole], special_tokens=kind == CONTROL)
    tokenizer.chat_template = field("tokenizer.chat_template")
    tokenizer.clean_up_tokenization_spaces = False
    if field("tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def _write_generation_config(config: Any, folder: Path) -> None:
    """The token ids only: sampling is the caller's business."""
    ids = {f"{n}_token_id": getattr(config, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
