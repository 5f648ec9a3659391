"""Hostile input before a real worker: every record ends as an output or as a dead letter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import fuzz


def test_hundreds_of_hostile_records_are_accounted_for(topics: Any, tmp_path: Path) -> None:
    found = fuzz.through_kafka(topics, tmp_path, seed=2, count=400, partitions=2, timeout=60)
    letters = sum(found["dead_letters"].values())
    assert found["outputs"] + found["marks"] + letters == found["records"] == 400
    assert len(found["dead_letters"]) >= 8
    # Not an exact number: it depends on which partition a stream is first seen on.
    assert found["outputs"] > 40


def record(offset: int, value: bytes, **headers: str) -> Any:
    pairs = [(name, text.encode()) for name, text in headers.items()]
    return SimpleNamespace(partition=0, offset=offset, key=b"a", value=value, headers=pairs)


def output(offset: int) -> Any:
    value = b'{"source":{"first_offset":%d,"last_offset":%d}}' % (offset, offset)
    return record(0, value)


def dead(offset: int, value: bytes) -> Any:
    place = {"__streams.errors.partition": "0", "__streams.errors.offset": str(offset)}
    return record(0, value, **place, **{"longstream.dlq.reason": "planted"})


@pytest.mark.parametrize(
    ("outputs", "letters", "said"),
    [
        ([0], [], "neither"),
        ([0, 1, 1], [], "more than once"),
        ([0, 1], [dead(1, b"y")], "more than once"),
        ([0], [dead(1, b"cut")], "(0, 1)"),
    ],
)
def test_the_account_notices_what_is_missing_doubled_or_altered(
    outputs: list[int], letters: list[Any], said: str
) -> None:
    sent = {(0, 0): record(0, b"x"), (0, 1): record(1, b"y")}
    fuzz._account(sent, set(), [output(0)], [dead(1, b"y")])
    with pytest.raises(AssertionError, match=r"" + said.replace("(", r"\(").replace(")", r"\)")):
        fuzz._account(sent, set(), [output(n) for n in outputs], letters)
