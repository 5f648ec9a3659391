"""Who goes first when there is not enough for all: the stream that has waited longest."""

from __future__ import annotations

import msgspec
import pytest

from operators.engine.session import Session
from operators.events import Event, Segment, SummaryEvent, TranslationEvent
from operators.stream_operator import StreamOperator
from tests.operators.test_stream_operator import make

TEXT = "everybody tests the red button on every remote we have. "


def order_of_completion(operator: StreamOperator) -> list[str]:
    done: list[str] = []
    while operator.has_work():
        done += [e.stream_id for e in operator.step() for _ in e.done]
    return done


def say(operator: StreamOperator, stream: str, ticket: int, *, waited: float = 0.0) -> None:
    segment = Segment(stream_id=stream, segment_id=f"{stream}{ticket}", text=TEXT)
    operator.feed(segment, ticket, waited)


def said_in(event: Event) -> str:
    assert isinstance(event, SummaryEvent | TranslationEvent)
    return event.text if isinstance(event, SummaryEvent) else event.committed


def tick(operator: StreamOperator) -> None:
    operator._clock.now += 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("arrival", ["dbca", "cadb", "abcd"])
def test_a_free_slot_goes_to_the_stream_that_has_waited_longest(arrival: str) -> None:
    """One slot, four streams opened as a, b, c, d: a rotation would serve them in that order from
    wherever it stands."""
    operator = make(slots=1, targets=())
    for stream in "abcd":
        operator.open(stream)
    for stream in arrival:
        say(operator, stream, 0)
        tick(operator)
    assert order_of_completion(operator) == list(arrival)


def test_waiting_with_the_caller_counts() -> None:
    """Fed last because the worker held it back, but read first."""
    operator = make(slots=1, targets=())
    for at, stream in enumerate("abc"):
        operator.open(stream)
        say(operator, stream, 0, waited=[5.0, 0.0, 60.0][at])
    assert order_of_completion(operator) == ["c", "a", "b"]


@pytest.mark.parametrize("arrival", ["abc", "bca", "cab"])
def test_a_branch_goes_to_the_stream_that_has_waited_longest(arrival: str) -> None:
    """All have their text in, one region is free for their translations."""
    operator = make(targets=("fr",), branches=1, update_tokens=90, prefill_budget=512, slack=64)
    for stream in "abc":
        operator.open(stream)
    for stream in arrival:
        say(operator, stream, 0)
        tick(operator)
    assert order_of_completion(operator) == list(arrival)


def test_a_backlog_is_taken_in_oldest_first_and_nobody_stands_still() -> None:
    """Long texts in three streams with a slot each: the oldest gets at least half of a step's tokens,
    as far as its part goes, the others take turns with the rest. A rotation gives each the same."""
    operator = make(targets=(), update_tokens=400, window=400, slack=64, branch_tokens=260)
    share = {stream: 0 for stream in "abc"}
    for stream in "abc":
        operator.open(stream)
    forward = operator.model.forward

    def watched(role, cache, rows):  # type: ignore[no-untyped-def]
        for name, session in operator._sessions.items():
            share[name] += sum(len(r.tokens) for r in rows if r.stream is session.slot)
        return forward(role, cache, rows)

    operator.model.forward = watched  # type: ignore[method-assign]
    for stream in "cab":
        operator.feed(Segment(stream_id=stream, segment_id=stream, text=TEXT * 6), 0)
        tick(operator)
    for _ in range(3):
        operator.step()
    assert min(share.values()) > 0
    done: list[str] = []
    while operator.has_work():
        done += [e.stream_id for e in operator.step() for _ in e.done]
        if done == ["c"]:
            assert share["c"] >= 1.5 * max(share["a"], share["b"])
            done.append("")
    assert "".join(done) == "cab"


@pytest.mark.parametrize("targets", [(), ("fr",)])
def test_a_stream_that_never_pauses_gives_up_its_slot(targets: tuple[str, ...]) -> None:
    """One slot, and a stream with always more to say: the other comes through, and says the same as it
    does alone, as does the first."""
    operator = make(slots=1, targets=targets)
    for stream in "ab":
        operator.open(stream)
    said = {"a": 0, "b": 0}
    texts: dict[str, list[str]] = {"a": [], "b": []}
    while said["a"] < 12 or operator.has_work():
        if said["a"] < 12:
            while len(operator._sessions["a"].works) < 4:
                say(operator, "a", said["a"])
                said["a"] += 1
            if said["b"] < 3:
                say(operator, "b", said["b"])
                said["b"] += 1
        tick(operator)
        for emission in operator.step():
            texts[emission.stream_id] += [said_in(event) for event in emission.events]
            if emission.stream_id == "b" and emission.done and "first" not in said:
                said["first"] = said["a"]
    assert said["first"] < 12, "b had to wait until a had nothing more to say"
    for stream, count in (("a", said["a"]), ("b", said["b"])):
        alone = make(slots=1, targets=targets)
        alone.open(stream)
        for ticket in range(count):
            say(alone, stream, ticket)
        want = []
        while alone.has_work():
            tick(alone)
            want += [said_in(e) for emission in alone.step() for e in emission.events]
        assert texts[stream] == want


def test_text_that_is_run_again_after_a_restart_holds_nobody_up() -> None:
    """One slot, and a silent stream that was there first; its update comes all the same."""
    before = make(targets=(), update_tokens=400, window=400, slack=64, branch_tokens=260)
    before.open("silent")
    say(before, "silent", 0)
    (emission,) = [e for _ in range(9) for e in before.step()]
    operator = make(slots=1, targets=(), update_tokens=50)
    operator.open("silent", emission.state)
    for stream in "ab":
        operator.open(stream)
        say(operator, stream, 0)
        tick(operator)
    emissions: list[tuple[str, bool]] = []
    while operator.has_work():
        emissions += [(e.stream_id, bool(e.done)) for e in operator.step()]
    assert [stream for stream, done in emissions if done] == ["a", "b"]
    assert emissions[0] == ("a", True)
    assert ("silent", False) in emissions


def test_two_silent_streams_do_not_take_each_others_slot() -> None:
    """Nobody waits for either: one is run again to its end, then the other."""
    before = make(targets=(), update_tokens=400, window=400, slack=64, branch_tokens=260)
    before.open("silent")
    say(before, "silent", 0)
    (emission,) = [e for _ in range(9) for e in before.step()]
    operator = make(slots=1, targets=(), update_tokens=50)
    evicted: list[str] = []
    evict = operator._residency.evict

    def watched(session: Session) -> None:
        evicted.append(session.stream_id)
        evict(session)

    operator._residency.evict = watched  # type: ignore[method-assign]
    for stream in "ab":
        operator.open(stream, msgspec.structs.replace(emission.state, stream_id=stream))
    summarised = []
    while operator.has_work():
        tick(operator)
        summarised += [e.stream_id for e in operator.step() if e.events]
    assert sorted(summarised) == ["a", "b"]
    assert evicted == summarised[:1]
