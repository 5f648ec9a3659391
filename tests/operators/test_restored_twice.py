"""A process that is restored may end before it has read everything again: its states must not forget
what it has yet to read, and questions must not be answered without it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.engine.restore import requeue_window_text
from operators.engine.session import Part
from operators.events import Question
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from tests.operators.test_stream_operator import CONFIG, drain, make, speech

SPEECH = speech("a", 60)


def feed(operator: StreamOperator, first: int, last: int) -> list[Emission]:
    for ticket in range(first, last):
        operator.feed(SPEECH[ticket], ticket)
    return drain(operator)


def spoken(count: int) -> tuple[StreamOperator, SessionState]:
    operator = make(targets=())
    operator.open("a")
    return operator, feed(operator, 0, count)[-1].state


def memory(state: SessionState) -> dict[str, object]:
    """What a state says of the text, and not of the answers that were given meanwhile. What does not fit
    the window any more is not read again."""
    plain: dict[str, object] = msgspec.to_builtins(state)
    plain["window"] = visible(state)
    for name in (
        "revisions",
        "degraded",
        "question_cursor",
        "answers",
        "answered",
        "items",
        "next_item",
    ):
        plain.pop(name)
    return plain


def visible(state: SessionState) -> list[str]:
    kept: list[str] = []
    room = CONFIG.window
    for info in reversed(state.window):
        room -= info.tokens
        kept[:0] = [info.segment_id] if room >= 0 else []
    return kept


def restored(how: str, spoken_before: int, since: int) -> tuple[StreamOperator, SessionState]:
    """An operator that has everything or a part to read again, and the state it begins with."""
    first, state = spoken(spoken_before)
    snapshot = first.snapshot("a") if how == "snapshot" else None
    if since:
        state = feed(first, spoken_before, spoken_before + since)[-1].state
    again = make(targets=())
    again.open("a", state, snapshot)
    return again, state


@pytest.mark.parametrize("how", ["text", "snapshot"])
@settings(max_examples=5, deadline=None)
@given(before=st.integers(3, 30), since=st.integers(0, 9), rude=st.booleans())
def test_until_something_new_is_done_the_state_is_what_it_began_with(
    how: str, before: int, since: int, rude: bool
) -> None:
    operator, began = restored(how, before, since)
    assert memory(operator._sessions["a"].state()) == memory(began)
    if rude:
        operator.ask(Question(stream_id="a", question_id="q", text="Where is the red button?"), 0)
    while operator.has_work():
        for emission in operator.step():
            if not any(getattr(event, "status", "") for event in emission.events):
                assert memory(emission.state) == memory(began)
    assert visible(operator._sessions["a"].state()) == visible(began)


@pytest.mark.parametrize("how", ["text", "snapshot"])
def test_a_second_crash_while_text_is_read_again_loses_nothing(how: str) -> None:
    operator, began = restored(how, 24, 4)
    assert began.uncovered_tokens
    operator.ask(Question(stream_id="a", question_id="q", kind="catch_up"), 0)
    operator.feed(SPEECH[28], 28)
    operator.step()  # one step: not all of it is read yet
    third = make(targets=())
    third.open("a", operator._sessions["a"].state())
    emissions = feed(third, 28, 60)
    covered = began.cursor
    uncovered = [info.offset for info in began.window if info.seq > began.covered_seq]
    sources = [e.source for m in emissions for e in m.events if getattr(e, "status", "")]
    assert sources
    assert sources[0].first_offset == uncovered[0] <= covered


@pytest.mark.parametrize("how", ["text", "snapshot"])
def test_a_question_waits_for_what_is_read_again(how: str) -> None:
    operator, began = restored(how, 24, 4)
    session = operator._sessions["a"]
    operator.ask(Question(stream_id="a", question_id="q", text="Where is the red button?"), 0)
    while not any(emission.answers for emission in operator.step()):
        assert operator.has_work()
    assert not session.queue
    assert visible(session.state()) == visible(began)


def test_memory_that_is_lost_while_text_is_read_again_is_not_read_twice() -> None:
    operator, began = restored("text", 24, 4)
    session = operator._sessions["a"]
    requeue_window_text(session, operator.model.tokenizer.encode)
    assert memory(session.state()) == memory(began)
    queued = [part.info.segment_id for part in session.queue if isinstance(part, Part)]
    assert queued == visible(began)
