"""Partitions that grow: what moves, what is refused, and what a worker notices. No broker."""

from __future__ import annotations

import msgspec
import pytest

from operators.errors import ConfigError
from operators.state import SessionState, WindowSegment
from pipelines.config.load import Settings
from pipelines.kafka.growth import Kept, check_places, plan, without_offsets
from pipelines.wire.codec import decode_state, encode_state
from pipelines.wire.messages import forgotten_key, forgotten_value
from pipelines.wire.partitioning import partition_of
from tests.pipelines.test_partition import World, with_world
from tests.pipelines.test_partition_questions import ask

SETTINGS = Settings()
NAMES = [f"meeting-{number}" for number in range(40)]


def state(name: str) -> SessionState:
    part = WindowSegment(segment_id="s", seq=0, text="Yes.\n", tokens=2, offset=70)
    return SessionState(
        stream_id=name, cursor=70, question_cursor=7, window=(part,), snapshot="x/0-70"
    )


def kept(name: str, partitions: int) -> Kept:
    place = partition_of(name, partitions)
    return Kept(SETTINGS.topic_sessions, place, name.encode(), encode_state(state(name)), [])


def test_every_stream_moves_to_where_its_key_belongs_and_nothing_else_does() -> None:
    before = [kept(name, 4) for name in NAMES]
    check_places(before, 4)
    moves = list(plan(before, SETTINGS, 6))
    movers = {name for name in NAMES if partition_of(name, 4) != partition_of(name, 6)}
    assert {m.key.decode() for m in moves} == movers
    for move in moves:
        name = move.key.decode()
        place = partition_of(name, 6 if move.value is not None else 4)
        assert move.partition == place
        if move.value is None:
            continue
        moved, problem = decode_state(move.value)
        assert problem is None
        assert moved is not None
        assert (moved.cursor, moved.snapshot, moved.window[0].offset) == (-1, None, -1)
        assert moved.question_cursor == -1
        assert moved.window[0].text == "Yes.\n"
    after = [kept(name, 6) for name in NAMES]
    assert list(plan(after, SETTINGS, 6)) == [], "a second call has nothing to do"


def test_a_forgotten_streams_epoch_is_known_everywhere() -> None:
    key = forgotten_key("meeting").encode()
    record = Kept(SETTINGS.topic_sessions, 1, key, forgotten_value(3), [])
    assert [move.partition for move in plan([record], SETTINGS, 4)] == [0, 2, 3]


def test_an_outbox_moves_with_its_state() -> None:
    fields = msgspec.json.decode(encode_state(state("a")))
    value = msgspec.json.encode({**fields, "outbox": [{"topic": "t"}]})
    assert msgspec.json.decode(without_offsets(value))["outbox"] == [{"topic": "t"}]


def test_producers_with_a_partitioner_of_their_own_are_refused() -> None:
    odd = kept(NAMES[0], 4)._replace(partition=(partition_of(NAMES[0], 4) + 1) % 4)
    with pytest.raises(ConfigError, match="chooses partitions by itself"):
        check_places([odd], 4)


def test_a_topic_that_is_made_anew_under_a_worker_is_noticed() -> None:
    """Its records lay below what had been read, and were skipped as duplicates, in silence."""

    async def test(world: World) -> None:
        for offset in range(5):
            world.say(offset, "a")
            world.done("a", offset)
        check = world.partition.check_input
        for highwater in (5, None, 2, 2, 2, 5, 2, 2, 2):
            check(highwater)
        with pytest.raises(ConfigError, match="made anew or truncated"):
            check(2)
        ask(world, 6, "a")
        for _ in range(3):
            check(5, 6)
        with pytest.raises(
            ConfigError, match=r"questions.*ends at offset 6, and was read to offset 7"
        ):
            check(5, 6)

    with_world(test)
