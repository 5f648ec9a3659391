"""Ids that a producer uses again, after a reconnect or a restart: new speech, repeats, corrections."""

from __future__ import annotations

import pytest

from operators.engine.known_segments import (
    RECENT_IDS,
    Known,
    KnownSegments,
    digest,
    relation,
    sketch,
)
from operators.events import Evidence, LedgerItem, Segment, TranslationEvent
from operators.state import SessionState, WindowSegment
from tests.operators.test_late_data import Desk

SHIP, CALL = "We ship on Friday.", "Ben calls the supplier."
OTHER = "Nobody may sign that contract."


def spoken(desk: Desk) -> list[tuple[str, str]]:
    """Name and text of everything in the stream's window."""
    return [(part.segment_id, part.text.strip()) for part in desk.emissions[-1].state.window]


def test_ids_that_begin_again_after_a_reconnect_are_new_speech() -> None:
    """It was taken as a correction: the sentence was lost."""
    desk = Desk()
    desk.say("turn-0", SHIP, start_ms=1_000)
    desk.say("turn-1", CALL, start_ms=4_000)
    desk.say("turn-0", OTHER, start_ms=900_000)
    desk.work()
    assert spoken(desk) == [("turn-0", SHIP), ("turn-1", CALL), ("turn-0@2", OTHER)]
    assert desk.counts.counts["reused_ids"] == 1
    desk.say("turn-0", OTHER, start_ms=900_000)  # delivered twice
    desk.say("turn-0", CALL, start_ms=2_000_000)  # a second reconnect
    desk.work()
    assert spoken(desk)[2:] == [("turn-0@2", OTHER), ("turn-0@3", CALL)]


@pytest.mark.parametrize(
    ("fields", "text", "want"),
    [
        ({}, SHIP, "repeat"),
        ({}, "We ship on  Friday.", "repeat"),
        ({}, "We ship on Thursday.", "correction"),
        ({}, OTHER, "new"),
        ({"revision": 1}, OTHER, "correction"),
        ({"start_ms": 1_500}, OTHER, "correction"),
        ({"start_ms": 1_000}, SHIP, "repeat"),
        ({"start_ms": 30_000}, SHIP, "repeat"),
        ({"start_ms": 30_000}, OTHER, "new"),
        ({"start_ms": 61_001}, SHIP, "new"),
        ({}, "我们星期五发货。", "new"),
        ({"is_final": False}, "Hm", "correction"),
        ({"is_final": False}, OTHER, "new"),
    ],
)
def test_what_a_record_with_a_known_id_is(fields: dict[str, int], text: str, want: str) -> None:
    known = Known("x", "x", 0, digest(SHIP), sketch(SHIP), 1_000)
    segment = Segment(stream_id="a", segment_id="x", text=text, **fields)  # type: ignore[arg-type]
    assert relation(segment, known) == want


def test_an_older_revision_stays_a_repeat_whatever_it_says() -> None:
    known = Known("x", "x", 3, digest(SHIP), sketch(SHIP), 1_000)
    older = Segment(stream_id="a", segment_id="x", text="We ship", revision=2, start_ms=1_000)
    assert relation(older, known) == "repeat"


def test_names_are_found_again_and_bounded() -> None:
    known = KnownSegments()
    for name in ("user@7", "turn-0", "turn-0@2"):
        known.remember_name(Known(name, name, 1))
    assert known.get("user@7") is not None
    found = known.get("turn-0")
    assert found is not None
    assert found.name == "turn-0@2"
    for number in range(RECENT_IDS + 5):
        known.take(f"s{number}", Segment(stream_id="a", segment_id=f"s{number}", text="x y z"))
    assert len(known) == RECENT_IDS


def restored(desk: Desk) -> Desk:
    return Desk(desk.emissions[-1].state)


def test_after_a_restart_repeats_are_known_and_new_speech_is_taken() -> None:
    """A restored stream knew ids without their text: each of them was a repeat, new speech was lost."""
    first = Desk()
    first.say("turn-0", SHIP)
    first.say("turn-0", OTHER)
    first.work()
    second = restored(first)
    second.say("turn-0", OTHER)
    second.say("turn-0", CALL)
    second.work()
    assert [name for name, _ in spoken(second)] == ["turn-0", "turn-0@2", "turn-0@3"]


def test_an_older_correction_does_not_override_a_newer_one_after_a_restart() -> None:
    """The window's state had no revision, so anything after a restart was newer."""
    cited = LedgerItem(id="i1", kind="topic", text="Shipping", evidence=(Evidence("s0"),))
    part = WindowSegment(segment_id="s0", seq=0, text=f"{SHIP}\n", tokens=19, offset=0)
    start = SessionState(
        stream_id="a", cursor=0, next_seq=1, items=(cited,), window=(part,), tokens_total=19
    )
    first = Desk(start)
    first.say("s0", "We ship on Monday.", revision=5)
    state = first.work()
    assert state.window[0].revision == 5
    second = Desk(state)
    second.say("s0", "We ship on Sunday.", revision=4)
    state = second.work()
    assert state.window[0].correction == "We ship on Monday."
    (evidence,) = state.items[0].evidence
    assert (evidence.correction, evidence.revision) == ("We ship on Monday.", 5)


def test_a_correction_without_a_revision_still_counts_after_a_restart() -> None:
    first = Desk()
    first.say("s0", SHIP)
    first.work()
    second = restored(first)
    second.say("s0", "We ship on Monday.")
    assert second.work().window[0].correction == "We ship on Monday."


def test_drafts_under_a_used_id_are_shown_under_its_new_name() -> None:
    desk = Desk(translate_partials=True, targets=("fr",))
    desk.say("turn-0", SHIP, start_ms=1_000)
    desk.work()
    desk.say("turn-0", "Nobody may sign", is_final=False, start_ms=900_000)
    desk.work()
    desk.say("turn-0", OTHER, start_ms=900_000)
    desk.work()
    units = [
        (event.unit_id, event.is_final)
        for emission in desk.emissions
        for event in emission.events
        if isinstance(event, TranslationEvent)
    ]
    assert list(dict.fromkeys(name for name, _ in units)) == ["turn-0", "turn-0@2"]
    assert ("turn-0@2", False) in units
    assert units[-1] == ("turn-0@2", True)
