"""The transformers library as the model: plain ``generate``, one answer after the other.

Slow and short on purpose: the whole of how an answer is made can be read here. ``assistant`` is a
smaller model of the same family that drafts (``assistant_model`` of ``generate``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from operators.errors import ModelError
from operators.model.served import TextAnswer, TextRequest
from operators.observer import Observer
from pipelines.served.forms import within


class TransformersModel:
    """A :class:`operators.model.served.TextModel` on a folder that transformers can load (or a network
    and a tokenizer that it has loaded). One answer at a time."""

    def __init__(self, network: Any, tokenizer: Any, *, name: str, assistant: Any = None) -> None:
        self._network, self._tokenizer, self._assistant = network, tokenizer, assistant
        self.name, self.identity = name, f"transformers {name}"
        self.context: int | None = getattr(network.config, "max_position_embeddings", None)
        self._worker = ThreadPoolExecutor(1, "transformers")

    def submit(self, request: TextRequest) -> Future[TextAnswer]:
        return self._worker.submit(self._answer, request, time.monotonic())

    def measure(self, observer: Observer) -> None:
        """Nothing is counted."""

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _answer(self, request: TextRequest, began: float) -> TextAnswer:
        ids = self._prompt(request)
        if request.choices:
            return self._weigh(request, ids, began)
        stop = _Stop(self._tokenizer, ids.shape[1], request.ends)
        sampling = request.sampling
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        out = self._network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            stopping_criteria=[stop],
            assistant_model=self._assistant,
            repetition_penalty=sampling.repetition_penalty,
            top_k=sampling.top_k or None,
            pad_token_id=self._tokenizer.eos_token_id,
            **how,
        )
        made = out[0, ids.shape[1] :]
        text = within(self._tokenizer.decode(made, skip_special_tokens=True), request.form)
        full = len(made) >= request.max_tokens and not request.ends(text)
        ended = int(made[-1]) in stop.ends_with if len(made) else True
        return TextAnswer(
            text=text,
            finish_reason="length" if full and not ended else "stop",
            prompt_tokens=ids.shape[1],
            output_tokens=len(made),
            first_token_s=(stop.first_at or time.monotonic()) - began,
            seconds=time.monotonic() - began,
        )

    def _weigh(self, request: TextRequest, ids: torch.Tensor, began: float) -> TextAnswer:
        firsts = [
            self._tokenizer.encode(choice, add_special_tokens=False)[0]
            for choice in request.choices
        ]
        scores = self._network(input_ids=ids).logits[0, -1, firsts].float()
        took = time.monotonic() - began
        return TextAnswer(
            weights=tuple(torch.softmax(scores, dim=0).tolist()),
            prompt_tokens=ids.shape[1],
            first_token_s=took,
            seconds=took,
        )

    def _prompt(self, request: TextRequest) -> torch.Tensor:
        """Tokens ``[1, n]`` up to where the answer goes on."""
        tokenizer = self._tokenizer
        messages = [{"role": role, "content": text} for role, text in request.messages]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n"
        ids = tokenizer.encode(text + request.opening, add_special_tokens=False)
        return torch.tensor([ids], device=self._network.device)


class _Stop:
    """Stops when the answer is complete."""

    def __init__(self, tokenizer: Any, prompt: int, ends: Callable[[str], bool]) -> None:
        self._tokenizer, self._prompt, self._ends = tokenizer, prompt, ends
        self.ends_with = {tokenizer.eos_token_id}
        self.first_at = 0.0

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.first_at = self.first_at or time.monotonic()
        made = ids[0, self._prompt :]
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        return torch.tensor([self._ends(text)], device=ids.device)


def load_transformers(
    folder: Path, *, name: str, assistant: Path | None = None, device: str = "auto"
) -> TransformersModel:
    """Raises ModelError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def network(path: Path) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, use_safetensors=True
        )
        return loaded.to(device).eval().requires_grad_(False)

    try:
        drafts = network(assistant) if assistant is not None else None
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return TransformersModel(network(folder), tokenizer, name=name, assistant=drafts)
    except (OSError, ValueError) as error:
        raise ModelError(f"transformers cannot load {folder}: {error}") from error
