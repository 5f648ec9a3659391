"""transformers ``generate`` with its own cache and its own drafts.

Its ``SinkCache`` was removed in 5.x (it lives on as remote code on the hub). What is left grows with the
stream (``DynamicCache``), or slides without sinks for models made for that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.lab.conformance.engine import Answer, NotOffered, Setup
from pipelines.lab.conformance.material import Material

DRAFTS = 5
NO_WINDOW = "no cache with sinks and a rolling window since SinkCache was removed"
NO_DRAFTS_BEHIND_CACHE = (
    "assisted generation from a kept cache: it reads the whole prompt again on top of it"
)


class Transformers:
    """See the module's docstring."""

    name = "transformers"
    version = metadata.version("transformers")

    def load(self, material: Material, setup: Setup) -> None:
        from transformers import DynamicCache

        self._model: Any = material.model
        self._draft = material.draft if setup.drafts == "model" else None
        self._setup, self._heard = setup, list(setup.sinks)
        self._cache: Any = DynamicCache(config=self._model.config)
        self._read(self._heard)

    def feed(self, tokens: Sequence[int]) -> None:
        if len(self._heard) + len(tokens) > len(self._setup.sinks) + self._setup.window:
            raise NotOffered(NO_WINDOW)
        self._heard += tokens
        self._read(tokens)

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int]) -> None:
        self._model(torch.tensor([list(tokens)]), past_key_values=self._cache, use_cache=True)

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        drafts: dict[str, Any] = {}
        if self._setup.drafts == "lookup":
            drafts["prompt_lookup_num_tokens"] = DRAFTS
        if self._draft is not None:
            drafts["assistant_model"] = self._draft
        # With drafts and a cache that holds text 5.17 gives other tokens, so all is read anew then.
        cache = None if drafts else copy.deepcopy(self._cache)
        ids = torch.tensor([[*self._heard, *prompt]])
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **drafts,
        )
        return Answer(made[0, ids.shape[1] :].tolist())

    def snapshot(self, folder: Path) -> None:
        if self._setup.drafts != "none":
            raise NotOffered(NO_DRAFTS_BEHIND_CACHE)
        saved = {"heard": torch.tensor(self._heard)}
        for at, layer in enumerate(self._cache.layers):
            saved |= {f"keys {at}": layer.keys, f"values {at}": layer.values}
        save_file(saved, folder / "cache.safetensors")

    def restore(self, folder: Path) -> None:
        from transformers import DynamicCache

        saved = load_file(folder / "cache.safetensors")
        self._heard = saved["heard"].tolist()
        self._cache = DynamicCache(config=self._model.config)
        for at in range(self._model.config.num_hidden_layers):
            self._cache.update(saved[f"keys {at}"], saved[f"values {at}"], at)

    def close(self) -> None:
        return None
