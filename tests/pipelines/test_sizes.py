"""States, results and letters larger than their topic takes: less of them, or a dead letter; no loop."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from operators.errors import ConfigError
from operators.events import AnswerEvent, Evidence, LedgerItem, SummaryEvent
from operators.state import Emission, SessionState, WindowSegment
from pipelines.kafka.errors import is_permanent
from pipelines.kafka.publishers import TooLarge
from pipelines.wire.codec import encode_state
from pipelines.wire.dead_letters import CUT, cut_again, header
from pipelines.wire.messages import MESSAGE_ROOM, Message, MessageLimit
from pipelines.wire.states import SHRUNK, fit_state
from pipelines.worker.partition.committer import CommitError
from pipelines.worker.partition.partition import Partition
from tests.pipelines.test_partition import World, with_world
from tests.pipelines.test_partition_questions import ask

FULL = SessionState(
    stream_id="a",
    cursor=9,
    items=(
        *(
            LedgerItem(
                id=f"i{n}",
                kind="topic" if n % 2 else "decision",
                text=f"{n} " * 50,
                state="superseded" if n < 4 else "open",
                importance=n / 20,
                evidence=(Evidence("s1"), Evidence("s2")),
            )
            for n in range(12)
        ),
    ),
    window=tuple(
        WindowSegment(segment_id=f"s{n}", seq=n, text="word " * 20, tokens=20) for n in range(10)
    ),
    uncovered_tokens=60,
    last_output={"summary": "x" * 500},
)


def size(state: SessionState) -> int:
    return len(encode_state(state))


def test_a_state_is_shrunk_in_its_order_and_keeps_what_was_promised() -> None:
    whole = size(FULL)
    assert fit_state(FULL, whole, size) is FULL
    seen, limit = [], whole
    while (state := fit_state(FULL, limit := limit - 200, size)) is not None:
        assert size(state) <= limit
        assert SHRUNK in state.degraded
        seen.append(state)
        kept = {item.id for item in state.items}
        assert {"i4", "i6", "i8", "i10"} <= kept, "decisions stay"
        assert [part.segment_id for part in state.window[-3:]] == ["s7", "s8", "s9"]
    assert seen[0].items == FULL.items, "drafts go first"
    assert seen[0].last_output == {}
    shapes = [(len(s.items), len(s.window)) for s in seen]
    assert shapes == sorted(shapes, reverse=True)
    assert (4, 3) in shapes
    with_all_topics = [s for s in seen if len(s.window) == 10 and len(s.items) < 8]
    assert not with_all_topics, "the covered window goes before the topics"


def test_kept_answers_go_early_and_what_is_a_persons_never() -> None:
    """The ids stay: a question that was answered is not answered a second time, in other words."""
    answer = AnswerEvent(stream_id="a", epoch=0, revision=1, question_id="q2", text="x" * 400)
    persons = tuple(
        LedgerItem(id=f"p{state}", kind="topic", text="p " * 50, state=state, by="person")
        for state in ("open", "done", "withdrawn")
    )
    full = replace(FULL, items=FULL.items + persons, answers=(answer,), answered=("q1",))
    state = fit_state(full, size(replace(full, last_output={})) - 200, size)
    assert state is not None
    assert (state.answers, state.answered) == ((), ("q1", "q2"))
    assert state.items == full.items
    smallest, limit = state, size(state)
    while (state := fit_state(full, limit := limit - 200, size)) is not None:
        smallest = state
    assert {item.id for item in persons} <= {item.id for item in smallest.items}
    assert len(smallest.items) < len(full.items)


def test_a_stream_whose_state_cannot_fit_is_stopped_with_dead_letters() -> None:
    """The worker ended with the first such state, and at every restart again."""

    async def test(world: World) -> None:
        world.context.limit.bytes = 3000
        events = [world.say(offset, "big") for offset in range(4)]
        other = world.say(4, "small")
        asked = [ask(world, offset, "big") for offset in range(3)]
        decisions = tuple(
            LedgerItem(id=f"i{n}", kind="decision", text="d" * 200) for n in range(12)
        )
        big = SessionState(stream_id="big", cursor=0, items=decisions)
        world.partition.on_emission(Emission(stream_id="big", state=big, done=[0], answered=[0]))
        world.partition.on_emission(Emission(stream_id="big", state=big, done=[1]))
        world.done("small", 4)
        late = world.say(5, "big")
        asked.append(ask(world, 3, "big"))
        await world.settle()
        assert world.device.dropped == ["big"]
        assert all(event.acked for event in (*events, *asked, other, late))
        letters = [m for g in world.publisher.groups for m in g.messages]
        reasons = [header(m.headers, "longstream.dlq.reason") for m in letters]
        assert reasons == [b"state_too_large"] * 9
        states = {name for g in world.publisher.groups for name in g.states}
        assert states == {"small"}

    with_world(test, in_flight_per_key=2)


def large_summary(text: str) -> SummaryEvent:
    return SummaryEvent(stream_id="a", epoch=0, revision=1, text=text)


def test_a_limit_is_learned_from_what_the_broker_refuses() -> None:
    """Where the broker may not be asked for its limit, the first large record ended the worker."""

    async def test(world: World) -> None:
        world.say(0, "a")
        world.publisher.errors.append(TooLarge("insights.summaries.v1", 5000))
        world.done("a", 0, events=[large_summary("x" * 6000)])
        await world.settle()
        error = world.partition.committer.failed.exception()
        assert isinstance(error, CommitError)
        assert not is_permanent(error), "the partition is opened again, and knows better"
        assert world.context.limit.content == 4500
        await world.partition.close()
        world.partition = Partition(0, world.context)
        await world.partition.recover()
        first, second = world.say(0, "a"), world.say(1, "a")
        world.done("a", 0, events=[large_summary("x" * 6000)])
        world.done("a", 1, events=[large_summary("x" * 600)])
        await world.settle()
        assert first.acked
        assert second.acked
        (group,) = world.publisher.groups
        summaries = [m for m in group.messages if m.topic == world.settings.topic_summaries]
        assert [len(m.value or b"") < 4500 for m in summaries] == [True]
        (letter,) = [m for m in group.messages if m.topic == world.settings.topic_dlq]
        assert header(letter.headers, "longstream.dlq.reason") == b"result_too_large"
        assert group.offset == 2

    with_world(test)


def test_a_result_from_no_record_is_a_dead_letter_of_itself() -> None:
    """An update by time has no record: it was written as it was, which ended the worker."""

    async def test(world: World) -> None:
        world.context.limit.bytes = 40_000
        world.say(0, "a")
        world.done("a", 0)
        await world.settle()
        world.done("a", events=[large_summary("x" * 60_000)])
        await world.settle()
        letters = [m for g in world.publisher.groups for m in g.messages]
        assert {m.topic for m in letters} == {world.settings.topic_dlq}
        assert all(m.size < 40_000 for m in letters)
        assert header(letters[0].headers, "__streams.errors.topic") == b"insights.summaries.v1"
        assert header(letters[0].headers, CUT) is not None

    with_world(test)


def test_a_dead_letter_is_cut_to_the_limit_that_was_learned() -> None:
    async def test(world: World) -> None:
        world.context.limit.learn(50_000)
        event = world.say(0, "a", b'{"text": ' + b"x" * 50_000)  # not JSON
        await world.settle()
        assert event.acked
        ((letter,),) = [group.messages for group in world.publisher.groups]
        assert letter.size <= world.context.limit.content
        told = header(letter.headers, CUT)
        assert told is not None
        assert told.startswith(b"size=50009 ")

    with_world(test)


def test_a_dead_letter_in_an_outbox_is_cut_again() -> None:
    headers: list[tuple[str, bytes | None]] = [("h", b"1"), ("longstream.dlq.reason", b"r")]
    key, value, kept = cut_again(b"k", b"x" * 9_000, headers, 4_000)
    assert value is not None
    assert Message("t", key, value, kept).size <= 4_000
    assert header(kept, CUT) is not None
    assert header(kept, "h") == b"1"


def test_a_limit_below_anything_useful_is_an_error_with_a_sentence() -> None:
    limit = MessageLimit(8 << 20)
    limit.learn(100_000)
    assert limit.bytes == 90_000 + MESSAGE_ROOM
    limit.learn(200_000)
    assert limit.bytes == 90_000 + MESSAGE_ROOM
    with pytest.raises(ConfigError, match=r"max\.message\.bytes"):
        limit.learn(500)


def test_the_archive_goes_before_any_note_of_the_ledger() -> None:
    archived = tuple(replace(item, id=f"a{item.id}") for item in FULL.items)
    full = replace(FULL, last_output={}, archived=archived)
    state = fit_state(full, size(full) - 300, size)
    assert state is not None
    assert state.items == full.items
    assert 0 < len(state.archived) < len(archived)
    assert state.archived == archived[-len(state.archived) :], "the oldest went"


def test_states_round_trip_shrunk_or_not() -> None:
    state = fit_state(FULL, size(FULL) - 700, size)
    assert state is not None
    assert msgspec.json.decode(encode_state(state), type=SessionState) == state
