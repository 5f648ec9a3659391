"""Workers that die, freeze and come back: nothing is lost, nothing is seen twice."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from operators.events import AnswerEvent, Question, Source, SummaryEvent
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.wire.codec import decode_event, encode_event
from pipelines.wire.messages import Message, complete, messages_of, unknown_stream
from pipelines.worker.partition.state import recover
from tests.worker_process import (
    Records,
    assert_all_reflected,
    assert_revisions_sound,
    producer,
    say,
    wait_until,
    workers,
)

STREAMS = [f"s{number}" for number in range(6)]


def ids(stream: str, count: int, start: int = 0) -> list[str]:
    return [f"{stream}-{number}" for number in range(start, start + count)]


def say_slowly(made: Any, topic: str, count: int, start: int = 0) -> None:
    """``count`` segments of every stream, each costing the device a few milliseconds."""
    for number in range(start, start + count):
        for stream in STREAMS:
            say(made, topic, stream, f"{stream}-{number} SLEEP 0.004")


def check_everything(seen: Records, count: int) -> None:
    """Invariant 7: every segment in exactly one summary, every revision once and in order."""
    assert_revisions_sound(seen.events())
    for stream in STREAMS:
        texts = " ".join(e.items[-1].text for e in seen.summaries(stream))
        named = [word for word in texts.split() if word.startswith(f"{stream}-")]
        assert sorted(named) == sorted(ids(stream, count))


def all_covered(seen: Records, count: int) -> bool:
    return all(seen.covered(stream) == count - 1 for stream in STREAMS)


def ask_slowly(made: Any, topic: str, count: int, start: int = 0) -> None:
    """``count`` questions about every stream, half of them put twice under the same id."""
    for number in range(start, start + count):
        for stream in STREAMS:
            value = {"question_id": f"{stream}-q{number}", "text": f"SLEEP 0.004 {stream} {number}"}
            for _ in range(1 + number % 2):
                made.send(topic, key=stream.encode(), value=json.dumps(value).encode())
    made.flush()


def check_answers(seen: Records, count: int) -> None:
    """Every question has one answer: as often as it was put, and always in the same words."""
    answers = [event for event in seen.events() if isinstance(event, AnswerEvent)]
    texts: dict[str, list[str]] = {}
    for answer in answers:
        texts.setdefault(answer.question_id, []).append(answer.text)
    expected = {f"{s}-q{n}": 1 + n % 2 for s in STREAMS for n in range(count)}
    assert {name: len(found) for name, found in texts.items()} == expected
    assert all(len(set(found)) == 1 for found in texts.values()), texts
    first = list({answer.question_id: answer for answer in reversed(answers)}.values())[::-1]
    assert_revisions_sound(first)


def refusal(settings: Settings, number: int, partition: int = 0) -> Message:
    question = Question(stream_id="nobody", question_id=f"q{number}", text="When?")
    answer = complete(unknown_stream(question, number), settings.topic_questions, partition)
    return messages_of([answer], settings, None)[0]


def test_refusals_that_are_not_committed_are_found_again(topics: Any) -> None:
    """Without transactions nothing else remembers them; with them there are none."""
    topics.create(2)
    settings = Settings(
        bootstrap=topics.bootstrap,
        app_id=topics.prefix.rstrip("."),
        delivery="at_least_once",
        topic_segments=topics.segments,
        topic_questions=topics.questions,
        topic_answers=topics.answers,
        topic_sessions=topics.sessions,
    )
    answer = AnswerEvent(
        stream_id="a",
        epoch=0,
        revision=1,
        question_id="q1",
        source=Source(first_offset=1, last_offset=1),
    )
    answered = complete(answer, topics.questions, 0)
    others = [
        refusal(settings, 0, partition=1),
        Message(topics.answers, b"a", b"no JSON"),
        *messages_of([answered], settings, None),
    ]
    with producer(topics.bootstrap) as made:
        for _ in range(4):
            made.send(topics.questions, key=b"nobody", value=b'{"text": "When?"}', partition=0)
        made.flush()
        for message in [*others, *(refusal(settings, n) for n in (0, 2, 3))]:
            made.send(topics.answers, key=message.key, value=message.value, partition=0)
        made.flush()
    member = KafkaConsumer(
        bootstrap_servers=topics.bootstrap, group_id=settings.app_id, enable_auto_commit=False
    )
    member.assign([TopicPartition(topics.questions, 0)])
    member.commit({TopicPartition(topics.questions, 0): OffsetAndMetadata(1, "", -1)})
    member.close()
    found = [asyncio.run(recover(settings, number, 30.0)).refused_questions for number in (0, 1)]
    assert found == [{2, 3}, set()]
    settings = settings.model_copy(update={"delivery": "exactly_once"})
    assert asyncio.run(recover(settings, 0, 30.0)).refused_questions == set()


def known(seen: Records) -> set[str]:
    """The streams that have a summary."""
    return {event.stream_id for event in seen.summaries()}


def test_kill_mid_stream_and_restart(topics: Any, tmp_path: Path) -> None:
    """Killed three times at arbitrary moments, also inside a transaction; questions come meanwhile."""
    topics.create(4)
    count, asked, midway = 0, 0, 0
    with (
        workers(topics, tmp_path, commit_interval_s=0.05) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries) as seen,
        Records(topics.bootstrap, topics.answers) as answered,
    ):
        for round_ in range(3):
            worker = start(f"w{round_}")
            before = len(seen.summaries())
            say_slowly(made, topics.segments, 30, start=count)
            count += 30
            wait_until(lambda n=before: len(seen.summaries()) > n + 10, 30, worker.log)  # type: ignore[misc]
            if round_ == 2 and not asked:  # on a slow machine streams come late
                wait_until(lambda: known(seen) >= set(STREAMS), 30, worker.log)
            if known(seen) >= set(STREAMS):
                ask_slowly(made, topics.questions, 4, start=asked)
                asked += 4
                say_slowly(made, topics.segments, 21, start=count)
                count += 21
            wait_until(lambda n=before: len(seen.summaries()) > n + 20, 30, worker.log)  # type: ignore[misc]
            say_slowly(made, topics.segments, 12, start=count)  # in work when it is killed
            made.flush()
            count += 12
            worker.kill()
            midway += not all_covered(seen, count)
        assert midway, "killed too late to prove anything"
        assert asked, "no question was put while workers were killed"
        killed_at = time.monotonic()
        before = len(seen.summaries())
        say_slowly(made, topics.segments, 3, start=count)
        count += 3
        start("last")
        wait_until(lambda: len(seen.summaries()) > before, 30)
        print(f"first result {time.monotonic() - killed_at:.2f} s after the kill")
        wait_until(lambda: all_covered(seen, count), 30)
        check_everything(seen, count)
        ask_slowly(made, topics.questions, 1, start=asked)
        asked += 1
        total = len(STREAMS) * sum(1 + n % 2 for n in range(asked))
        wait_until(lambda: len(answered.events()) >= total, 30)
        check_answers(answered, asked)


def test_a_device_does_not_outlive_a_killed_worker(topics: Any, tmp_path: Path) -> None:
    topics.create(1)
    with workers(topics, tmp_path) as start:
        worker = start("w1")
        worker.wait_for_log("assigned partitions")
        device = worker.device()
        worker.kill()
        device.wait(5)


def test_two_workers_share_and_hand_over(topics: Any, tmp_path: Path) -> None:
    """A second worker joins mid-stream, then the first leaves: two rebalances with work under way. Both
    have the same partitions of segments and questions."""
    topics.create(4)
    count = 120
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries) as seen,
        Records(topics.bootstrap, topics.answers) as answered,
    ):
        first = start("w1")
        say_slowly(made, topics.segments, 40)
        wait_until(lambda: {e.stream_id for e in seen.summaries()} == set(STREAMS), 30)
        second = start("w2")
        say_slowly(made, topics.segments, 40, start=40)
        second.wait_for_log("assigned partitions")
        ask_slowly(made, topics.questions, 5)
        say_slowly(made, topics.segments, 40, start=80)
        assert first.stop() == 0, first.log
        took = wait_until(lambda: all_covered(seen, count), 30, second.log)
        print(f"covered {took:.2f} s after the first left")
        check_everything(seen, count)
        wait_until(lambda: len(answered.events()) >= len(STREAMS) * 7, 30, second.log)
        check_answers(answered, 5)


def test_a_zombie_cannot_write(topics: Any, tmp_path: Path) -> None:
    """A worker frozen past its session wakes up with finished work: it is fenced, then rejoins."""
    topics.create(1)
    count = 60
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
    ):
        zombie = start("zombie")
        say_slowly(made, topics.segments, count)
        wait_until(lambda: len(seen.summaries()) > 10, 30)
        zombie.send(signal.SIGSTOP)
        assert not all_covered(seen, count)
        start("heir")
        took = wait_until(lambda: all_covered(seen, count), 30)
        print(f"taken over in {took:.1f} s (session timeout 6 s)")
        zombie.send(signal.SIGCONT)
        time.sleep(3)  # time to do harm
        say_slowly(made, topics.segments, 15, start=count)
        wait_until(lambda: all_covered(seen, count + 15), 30, zombie.log)
        check_everything(seen, count + 15)


@pytest.mark.parametrize("delay", [0.0, 1.5])
def test_stop_at_any_moment_loses_nothing(topics: Any, tmp_path: Path, delay: float) -> None:
    """SIGTERM while assigning, recovering or working: in order, and a restart completes."""
    topics.create(2)
    with (
        workers(topics, tmp_path) as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=2) as seen,
    ):
        say(made, topics.segments, "a", *ids("a", 30))
        worker = start("w1")
        worker.wait_for_log("serving")
        time.sleep(delay)
        assert worker.stop() == 0, worker.log
        start("w2")
        wait_until(lambda: seen.covered("a") == 29, 30)
        assert_revisions_sound(seen.events())
        assert_all_reflected(seen.summaries(), "a", ids("a", 30))


def test_stop_while_the_model_loads(topics: Any, tmp_path: Path) -> None:
    topics.create(1)
    with workers(topics, tmp_path, model="slow") as start:
        worker = start()
        worker.wait_for_log("serving")
        time.sleep(0.5)
        device = worker.device()
        assert worker.stop(timeout=10) == 0, worker.log
        assert not device.is_running()


def test_results_left_in_a_state_are_published_though_nobody_speaks(
    topics: Any, tmp_path: Path
) -> None:
    """Killed between a state and its results, which lie in it; the input is committed already."""
    topics.create(1)
    event = SummaryEvent(stream_id="a", epoch=0, revision=1, text="left behind")
    value = encode_event(complete(event, topics.segments, 0))
    state = SessionState(stream_id="a", cursor=0, next_seq=1, revisions={"summary": 1})
    left = {**msgspec.to_builtins(state), "outbox": [Message(topics.summaries, b"a", value)]}
    with (
        workers(topics, tmp_path, delivery="at_least_once") as start,
        producer(topics.bootstrap) as made,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.sessions, partitions=1) as kept,
    ):
        say(made, topics.segments, "b", "b-0")
        made.send(topics.sessions, key=b"a", value=msgspec.json.encode(left), partition=0)
        made.flush()
        worker = start()
        wait_until(lambda: seen.summaries("a") == [decode_event(value)], 40, worker.log)

        def states() -> list[dict[str, Any]]:
            return [json.loads(r.value) for r in kept.records[topics.sessions] if r.key == b"a"]

        wait_until(lambda: len(states()) == 2, 20, worker.log)
        assert "outbox" not in states()[-1]
        assert worker.stop() == 0, worker.log
        start("again").wait_for_log("ready in")
        assert len(seen.summaries("a")) == 1
