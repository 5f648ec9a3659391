"""Asks of one run that begin with the same tokens run them once, with the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from operators.engine.task_run import shared_tokens
from operators.events import ResultEvent, Segment, StreamSettings
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from operators.tasks.base import Ask, Outcome, Spoken, Steps, StreamView, Task
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, Clock, drain

BEGIN = "the same beginning of every prompt, "


class Several(Task):
    """Asks several things of each segment. ``alone``: without the transcript."""

    name = "several"

    def __init__(self, ends: Sequence[str], alone: bool, begin: str = BEGIN) -> None:
        self._ends, self._alone, self._begin = ends, alone, begin

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        return True

    def run(self, view: StreamView, occasion: Spoken) -> Steps:
        encode = self.tools.tokenizer.encode
        asks = [Ask(encode(self._begin + end), 12, alone=self._alone) for end in self._ends]
        answers = yield asks
        texts = "|".join(str(answer.tokens) for answer in answers)
        event = ResultEvent(stream_id="a", epoch=0, revision=0, task=self.name, text=texts)
        return Outcome(events=(event,))


class Counts(Observer):
    def __init__(self) -> None:
        self.prompt_tokens = 0.0

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.prompt_tokens += value if name == "prompt_tokens" else 0


def answers(ends: Sequence[str], *, alone: bool, branches: int, at_once: bool) -> tuple[Any, float]:
    """The answers to all ends, in one run or in a run each, and the prompt tokens that were run."""
    tasks = [Several(ends, alone)] if at_once else [Several([end], alone) for end in ends]
    texts: list[str] = []
    counts = Counts()
    for task in tasks:
        config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": (), "branches": branches})
        operator = StreamOperator(
            toy_decoder(), config, clock=Clock(), observer=counts, tasks=[task]
        )
        operator.open("a")
        operator.feed(Segment(stream_id="a", segment_id="s", text="we move the red button"), 0)
        made = [event for emission in drain(operator) for event in emission.events]
        texts += [event.text for event in made if isinstance(event, ResultEvent)]
    return "|".join(texts), counts.prompt_tokens


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("branches", [1, 2, 4])
def test_shared_tokens_are_run_once_and_change_no_answer(alone: bool, branches: int) -> None:
    ends = ["one", "another", "the third", "last"]
    apart, fresh = answers(ends, alone=alone, branches=branches, at_once=False)
    together, shared = answers(ends, alone=alone, branches=branches, at_once=True)
    assert together == apart
    heard = (fresh - sum(len(BEGIN + end) for end in ends)) / len(ends)
    assert shared == heard + len(BEGIN) + sum(map(len, ends))


def test_what_prompts_share() -> None:
    assert shared_tokens([range(20)]) == 0
    assert shared_tokens([range(20), range(20)]) == 19, "one token is left to each"
    assert shared_tokens([range(20), [*range(12), 7, 7]]) == 12
    assert shared_tokens([range(20), [*range(3), 7, 7, 7, 7, 7, 7, 7]]) == 0
