"""State belongs to an application and to a format; what is another's is refused or ignored, and said."""

from __future__ import annotations

import logging

import msgspec
import pytest

from operators.errors import ConfigError, SegmentError
from operators.state import STATE_FORMAT, SessionState
from pipelines.config.load import Settings
from pipelines.wire.codec import decode_state, encode_state
from pipelines.wire.messages import deletion_messages, state_message
from pipelines.worker.partition.state import SessionTable, check_owner

MINE, OTHERS = Settings(app_id="mine"), Settings(app_id="others")
STATE = SessionState(stream_id="a", cursor=41)


def table_of(*writers: Settings, streams: str = "ab") -> SessionTable:
    table = SessionTable()
    for settings, stream in zip(writers, streams, strict=False):
        message = state_message(settings, stream, msgspec.structs.replace(STATE, stream_id=stream))
        assert message.key is not None
        table.read(MINE.app_id, message.key, message.value, 0)
    return table


def test_a_state_says_whose_it_is_and_of_which_format() -> None:
    value = state_message(MINE, "a", STATE).value
    assert value is not None
    written = msgspec.json.decode(value)
    assert (written["app_id"], written["format"]) == ("mine", STATE_FORMAT)
    record = deletion_messages(MINE, "a", 3)[1].value
    assert record is not None
    assert msgspec.json.decode(record)["app_id"] == "mine"


def test_another_applications_states_are_refused() -> None:
    """A second app_id on the same topics took them for its own and skipped all input."""
    table = table_of(OTHERS, OTHERS)
    assert len(table) == 0
    assert table.newest_cursor == -1
    with pytest.raises(ConfigError, match=r"insights\.sessions\.v1\[3\] holds .* app_id 'others'"):
        check_owner(MINE, 3, table)


def test_where_both_wrote_the_others_are_ignored_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = table_of(MINE, OTHERS)
    with caplog.at_level(logging.ERROR):
        check_owner(MINE, 0, table)
    assert "1 states of app_id 'others' are ignored" in caplog.text
    assert table.is_live("a")
    assert not table.is_live("b")


def test_states_of_an_earlier_version_are_ones_own() -> None:
    table = SessionTable()
    table.read("mine", b"a", encode_state(STATE), 0)
    check_owner(MINE, 0, table)
    assert table.take("a")[0] == STATE


def test_a_format_of_a_later_version_is_refused_with_a_sentence() -> None:
    later = encode_state(msgspec.structs.replace(STATE, format=STATE_FORMAT + 1))
    state, problem = decode_state(later)
    assert state is None
    assert problem == f"of format {STATE_FORMAT + 1}, and this version reads {STATE_FORMAT}"
    table = SessionTable()
    table.put("a", later)
    with pytest.raises(SegmentError, match="format") as refused:
        table.take("a")
    assert refused.value.reason == "state_unreadable"


def test_applications_have_snapshots_of_their_own() -> None:
    urls = [Settings(app_id=name, snapshot_url="s3://b/x/").own_snapshot_url for name in ("p", "q")]
    assert urls == ["s3://b/x/app-p", "s3://b/x/app-q"]
    assert Settings().own_snapshot_url == ""
