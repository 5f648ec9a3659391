"""OpenVINO GenAI's continuous batching, with KV and arithmetic in fp32.

Its cache eviction keeps a beginning and an end, but only while an answer is generated, in whole blocks,
and what it evicts between them it chooses by attention scores. A stream cannot be fed through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import ConfigError
from pipelines import models
from pipelines.lab.conformance.engine import Answer, NotOffered, Setup
from pipelines.lab.conformance.material import Material

NGRAM, DRAFTS = 3, 5
NO_WINDOW = (
    "evicts blocks by attention scores, while it generates: no window that rolls with the text"
)
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "INFERENCE_NUM_THREADS": 1,
}


class OpenVino:
    """See the module's docstring. From the same GGUF file as llama.cpp."""

    name = "openvino"
    version = ""

    def load(self, material: Material, setup: Setup) -> None:
        if find_spec("openvino_genai") is None:
            raise ConfigError("OpenVINO GenAI is not installed: pip install openvino-genai")
        import openvino
        import openvino_genai

        self.version = metadata.version("openvino-genai")
        self._tensor, self._api, self._setup = openvino.Tensor, openvino_genai, setup
        self._heard = list(setup.sinks)
        plan: Any = openvino_genai.SchedulerConfig()
        plan.enable_prefix_caching, plan.cache_size = True, 1
        extra: dict[str, Any] = {}
        if setup.drafts == "lookup":
            extra["prompt_lookup"] = True
        if setup.drafts == "model":
            extra["draft_model"] = openvino_genai.draft_model(_own(material), "CPU", **EXACT)
        self._pipe: Any = openvino_genai.ContinuousBatchingPipeline(
            str(material.gguf(half=True)), _tokenizer(), plan, "CPU", **EXACT, **extra
        )
        self._asked = 0

    def feed(self, tokens: Sequence[int]) -> None:
        if len(self._heard) + len(tokens) > len(self._setup.sinks) + self._setup.window:
            raise NotOffered(NO_WINDOW)
        self._heard += tokens

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        config = self._api.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        if self._setup.drafts != "none":
            config.num_assistant_tokens = DRAFTS
        if self._setup.drafts == "lookup":
            config.max_ngram_size = NGRAM
        ids = self._tensor(np.array([[*self._heard, *prompt]], dtype=np.int64))
        handle = self._pipe.add_request(self._asked, ids, config)
        self._asked += 1
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        (output,) = handle.read_all()
        return Answer(list(output.generated_ids))

    def snapshot(self, folder: Path) -> None:
        raise NotOffered("no way to save a cache")

    def restore(self, folder: Path) -> None:
        raise NotOffered("no way to save a cache")

    def close(self) -> None:
        if hasattr(self, "_pipe"):
            del self._pipe


SOME_TOKENIZER = "smollm2-135m"
"""A model whose file has one that OpenVINO reads: it wants a tokenizer, though all is asked in ids."""


def _tokenizer() -> Any:
    import openvino_genai

    return openvino_genai.Tokenizer(str(models.gguf_file(SOME_TOKENIZER)))


def _own(material: Material) -> str:
    """The draft model in OpenVINO's own format, with a tokenizer beside it: it takes no other for a
    draft. Returns its folder."""
    import openvino_genai

    file = material.gguf(draft=True, half=True)
    if not (file.parent / "openvino_model.xml").exists():
        openvino_genai.LLMPipeline(str(file), _tokenizer(), "CPU", enable_save_ov_model=True)
        other = file.parent / "tokenizer.gguf"  # they are written beside the file they come from
        other.symlink_to(models.gguf_file(SOME_TOKENIZER))
        openvino_genai.Tokenizer(str(other), enable_save_ov_model=True)
    return str(file.parent)
