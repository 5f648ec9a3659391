"""``longstream bench pipeline``: what is counted as added, and the copy that stands for an operator."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.observer import Observer
from pipelines.config.fields import Settings
from pipelines.device.protocol import Load
from pipelines.kafka.clients import compression
from pipelines.lab.benchmarks.pipeline import COMMIT_S, STREAMS, added, log_sizes, segments
from pipelines.lab.benchmarks.pipeline_sides import make_noop
from pipelines.wire.codec import decode_segment


def test_only_what_exceeds_the_wait_for_the_commit_is_added() -> None:
    # Two groups: the first began with a at 0, the second with c at 1.5.
    sent = {"a": 0.0, "b": 0.6, "c": 1.5}
    arrived = {"a": COMMIT_S + 0.02, "b": COMMIT_S + 0.02, "c": 1.5 + COMMIT_S + 0.04}
    assert [round(late, 6) for late in added(sent, arrived)] == [0.02, 0.02, 0.04]


def test_the_copy_gives_each_segment_back_once_and_in_order() -> None:
    operator, _ = make_noop(Load(model="", device="", config={}), OperatorConfig(), Observer())
    given = list(itertools.islice(segments(), 3 * STREAMS))
    for ticket, (key, value, _) in enumerate(given):
        if ticket < STREAMS:
            operator.open(key)
        segment = decode_segment(
            key.encode(), value, max_text_bytes=10**6, partition=0, offset=ticket
        )
        operator.feed(segment, ticket)
    out = [e for _ in range(len(given)) for e in operator.step()]
    assert not operator.has_work()
    assert [e.done for e in out] == [[n] for n in range(len(given))]
    assert [e.events[0].committed for e in out] == [text["text"] for _, _, text in given]
    for key in {key for key, _, _ in given}:
        revisions = [e.events[0].revision for e in out if e.stream_id == key]
        assert revisions == [0, 1, 2]
    assert len({json.loads(value)["segment_id"] for _, value, _ in given}) == len(given)


def test_bytes_are_summed_over_brokers_and_folders() -> None:
    part = {"partition_index": 0, "partition_size": 5}

    class Admin:
        def describe_log_dirs(self) -> list[dict[str, Any]]:
            folder = {"topics": [{"name": "a", "partitions": [part, part]}]}
            return [{"broker": n, "log_dirs": [folder]} for n in (1, 2)]

    assert list(log_sizes(Admin())) == [("a", 5)] * 4


@pytest.mark.parametrize(("setting", "said"), [("gzip", "gzip"), ("none", None)])
def test_batches_are_compressed_as_asked(setting: Any, said: str | None) -> None:
    assert compression(Settings(compression=setting)) == said
