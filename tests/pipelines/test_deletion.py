"""Forgetting and retention, in the parts that need no broker."""

from __future__ import annotations

import asyncio
import datetime
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from operators.errors import ConfigError, DeviceError
from operators.events import Segment, SummaryEvent
from operators.state import SessionState
from pipelines.cli.following import StreamView
from pipelines.config.load import load_settings
from pipelines.storage.idle import idle_store
from pipelines.storage.snapshots import SnapshotStore, folder_of
from pipelines.wire import codec
from pipelines.wire.messages import (
    deletion_messages,
    forgotten_key,
    forgotten_value,
    is_forgotten_key,
    state_message,
)
from pipelines.worker.partition.committer import Committer, Entry
from pipelines.worker.partition.deletion import ERASE_ATTEMPTS
from pipelines.worker.partition.state import SessionTable
from tests.pipelines.test_partition import World, with_world

with warnings.catch_warnings():  # kafka-python reads its resources in a deprecated way on import
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from pipelines.kafka.topics import topic_specs

HOUR_MS = 3_600_000


def state(stream: str, epoch: int = 0, ended: bool = False) -> bytes:
    return codec.encode_state(SessionState(stream_id=stream, epoch=epoch, ended=ended))


# --- what is left of a stream ------------------------------------------------------------------


def test_a_forgotten_stream_starts_in_the_epoch_its_remnant_names() -> None:
    table = SessionTable()
    assert table.take("anna") == (None, None)
    table.put(forgotten_key("anna"), forgotten_value(3))
    fresh = SessionState(stream_id="anna", epoch=3)
    assert table.take("anna") == (fresh, None)
    assert table.take("anna") == (
        fresh,
        None,
    )  # also once more, should it end before it says anything
    assert table.take("bert") == (None, None)
    table.put("anna", state("anna", epoch=4))
    assert table.take("anna")[0] == SessionState(stream_id="anna", epoch=4)


def test_a_remnant_does_not_tell_the_name_and_no_stream_can_pose_as_one() -> None:
    settings = load_settings()
    records = deletion_messages(settings, "anna", 1)
    gone, left = records
    assert (gone.topic, gone.key, gone.value) == (settings.topic_summaries_latest, b"anna", None)
    assert b"anna" not in (left.key or b"") + (left.value or b"")
    with pytest.raises(codec.SegmentError):
        codec.decode_segment(left.key, b"text", partition=0, offset=0, max_text_bytes=99)


def test_a_tombstone_takes_the_place_of_earlier_states_and_gives_way_to_later_ones() -> None:
    old, new = (SessionState(stream_id="anna", epoch=epoch) for epoch in (0, 1))

    def group_of(*entries: Entry) -> dict[str, SessionState | None]:
        committer = Committer.__new__(Committer)
        committer._finish, committer.committed_offset = lambda offsets: None, 0
        return committer._group(list(entries)).states

    gone = Entry(forgotten="anna")
    assert group_of(Entry(state=old), gone) == {"anna": None}
    assert group_of(Entry(state=old), gone, Entry(state=new)) == {"anna": new}
    message = state_message(load_settings(), "anna", None)
    assert (message.key, message.value) == (b"anna", None)


FORGET = {"type": "forget"}


def test_a_mark_waits_for_what_was_said_before_and_holds_back_what_comes_after() -> None:
    async def test(world: World) -> None:
        world.say(0, "anna")
        mark = world.say(1, "anna", FORGET)
        world.say(2, "anna")
        world.say(3, "bert")
        await asyncio.sleep(0.05)
        assert world.device.fed == [("anna", 0), ("bert", 3)]
        assert world.device.erased == []
        world.done("anna", 0)
        await asyncio.sleep(0)
        await world.settle()
        assert world.device.erased == ["anna"]
        assert world.device.fed[2:] == [("anna", 2)]
        assert world.device.opened["anna"] == SessionState(stream_id="anna", epoch=1)
        assert mark.acked
        states = [group.states["anna"] for group in world.publisher.groups if group.states]
        assert states[-1] is None
        assert any(
            m.topic == world.settings.topic_summaries_latest and m.value is None
            for group in world.publisher.groups
            for m in group.messages
        )

    with_world(test)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_what_could_not_be_erased_is_tried_again_and_the_mark_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that dies with the erasure under way once counted as one that had done it."""
    monkeypatch.setattr("pipelines.worker.partition.deletion.RETRY_SECONDS", 0.01)

    async def test(world: World) -> None:
        away = [DeviceError("the device ended before it had erased the stream")] * 9
        world.device.faults = [*away, *[OSError("disk on fire")] * (ERASE_ATTEMPTS - 1)]
        world.say(0, "anna")
        mark = world.say(1, "anna", FORGET)
        world.say(2, "anna")
        world.done("anna", 0)
        await until(lambda: len(world.device.erased) >= 3)
        await world.settle()
        assert not mark.acked
        assert not any(None in group.states.values() for group in world.publisher.groups)
        assert world.device.fed == [("anna", 0)]
        await until(lambda: len(world.device.fed) == 2)
        await world.settle()
        assert len(world.device.erased) == 9 + ERASE_ATTEMPTS
        assert mark.acked
        assert world.device.opened["anna"] == SessionState(stream_id="anna", epoch=1)
        assert world.publisher.groups[-1].states["anna"] is None

    with_world(test)


def test_a_stream_that_cannot_be_erased_is_not_said_to_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.worker.partition.deletion.RETRY_SECONDS", 0.001)

    async def test(world: World) -> None:
        world.device.faults = [OSError("disk on fire")] * ERASE_ATTEMPTS
        world.say(0, "anna")
        mark = world.say(1, "anna", FORGET)
        world.say(2, "anna")
        world.done("anna", 0)
        await until(lambda: len(world.device.fed) == 2)
        await world.settle()
        assert mark.acked
        assert len(world.device.erased) == ERASE_ATTEMPTS
        (letter,) = [m for group in world.publisher.groups for m in group.messages]
        told = dict(letter.headers)
        assert told["longstream.dlq.reason"] == b"erase_failed"
        assert told["longstream.dlq.retryable"] == b"true"
        assert b"disk on fire" in (told["__streams.errors.message"] or b"")
        assert not any(None in group.states.values() for group in world.publisher.groups)
        state = world.device.opened["anna"]
        assert state is not None
        assert (state.epoch, state.cursor) == (0, 0), "its life goes on"

    with_world(test)


def test_a_store_that_does_not_answer_is_a_store_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.worker.partition.deletion.RETRY_SECONDS", 0.001)
    monkeypatch.setattr("pipelines.worker.partition.deletion.ERASE_SECONDS", 0.01)

    async def test(world: World) -> None:
        asked: list[str] = []

        def silent(stream_id: str, erase: bool = False) -> asyncio.Future[None]:
            asked.append(stream_id)
            return asyncio.get_running_loop().create_future()

        monkeypatch.setattr(world.device, "drop", silent)
        mark = world.say(0, "anna", FORGET)
        await until(lambda: len(asked) == ERASE_ATTEMPTS)
        await until(lambda: bool(world.publisher.groups))
        await world.settle()
        assert mark.acked
        (letter,) = [m for group in world.publisher.groups for m in group.messages]
        assert dict(letter.headers)["longstream.dlq.reason"] == b"erase_failed"

    with_world(test)


def test_a_mark_that_was_obeyed_before_a_restart_is_not_obeyed_again() -> None:
    async def test(world: World) -> None:
        again = SessionState(stream_id="anna", epoch=1, cursor=5)
        world.recovered.sessions.put("anna", codec.encode_state(again))
        world.recovered.sessions.put(forgotten_key("anna"), forgotten_value(1))
        await world.partition.recover()
        mark = world.say(1, "anna", FORGET)
        await world.settle()
        assert mark.acked
        assert world.device.erased == []

    with_world(test, recover=False)


def test_ended_streams_expire_and_later_what_was_left_of_them() -> None:
    async def test(world: World) -> None:
        ended = SessionState(stream_id="early", epoch=2, ended=True)
        world.recovered.sessions.put("early", codec.encode_state(ended), at_ms=1)
        world.recovered.sessions.put("live", state("live"), at_ms=1)
        await world.partition.recover()
        world.partition.expire()
        await world.settle()
        world.partition.expire()  # the remnant is new
        await world.settle()
        (group,) = world.publisher.groups
        assert group.states == {"early": None}
        world.say(7, "early")
        world.say(8, "live")
        assert world.device.opened["early"] == SessionState(stream_id="early", epoch=3)
        assert world.device.opened["live"] == SessionState(stream_id="live")

    with_world(test, recover=False, state_retention_h=1)


# --- retention ---------------------------------------------------------------------------------


def test_only_what_ended_long_ago_is_over() -> None:
    table = SessionTable()
    table.put("live", state("live"), at_ms=1)
    table.put("early", state("early", ended=True), at_ms=1)
    table.put("late", state("late", ended=True), at_ms=9)
    table.put(forgotten_key("gone"), forgotten_value(1), at_ms=2)
    table.put("broken", b'{"ended": tr', at_ms=1)
    over = table.ended_before(5)
    assert over == ["early", forgotten_key("gone")]
    assert [is_forgotten_key(name) for name in over] == [False, True]
    table.take("early")
    table.put(forgotten_key("gone"), None)
    assert table.ended_before(99) == ["late"]


def test_a_text_that_spells_an_ended_state_does_not_end_it() -> None:
    table = SessionTable()
    said = SessionState(stream_id="a", last_output={"summary": '"ended":true', "ended": "true"})
    table.put("a", codec.encode_state(said), at_ms=1)
    assert table.ended_before(5) == []


def test_topics_keep_text_as_long_as_told() -> None:
    settings = load_settings(text_retention_h=24, dlq_retention_h=48)
    configs = {spec.name: spec.configs() for spec in topic_specs(settings)}
    day = str(24 * HOUR_MS)
    for name in (settings.topic_segments, settings.topic_summaries, settings.topic_translations):
        assert configs[name]["retention.ms"] == day
        assert configs[name]["segment.ms"] == day
    latest = configs[settings.topic_summaries_latest]
    assert latest["cleanup.policy"] == "compact,delete"
    assert latest["retention.ms"] == day
    sessions = configs[settings.topic_sessions]
    assert sessions["cleanup.policy"] == "compact"  # never by age: a silent stream is no dead one
    assert "retention.ms" not in sessions
    assert configs[settings.topic_dlq]["retention.ms"] == str(48 * HOUR_MS)
    plain = {spec.name: spec.configs() for spec in topic_specs(load_settings())}
    assert "retention.ms" not in plain[settings.topic_segments]


def test_old_snapshots_are_purged(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    for name in ("a/0-1.safetensors", "b/0-1.safetensors"):
        store.put(name, b"x")
    now = datetime.datetime.now(datetime.UTC)
    os.utime(tmp_path / "a/0-1.safetensors", (0, (now - datetime.timedelta(hours=3)).timestamp()))
    assert store.purge(now - datetime.timedelta(hours=2)) == 1
    assert store.get("b/0-1.safetensors") == b"x"
    with pytest.raises(OSError, match="0-1"):
        store.get("a/0-1.safetensors")


def test_what_killed_processes_left_of_a_stream_is_erased_as_well(tmp_path: Path) -> None:
    anna, bert = folder_of("anna"), folder_of("bert")
    store = SnapshotStore(str(tmp_path))
    names = (f"{anna}/0-1.safetensors", f"idle-1/{anna}.safetensors", f"idle-2/{anna}.safetensors")
    kept = (f"{bert}/0-1.safetensors", f"idle-1/{bert}.safetensors")
    for name in (*names, *kept):
        store.put(name, b"x")
    store.erase("anna")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_what_stands_in_the_way_of_an_erasure_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was only logged once, and the stream said to be forgotten."""
    store = SnapshotStore(str(tmp_path))
    name = folder_of("anna")
    store.put(f"idle-1/{name}.safetensors", b"x")

    def refuses(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    for call in ("rm", "rm_file"):
        with monkeypatch.context() as patch:
            patch.setattr(store._files, call, refuses)
            with pytest.raises(PermissionError):
                store.erase("anna")
    store.erase("anna")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_of_what_people_said_is_nobody_elses(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path / "kept"))
    store.put("anna/0-1.safetensors", b"x")
    idle = idle_store(str(tmp_path / "spill"))
    assert idle is not None
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(folders) == 4
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


@pytest.mark.parametrize(
    "name", ["text_retention_h", "dlq_retention_h", "state_retention_h", "snapshot_retention_h"]
)
def test_no_time_at_all_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings(None, **{name: 0})


def test_a_viewer_lets_go_of_what_was_forgotten() -> None:
    view = StreamView("anna")
    view.take_segment(Segment(stream_id="anna", text="a secret"))
    view.take_summary(SummaryEvent(stream_id="anna", epoch=0, revision=1, text="a secret"))
    view.take_segment(Segment(stream_id="anna", type="forget"))
    assert not view.tail
    assert view.summary is None
    view.take_segment(Segment(stream_id="anna", text="again"))
    assert [segment.text for segment in view.tail] == ["again"]
