"""The optional policy of a stream that is behind: fewer summary updates, and no segment less."""

from __future__ import annotations

import pytest

from operators.errors import ConfigError
from operators.events import SummaryEvent, TranslationEvent
from tests.operators.test_stream_operator import CONFIG, drain, events, make, speech

LATE = {"window": 288, "targets": ("fr",)}
"""A window of several updates, so that some can be skipped."""


def run_late(**changes: object) -> tuple[list[SummaryEvent], list[TranslationEvent]]:
    """A whole stream that waits before the first step."""
    operator = make(**LATE, **changes)
    operator.open("a")
    for ticket, segment in enumerate(speech("a", 24)):
        operator.feed(segment, ticket)
    made = events(drain(operator), "a")
    return (
        [event for event in made if isinstance(event, SummaryEvent)],
        [event for event in made if isinstance(event, TranslationEvent)],
    )


def test_a_stream_that_is_behind_makes_fewer_updates_and_covers_the_same() -> None:
    every, translated = run_late()
    fewer, translated_too = run_late(skip_behind=2)
    assert len(fewer) < len(every)
    assert fewer[-1].covers == every[-1].covers
    assert fewer[-1].covers.to_seq == 23
    assert [e.unit_id for e in translated_too] == [e.unit_id for e in translated]
    flagged = [e for e in fewer if "updates_skipped" in e.degraded]
    assert flagged
    assert flagged[-1].revision == fewer[len(flagged) - 1].revision, "only while it was behind"
    assert not any("updates_skipped" in e.degraded for e in every)
    seen = [e.covers.to_seq for e in fewer]
    assert seen == sorted(seen)


def test_a_stream_that_keeps_up_skips_nothing() -> None:
    def run(skip: int) -> list[tuple[int, str, tuple[str, ...]]]:
        operator, made = make(**LATE, skip_behind=skip), []
        operator.open("a")
        for ticket, segment in enumerate(speech("a", 10)):
            operator.feed(segment, ticket)
            made += events(drain(operator), "a")
        return [(e.revision, e.text, e.degraded) for e in made if isinstance(e, SummaryEvent)]

    assert run(2) == run(0)


def test_it_is_off_by_default() -> None:
    assert CONFIG.skip_behind == 0
    with pytest.raises(ConfigError, match="skip_behind"):
        make(skip_behind=-1)
