"""Faust commits past messages still in work (its issue #606); our transport does not.

The stock half is the alarm of this test: when an upgrade of faust-streaming mends it, that half fails
and the override in pipelines/kafka/transport.py can be reconsidered.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

ROOT = Path(__file__).parent.parent.parent
COUNT = 20


def produce(topics: Any, transactional: bool) -> int:
    """20 messages; in transactions their markers take offsets 10 and 21. The last message's offset."""
    options = {"transactional_id": topics.prefix} if transactional else {}
    producer = KafkaProducer(bootstrap_servers=topics.bootstrap, **options)
    if transactional:
        producer.init_transactions()
    for start in (0, COUNT // 2):
        if transactional:
            producer.begin_transaction()
        for number in range(start, start + COUNT // 2):
            producer.send(topics.segments, value=str(number).encode())
        if transactional:
            producer.commit_transaction()
    producer.close()
    return COUNT if transactional else COUNT - 1


def committed_after(
    kind: str, topics: Any, unfinished: str, transactional: bool = False
) -> int | None:
    """What the group has committed after a worker left ``unfinished`` open and acknowledged the
    rest of 20 messages."""
    topics.create(1)
    last = produce(topics, transactional)
    group = f"{kind}-{topics.prefix.rstrip('.')}"
    command = [sys.executable, "-m", "tests.faust_commits", kind, topics.bootstrap]
    command += [topics.segments, group, unfinished, str(last)]
    done = subprocess.run(command, cwd=ROOT, timeout=40, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    consumer = KafkaConsumer(bootstrap_servers=topics.bootstrap, group_id=group)
    try:
        return consumer.committed(TopicPartition(topics.segments, 0))
    finally:
        consumer.close()


@pytest.mark.parametrize("unfinished", ["0", "7"])
def test_stock_faust_still_commits_past_a_message_in_work(topics: Any, unfinished: str) -> None:
    """If this fails Faust has been mended: see the module's docstring."""
    assert committed_after("stock", topics, unfinished) == COUNT


@pytest.mark.parametrize(("unfinished", "expected"), [("0", None), ("7", 7), ("5,7", 5)])
def test_our_commit_stops_below_a_message_in_work(
    topics: Any, unfinished: str, expected: int | None
) -> None:
    assert committed_after("ours", topics, unfinished) == expected


@pytest.mark.parametrize(("unfinished", "expected"), [("15", 15), ("999", 21)])
def test_offsets_of_transaction_markers_do_not_hold_the_commit_back(
    topics: Any, unfinished: str, expected: int
) -> None:
    assert committed_after("ours", topics, unfinished, transactional=True) == expected
