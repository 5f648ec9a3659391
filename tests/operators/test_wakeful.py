"""Streams without work cost a step nothing: it does not look at them."""

from __future__ import annotations

from operators.config import OperatorConfig
from operators.engine.wakeful import Wakeful
from operators.events import ItemEdit, Question, Segment, SummaryEvent
from operators.state import Emission
from operators.stream_operator import StreamOperator
from pipelines.lab.benchmarks.toy import toy_decoder


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_awake_in_the_order_of_opening_and_by_alarms() -> None:
    clock = Clock()
    wakeful = Wakeful(clock)
    for name in "bca":
        wakeful.add(name)
    assert wakeful.names() == ["b", "c", "a"]
    wakeful.sleep("b", None)
    wakeful.sleep("a", 5.0)
    wakeful.sleep("c", 3.0)
    assert (wakeful.names(), wakeful.next_alarm()) == ([], 3.0)
    wakeful.wake("c")  # its alarm is void
    assert (wakeful.names(), wakeful.next_alarm()) == (["c"], 5.0)
    clock.now = 5.0
    assert wakeful.names() == ["c", "a"]
    assert wakeful.next_alarm() is None
    wakeful.remove("c")
    wakeful.wake("b")
    assert wakeful.names() == ["b", "a"]


def make(clock: Clock, **settings: object) -> StreamOperator:
    config = OperatorConfig(
        window=128, slack=32, update_tokens=128, slots=2, branches=2, branch_tokens=2000,
        summary_method="lines", summary_tokens=8, **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    return StreamOperator(toy_decoder(), config, clock=clock)


def test_a_step_does_not_look_at_idle_streams() -> None:
    operator = make(Clock())
    for number in range(40):
        operator.open(f"idle-{number}")
    while operator.has_work():
        operator.step()
    operator.open("speaks")
    operator.feed(Segment(stream_id="speaks", text="We meet on Friday.", segment_id="0"), ticket=0)
    looked: list[str] = []
    busy = operator.busy
    operator.busy = lambda name: looked.append(name) or busy(name)  # type: ignore[method-assign,func-returns-value]
    done: list[int] = []
    while operator.has_work():
        for emission in operator.step():
            done += emission.done
    assert done == [0]
    assert set(looked) == {"speaks"}


def test_an_update_by_time_wakes_its_stream() -> None:
    clock = Clock()
    operator = make(clock, update_interval_s=60.0)
    operator.open("a")
    operator.feed(Segment(stream_id="a", text="We meet on Friday.", segment_id="0"), ticket=0)
    while operator.has_work():
        operator.step()
    assert operator.idle_until() == 60.0
    clock.now = 59.0
    assert not operator.has_work()
    clock.now = 60.0
    assert operator.has_work()
    events = [
        e for _ in range(200) if operator.has_work() for x in operator.step() for e in x.events
    ]
    assert any(isinstance(event, SummaryEvent) for event in events)
    assert operator.idle_until() is None


def test_the_end_of_a_stream_that_sleeps_is_done() -> None:
    """It is ended after hours without a record: it was asleep, and slept on."""
    operator = make(Clock())
    operator.open("a")
    operator.feed(Segment(stream_id="a", text="We meet on Friday.", segment_id="0"), ticket=0)
    while operator.has_work():
        operator.step()
    operator.end("a")
    assert [emission.state.ended for emission in work(operator)] == [True]


def test_a_question_and_an_edit_wake_their_stream() -> None:
    operator = make(Clock())
    operator.open("a")
    assert not operator.has_work()
    operator.ask(Question(stream_id="a", kind="decisions", question_id="q"), ticket=0)
    (asked,) = work(operator)
    assert asked.answered == [0]
    edit = ItemEdit(op="add", kind="decision", text="We ship on Friday.")
    operator.feed(Segment(stream_id="a", type="edit", segment_id="e", edit=edit), ticket=0)
    (edited,) = work(operator)
    assert [item.text for item in edited.state.items] == ["We ship on Friday."]


def work(operator: StreamOperator) -> list[Emission]:
    found = []
    while operator.has_work():
        found += operator.step()
    return found
