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
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.device.calibration import load_calibrated, measured_costs
from pipelines.lab.benchmarks.harness import TOY
from pipelines.lab.eval.backends import EngineBackend, Template, hub_template


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
        costs = None
        if self.name != TOY:
            costs = measured_costs(self.model, None, config, models.default_cache())
        operator = StreamOperator(
            self.model, config, clock=time.monotonic, observer=spent, costs=costs
        )
        try:
            yield operator, spent
        finally:
            operator.close()

    def backend(self, context: int) -> EngineBackend:
        """The same weights behind a plain prompt."""
        return EngineBackend(self.model, self.template, context)

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
