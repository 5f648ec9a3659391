"""The same tasks on another backend: a server with OpenAI's interface, or transformers' ``generate``.

Unlike the other peers it ends its answers itself and counts tokens by its own estimate, so it may give
more or fewer answers and tokens than ours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from operators.config import OperatorConfig
from operators.events import Question
from operators.model.served import TextModel
from operators.observer import Observer
from pipelines import models
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.meeting_job import Job
from pipelines.lab.benchmarks.peer_result import Took
from pipelines.lab.llamacpp_server import server_for
from pipelines.served.load import load_text_model, served_operator


class _Counted(Observer):
    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.counted[name] += int(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        if name == "time_to_first_token_seconds":
            self.counted["answers"] += 1


class Served:
    """A text model that stays open from run to run."""

    def __init__(self, text: TextModel, config: OperatorConfig) -> None:
        self._text, self._config = text, config

    def run(self, job: Job) -> Took:
        """The whole job behind windows that the model has seen once, for the sake of prefix caches."""
        counted = _Counted()
        operator = served_operator(self._text, self._config, observer=counted, closes_model=False)
        for stream in job.streams:
            operator.open(stream.stream_id, state=stream.state)
            question = Question(
                stream_id=stream.stream_id, question_id="q", text="What is this about?"
            )
            operator.ask(question)
        while operator.has_work():
            operator.step()
        counted.counted.clear()
        began = time.perf_counter()
        for stream in job.streams:
            for segment in stream.segments:
                assert segment.seq is not None
                operator.feed(segment, segment.seq)
        while operator.has_work():
            operator.step()
        seconds = time.perf_counter() - began
        operator.close()
        found = counted.counted
        return Took(seconds, found["answers"], found["prompt_tokens"], found["generation_tokens"])


def served_sides(run: Run, config: OperatorConfig) -> dict[str, Callable[[Job], Took]]:
    """The side that ``--backend`` asks for, by name; none for ``local``. Raises ConfigError, ModelError,
    DeviceError."""
    if run.backend == "local":
        return {}
    server = server_for(
        run.backend, run.server_url, run.server_model, model=run.model, streams=config.slots
    )
    folder = models.resolve(run.model) if server is None else None
    draft = models.resolve(run.draft_model) if server is None and run.draft_model else None
    text = load_text_model(server, config, name=run.model, folder=folder, draft=draft, say=run.say)
    return {f"our tasks on {run.backend}": Served(text, config).run}
