"""Questions in a partition: their own offsets, the stream's one state, one transaction. No broker."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from operators.events import AnswerEvent, Source
from operators.state import SessionState
from pipelines.wire.codec import encode_state
from pipelines.worker.partition.state import Recovered, SessionTable
from tests.pipelines.test_partition import Event, World, with_world


def ask(world: World, offset: int, stream: str, **fields: Any) -> Event:
    event = Event(offset, stream, {"text": "When?", **fields})
    event.message.topic = world.settings.topic_questions
    world.partition.accept_question(event)
    return event


def answered(world: World, stream: str, *tickets: int, **changes: Any) -> None:
    answers = [
        AnswerEvent(
            stream_id=stream,
            epoch=0,
            revision=1,
            question_id=f"0-{ticket}",
            text="Then.",
            source=Source(first_offset=ticket, last_offset=ticket),
        )
        for ticket in tickets
    ]
    state = SessionState(stream_id=stream, question_cursor=max(tickets))
    world.done(stream, state=state, answers=answers, answered=list(tickets), **changes)


def published(world: World, topic: str) -> list[dict[str, Any]]:
    return [
        json.loads(message.value or b"null")
        for group in world.publisher.groups
        for message in group.messages
        if message.topic == topic
    ]


def known(world: World, **fields: Any) -> None:
    table = SessionTable()
    table.put("a", encode_state(SessionState(stream_id="a", **fields)))
    world.recovered = Recovered(table, 0)


def test_an_answer_its_state_and_its_offset_are_one_group() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        event = ask(world, 5, "a")
        assert world.device.asked == [("a", 5)]
        answered(world, "a", 5)
        assert not event.acked
        await world.settle()
        assert event.acked
        (group,) = world.publisher.groups
        assert (group.offset, group.question_offset) == (0, 6) or group.offset is None
        assert group.question_offset == 6
        assert group.states["a"] is not None
        (answer,) = published(world, world.settings.topic_answers)
        assert answer["source"] == {
            "topic": "insights.questions.v1",
            "partition": 0,
            "first_offset": 5,
            "last_offset": 5,
        }
        assert answer["event_id"]

    with_world(test)


def test_a_question_committed_or_answered_before_is_skipped() -> None:
    async def test(world: World) -> None:
        known(world, question_cursor=8)
        world.recovered = world.recovered._replace(committed_question=7)
        await world.partition.recover()
        events = [ask(world, offset, "a") for offset in (6, 8, 9)]
        assert world.device.asked == [("a", 9)]
        await world.settle()
        assert [event.acked for event in events] == [True, True, False]

    with_world(test, recover=False)


def test_a_question_about_an_unknown_stream_is_refused_and_leaves_no_state() -> None:
    async def test(world: World) -> None:
        event = ask(world, 0, "nobody", question_id="q")
        ask(world, 1, "nobody", question_id="r")
        await world.settle()
        assert event.acked
        answer, other = published(world, world.settings.topic_answers)
        assert (answer["question_id"], answer["refused"]) == ("q", True)
        # A reader that drops event ids it has seen must get the second one too.
        assert answer["event_id"] != other["event_id"]
        assert answer["degraded"] == ["unknown_stream"]
        assert world.publisher.groups[0].states == {}
        assert world.device.opened == {}

    with_world(test)


def test_a_refusal_is_not_committed_ahead_of_an_open_question() -> None:
    """After a crash the worker would read it again and refuse it a second time."""

    async def test(world: World) -> None:
        world.say(0, "a")
        ask(world, 0, "a", question_id="open")
        ask(world, 1, "nobody", question_id="refused")
        ask(world, 2, "a", kind="poem")
        ask(world, 3, "a", question_id="open too")
        await world.settle()
        assert published(world, world.settings.topic_answers) == []
        assert published(world, world.settings.topic_dlq) == []
        answered(world, "a", 0)
        await world.settle()
        answers = published(world, world.settings.topic_answers)
        assert [answer["question_id"] for answer in answers] == ["0-0", "refused"]
        assert len(published(world, world.settings.topic_dlq)) == 1
        assert world.publisher.groups[-1].question_offset == 3

    with_world(test)


def test_a_question_that_was_refused_before_a_crash_gets_no_second_answer() -> None:
    """Without transactions: the stream began meanwhile, and the answer was another."""

    async def test(world: World) -> None:
        known(world)
        world.recovered = world.recovered._replace(refused_questions=frozenset({3}))
        await world.partition.recover()
        refused, other = ask(world, 3, "a"), ask(world, 4, "a")
        assert world.device.asked == [("a", 4)]
        await world.settle()
        assert (refused.acked, other.acked) == (True, False)
        assert published(world, world.settings.topic_answers) == []

    with_world(test, recover=False)


def test_a_question_opens_a_stream_that_is_known() -> None:
    async def test(world: World) -> None:
        known(world, ended=True)
        await world.partition.recover()
        ask(world, 0, "a")
        assert world.device.asked == [("a", 0)]
        answered(world, "a", 0)
        await world.settle()

    with_world(test, recover=False)


def test_what_is_no_question_becomes_a_dead_letter() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        for offset, fields in enumerate(({"text": " "}, {"kind": "poem"}, {"schema": "x"})):
            ask(world, offset, "a", **fields)
        await world.settle()
        assert world.device.asked == []
        letters = [
            dict(message.headers)
            for group in world.publisher.groups
            for message in group.messages
            if message.topic == world.settings.topic_dlq
        ]
        assert [headers["__streams.errors.topic"] for headers in letters] == [
            b"insights.questions.v1"
        ] * 3
        assert world.publisher.groups[-1].question_offset == 3

    with_world(test)


def test_what_the_engine_refuses_becomes_a_dead_letter() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        event = ask(world, 0, "a")
        world.partition.on_refused("a", 0, "question_too_large", "too long", True)
        await world.settle()
        assert event.acked
        assert world.publisher.groups[-1].messages[0].topic == world.settings.topic_dlq

    with_world(test)


def test_questions_are_asked_again_after_the_device_was_lost_but_not_for_ever() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        world.done("a", 0)
        event = ask(world, 0, "a")
        (queue,) = world.partition.queues()
        for attempt in range(1, 3):
            queue.device_lost()
            world.partition.pump(queue)
            assert world.device.asked == [("a", 0)] * (attempt + 1)
        queue.device_lost()
        world.partition.pump(queue)
        await world.settle()
        assert event.acked
        assert world.publisher.groups[-1].messages[0].topic == world.settings.topic_dlq

    with_world(test)


def test_a_full_topic_of_questions_does_not_hold_the_segments() -> None:
    held: list[str] = []

    async def test(world: World) -> None:
        world.say(0, "a")
        world.held.clear()
        for offset in range(4):
            ask(world, offset, "a")
        assert held == ["questions"]
        assert world.held == []
        answered(world, "a", 0, 1, 2, 3)
        await world.settle()
        assert held == ["questions", "released"]

    async def held_world(world: World) -> None:
        world.context.hold_questions = lambda number: held.append("questions")
        world.context.release_questions = lambda number: held.append("released")
        partition = type(world.partition)(0, world.context)
        await world.partition.close()
        world.partition = partition
        await partition.recover()
        held.clear()
        await test(world)

    with_world(held_world, in_flight_per_partition=4, in_flight_per_key=4)


def test_a_question_behind_a_deletion_waits_for_it() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        ask(world, 0, "a")
        world.say(1, "a", {"type": "forget"})
        ask(world, 1, "a")
        assert world.device.asked == [("a", 0)]
        world.done("a", 0)
        assert world.device.erased == [], "a question is still with the device"
        answered(world, "a", 0)
        assert world.device.erased == ["a"]
        await world.settle()
        await world.settle()
        refused = published(world, world.settings.topic_answers)[-1]
        assert refused["degraded"] == ["unknown_stream"]

    with_world(test)


def test_a_reopened_partition_gets_its_unanswered_questions_again() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")
        event = ask(world, 3, "a")
        assert world.partition.unanswered() == [event]
        assert world.partition.unfinished() != [event]

    with_world(test)


def test_the_latency_of_an_answer_is_that_of_its_question() -> None:
    async def test(world: World) -> None:
        seen: list[tuple[str, float]] = []
        world.context.metrics.end_to_end = lambda task, s: seen.append((task, s))  # type: ignore[method-assign]
        world.say(0, "a")
        event = ask(world, 5, "a")
        event.message.timestamp = 1.0
        answered(world, "a", 5)
        await world.settle()
        assert [task for task, _ in seen] == ["answer"]
        assert seen[0][1] > 1e9

    with_world(test)


def test_the_state_of_a_stream_keeps_its_answers_within_a_message() -> None:
    """Sixteen answers as long as they get, and all ids, are small against a message."""
    answer = AnswerEvent(
        stream_id="a",
        epoch=0,
        revision=1,
        question_id="q" * 256,
        text="x" * 4000,
        question="y" * 280,
    )
    state = SessionState(
        stream_id="a",
        answers=(answer,) * 16,
        answered=tuple("q" * 252 + f"{n:04}" for n in range(256)),
    )
    assert len(encode_state(state)) < 200_000
    assert msgspec.json.decode(encode_state(state), type=SessionState) == state
