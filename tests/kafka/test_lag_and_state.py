"""What `lag`, `topics check` and `state show` say of topics on a real broker."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from operators.errors import LongstreamError
from operators.state import SessionState
from pipelines.cli.lag import read_lag
from pipelines.cli.state import read_state
from pipelines.cli.topics import problems_of
from pipelines.config.fields import Settings
from pipelines.kafka.topics import TopicSpec, create_topics
from pipelines.wire.codec import encode_state


def settings_of(topics: Any, **others: Any) -> Settings:
    return Settings(
        bootstrap=topics.bootstrap,
        app_id=topics.prefix.rstrip("."),
        topic_segments=topics.segments,
        topic_summaries=topics.summaries,
        topic_summaries_latest=topics.latest,
        topic_translations=topics.translations,
        topic_questions=topics.questions,
        topic_answers=topics.answers,
        topic_sessions=topics.sessions,
        topic_dlq=topics.dlq,
        **others,
    )


def test_lag_counts_from_the_committed_offset(topics: Any) -> None:
    topics.create(2)
    settings = settings_of(topics)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        for number in range(5):
            made.send(
                topics.segments, key=b"a", value=b"x", partition=0, timestamp_ms=1000 + number
            )
        made.flush()
    before, untouched = read_lag(settings, now=61.0)
    assert (before.committed, before.end, before.lag, before.behind_s) == (None, 5, 5, 60.0)
    assert (untouched.lag, untouched.behind_s) == (0, None)
    member = KafkaConsumer(
        bootstrap_servers=topics.bootstrap, group_id=settings.app_id, enable_auto_commit=False
    )
    member.assign([TopicPartition(topics.segments, 0)])
    member.commit({TopicPartition(topics.segments, 0): OffsetAndMetadata(3, "", -1)})
    member.close()
    after, _ = read_lag(settings, now=61.0)
    assert (after.committed, after.lag, after.behind_s) == (3, 2, 59.997)


def test_topics_are_checked_without_changing_them(topics: Any) -> None:
    missing = problems_of(settings_of(topics))
    assert "longstream topics create" in missing[0]
    topics.create(2)
    assert problems_of(settings_of(topics)) == []
    other = topics.prefix + "other"
    create_topics(topics.bootstrap, [TopicSpec(other)], 2)
    wrong = settings_of(topics).model_copy(update={"topic_sessions": other})
    assert problems_of(wrong) == [
        f"topic {other} has cleanup.policy=delete, compact is needed. Alter it or use another name"
    ]


def test_state_is_the_newest_of_the_stream(topics: Any) -> None:
    topics.create(1)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as made:
        for name, cursor in (("a", 1), ("b", 9), ("a", 4)):
            value = encode_state(SessionState(stream_id=name, cursor=cursor))
            made.send(topics.sessions, key=name.encode(), value=value)
        made.flush()
    assert read_state(settings_of(topics), "a").cursor == 4
    with pytest.raises(LongstreamError, match="no state of 'c'"):
        read_state(settings_of(topics), "c")
