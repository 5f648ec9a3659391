"""A stream that nobody ends is ended by its keeper: one final summary, no ticket."""

from __future__ import annotations

from operators.events import Question, Segment, SummaryEvent
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG

ALONE = CONFIG.from_dict({**CONFIG.to_dict(), "targets": ()})


def work(operator: StreamOperator) -> list[Emission]:
    found = []
    while operator.has_work():
        found += operator.step()
    return found


def made(state: object = None) -> StreamOperator:
    operator = StreamOperator(toy_decoder(), ALONE)
    operator.open("a", state)  # type: ignore[arg-type]
    return operator


def feed(operator: StreamOperator, ticket: int, text: str) -> None:
    operator.feed(Segment(stream_id="a", segment_id=f"s{ticket}", text=text), ticket)


def test_a_stream_is_ended_behind_all_that_was_fed_and_later_text_begins_anew() -> None:
    operator = made()
    feed(operator, 0, "We ship on Friday.")
    operator.end("a")
    operator.end("a")
    feed(operator, 1, "Good morning.")
    emissions = work(operator)
    finals = [e for em in emissions for e in em.events if isinstance(e, SummaryEvent)]
    assert [(e.epoch, e.status, e.covers.to_segment_id) for e in finals] == [(0, "final", "s0")]
    assert [ticket for em in emissions for ticket in em.done] == [0, 1]
    state = emissions[-1].state
    assert (state.epoch, state.ended, state.cursor) == (1, False, 1)
    operator.end("a")
    assert work(operator)[-1].state.ended
    operator.end("a")
    assert not operator.has_work()


def test_a_restored_stream_that_is_all_covered_is_ended_without_the_model() -> None:
    first = made()
    feed(first, 0, "We ship on Friday.")
    work(first)
    first.request_summary("a")
    state = work(first)[-1].state
    assert (state.uncovered_tokens, len(state.window)) == (0, 1)
    again = made(state)
    again.end("a")

    def never(*args: object) -> None:
        raise AssertionError("nothing is left to be read")

    again.model.forward = never  # type: ignore[method-assign, assignment]
    (emission,) = work(again)
    (final,) = emission.events
    assert isinstance(final, SummaryEvent)
    assert (final.status, final.revision, final.covers.to_segment_id) == ("final", 2, "s0")
    assert emission.state.tokens_total == state.tokens_total


def test_what_a_restored_stream_has_not_covered_is_read_before_its_end() -> None:
    first = made()
    feed(first, 0, "We ship on Friday.")
    state = work(first)[-1].state
    again = made(state)
    again.end("a")
    (emission,) = work(again)
    (final,) = emission.events
    assert isinstance(final, SummaryEvent)
    assert final.covers.to_segment_id == "s0"


def test_what_was_asked_before_the_end_is_answered_from_the_window() -> None:
    operator = made()
    feed(operator, 0, "We ship on Friday.")
    work(operator)
    operator.ask(Question(stream_id="a", text="Do we ship on Friday?", question_id="q"), 7)
    operator.end("a")
    emissions = work(operator)
    ((answer, tickets),) = [(em.answers[0], em.answered) for em in emissions if em.answers]
    assert (answer.refused, tickets) == (False, [7])
    assert [cited.segment_id for cited in answer.evidence] == ["s0"]
    assert emissions[-1].state.ended
