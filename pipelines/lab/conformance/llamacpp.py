"""llama.cpp's server, prebuilt (``xllamacpp``), asked over HTTP.

Its own context shift drops half of the window at a time. A window that rolls is had from
``n_cache_reuse``: a request whose prompt has lost its oldest token moves the keys of all the others one
place down. So behind a full window every token is a request of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from pipelines.lab.conformance.engine import Answer, Setup
from pipelines.lab.conformance.material import Material
from pipelines.lab.llamacpp_server import package, parameters

PATIENCE_S = 120.0
DRAFTS = 8
"""Tokens of one draft at most."""
SLOT = "slot.bin"


class LlamaCpp:
    """See the module's docstring. KV in fp32, one slot."""

    name = "llamacpp"
    version = ""

    def load(self, material: Material, setup: Setup) -> None:
        self.version = metadata.version("xllamacpp")
        self._setup, self._heard, self._behind_snapshot = setup, list[int](), False
        self._saved = material.folder / "slots"
        self._saved.mkdir(exist_ok=True)
        context = len(setup.sinks) + setup.window + setup.answer_tokens
        params = parameters(
            material.gguf(), parallel=1, context=context, threads=1, save_to=self._saved
        )
        kinds = package().ggml_type
        params.cache_type_k = params.cache_type_v = kinds.GGML_TYPE_F32
        params.flash_attn_type = package().llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if setup.drafts != "none":
            self._draft_with(params.speculative, material)
        self._server: Any = package().Server(params)
        self._client = httpx.Client(base_url=self._server.listening_address, timeout=PATIENCE_S)
        self._ask(setup.sinks, 0)

    def _draft_with(self, speculative: Any, material: Material) -> None:
        types = package().common_speculative_type
        if self._setup.drafts == "lookup":
            speculative.types = [types.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = 3, DRAFTS
            return
        speculative.types = [types.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(material.gguf(draft=True))
        speculative.draft.n_max, speculative.draft.p_min = DRAFTS, 0.0
        speculative.draft.cache_type_k = package().ggml_type.GGML_TYPE_F32
        speculative.draft.cache_type_v = package().ggml_type.GGML_TYPE_F32

    def feed(self, tokens: Sequence[int]) -> None:
        at_once = max(0, self._setup.window - len(self._heard))
        if at_once:
            self._heard += tokens[:at_once]
            self._ask(self._seen(self._setup.window), 0)
        for token in tokens[at_once:]:
            self._heard.append(token)
            self._ask(self._seen(self._setup.window + 1), 0)  # the window before it, and itself

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        made = self._ask([*self._seen(self._setup.window), *prompt], count)
        if self._behind_snapshot and made["timings"]["prompt_n"] > len(prompt) + 1:
            raise RuntimeError("the restored slot was not used: its text was run again")
        accepted = made["timings"].get("draft_n_accepted", 0)
        return Answer(made["tokens"], None if self._setup.drafts == "none" else accepted)

    def snapshot(self, folder: Path) -> None:
        self._post("/slots/0?action=save", filename=SLOT)
        (self._saved / SLOT).rename(folder / SLOT)
        (folder / "heard").write_text(" ".join(map(str, self._heard)))

    def restore(self, folder: Path) -> None:
        (self._saved / SLOT).write_bytes((folder / SLOT).read_bytes())
        self._post("/slots/0?action=restore", filename=SLOT)
        self._heard = [int(word) for word in (folder / "heard").read_text().split()]
        self._behind_snapshot = True

    def close(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
            del self._server

    def _seen(self, last: int) -> list[int]:
        return [*self._setup.sinks, *self._heard[-last:]]

    def _ask(self, prompt: Sequence[int], count: int) -> Any:
        """The next ``count`` tokens; none: the prompt is only read."""
        return self._post(
            "/completion",
            prompt=list(prompt),
            n_predict=count,
            temperature=0,
            ignore_eos=True,
            cache_prompt=True,
            n_cache_reuse=max(1, self._setup.window // 2),
            id_slot=0,
            return_tokens=True,
        )

    def _post(self, path: str, **fields: object) -> Any:
        reply = self._client.post(path, json=fields)
        if reply.is_error:
            raise RuntimeError(f"{path}: {reply.text[:300]}")
        return reply.json()
