"""Settings of a stream: their limits, when they take effect, and that they outlive a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.events import Event, Segment, StreamSettings, SummaryEvent, TranslationEvent
from operators.state import SessionState
from operators.stream_operator import StreamOperator
from operators.stream_settings import bounded, merged
from operators.tasks.base import Outcome, Steps, StreamView, Task
from tests.engine import toy_decoder

SMALL: dict[str, Any] = {
    "window": 96,
    "slack": 32,
    "branch_tokens": 700,
    "update_tokens": 48,
    "summary_method": "lines",
    "summary_tokens": 8,
    "ledger_tokens": 8,
    "translation_unit_tokens": 16,
}


class Seen(Task):
    """Notes the settings that its runs see."""

    name = "seen"

    def __init__(self) -> None:
        self.views: list[StreamSettings] = []

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        return True

    def run(self, view: StreamView, occasion: Any) -> Steps:
        self.views.append(view.settings)
        return Outcome()
        yield ()


def operator(tasks: Sequence[Task] = (), **changes: Any) -> StreamOperator:
    return StreamOperator(toy_decoder(), OperatorConfig(**{**SMALL, **changes}), tasks=tasks)


def start(**fields: Any) -> Segment:
    settings = StreamSettings(**fields)
    return Segment(stream_id="a", type="session_start", segment_id="s", settings=settings)


def update(**fields: Any) -> Segment:
    settings = StreamSettings(**fields)
    return Segment(stream_id="a", type="session_update", segment_id="u", settings=settings)


def say(text: str, name: str) -> Segment:
    return Segment(stream_id="a", text=text, segment_id=name)


def run(op: StreamOperator, *segments: Segment, first: int = 0) -> tuple[list[Event], SessionState]:
    state = SessionState(stream_id="a")
    events: list[Event] = []
    for ticket, segment in enumerate(segments, start=first):
        op.feed(segment, ticket)
    while op.has_work():
        for emission in op.step():
            events += emission.events
            state = emission.state
    return events, state


def languages(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(e.unit_id, e.target_lang) for e in events if isinstance(e, TranslationEvent)]


def test_a_stream_is_translated_into_its_own_languages_from_the_place_where_it_asks() -> None:
    op = operator(targets=("fr",))
    op.open("a")
    events, state = run(
        op,
        say("One.", "1"),
        start(targets=("de", "es")),
        say("Two.", "2"),
        update(targets=()),
        say("Three.", "3"),
    )
    assert languages(events) == [("1", "fr"), ("2", "de"), ("2", "es")]
    assert state.settings.targets == ()
    assert state.cursor == 4


def test_settings_are_the_streams_own_and_survive_a_restart() -> None:
    op = operator(targets=("fr",))
    op.open("a")
    _, state = run(op, start(targets=("de",), title="T", glossary={"x": {"de": "y"}}))
    second = operator(targets=("fr",))
    second.open("a", state)
    second.open("b")
    events, state = run(second, say("Two.", "2"), first=1)
    assert languages(events) == [("2", "de")]
    assert state.settings.glossary == {"x": {"de": "y"}}
    second.feed(Segment(stream_id="b", text="Other.", segment_id="3"), 0)
    found: list[Event] = []
    while second.has_work():
        found += [event for emission in second.step() for event in emission.events]
    assert languages(found) == [("3", "fr")]


def test_a_snapshot_keeps_them() -> None:
    op = operator()
    stream = op.open("a")
    stream.feed_segment(start(style="minutes"))
    stream.feed("Hello there.")
    list(stream.results())
    data = stream.snapshot()
    again = operator()
    again.open("a", snapshot=data)
    _, state = run(again, say("More.", "m"), first=10)
    assert state.settings.style == "minutes"


def test_a_task_sees_them_as_of_its_segment() -> None:
    task = Seen()
    op = operator([task])
    op.open("a")
    run(
        op, say("One.", "1"), start(title="T", instructions="I"), say("Two.", "2"), update(title="")
    )
    run(op, say("Three.", "3"), first=4)
    assert [view.title for view in task.views] == [None, "T", None]
    assert [view.instructions for view in task.views] == [None, "I", "I"]


def test_session_start_sets_all_and_begins_a_new_life_with_its_own() -> None:
    op = operator()
    op.open("a")
    end = Segment(stream_id="a", type="session_end", segment_id="e")
    run(op, start(title="T", style="minutes"), say("One.", "1"))
    _, state = run(op, start(title="U"), say("Two.", "2"), first=2)
    assert (state.settings.title, state.settings.style) == ("U", None)
    _, state = run(op, end, say("Three.", "3"), first=4)
    assert (state.epoch, state.settings) == (1, StreamSettings())


def test_what_is_dropped_is_named_in_the_next_summary_and_the_rest_is_kept() -> None:
    op = operator(max_instructions=5)
    op.open("a")
    end = Segment(stream_id="a", type="session_end", segment_id="e")
    events, state = run(
        op, start(targets=("fr", "xx"), instructions="too long"), say("One.", "1"), end
    )
    (final,) = [event for event in events if isinstance(event, SummaryEvent)]
    assert {"setting_dropped:targets", "setting_dropped:instructions"} <= set(final.degraded)
    assert languages(events) == [("1", "fr")]
    assert state.settings.dropped == ()


def test_limits() -> None:
    config = OperatorConfig(
        allowed_targets=("fr", "de"), max_targets=1, max_glossary=1, max_participants=2
    )
    given = StreamSettings(
        title="t" * 257,
        targets=("es", "fr", "de"),
        summary_language="xx",
        style="sonnet",
        template="t" * (config.max_template + 1),
        glossary={"a": {"fr": "b", "xx": "c", "*": "d"}, "e": {}},
        participants=("Ana", "", "Ben", "Cy"),
        instructions="i" * config.max_instructions,
    )
    found = bounded(given, config, translatable=True)
    assert found == StreamSettings(
        targets=("fr",),
        glossary={"a": {"fr": "b", "*": "d"}},
        participants=("Ana", "Ben"),
        instructions=given.instructions,
        dropped=(
            *("title", "targets", "summary_language", "style"),
            *("template", "glossary", "participants"),
        ),
    )
    assert bounded(StreamSettings(targets=("fr",)), config, translatable=False).targets is None
    assert bounded(StreamSettings(targets=()), config, translatable=True).dropped == ()


def test_a_whole_glossary_is_bounded() -> None:
    terms = {f"{at:03}" + "x" * 250: {"*": "y" * 250} for at in range(150)}
    kept = bounded(StreamSettings(glossary=terms), OperatorConfig(), translatable=True)
    assert 0 < len(kept.glossary or {}) < 150
    assert kept.dropped == ("glossary",)


def test_merging_replaces_what_is_given() -> None:
    before = StreamSettings(title="T", targets=("fr",), participants=("Ana",))
    after = merged(before, StreamSettings(title="", targets=("de",), dropped=("style",)))
    assert after == StreamSettings(targets=("de",), participants=("Ana",))


def test_an_unknown_allowed_language_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="allowed_targets: unknown language code 'xx'"):
        OperatorConfig(allowed_targets=("xx",))


def test_an_update_waits_for_what_was_said_before_it() -> None:
    """The state of an emission never holds settings beyond its cursor."""
    op = operator(targets=("fr",))
    op.open("a")
    op.feed(say("One long enough to be translated.", "1"), 0)
    op.feed(update(title="T"), 1)
    while op.has_work():
        for emission in op.step():
            assert (emission.state.settings.title == "T") == (emission.state.cursor >= 1)


def test_a_summary_with_nothing_new_still_ends_the_stream_behind_settings() -> None:
    op = operator()
    op.open("a")
    end = Segment(stream_id="a", type="session_end", segment_id="e")
    events, state = run(op, say("One.", "1"), update(title="T"), end)
    assert state.ended
    assert isinstance(events[-1], SummaryEvent)
