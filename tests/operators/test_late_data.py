"""What arrives twice, too late, out of order, with wild times or after the end (docs/events.md)."""

from __future__ import annotations

from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.errors import CapacityError
from operators.events import Covers, Evidence, LedgerItem, Segment, Speaker, SummaryEvent
from operators.observer import Observer
from operators.state import Emission, SessionState, WindowSegment
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG

HOUR = 3600.0


class Time:
    """A clock the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counts(Observer):
    def __init__(self) -> None:
        self.counts: dict[str, float] = {}

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + value


class Desk:
    """One stream on a toy model; ``say`` feeds, ``work`` runs to the end and keeps what came out."""

    def __init__(self, state: SessionState | None = None, **changes: object) -> None:
        config = OperatorConfig.from_dict({**CONFIG.to_dict(), "targets": (), **changes})
        self.time, self.counts = Time(), Counts()
        self.operator = StreamOperator(toy_decoder(), config, clock=self.time, observer=self.counts)
        self.operator.open("a", state)
        self.tickets = self.operator.cursor("a")
        self.emissions: list[Emission] = []

    def say(self, segment_id: str = "", text: str = "", **fields: Any) -> int:
        self.tickets += 1
        text = text or (f"words of {segment_id}" if segment_id else "")
        segment = Segment(stream_id="a", segment_id=segment_id, text=text, **fields)
        self.operator.feed(segment, self.tickets)
        return self.tickets

    def end(self) -> int:
        return self.say(type="session_end")

    def work(self, steps: int = 3000) -> SessionState:
        while self.operator.has_work():
            assert (steps := steps - 1), "never idle"
            self.emissions += self.operator.step()
        done = [ticket for e in self.emissions for ticket in e.done]
        assert done == sorted(set(done)), "every segment is answered for once, in order"
        assert done[-1] == self.tickets
        return self.emissions[-1].state

    @property
    def summaries(self) -> list[SummaryEvent]:
        found = [e for em in self.emissions for e in em.events if isinstance(e, SummaryEvent)]
        for epoch in {e.epoch for e in found}:
            revisions = [e.revision for e in found if e.epoch == epoch]
            assert revisions == list(range(1, len(revisions) + 1))
        return found

    def finals(self) -> list[tuple[int, str]]:
        """Epoch and last covered segment of every final summary."""
        return [(e.epoch, e.covers.to_segment_id) for e in self.summaries if e.status == "final"]


# --- ends and new beginnings -----------------------------------------------------------------------


def test_a_stream_that_goes_on_behind_its_end_begins_a_new_epoch() -> None:
    desk = Desk()
    desk.say("s0")
    desk.end()
    desk.work()
    desk.say("s1")
    desk.end()
    state = desk.work()
    assert desk.finals() == [(0, "s0"), (1, "s1")]
    assert (state.epoch, state.ended, state.cursor) == (1, True, 3)


def test_what_is_fed_behind_an_end_that_is_still_in_the_queue_belongs_to_the_next_epoch() -> None:
    """It used to join the ended epoch, and was counted as covered without having been seen."""
    desk = Desk()
    for name in ("s0", "s1"):
        desk.say(name)
    desk.end()
    desk.say("s2")
    desk.end()
    desk.say("s3")
    state = desk.work()
    assert desk.finals() == [(0, "s1"), (1, "s2")]
    assert (state.epoch, state.ended) == (2, False)
    assert [part.segment_id for part in state.window] == ["s3"]
    assert state.covered_seq == -1, "s3 has not been seen by any update"


def test_a_queue_counts_what_waits_behind_an_end() -> None:
    desk = Desk(max_queue=4)
    desk.say("s0")
    desk.end()
    desk.say("s1")
    desk.say("s2")
    with pytest.raises(CapacityError):
        desk.say("s3")
    desk.tickets -= 1
    desk.work()
    assert desk.finals() == [(0, "s0")]


def test_an_end_that_is_repeated_says_nothing_new() -> None:
    """It used to publish a second final summary, or to keep the engine busy for ever."""
    desk = Desk()
    desk.say("s0")
    desk.end()
    desk.end()
    desk.work()
    desk.end()
    state = desk.work()
    assert desk.finals() == [(0, "s0")]
    assert (state.ended, state.cursor) == (True, 3)
    assert desk.counts.counts["duplicate_inputs"] == 2


def test_an_end_repeated_after_a_restart_says_nothing_new() -> None:
    desk = Desk(SessionState(stream_id="a", epoch=4, ended=True, cursor=9))
    desk.end()
    assert desk.work().epoch == 4
    assert desk.summaries == []


@pytest.mark.parametrize(
    "fields",
    [
        {"segment_id": "s0"},  # the same segment once more, from a producer that retried
        {"segment_id": "s9", "is_final": False},
        {"segment_id": "s9", "text": " "},
        {"segment_id": "s0", "type": "speaker_revision", "speaker": Speaker(name="Ana")},
    ],
    ids=["repeat", "partial", "blank", "speaker"],
)
def test_a_straggler_behind_the_end_does_not_open_the_stream_again(fields: dict[str, Any]) -> None:
    desk = Desk()
    desk.say("s0")
    desk.end()
    desk.work()
    desk.say(**fields)
    state = desk.work()
    assert (state.epoch, state.ended) == (0, True)
    assert len(desk.finals()) == 1


@pytest.mark.parametrize(
    "fields", [{"type": "session_start"}, {"segment_id": "s0", "text": "counted anew"}]
)
def test_a_start_or_new_words_do(fields: dict[str, Any]) -> None:
    desk = Desk()
    desk.say("s0")
    desk.end()
    desk.work()
    desk.say(**fields)
    assert (desk.work().epoch, desk.emissions[-1].state.ended) == (1, False)


# --- repeats, revisions ---------------------------------------------------------------------------


def test_a_segment_that_comes_twice_is_taken_once() -> None:
    desk = Desk()
    desk.say("s0")
    desk.say("s0")
    state = desk.work()
    desk.say("s0")
    again = desk.work()
    assert [part.segment_id for part in again.window] == ["s0"]
    assert again.tokens_total == state.tokens_total
    assert (again.cursor, again.next_seq) == (2, 1)
    assert desk.counts.counts["duplicate_inputs"] == 2


def cited(*ids: str) -> LedgerItem:
    return LedgerItem(
        id="i1", kind="topic", text="what they cite", evidence=tuple(map(Evidence, ids))
    )


def test_a_late_revision_is_remembered_in_the_evidence_and_not_in_the_cache() -> None:
    window = (WindowSegment(segment_id="s1", seq=1, text="fifteen\n", tokens=8, offset=1),)
    state = SessionState(
        stream_id="a", cursor=1, next_seq=2, window=window, items=(cited("s0", "s1"), cited("s7"))
    )
    desk = Desk(state)
    desk.say("s1", "fifty", revision=2)
    desk.say("s0", "Not Ana", revision=1, speaker=Speaker(name="Ben"))
    desk.say("s1", "an older one", revision=1)
    after = desk.work()
    assert [e.correction for e in after.items[0].evidence] == ["Not Ana", "fifty"]
    assert [e.speaker for e in after.items[0].evidence] == ["Ben", None]
    assert after.items[1] == state.items[1]
    assert [(part.text, part.correction) for part in after.window] == [("fifteen\n", "fifty")]
    assert (after.tokens_total, after.next_seq) == (state.tokens_total + 8, 2)
    assert desk.counts.counts == desk.counts.counts | {"late_revisions": 2, "duplicate_inputs": 1}
    assert desk.operator.quiet("a")


def test_what_cites_a_corrected_segment_later_has_the_correction() -> None:
    desk = Desk()
    desk.say("s0", "we ship fifteen")
    desk.work()
    desk.say("s0", "we ship fifty")
    desk.work()
    session = desk.operator._sessions["a"]
    assert [where.correction for where, _ in session.visible_parts(0)] == ["we ship fifty"]
    session.ledger.items = (cited("s0"),)  # as from an update that ran while the correction came
    session.cite_corrections()
    assert session.ledger.items[0].evidence[0].correction == "we ship fifty"


def test_a_speaker_who_is_known_later_is_remembered_in_the_evidence() -> None:
    desk = Desk(SessionState(stream_id="a", cursor=1, next_seq=2, items=(cited("s1"),)))
    desk.say("s1", type="speaker_revision", speaker=Speaker(id="7", name="Ana"))
    (where,) = desk.work().items[0].evidence
    assert (where.speaker, where.correction) == ("Ana", None)


def test_corrections_survive_a_restart() -> None:
    desk = Desk()
    desk.say("s0", "we ship fifteen")
    desk.say("s0", "we ship fifty", revision=1)
    state = desk.work()
    again = Desk(state)
    again.say("s1")
    assert again.work().window[0].correction == "we ship fifty"


# --- order and times ------------------------------------------------------------------------------


def test_numbers_that_do_not_grow_are_replaced_so_that_coverage_claims_only_what_was_seen() -> None:
    desk = Desk()
    for seq in (0, 2, 1, 2**62, 7):
        desk.say(f"s{seq}", seq=seq)
        desk.work()
    desk.end()
    state = desk.work()
    assert desk.summaries[-1].covers.to_segment_id == "s7", "the last to arrive"
    assert desk.summaries[-1].covers.to_seq == 2**62 + 1
    assert state.covered_segment_id == "s7"


def test_a_late_segment_is_not_covered_by_an_update_that_came_before_it() -> None:
    desk = Desk()
    for seq in (0, 2):
        desk.say(f"s{seq}", seq=seq)
    desk.work()
    desk.operator.request_summary("a")
    desk.work()
    assert desk.summaries[-1].covers == Covers(2, "s2")
    desk.say("s1", seq=1)
    state = desk.work()
    assert (state.covered_seq, state.next_seq) == (2, 4), "s1 is number 3, and not covered"


def test_marks_and_partials_do_not_use_up_numbers() -> None:
    desk = Desk()
    desk.say("s0", seq=0)
    desk.say("p", seq=5, is_final=False)
    desk.say("s0", seq=9)
    state = desk.work()
    assert state.next_seq == 1
    again = Desk(state)
    again.say("s5", seq=5)
    assert again.work().window[-1].seq == 5


TIMES = [(0, 0), (10**15, 10**15 + 1), (-(10**12), -5), (5000, 1000), (None, 7), (2**62, -(2**62))]


def test_times_are_labels_and_nothing_waits_for_them() -> None:
    desk, plain = Desk(), Desk()
    for number, (start, end) in enumerate(TIMES):
        desk.say(f"s{number}", start_ms=start, end_ms=end)
        plain.say(f"s{number}")
    for each in (desk, plain):
        each.end()
        each.work()
    assert [e.text for e in desk.summaries] == [e.text for e in plain.summaries]
    assert [e.usage for e in desk.summaries] == [e.usage for e in plain.summaries]
    last = desk.summaries[-1].covers
    assert (last.to_seq, last.to_ms) == (len(TIMES) - 1, TIMES[-1][1])
    assert last.lag_ms is not None
    assert last.lag_ms >= 0


# --- silence --------------------------------------------------------------------------------------


def test_hours_of_silence_ask_for_nothing_and_do_not_count_towards_the_interval() -> None:
    desk = Desk(update_interval_s=60.0)
    desk.say("s0")
    desk.work()
    assert desk.summaries == []
    assert desk.operator.idle_until() == 60.0
    desk.time.now = 61.0
    desk.work()
    assert [e.trigger for e in desk.summaries] == ["interval"]
    desk.time.now = 62 * HOUR
    assert not desk.operator.has_work()
    assert desk.operator.idle_until() is None
    desk.say("s1", start_ms=int(62 * HOUR * 1000))
    desk.work()
    assert len(desk.summaries) == 1, "it used to be summarised alone, at once"
    assert desk.operator.idle_until() == 62 * HOUR + 60.0
    desk.say("s2")
    desk.work()
    desk.time.now += 60.0
    desk.work()
    assert desk.summaries[-1].covers.to_segment_id == "s2"
