"""One loaded model for all sides of a run, and the operators made on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from operators.config import OperatorConfig
from operators.model.loader import DecoderModel
from operators.model.served import ServedModel, TextModel
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.device.calibration import alignment_heads, load_calibrated, measured_costs
from pipelines.lab.benchmarks.harness import TOY
from pipelines.lab.eval.backends import (
    Backend,
    EngineBackend,
    ServedBackend,
    Template,
    hub_template,
)
from pipelines.served.load import load_text_model, served_operator
from pipelines.served.settings import ServerSettings


class Spent(Observer):
    """Counts what the engine says it runs: prompt and generated tokens."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.counted[name] += int(value)

    @property
    def prefilled(self) -> int:
        return self.counted["prompt_tokens"]

    @property
    def generated(self) -> int:
        return self.counted["generation_tokens"]


@dataclass
class Engine:
    """A model, how its chat template is filled, and the settings every operator on it gets."""

    name: str
    model: DecoderModel
    template: Template
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def operator(self, **settings: Any) -> Iterator[tuple[StreamOperator, Spent]]:
        """An operator for one side, with the counter that observes it."""
        config = OperatorConfig.from_dict({**self.settings, **settings})
        spent = Spent()
        costs, heads = None, {}
        if self.name != TOY:
            heads = alignment_heads(self.model, config, models.default_cache())
            costs = measured_costs(self.model, None, config, models.default_cache())
        operator = StreamOperator(
            self.model, config, clock=time.monotonic, observer=spent, costs=costs, heads=heads
        )
        try:
            yield operator, spent
        finally:
            operator.close()

    def backend(self, context: int, at_once: int = 1) -> Backend:
        """The same weights behind a plain prompt; ``at_once``: answers beside each other."""
        return EngineBackend(self.model, self.template, context, at_once)

    @property
    def weights(self) -> str:
        """Types of the weights, for prefill and decode."""
        return f"{self.model.dtypes['prefill']}+{self.model.dtypes['decode']}"


def load_engine(name: str, settings: dict[str, Any], say: Callable[[str], None]) -> Engine:
    """The model by its name (``toy`` is built), with the weights a worker would choose unless
    ``settings`` say which. Raises ModelError or ConfigError."""
    config = OperatorConfig.from_dict(settings)
    if name == TOY:
        from pipelines.lab.benchmarks.toy import toy_decoder

        toy = toy_decoder()
        return Engine(name, toy, lambda message: toy.tokenizer.encode(f"{message}\n>"), settings)
    folder = models.resolve(name)
    model = load_calibrated(folder, config, models.default_cache(), name=name, say=say)
    return Engine(name, model, hub_template(folder), settings)


# --- another backend -------------------------------------------------------------------------------


@dataclass
class ServedEngine(Engine):
    """The product on a model that runs elsewhere, and the same model behind plain prompts."""

    @property
    def text(self) -> TextModel:
        assert isinstance(self.model, ServedModel)
        return self.model.text

    @contextmanager
    def operator(self, **settings: Any) -> Iterator[tuple[StreamOperator, Spent]]:
        config = OperatorConfig.from_dict({**self.settings, **settings})
        spent = Spent()
        operator = served_operator(self.text, config, observer=spent, closes_model=False)
        try:
            yield operator, spent
        finally:
            operator.close()

    def backend(self, context: int, at_once: int = 1) -> Backend:
        return ServedBackend(self.text, at_once)

    @property
    def weights(self) -> str:
        return self.text.identity


def load_served_engine(
    name: str,
    backend: str,
    server: ServerSettings | None,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> ServedEngine:
    """``backend``: openai or transformers. Raises ModelError, ConfigError or DeviceError."""
    settings = {key: value for key, value in settings.items() if key != "dtype_decode"}
    config = OperatorConfig.from_dict(settings)
    here = backend == "transformers"
    draft = models.resolve(config.draft_model) if here and config.draft_model else None
    folder = models.resolve(name) if here else None
    text = load_text_model(server, config, name=name, folder=folder, draft=draft, say=say)

    def template(message: str) -> list[int]:
        raise NotImplementedError("a served model fills its own template")

    return ServedEngine(text.name, ServedModel(text), template, settings)
