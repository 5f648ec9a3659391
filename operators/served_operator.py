"""The operator on a model that runs elsewhere: same tasks, streams, events and state.

    operator = ServedOperator(ServedModel(text_model), OperatorConfig(targets=("fr",)))

A stream's memory is its window's text. ``branches`` bounds the requests under way; nothing is allocated
for a slot. A step sends what is due and takes what has come; with nothing else to do it waits some
milliseconds for an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from operators.config import OperatorConfig
from operators.decoding.acceptance import Costs
from operators.engine.scheduler import Scheduler
from operators.engine.served import ServedRunner, ServedScheduler, ServedTaskRunner
from operators.engine.task_runner import TaskRunner
from operators.errors import ConfigError
from operators.model.served import ServedModel
from operators.observer import Observer
from operators.state import Emission
from operators.stream_operator import StreamOperator, no_clock
from operators.tasks.base import Task


class ServedOperator(StreamOperator):
    """See the module's docstring, and :class:`StreamOperator` for what it does. ``slack`` and
    ``prefill_budget`` are the window's size: ingest is free. ``closes_model``: whether :meth:`close`
    closes the model's connections too."""

    def __init__(
        self,
        model: ServedModel,
        config: OperatorConfig | None = None,
        *,
        clock: Callable[[], float] = no_clock,
        observer: Observer | None = None,
        tasks: Sequence[Task] = (),
        closes_model: bool = True,
    ) -> None:
        self._closes_model = closes_model
        config = config or OperatorConfig()
        if config.draft_model or config.draft_head:
            name = "draft_model" if config.draft_model else "draft_head"
            raise ConfigError(f"{name}: a served model's drafts are made by its server")
        config = dataclasses.replace(
            config, slack=config.window, prefill_budget=config.window, drafter="none"
        )
        self._served = model
        super().__init__(model, config, clock=clock, observer=observer, tasks=tasks)

    def _new_task_runner(self) -> TaskRunner:
        model = self.model
        runner = ServedTaskRunner(self.config, self.cache, model.tokenizer, self._clock, 0)
        runner.prefix = self._prompts.prefix
        return runner

    def _new_scheduler(self, costs: Costs | None) -> Scheduler:
        return ServedScheduler(self.cache, self.config, self._residency)

    def _new_runner(self) -> ServedRunner:
        self._requests_sent = ServedRunner(self._served, self._observer)
        return self._requests_sent

    def step(self) -> list[Emission]:
        emissions = super().step()
        self._requests_sent.sweep()
        return emissions

    def drop(self, stream_id: str) -> None:
        super().drop(stream_id)
        self._requests_sent.sweep()

    def close(self) -> None:
        """Drop every stream, and let go of the model."""
        super().close()
        if self._closes_model:
            self._served.text.close()
