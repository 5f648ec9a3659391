"""Live translation of partial hypotheses: shown until the final is out, in gaps only, and without a
trace in anything else."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch
from msgspec.structs import replace

from operators.engine.partial_hypotheses import MAX_UNITS
from operators.events import Event, Segment, SummaryEvent, TranslationEvent
from operators.observer import Observer
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_retranslation import FREE
from tests.operators.test_stream_operator import CONFIG, Clock, drain, events, make, speech


def heard(segment: Segment, count: int | None = None) -> list[Segment]:
    """The segment as it grows, word by word, before it is final."""
    words = segment.text.split()
    texts = [" ".join(words[:n]) for n in range(1, len(words) + 1)][:count]
    return [
        replace(segment, text=text, seq=None, revision=n, is_final=False)
        for n, text in enumerate(texts)
    ]


def live(segments: Iterable[Segment]) -> list[Segment]:
    """The same talk with partials before every final."""
    told: list[Segment] = []
    for segment in segments:
        if segment.type == "segment":
            told += heard(segment)
            segment = replace(segment, revision=100)
        told.append(segment)
    return told


def tails(made: Iterable[Event], language: str = "fr") -> list[TranslationEvent]:
    return [
        e
        for e in made
        if isinstance(e, TranslationEvent) and not e.is_final and e.target_lang == language
    ]


def lasting(made: Iterable[Event]) -> tuple[list[tuple[object, ...]], list[tuple[str, ...]]]:
    """What must not depend on partials: summaries with their coverage, the text of finals."""
    made = list(made)
    return [
        (e.revision, e.text, e.status, e.trigger, e.covers.to_seq, e.items, e.degraded)
        for e in made
        if isinstance(e, SummaryEvent)
    ], [
        (e.unit_id, e.target_lang, e.committed)
        for e in made
        if isinstance(e, TranslationEvent) and e.is_final
    ]


def play(operator: StreamOperator, segments: list[Segment], seed: int) -> list[Emission]:
    """Feed with steps in between, as chance has it; the operator never comes to rest before the
    end, unless chance lets it."""
    rng, emissions = random.Random(seed), []
    for stream in {s.stream_id for s in segments}:
        operator.open(stream)
    for ticket, segment in enumerate(segments):
        operator.feed(segment, ticket)
        for _ in range(rng.choice([0, 1, 3, 40])):
            if operator.has_work():
                emissions += operator.step()
                operator.cache.check_integrity()
    return emissions + drain(operator)


def start(**changes: object) -> StreamOperator:
    """An operator that has heard a little."""
    operator = make(**{"translate_partials": True, **changes})
    operator.open("a")
    for ticket, segment in enumerate(speech("a", 3)[:-1]):
        operator.feed(segment, ticket)
    drain(operator)
    return operator


def say(operator: StreamOperator, text: str, ticket: int, **fields: object) -> None:
    given: dict[str, object] = {"segment_id": "u", "is_final": False, "text": text, **fields}
    operator.feed(Segment(stream_id="a", **given), ticket)  # type: ignore[arg-type]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("room", "seed"),
    [({}, 0), ({}, 1), ({"branches": 1, "slots": 1}, 0), ({"temperature": 0.8}, 0)],
)
def test_partials_change_nothing_about_finals_and_summaries(
    room: dict[str, object], seed: int
) -> None:
    talk = [s for pair in zip(speech("a", 4), speech("b", 4), strict=True) for s in pair]
    plain = play(make(**room), talk, seed)
    told = live(talk)
    with_them = play(make(**room, translate_partials=True), told, seed)
    for stream in ("a", "b"):
        made = events(with_them, stream)
        assert lasting(made) == lasting(events(plain, stream))
        _check_life(made)
    assert tails(e for m in with_them for e in m.events), "there was something to see"
    assert sorted(t for m in with_them for t in m.done) == list(range(len(told)))


def _check_life(made: list[Event]) -> None:
    """Revisions are contiguous, and nothing of a unit follows its final."""
    for code in ("fr", "de"):
        mine = [e for e in made if isinstance(e, TranslationEvent) and e.target_lang == code]
        assert [e.revision for e in mine] == list(range(1, len(mine) + 1))
        finished: set[str] = set()
        for event in mine:
            assert event.unit_id not in finished
            if event.is_final:
                finished.add(event.unit_id)


def test_what_a_partial_looks_like() -> None:
    operator = start()
    say(operator, "we move the red", 10)
    emissions = drain(operator)
    assert emissions[0].done == [10]
    assert not emissions[0].events
    (event,) = tails(events(emissions, "a"))
    assert event.tail
    assert (event.committed, event.policy, event.unit_id) == ("", "retranslation", "u")
    assert (event.source_text, event.source.last_offset) == ("we move the red", 10)
    assert event.usage.output_tokens > 0
    assert event.degraded in ((), ("cut_by_length",))
    assert event.stability.deleted_tokens == 0
    assert len(tails(events(emissions, "a"), "de")) == 1


def test_erasure_is_told_against_the_tail_shown_before() -> None:
    seen: list[float] = []

    class Watching(Observer):
        def observe(self, name: str, value: float, **labels: str) -> None:
            if name == "translation_normalized_erasure":
                seen.append(value)

    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": ("fr",), "translate_partials": True})
    operator = StreamOperator(toy_decoder(), config, clock=Clock(), observer=Watching())
    operator.open("a")
    made: list[TranslationEvent] = []
    for ticket, text in enumerate(["we", "we move it", "on a red remote"]):
        say(operator, text, ticket)
        made += tails(events(drain(operator), "a"))
    say(operator, "we test the button", 3, is_final=True)
    made += [e for e in events(drain(operator), "a") if isinstance(e, TranslationEvent)]
    assert [e.is_final for e in made] == [False, False, False, True]
    shown = ""
    for event in made:
        words, before = (event.tail or event.committed).split(), shown.split()
        kept = 0
        while kept < min(len(words), len(before)) and words[kept] == before[kept]:
            kept += 1
        assert event.stability.deleted_tokens == len(before) - kept
        shown = event.tail
    assert seen == pytest.approx([e.stability.normalized_erasure for e in made], abs=1e-4)
    assert any(seen)


def test_of_a_burst_only_the_newest_is_translated() -> None:
    operator = start()
    emissions: list[Emission] = []
    for n in range(50):
        say(operator, f"we move the button {n}", 10 + n)
        if n in (0, 20):
            emissions += operator.step()
    emissions += drain(operator)
    made = tails(events(emissions, "a"))
    assert [e.source_text[-2:].strip() for e in made] == ["0", "49"]
    assert "partials_coalesced" not in made[0].degraded
    assert "partials_coalesced" in made[-1].degraded
    assert [t for m in emissions for t in m.done] == list(range(10, 60))


def test_an_older_revision_and_the_same_words_say_nothing_new() -> None:
    operator = start()
    for ticket, (text, revision) in enumerate([("we test", 3), ("we", 2), ("we  test", 4)]):
        say(operator, text, 10 + ticket, revision=revision)
    assert [e.source_text for e in tails(events(drain(operator), "a"))] == ["we test"]


def test_a_blank_hypothesis_takes_the_one_before_back() -> None:
    operator = start()
    say(operator, "we test", 10)
    operator.step()
    say(operator, " ", 11)
    assert not tails(events(drain(operator), "a"))


@pytest.mark.parametrize("steps", [0, 4, 9])
@pytest.mark.parametrize("what", ["final", "end", "drop", "newer life"])
def test_nothing_follows_what_overtakes_a_partial(what: str, steps: int) -> None:
    operator = start()
    say(operator, "we move the red", 10)
    for _ in range(steps):
        operator.step()
    if what == "final":
        say(operator, "we move the red button.", 11, is_final=True)
        say(operator, "we move the", 12)  # late
        made = events(drain(operator), "a")
        assert [e for e in made if isinstance(e, TranslationEvent) and e.is_final]
        assert not tails(made)
    elif what == "end":
        operator.feed(Segment(stream_id="a", type="session_end", segment_id="end"), 11)
        say(operator, "we move the red button", 12)
        emissions = drain(operator)
        made = events(emissions, "a")
        assert not tails(made)
        assert isinstance(made[-1], SummaryEvent)
        assert emissions[-1].state.ended
    elif what == "drop":
        operator.drop("a")
        assert not operator.has_work()
    else:
        operator.open("a")
        assert not events(drain(operator), "a")
    operator.cache.check_integrity()
    assert operator.cache.free_regions == CONFIG.branches


@pytest.mark.usefixtures("device")
def test_a_draft_changes_the_speed_only() -> None:
    def run(drafter: str) -> tuple[list[tuple[str, str]], int]:
        config = CONFIG.from_dict(
            {**CONFIG.to_dict(), "drafter": drafter, "targets": ("fr",), "translate_partials": True}
        )
        model = toy_decoder()
        forward = model.forward

        def ascii_only(role, cache, rows):  # type: ignore[no-untyped-def]
            logits = forward(role, cache, rows).clone()
            logits[:, 127:256] = -1e9
            return logits

        model.forward = ascii_only  # type: ignore[method-assign]
        operator = StreamOperator(model, config, clock=Clock(), costs=FREE)
        operator.open("a")
        made: list[TranslationEvent] = []
        for ticket, part in enumerate(heard(speech("a", 2)[0]) + heard(speech("a", 3)[1])):
            operator.feed(part, ticket)
            made += tails(events(drain(operator), "a"))
        return [(e.source_text, e.tail) for e in made], sum(e.usage.drafted for e in made)

    plain, none = run("none")
    drafted, some = run("previous")
    assert drafted == plain
    assert len(plain) > 4
    assert none == 0
    assert some > 0


@pytest.mark.usefixtures("device")
def test_a_stream_restored_in_between_goes_on_without_the_partial() -> None:
    operator = start()
    say(operator, "we move", 10)
    before = drain(operator)
    say(operator, "we move the red", 11)
    emissions = operator.step()
    assert emissions[-1].done == [11]
    assert operator.has_work(), "the partial is in work"
    assert operator.quiet("a"), "which is no part of the stream's memory"
    state, snapshot = emissions[-1].state, operator.snapshot("a")
    last = tails(events(before, "a"))[-1].revision
    assert state.revisions["translation:fr"] == last
    for given in (None, snapshot):
        other = make(translate_partials=True)
        other.open("a", state=state, snapshot=given)
        assert not events(drain(other), "a")
        say(other, "we move the red remote", 12)
        made = drain(other)
        assert tails(events(made, "a"))[0].revision == last + 1
        assert made[-1].state.revisions["translation:fr"] == last + 1


@pytest.mark.usefixtures("device")
def test_a_snapshot_is_the_same_with_a_partial_in_work() -> None:
    operator = start()
    before = operator.snapshot("a")
    say(operator, "we move the red", 10)
    operator.step()
    assert operator._sessions["a"].partials.running
    after = operator.snapshot("a")
    other, same = make(), make()
    other.open("a", snapshot=before)
    same.open("a", snapshot=after)
    final = Segment(stream_id="a", segment_id="z", text="it is a red button.")
    for each in (other, same):
        each.feed(final, 11)
    assert lasting(events(drain(same), "a")) == lasting(events(drain(other), "a"))


def test_what_is_kept_is_bounded() -> None:
    operator = start()
    for n in range(5 * MAX_UNITS):
        say(operator, f"we test {n}", 10 + n, segment_id=f"u{n}")
        if n % 3 == 0:
            operator.step()
            operator.cache.check_integrity()
    kept = operator._sessions["a"].partials.units
    assert list(kept) == [f"u{n}" for n in range(4 * MAX_UNITS, 5 * MAX_UNITS)]
    assert tails(events(drain(operator), "a"))[-1].unit_id in kept


def test_whoever_needs_slot_or_branch_takes_it_from_a_partial() -> None:
    operator = start(slots=1, branches=1, targets=["fr"])
    operator.open("b")
    say(operator, "we move the red button", 10)
    operator.step()
    operator.step()
    assert operator._sessions["a"].partials.running
    final = replace(speech("b", 1)[0], text="it is on.")
    operator.feed(final, 0)
    operator.step()
    assert not operator._sessions["a"].partials.running
    assert operator._sessions["b"].slot is not None
    emissions = drain(operator)
    order = [(m.stream_id, e.is_final) for m in emissions for e in m.events if tails([e]) or True]
    assert order == [("b", True), ("a", False)]


@pytest.mark.parametrize("stream", ["a", "b"])
def test_a_final_is_not_a_step_later_for_a_partial_in_work(stream: str) -> None:
    def steps(partial: bool) -> int:
        operator = start(slots=2, branches=2, targets=["fr"], drafter="none")
        operator.open("b")
        if partial:
            say(operator, "we move the red button", 10, segment_id="v")
            for _ in range(3):
                operator.step()
            assert operator._sessions["a"].partials.running
        text = "we move the red button again on a red remote and test it and test it again."
        operator.feed(Segment(stream_id=stream, segment_id="u", text=text), 11)
        for count in range(1, 500):
            made = [e for m in operator.step() for e in m.events]
            if any(isinstance(e, TranslationEvent) and e.is_final for e in made):
                return count
        raise AssertionError("no final")

    assert steps(partial=True) == steps(partial=False)


def test_many_streams_with_partials_share_few_slots() -> None:
    operator = make(translate_partials=True, slots=1, branches=1)
    for name in "abc":
        operator.open(name)
        talk = Segment(stream_id=name, segment_id="u", text=f"we {name} test", is_final=False)
        operator.feed(talk, 0)
    emissions = drain(operator, limit=2_000)
    assert all(len(tails(events(emissions, name))) == 1 for name in "abc")
    assert all(len(tails(events(emissions, name), "de")) == 1 for name in "abc")


def test_numbers_that_are_not_finite_show_nothing() -> None:
    operator = start()
    forward, broken = operator.model.forward, [True]

    def sometimes(role, cache, rows):  # type: ignore[no-untyped-def]
        logits = forward(role, cache, rows)
        return torch.full_like(logits, float("nan")) if broken[0] and len(logits) else logits

    operator.model.forward = sometimes  # type: ignore[method-assign]
    say(operator, "we move the red", 10)
    emissions = drain(operator)
    assert [m.done for m in emissions] == [[10]]
    assert not events(emissions, "a")
    assert not any(m.failed for m in emissions)
    broken[0] = False
    say(operator, "we move the red button", 11)
    assert tails(events(drain(operator), "a"))


def test_it_is_off_by_default() -> None:
    assert not CONFIG.translate_partials
    operator = start(translate_partials=False)
    say(operator, "we move the red", 10)
    emissions = drain(operator)
    assert [m.done for m in emissions] == [[10]]
    assert not events(emissions, "a")
    assert not operator._sessions["a"].partials.units
