"""Families of models, told by their chat templates: how a conversation is framed and answered.

The wording of prompts is one for all families; what differs is what the template must be told and which
tokens end an answer. Measured with Qwen2.5 only; the frames of the others are tested, their answers not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from operators.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True)
class Family:
    """``marks``: a template is of the family if all of one group stand in it. ``ends``: tokens that end
    an answer, besides the tokenizer's own. ``variables``: what the template is told."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    ends: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


_CHATML = ("<|im_end|>", "<|endoftext|>")
_NO_THINKING = {"enable_thinking": False}
FAMILIES = (
    Family("smollm", (("<|im_start|>", "SmolLM"),), _CHATML, _NO_THINKING),
    Family("qwen3", (("<|im_start|>", "<think>"),), _CHATML, _NO_THINKING),
    Family("qwen2.5", (("<|im_start|>", "Qwen"),), _CHATML),
    Family("phi", (("<|im_sep|>",), ("<|assistant|>", "<|end|>")), ("<|end|>", *_CHATML)),
    Family("chatml", (("<|im_start|>",),), _CHATML),
    Family("llama3", (("<|start_header_id|>",),), ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")),
    Family("gemma", (("<start_of_turn>",),), ("<end_of_turn>",)),
    Family("mistral", (("[INST]",),), ("</s>",)),
    Family("plain", ((),), (*_CHATML, "<|eot_id|>")),
)
"""The first whose marks a template has is its family; any template is at least plain."""
NAMES = tuple(family.name for family in FAMILIES)


def family_of(template: str | None, name: str = AUTO) -> Family:
    """The family of a chat template, or the one that is named. Raises ConfigError."""
    if name != AUTO:
        found = next((family for family in FAMILIES if family.name == name), None)
        if found is None:
            raise ConfigError(f"prompt_pack={name!r}: {AUTO} or one of {', '.join(NAMES)}")
        return found
    text = template or ""
    return next(f for f in FAMILIES if any(all(m in text for m in group) for group in f.marks))
