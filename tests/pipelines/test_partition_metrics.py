"""Delays as a partition reports them: every event counts, from its newest input's own timestamp."""

from __future__ import annotations

import time

import pytest

from operators.events import Source, SummaryEvent, TranslationEvent
from pipelines.worker.partition.metrics import MAX_INPUT_TIMES
from tests.pipelines.test_metrics import value
from tests.pipelines.test_partition import Event, World, with_world

LATENCY = "longstream_end_to_end_latency_seconds"


def summary(first: int, last: int, revision: int = 1) -> SummaryEvent:
    source = Source(first_offset=first, last_offset=last)
    return SummaryEvent(stream_id="a", epoch=0, revision=revision, source=source)


def latency(world: World, task: str = "summary") -> tuple[float, float]:
    """How many were observed, and their sum."""
    count = value(world.context.metrics, f"{LATENCY}_count", task=task)
    return count or 0.0, value(world.context.metrics, f"{LATENCY}_sum", task=task) or 0.0


def say(world: World, offset: int, age: float) -> None:
    """A segment that was produced ``age`` seconds ago."""
    event = Event(offset, "a", {"text": "x"})
    event.message.timestamp = time.time() - age
    world.partition.accept(event)


def test_an_event_is_counted_whose_input_was_committed_long_before() -> None:
    async def test(world: World) -> None:
        say(world, 0, age=700.0)
        say(world, 1, age=500.0)
        world.done("a", 0, 1)
        await world.settle()
        assert world.partition.in_flight == 0, "both inputs are acknowledged and let go"
        world.done("a", events=[summary(0, 1)])
        await world.settle()
        count, seconds = latency(world)
        assert count == 1
        assert seconds == pytest.approx(500.0, abs=5.0)

    with_world(test)


def test_the_newest_input_of_the_event_counts_not_of_the_stream() -> None:
    async def test(world: World) -> None:
        for offset, age in enumerate((700.0, 300.0, 100.0)):
            say(world, offset, age)
        world.done("a", 0, 1, events=[summary(0, 1)])
        await world.settle()
        assert latency(world)[1] == pytest.approx(300.0, abs=5.0)

    with_world(test)


def test_translation_and_summary_of_one_segment_are_both_counted() -> None:
    async def test(world: World) -> None:
        say(world, 0, age=40.0)
        translation = TranslationEvent(
            stream_id="a",
            epoch=0,
            revision=1,
            target_lang="fr",
            unit_id="u",
            committed="x",
            source=Source(first_offset=0, last_offset=0),
        )
        world.done("a", 0, events=[summary(0, 0), translation])
        await world.settle()
        assert latency(world)[0] == latency(world, "translation:fr")[0] == 1

    with_world(test)


def test_an_update_without_new_text_is_counted_from_the_streams_newest_input() -> None:
    async def test(world: World) -> None:
        say(world, 0, age=60.0)
        world.done("a", 0, events=[summary(0, 0)])
        world.done("a", events=[summary(-1, -1, revision=2)])
        await world.settle()
        count, seconds = latency(world)
        assert count == 2
        assert seconds == pytest.approx(120.0, abs=10.0)

    with_world(test)


def test_a_broker_that_keeps_no_timestamps_gives_the_time_of_reading() -> None:
    async def test(world: World) -> None:
        world.say(0, "a")  # its timestamp is 0
        world.partition.measure(1)
        world.done("a", 0, events=[summary(0, 0)])
        await world.settle()
        count, seconds = latency(world)
        assert count == 1
        assert seconds < 60.0
        lag = {"topic": world.settings.topic_segments, "partition": "0"}
        age = value(world.context.metrics, "longstream_consumer_lag_seconds", **lag)
        assert age is not None
        assert age < 60.0

    with_world(test)


def test_input_times_are_bounded_and_dropped_once_covered() -> None:
    async def test(world: World) -> None:
        many = MAX_INPUT_TIMES + 20
        for offset in range(many):
            say(world, offset, age=1.0)
        (lane,) = world.partition.queues()
        assert len(lane.input_times) == MAX_INPUT_TIMES
        world.done("a", *range(many), events=[summary(0, many - 1)])
        await world.settle()
        assert list(lane.input_times) == [many - 1]

    with_world(test, in_flight_per_partition=2000)


def test_no_lag_is_reported_before_it_is_known_where_the_partition_stands() -> None:
    """For a moment after each takeover all of the partition seemed to wait."""

    async def test(world: World) -> None:
        labels = {"topic": world.settings.topic_segments, "partition": "0"}
        lag = "longstream_consumer_lag_messages"
        world.partition.measure(5000)
        assert value(world.context.metrics, lag, **labels) is None
        await world.partition.recover()
        world.partition.measure(5000)
        assert value(world.context.metrics, lag, **labels) == 5000

    with_world(test, recover=False)
