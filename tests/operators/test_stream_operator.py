"""The whole operator on a toy model: streams do not touch each other, covered means seen, memory is
bounded, and every ticket comes back once and in order."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch

from operators.cache.batch import Row
from operators.config import OperatorConfig
from operators.errors import CapacityError, ConfigError, DeviceError, SegmentError
from operators.events import Event, Segment, Speaker, SummaryEvent, TranslationEvent
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder

CONFIG = OperatorConfig(
    window=96,
    slack=24,
    branch_tokens=220,
    slots=4,
    branches=3,
    prefill_budget=64,
    update_tokens=60,
    summary_tokens=24,
    ledger_tokens=80,
    summary_method="lines",
    translation_unit_tokens=24,
    max_queue=500,
    targets=("fr", "de"),
    prompts={  # short: a byte is a token here
        "system": "S",
        "user": "U{window}",
        "summary": "{ledger} {limit}",
        "compact": "{ledger} {limit}",
        "translate": "{language} {text}",
    },
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(**changes: object) -> StreamOperator:
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **changes})
    return StreamOperator(toy_decoder(), config, clock=Clock())


def speech(stream: str, count: int, seed: int = 0) -> list[Segment]:
    rng = random.Random(f"{stream}{seed}")
    words = [
        "we",
        "move",
        "the",
        "red",
        "button",
        "on",
        "a",
        "remote",
        "and",
        "test",
        "it",
        "again",
    ]
    segments = [
        Segment(
            stream_id=stream,
            seq=i,
            segment_id=f"{stream}-{i}",
            text=" ".join(rng.choices(words, k=rng.randint(1, 9))) + ".",
            speaker=Speaker(name=rng.choice(["Ana", "Bo"])),
            end_ms=1000 * i,
        )
        for i in range(count)
    ]
    return [*segments, Segment(stream_id=stream, type="session_end", segment_id=f"{stream}-end")]


def drain(operator: StreamOperator, limit: int = 20_000) -> list[Emission]:
    emissions: list[Emission] = []
    for _ in range(limit):
        if not operator.has_work():
            operator.cache.check_integrity()
            return emissions
        emissions += operator.step()
    raise AssertionError("the operator never came to rest")


def run(operator: StreamOperator, segments: Iterable[Segment], shuffle: int = 0) -> list[Emission]:
    """Feed everything, a step now and then in between, and run to the end."""
    rng, emissions = random.Random(shuffle), []
    known: set[str] = set()
    for ticket, segment in enumerate(segments):
        if segment.stream_id not in known:
            known.add(segment.stream_id)
            operator.open(segment.stream_id)
        operator.feed(segment, ticket)
        if rng.random() < 0.5:
            emissions += operator.step()
    return emissions + drain(operator)


def events(emissions: Iterable[Emission], stream: str) -> list[Event]:
    return [e for m in emissions if m.stream_id == stream for e in m.events]


def summaries(emissions: Iterable[Emission], stream: str) -> list[SummaryEvent]:
    return [e for e in events(emissions, stream) if isinstance(e, SummaryEvent)]


def essence(event: Event) -> tuple[object, ...]:
    """What a stream's consumer sees, without what depends on timing or neighbours."""
    if isinstance(event, SummaryEvent):
        return ("summary", event.revision, event.text, event.covers.to_seq, event.status)
    return (event.target_lang, event.revision, event.unit_id, event.committed)


def ordered(found: list[Event]) -> list[tuple[object, ...]]:
    """By kind: between kinds the order of arrival is a matter of load."""
    return sorted((essence(e) for e in found), key=lambda e: (e[0], e[1]))


@pytest.mark.usefixtures("device")
def test_a_stream_alone_gives_what_it_gives_among_others() -> None:
    """Invariant 3, texts and coverage of every revision; fewer regions than answers wanted."""
    alone = {}
    for name in ("a", "b", "c", "d"):
        alone[name] = ordered(events(run(make(), speech(name, 10)), name))
    talks = {name: speech(name, 10) for name in alone}
    mixed, rng = [], random.Random(5)
    while any(talks.values()):
        name = rng.choice([n for n, left in talks.items() if left])
        mixed.append(talks[name].pop(0))
    together = run(make(), mixed, shuffle=9)
    for name, expected in alone.items():
        assert ordered(events(together, name)) == expected


@pytest.mark.usefixtures("device")
def test_more_streams_than_slots_change_nothing() -> None:
    """Idle streams move to host memory and come back; the words stay the same."""
    expected = {n: ordered(events(run(make(), speech(n, 8)), n)) for n in ("a", "b", "c")}
    operator = make(slots=1)
    talks = {n: speech(n, 8) for n in expected}
    emissions: list[Emission] = []
    for name in talks:
        operator.open(name)
    for at in range(9):  # every stream in turn, and quiet in between
        for talk in talks.values():
            operator.feed(talk[at], at)
            emissions += drain(operator)
    for name, want in expected.items():
        assert ordered(events(emissions, name)) == want


@pytest.mark.usefixtures("device")
def test_drafting_changes_speed_only() -> None:
    texts = {}
    for drafter in ("none", "ngram", "suffix", "previous", "combined"):
        texts[drafter] = ordered(events(run(make(drafter=drafter), speech("a", 10)), "a"))
    assert len({str(t) for t in texts.values()}) == 1


def test_tickets_come_back_once_and_in_feed_order() -> None:
    emissions = run(make(), [*speech("a", 12), *speech("b", 12)])
    for name in ("a", "b"):
        done = [t for m in emissions if m.stream_id == name for t in m.done]
        assert done == sorted(done)
        cursors = [m.state.cursor for m in emissions if m.stream_id == name]
        assert cursors == sorted(cursors)
    assert sorted(t for m in emissions for t in m.done) == list(range(26))


def test_revisions_count_up_without_gaps_and_the_last_is_final() -> None:
    emissions = run(make(), speech("a", 16))
    found = summaries(emissions, "a")
    assert [s.revision for s in found] == list(range(1, len(found) + 1))
    assert len(found) >= 4
    assert found[-1].status == "final"
    assert found[-1].covers.to_seq == 15
    french = [
        e
        for e in events(emissions, "a")
        if isinstance(e, TranslationEvent) and e.target_lang == "fr"
    ]
    assert [e.unit_id for e in french if e.is_final] == [f"a-{i}" for i in range(16)]
    assert [e.revision for e in french] == list(range(1, len(french) + 1)), "clauses count too"


class Witness:
    """Records, for every summary branch, which transcript positions it could really see."""

    def __init__(self, operator: StreamOperator) -> None:
        self.operator = operator
        self.segment_positions: dict[str, set[int]] = {}
        self.seen: dict[int, set[int]] = {}
        forward = operator.model.forward

        def watched(role, cache, rows: list[Row]):  # type: ignore[no-untyped-def]
            for row in rows:
                if row.branch is None:
                    self._note_segment(row)
                else:
                    w = operator.layout.window
                    oldest = max(operator.layout.sinks, row.branch.fork - w)
                    self.seen[row.branch.fork] = set(range(oldest, row.branch.fork))
            return forward(role, cache, rows)

        operator.model.forward = watched  # type: ignore[method-assign]

    def _note_segment(self, row: Row) -> None:
        for session in self.operator._sessions.values():
            if session.slot is row.stream and session.current is not None:
                ids = self.segment_positions.setdefault(session.current.info.segment_id, set())
                ids.update(range(row.start, row.start + len(row.tokens)))


def test_covered_means_seen_in_full_by_successful_updates() -> None:
    """Invariant 8, checked from outside: positions ingested against positions visible to branches,
    with segments longer than half the window among short ones."""
    operator = make(targets=[])
    witness = Witness(operator)
    talk = speech("a", 20)
    long_text = "so the plan is that everybody tests the button on every remote we have. " * 4
    talk.insert(7, Segment(stream_id="a", seq=100, segment_id="long", text=long_text))
    talk[8:-1] = [
        Segment(stream_id="a", seq=101 + i, segment_id=s.segment_id, text=s.text)
        for i, s in enumerate(talk[8:-1])
    ]
    emissions = run(operator, talk)
    everything = set().union(*witness.segment_positions.values())
    assert everything == set(range(min(everything), max(everything) + 1))
    seq_of = {s.segment_id: s.seq for s in talk if s.type == "segment"}
    visible: set[int] = set()
    forks = sorted(witness.seen)
    for event, fork in zip(summaries(emissions, "a"), forks, strict=True):
        visible |= witness.seen[fork]
        for segment_id, seq in seq_of.items():
            if seq <= event.covers.to_seq:
                assert witness.segment_positions[segment_id] <= visible
    assert everything <= visible


def test_failed_update_does_not_advance_coverage_and_a_later_one_makes_good() -> None:
    operator = make(targets=[], update_tokens=40)
    forward, failures = operator.model.forward, [0]

    def faulty(role, cache, rows: list[Row]):  # type: ignore[no-untyped-def]
        logits = forward(role, cache, rows)
        if any(r.branch for r in rows) and failures[0] < 2 and logits.shape[0]:
            failures[0] += 1
            return torch.full_like(logits, torch.nan)
        return logits

    operator.model.forward = faulty  # type: ignore[method-assign]
    emissions = run(operator, speech("a", 20))
    found = summaries(emissions, "a")
    assert failures[0] == 2
    assert "update_failed" in found[0].degraded
    assert found[-1].covers.to_seq == 19
    covered = [s.covers.to_seq for s in found]
    assert covered == sorted(covered)


def test_updates_that_never_succeed_stop_the_device_and_nothing_is_claimed() -> None:
    operator = make(targets=[])
    forward = operator.model.forward

    def broken(role, cache, rows: list[Row]):  # type: ignore[no-untyped-def]
        logits = forward(role, cache, rows)
        return torch.full_like(logits, torch.nan) if any(r.branch for r in rows) else logits

    operator.model.forward = broken  # type: ignore[method-assign]
    emissions: list[Emission] = []
    operator.open("a")
    for ticket, segment in enumerate(speech("a", 40)):
        operator.feed(segment, ticket)

    def go_on() -> None:
        for _ in range(5000):
            emissions.extend(operator.step())

    with pytest.raises(DeviceError, match="no finite numbers"):
        go_on()
    assert not summaries(emissions, "a")
    assert all(m.state.covered_seq == -1 for m in emissions)


@pytest.mark.usefixtures("device")
def test_state_continues_in_a_new_operator_without_loss_or_repetition() -> None:
    """A crash between two emissions: what was not done is fed again, revisions go on."""
    talk = speech("a", 24)
    first = make()
    first.open("a")
    before: list[Emission] = []
    for ticket, segment in enumerate(talk):
        first.feed(segment, ticket)
    while len(summaries(before, "a")) < 3:
        before += first.step()
    state = before[-1].state
    assert 0 < state.cursor < 24
    second = make()
    second.open("a", state)
    for ticket in range(state.cursor + 1, len(talk)):
        second.feed(talk[ticket], ticket)
    after = drain(second)
    revisions = [s.revision for s in summaries(before + after, "a")]
    assert revisions == list(range(1, len(revisions) + 1))
    assert [t for m in before + after for t in m.done] == list(range(len(talk)))
    final = summaries(after, "a")[-1]
    assert final.kv.restored == "replay"
    assert final.covers.to_seq == 23
    units = [
        e.unit_id
        for e in events(before + after, "a")
        if isinstance(e, TranslationEvent) and e.target_lang == "de" and e.is_final
    ]
    assert units == [f"a-{i}" for i in range(24)]


def test_state_leaves_out_what_lies_behind_its_cursor() -> None:
    operator = make()
    operator.open("a")
    for ticket, segment in enumerate(speech("a", 12)[:-1]):
        operator.feed(segment, ticket)
    for emission in drain(operator):
        state = emission.state
        assert all(part.offset <= state.cursor for part in state.window)
        assert state.covered_seq <= state.cursor
        assert state.next_seq == state.cursor + 1


def test_ended_stream_starts_a_new_epoch_with_an_empty_memory() -> None:
    operator = make()
    first = run(operator, speech("a", 12))
    again = [s for s in speech("a", 12, seed=1)]
    for ticket, segment in enumerate(again):
        operator.feed(segment, 100 + ticket)
    second = drain(operator)
    assert {e.epoch for e in events(first, "a")} == {0}
    assert {e.epoch for e in events(second, "a")} == {1}
    assert summaries(second, "a")[0].revision == 1
    assert summaries(second, "a")[-1].covers.to_seq == 11
    assert first[-1].state.ended
    assert operator.cache.free_slots == CONFIG.slots


def test_repeats_partials_and_blanks_are_done_without_a_trace() -> None:
    operator = make(targets=[])
    talk = speech("a", 10)
    noise = [
        talk[3],
        Segment(stream_id="a", segment_id="p", text="half a sent", is_final=False),
        Segment(stream_id="a", segment_id="blank", text="   "),
        Segment(stream_id="a", type="speaker_revision"),
    ]
    with_noise = talk[:6] + noise + talk[6:]
    plain = run(operator, talk)
    noisy = run(make(targets=[]), with_noise)
    assert [s.text for s in summaries(noisy, "a")] == [s.text for s in summaries(plain, "a")]
    assert sorted(t for m in noisy for t in m.done) == list(range(len(with_noise)))


def test_refusals_are_clear_and_harmless() -> None:
    operator = make(max_queue=2, max_text_bytes=50)
    operator.open("a")
    with pytest.raises(SegmentError, match="at most 50") as refused:
        operator.feed(Segment(stream_id="a", text="x" * 51), 0)
    assert refused.value.reason == "text_too_large"
    for ticket in range(2):
        operator.feed(Segment(stream_id="a", text="fine", segment_id=str(ticket)), ticket)
    with pytest.raises(CapacityError):
        operator.feed(Segment(stream_id="a", text="fine", segment_id="2"), 2)
    done = [t for m in drain(operator) for t in m.done]
    assert done == [0, 1]
    with pytest.raises(ConfigError, match="branch_tokens"):
        make(branch_tokens=40)


def test_dropped_stream_is_gone_at_once_and_its_memory_free() -> None:
    operator = make()
    for name in ("a", "b"):
        operator.open(name)
        for ticket, segment in enumerate(speech(name, 10)):
            operator.feed(segment, ticket)
    for _ in range(6):
        operator.step()
    operator.drop("a")
    operator.cache.check_integrity()
    assert {m.stream_id for m in drain(operator)} == {"b"}
    assert operator.cache.free_slots == CONFIG.slots


def test_updates_by_time_alone() -> None:
    operator = make(targets=[], update_interval_s=10.0)
    clock: Clock = operator._clock  # type: ignore[assignment]
    operator.open("a")
    operator.feed(Segment(stream_id="a", text="short", segment_id="x"), 0)
    assert not summaries(drain(operator), "a")
    assert operator.idle_until() == 10.0
    clock.now = 10.0
    found = summaries(drain(operator), "a")
    assert [s.trigger for s in found] == ["interval"]
    assert operator.idle_until() is None


def half_way(operator: StreamOperator, uncovered: int) -> SessionState:
    """Feed a stream until its state tells of so many uncovered tokens: what a crash would leave."""
    operator.open("a")
    for ticket, segment in enumerate(speech("a", 12)[:-1]):
        operator.feed(segment, ticket)
        while operator._sessions["a"].works:
            for emission in operator.step():
                if emission.state.uncovered_tokens >= uncovered:
                    return emission.state
    raise AssertionError("never so many")


def test_an_update_that_was_running_at_a_crash_is_made_though_nobody_speaks() -> None:
    """At the same place, of the same words: nothing had left the window."""
    first, second = make(targets=[]), make(targets=[])
    state = half_way(first, CONFIG.update_tokens)
    (before,) = summaries(drain(first), "a")
    second.open("a", state)
    (after,) = summaries(drain(second), "a")
    assert (after.trigger, after.covers, after.text) == ("tokens", before.covers, before.text)
    assert after.covers.to_seq == state.next_seq - 1


def test_an_update_by_time_comes_after_a_crash_though_nobody_speaks() -> None:
    changes = {"targets": [], "update_interval_s": 10.0}
    state = half_way(make(**changes), 1)
    operator = make(**changes)
    operator.open("a", state)
    assert not summaries(drain(operator), "a")
    assert operator.idle_until() == 10.0
    operator._clock.now = 10.0  # type: ignore[attr-defined]
    (after,) = summaries(drain(operator), "a")
    assert (after.trigger, after.covers.to_seq) == ("interval", state.next_seq - 1)


def test_nothing_grows_along_a_long_stream() -> None:
    """Invariant 6 in small: every structure is as large after 200 segments as after 60."""
    operator = make(targets=[], branches=1, slots=1)
    operator.open("a")
    session = operator._sessions["a"]
    sizes = []
    for ticket, segment in enumerate(speech("a", 200)[:-1]):
        operator.feed(segment, ticket)
        drain(operator)
        if ticket in (60, 199):
            state = len(session.state().window)
            sizes.append((operator.cache.nbytes, len(session.index)))
            assert session.index.entries <= len(session.index.sizes) * CONFIG.window
            assert len(session.window) <= CONFIG.window
            assert state <= CONFIG.window
            assert len(session.works) == len(session.queue) == 0
            assert len(session.known) <= 1024
    assert sizes[0] == sizes[1]
    assert session.evicted_total > 5 * CONFIG.window


def test_bytes_per_stream_is_what_the_cache_takes() -> None:
    operator = make(slots=4, branches=4)
    assert operator.cache.nbytes == 4 * operator.bytes_per_stream
