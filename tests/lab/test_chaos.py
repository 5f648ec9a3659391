"""The chaos run's judges are judged: what is planted in a sound log is found, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.events import Segment
from pipelines.lab.chaos import watching
from pipelines.lab.chaos.check import Findings, Place, Record, Topics, check, differences
from pipelines.lab.chaos.operators import Echo
from pipelines.lab.chaos.plan import BROKER, KILLS, make_plan, make_silences

TOPICS = Topics("in", "sum", "latest", "tr", "dlq", "asked", "answers")
COUNT = 6
COUNTED = (
    "lost",
    "reordered",
    "conflicting_revisions",
    "duplicates_after_dedupe",
    "duplicates_read_committed",
)


def said(stream: str, number: int) -> dict[str, Any]:
    return {"stream_id": stream, "segment_id": f"{stream}/{number}", "text": f"{number} hello"}


def translation(stream: str, number: int, epoch: int, offset: int) -> dict[str, Any]:
    number_in_epoch = number % COUNT + 1
    return {
        "schema": "insight.translation.v1",
        "event_id": f"{stream}-fr-{epoch}-{number_in_epoch}",
        "stream_id": stream,
        "epoch": epoch,
        "revision": number_in_epoch,
        "target_lang": "fr",
        "unit_id": f"{stream}/{number}",
        "source_text": f"{number} hello",
        "committed": f"{number} bonjour",
        "source": {"first_offset": offset, "last_offset": offset},
    }


def summary(stream: str, revision: int, epoch: int, to: int, offsets: list[int]) -> dict[str, Any]:
    """One that covers up to the segment of that number; ``offsets`` are those of all segments."""
    number_in_epoch = to % COUNT
    return {
        "schema": "insight.summary.v1",
        "event_id": f"{stream}-sum-{epoch}-{revision}",
        "stream_id": stream,
        "epoch": epoch,
        "revision": revision,
        "text": f"up to {to}",
        "covers": {"to_seq": number_in_epoch, "to_segment_id": f"{stream}/{to}"},
        "source": {"first_offset": offsets[to - 2], "last_offset": offsets[to]},
    }


def answer(stream: str, number: int, epoch: int) -> dict[str, Any]:
    """Number ``number`` of the epoch's."""
    return {
        "schema": "insight.answer.v1",
        "event_id": f"{stream}-ans-{epoch}-{number}",
        "stream_id": stream,
        "epoch": epoch,
        "revision": number,
        "question_id": f"{stream}?{epoch}.{number}",
        "text": "42",
        "source": {"first_offset": 0, "last_offset": 0},
    }


class Log:
    """A sound log of two streams on one partition, two epochs each, with two questions about each;
    tests spoil it, then check it."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Record]] = {name: [] for name in TOPICS}
        for stream in ("a", "b"):
            offsets: list[int] = []
            for number in range(2 * COUNT):
                offsets.append(self.put("in", said(stream, number)))
                if number % COUNT == COUNT - 1:
                    self.put("in", {"stream_id": stream, "type": "session_end"})
            for number, offset in enumerate(offsets):
                epoch = number // COUNT
                self.put("tr", translation(stream, number, epoch, offset))
                if number % 3 == 2:
                    revision = number % COUNT // 3 + 1
                    event = summary(stream, revision, epoch, number, offsets)
                    self.put("sum", event)
                    self.put("latest", event)
            for epoch in range(2):
                for number in (1, 2):
                    event = answer(stream, number, epoch)
                    self.put("asked", {"stream_id": stream, "question_id": event["question_id"]})
                    self.put("answers", event)

    def put(self, topic: str, value: dict[str, Any], headers: Any = ()) -> int:
        offset = len(self.topics[topic])
        data = json.dumps(value).encode()
        record = Record(topic, 0, offset, value["stream_id"].encode(), data, headers)
        self.topics[topic].append(record)
        return offset

    def speak_and_fall_silent(self) -> None:
        """A third stream: five segments, no end; time brought the summary that covers the last two."""
        offsets = [self.put("in", said("c", number)) for number in range(5)]
        for number, offset in enumerate(offsets):
            self.put("tr", translation("c", number, 0, offset))
        for revision, to, first in ((1, 2, 0), (2, 4, 3)):
            event = summary("c", revision, 0, to, offsets)
            event["source"]["first_offset"] = offsets[first]
            self.put("sum", event)
            self.put("latest", event)

    def change(self, topic: str, at: int, **fields: Any) -> None:
        record = self.topics[topic][at]
        event = {**json.loads(record.value or b""), **fields}
        self.topics[topic][at] = record._replace(value=json.dumps(event).encode())

    def swap(self, topic: str, one: int, other: int) -> None:
        records = self.topics[topic]
        records[one], records[other] = records[other], records[one]

    def check(self, **options: Any) -> Findings:
        records = [record for topic in self.topics.values() for record in topic]
        return check(records, TOPICS, targets=["fr"], **options)


def counts(found: Findings) -> dict[str, int]:
    return {name: getattr(found, name) for name in COUNTED if getattr(found, name)}


def test_a_sound_log_has_no_findings() -> None:
    found = Log().check(acknowledged=[("a", "a/0"), ("b", "b/11")], asked=["a?0.1"])
    assert (counts(found), found.examples) == ({}, [])
    assert (found.segments, found.unfinished, found.dead_letters) == (4 * COUNT, 0, 0)
    assert list(differences(found, "exactly_once")) == []


def lose_a_translation(log: Log) -> None:
    del log.topics["tr"][COUNT - 1]


def lose_an_answer(log: Log) -> None:
    del log.topics["answers"][3]


def lose_a_question(log: Log) -> None:
    log.check_options = {"asked": ["a?9.9"]}  # type: ignore[attr-defined]


def answer_twice(log: Log) -> None:
    """In the next epoch, since the stream's end came between."""
    log.change("answers", 2, question_id="a?0.1")
    log.change("asked", 2, question_id="x")
    log.put("answers", {**answer("b", 3, 1), "question_id": "x"})


def answer_under_one_id(log: Log) -> None:
    """Two refusals, for a stream that is not known."""
    for name in ("x", "y"):
        log.put("asked", {"stream_id": "c", "question_id": name})
        log.put("answers", {**answer("c", 0, 0), "question_id": name})


def lose_a_revision(log: Log) -> None:
    del log.topics["tr"][2]


def lose_the_last_summary(log: Log) -> None:
    for topic in ("sum", "latest"):
        del log.topics[topic][1]


def lose_an_acknowledged_segment(log: Log) -> None:
    log.check_options = {"acknowledged": [("a", "a/99")]}  # type: ignore[attr-defined]


def skip_a_segment(log: Log) -> None:
    """The range of the second summary begins one segment late."""
    log.change("sum", 1, source={"first_offset": 4, "last_offset": 5})
    log.change("latest", 1, source={"first_offset": 4, "last_offset": 5})


def claim_a_wrong_place(log: Log) -> None:
    """A segment was dropped on the way in: the writer counts one less than the input has."""
    for topic in ("sum", "latest"):
        log.change(topic, 1, covers={"to_seq": 4, "to_segment_id": "a/5"})


def reorder(log: Log) -> None:
    log.swap("tr", 3, 4)


def reorder_segments(log: Log) -> None:
    """Revisions rise, but what they translate does not."""
    log.change("tr", 3, unit_id="a/4", source_text="4 hello")
    log.change("tr", 4, unit_id="a/3", source_text="3 hello")


def leave_an_old_latest(log: Log) -> None:
    log.swap("latest", 2, 3)


def conflict(log: Log) -> None:
    log.put("tr", {**translation("a", 1, 0, 1), "committed": "another"})


def conflict_with_the_latest(log: Log) -> None:
    log.change("latest", 0, text="another")


def invent_words(log: Log) -> None:
    log.change("tr", 1, source_text="never said")


def repeat(log: Log) -> None:
    log.topics["tr"].append(log.topics["tr"][1])


def translate_twice(log: Log) -> None:
    """A segment was done again under the next revision."""
    log.put("tr", {**translation("a", 5, 0, 5), "revision": 7, "event_id": "x"})
    log.topics["tr"].insert(COUNT, log.topics["tr"].pop())  # before the next epoch


def repeat_under_another_id(log: Log) -> None:
    log.put("sum", {**json.loads(log.topics["sum"][0].value or b""), "event_id": "x"})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lose_a_translation, {"lost": 1}),
        (lose_an_answer, {"lost": 1}),
        (lose_a_question, {"lost": 1}),
        (answer_twice, {"conflicting_revisions": 1, "duplicates_after_dedupe": 1}),
        (answer_under_one_id, {"conflicting_revisions": 1}),
        (lose_a_revision, {"lost": 2}),  # the segment, and the number
        (lose_the_last_summary, {"lost": 3}),  # the three segments it covered
        (lose_an_acknowledged_segment, {"lost": 1}),
        (skip_a_segment, {"lost": 1}),
        (claim_a_wrong_place, {"lost": 1}),
        (reorder, {"reordered": 2}),  # by revision, and by segment
        (reorder_segments, {"reordered": 1}),
        (leave_an_old_latest, {"reordered": 1}),
        (conflict, {"conflicting_revisions": 1, "duplicates_read_committed": 1}),
        (conflict_with_the_latest, {"conflicting_revisions": 1}),
        (invent_words, {"conflicting_revisions": 1}),
        (repeat, {"duplicates_read_committed": 1}),
        (translate_twice, {"duplicates_after_dedupe": 1}),
        (
            repeat_under_another_id,
            {
                "conflicting_revisions": 1,
                "duplicates_read_committed": 1,
                "duplicates_after_dedupe": 1,
            },
        ),
    ],
)
def test_what_is_planted_is_found(spoil: Callable[[Log], None], expected: dict[str, int]) -> None:
    log = Log()
    spoil(log)
    found = log.check(**getattr(log, "check_options", {}))
    assert counts(found) == expected
    assert len(found.examples) == sum(expected.values())
    assert list(differences(found, "exactly_once"))


def test_at_least_once_allows_a_repeated_record_and_nothing_else() -> None:
    log = Log()
    repeat(log)
    assert list(differences(log.check(), "at_least_once")) == []
    translate_twice(log)
    assert list(differences(log.check(), "at_least_once")) == ["duplicates_after_dedupe = 1"]


def test_what_is_not_committed_is_unfinished_and_not_lost() -> None:
    log = Log()
    lose_a_translation(log)
    found = log.check(committed={("in", 0): COUNT - 1})
    assert (counts(found), found.unfinished) == ({}, 1)
    assert list(differences(found, "at_least_once")) == ["unfinished = 1"]


def test_a_dead_letter_accounts_for_its_segment() -> None:
    """The engine refused a segment: no place, no translation, and no gap for it."""
    log = Log()
    headers = (
        ("__streams.errors.topic", b"in"),
        ("__streams.errors.partition", b"0"),
        ("__streams.errors.offset", b"0"),
    )
    for record in list(log.topics["tr"]):
        event = json.loads(record.value or b"")
        if event["stream_id"] == "a" and event["epoch"] == 0:
            log.change("tr", record.offset, revision=event["revision"] - 1)
    del log.topics["tr"][0]
    for topic in ("sum", "latest"):
        for at, to in ((0, 2), (1, 5)):
            log.change(topic, at, covers={"to_seq": to - 1, "to_segment_id": f"a/{to}"})
    assert log.check().lost
    log.put("dlq", said("a", 0), headers)
    found = log.check()
    assert (counts(found), found.dead_letters) == ({}, 1)


def test_a_record_that_is_no_result_is_an_error() -> None:
    log = Log()
    log.put("sum", {"stream_id": "a", "schema": "what.v1"})
    with pytest.raises(ValueError, match=r"sum\[0\] offset \d+ is not a result"):
        log.check()


def test_a_stream_that_was_silent_for_long_may_have_been_ended() -> None:
    """By the workers, as a final summary says; then its next word begins another epoch."""
    log = Log()
    for at, record in enumerate(log.topics["in"]):
        log.topics["in"][at] = record._replace(at=1000.0 if record.offset > COUNT else 0.0)
    end = log.topics["in"].pop(COUNT)
    assert json.loads(end.value or b"")["type"] == "session_end"
    assert log.check(idle_s=45.0).lost
    log.change("sum", 1, status="final")
    log.change("latest", 1, status="final")
    assert counts(log.check(idle_s=45.0)) == {}
    assert log.check(idle_s=2000.0).lost, "nobody ends a stream that soon"


def test_text_of_a_stream_that_fell_silent_must_be_covered_too() -> None:
    """Its worker died, and the next one waits for a word of it."""
    log = Log()
    log.speak_and_fall_silent()
    assert (counts(log.check()), log.check().segments) == ({}, 4 * COUNT + 5)
    for topic in ("sum", "latest"):
        log.topics[topic].pop()
    found = log.check(committed={("in", 0): 1_000})
    assert counts(found) == {"lost": 2}
    assert found.examples == [f"lost: c/{n} (epoch 0) is in no summary" for n in (3, 4)]
    assert list(differences(found, "exactly_once")) == ["lost = 2"]


# --- the plan and the stalls -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_has_what_was_asked_for(seed: int) -> None:
    plan = make_plan(seed, 20, 2, 5.0, 15.0)
    kinds = [action.kind for action in plan]
    assert sum(kind in KILLS for kind in kinds) == 20
    assert {"kill_worker", "kill_device", "freeze", *BROKER} <= set(kinds)
    assert kinds.count("join") == kinds.count("leave") == 4
    assert all(5 <= action.after <= 15 for action in plan)
    assert plan == make_plan(seed, 20, 2, 5.0, 15.0) != make_plan(seed + 1, 20, 2, 5.0, 15.0)


def test_pauses_count_from_when_there_was_something_to_do() -> None:
    stored = [(1.0, Place(0, 0)), (1.5, Place(0, 1)), (20.0, Place(0, 2))]
    results = [
        watching.Result(2.0, Place(0, 0)),
        watching.Result(6.0, Place(0, 1)),
        watching.Result(6.5, Place(0, 1)),  # nothing new
        watching.Result(21.0, Place(0, 2)),
    ]
    found = [(pause.start, pause.end) for pause in watching.pauses(results, stored)]
    assert found == [(1.0, 2.0), (2.0, 6.0), (20.0, 21.0)]


def test_a_pause_is_a_stay_only_with_one_healthy_owner() -> None:
    assignments = [
        watching.Assignment(0.0, "w1", frozenset({0, 1})),
        watching.Assignment(10.0, "w1", frozenset({0})),
        watching.Assignment(10.1, "w2", frozenset({1})),
    ]
    calm = watching.Incidents()
    stayed, moved = watching.Pause(0, 9.0, 12.0), watching.Pause(1, 9.0, 12.0)
    assert watching.stays(stayed, assignments, calm)
    assert not watching.stays(moved, assignments, calm)
    assert not watching.stays(stayed, assignments, watching.Incidents(frozen=[(9.5, "w1")]))
    assert watching.stays(stayed, assignments, watching.Incidents(killed=[(9.5, "w2")]))
    assert not watching.stays(stayed, assignments, watching.Incidents(broker_down=[(11.0, 20.0)]))
    assert watching.rebalances(assignments) == 2


def test_a_stall_above_the_limit_is_a_broken_promise() -> None:
    pauses = [watching.Pause(0, 0.0, 20.0), watching.Pause(1, 5.0, 25.5)]
    assert list(watching.too_long(watching.longest(pauses[:1]), 20.0)) == []
    assert list(watching.too_long(watching.longest(pauses), 20.0)) == [
        "max_stall_seconds = 20.5 (partition 1), above 20"
    ]
    assert list(watching.too_long(watching.longest([]), 20.0)) == []


@pytest.mark.parametrize("seed", range(5))
def test_some_streams_fall_silent_in_the_middle(seed: int) -> None:
    names = [f"stream-{number}" for number in range(12)]
    silences = make_silences(seed, names, 3, 40.0)
    assert len(silences) == 3
    assert silences.keys() < set(names)
    assert all(10 <= count <= 30 for count in silences.values())
    assert (
        silences == make_silences(seed, names, 3, 40.0) != make_silences(seed + 1, names, 3, 40.0)
    )
    assert len(make_silences(seed, names[:2], 3, 1.0)) == 1, "somebody goes on"


def test_the_echo_summarises_in_silence_what_waits() -> None:
    echo = Echo(OperatorConfig(update_interval_s=0.01))
    echo.open("a")
    echo.feed(Segment(stream_id="a", text="one", segment_id="a/0"), 7)
    (said_,) = echo.step()
    assert not said_.events
    due = echo.idle_until()
    assert due is not None
    time.sleep(max(0.0, due - time.monotonic()))
    assert echo.has_work()
    (silent,) = echo.step()
    assert [event.covers.to_segment_id for event in silent.events] == ["a/0"]
    assert (silent.done, silent.state.uncovered_tokens) == ([], 0)
    assert not echo.has_work()
    assert echo.idle_until() is None
    # The next owner goes on from a state with text that waits.
    heir = Echo(OperatorConfig(update_interval_s=0.01))
    heir.open("a", said_.state)
    assert heir.idle_until() is not None


def test_a_takeover_ends_with_the_first_result_of_the_next_owner() -> None:
    assignments = [
        watching.Assignment(0.0, "w1", frozenset({0})),
        watching.Assignment(0.1, "w2", frozenset({1})),
        watching.Assignment(15.0, "w2", frozenset({0, 1})),
    ]
    results = [
        watching.Result(5.1, Place(0, 7)),  # committed just before the end
        watching.Result(12.0, Place(1, 3)),
        watching.Result(17.0, Place(0, 8)),
    ]
    incidents = watching.Incidents(killed=[(5.0, "w1")])
    assert watching.takeovers(results, assignments, incidents) == []  # nobody stood by
    incidents.had_standby.add("w1")
    assert watching.takeovers(results, assignments, incidents) == [12.0]
    incidents.broker_down.append((9.0, 16.0))
    assert watching.takeovers(results, assignments, incidents) == []


def test_delays_are_counted_to_the_first_result() -> None:
    stored = [(1.0, Place(0, 0)), (2.0, Place(0, 1)), (3.0, Place(0, 2))]
    results = [
        watching.Result(1.5, Place(0, 0)),
        watching.Result(4.0, Place(0, 1)),
        watching.Result(5.0, Place(0, 1)),
    ]
    assert watching.delays(results, stored) == [0.5, 2.0]
