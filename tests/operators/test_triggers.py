"""When an update is due: silence, a shift of topic, an adaptive number of tokens; said in the event."""

from __future__ import annotations

from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.events import Segment, SummaryEvent
from operators.stream_operator import StreamOperator
from operators.tasks.base import Progress
from operators.tasks.summary import SummaryTask
from tests.engine import toy_decoder

SMALL: dict[str, Any] = {
    "window": 400,
    "slack": 64,
    "branch_tokens": 800,
    "slots": 1,
    "update_tokens": 120,
    "summary_method": "lines",
    "summary_tokens": 8,
    "ledger_tokens": 8,
}


class World:
    def __init__(self, **settings: Any) -> None:
        self.now = 0.0
        config = OperatorConfig(**{**SMALL, **settings})
        self.operator = StreamOperator(toy_decoder(), config, clock=lambda: self.now)
        self.operator.open("a")
        self.said = 0

    def say(self, text: str) -> list[SummaryEvent]:
        segment = Segment(stream_id="a", text=text, segment_id=f"{self.said}")
        self.operator.feed(segment, self.said)
        self.said += 1
        return self.run()

    def run(self) -> list[SummaryEvent]:
        found = []
        while self.operator.has_work():
            found += [event for emission in self.operator.step() for event in emission.events]
        return [event for event in found if isinstance(event, SummaryEvent)]


def test_silence_after_something_new_makes_an_update_and_no_second_one() -> None:
    world = World(update_silence_s=30.0)
    assert world.say("We move the review to Friday.") == []
    assert world.operator.idle_until() == 30.0
    world.now = 20.0
    assert world.say("At ten.") == []
    assert world.operator.idle_until() == 50.0
    world.now = 50.0
    (event,) = world.run()
    assert (event.trigger, event.rule) == ("silence", {"seconds": 30.0})
    assert event.covers.to_segment_id == "1"
    world.now = 500.0
    assert world.run() == []
    assert world.operator.idle_until() is None


def test_silence_needs_a_clock() -> None:
    with pytest.raises(ConfigError, match="update_silence_s needs a clock"):
        StreamOperator(toy_decoder(), OperatorConfig(**SMALL, update_silence_s=1.0))


def test_a_shift_of_topic_makes_an_update_where_it_happens() -> None:
    world = World(topic_shift=0.9)
    assert world.say("The budget of the prototype is large.") == []
    assert world.say("A large prototype, a large budget.") == []
    (event,) = world.say("Tomas books laboratories near Granada")
    assert event.trigger == "topic_shift"
    assert event.rule["measured"] >= event.rule["shift"] == 0.9
    assert world.say("Granada: Tomas books laboratories.") == []


def test_the_same_topic_goes_on_until_the_tokens_are_there() -> None:
    world = World(topic_shift=0.9)
    events = [e for _ in range(5) for e in world.say("The budget of the prototype is large.")]
    assert [event.trigger for event in events] == ["tokens"]
    assert events[0].rule == {"tokens": 120, "factor": 1}


def test_updates_that_change_nothing_come_less_often() -> None:
    """A random model writes no notes: the second update is due after as many tokens, since the first is
    what it goes by, then after twice and four times as many."""
    world = World(update_adaptive=True)
    factors = [e.rule["factor"] for _ in range(60) for e in world.say("word " * 8)]
    assert factors[:4] == [1, 1, 2, 4]
    assert set(factors[4:]) <= {4}


def test_the_rules() -> None:
    task = SummaryTask()
    task.tools = type("Tools", (), {"config": OperatorConfig(**SMALL, update_adaptive=True)})()  # type: ignore[assignment]
    assert task.due(Progress(120, 0.0, 120)) == "tokens"
    assert task.due(Progress(239, 0.0, 239, factor=2)) is None
    assert task.due(Progress(240, 0.0, 240, factor=2)) == "tokens"
    assert task.due(Progress(400, 0.0, 400, factor=4)) == "tokens", "at most the window"
    assert task.due(Progress(0, 9e9, 0, silent=9e9)) is None
