"""A few thousand hostile inputs through the codec; the many are for ``make fuzz`` (tests/fuzz.py)."""

from __future__ import annotations

import pytest

from operators.errors import SegmentError
from pipelines.wire import codec
from tests import fuzz


def test_thousands_of_hostile_inputs_are_segments_or_refused_with_a_reason() -> None:
    found = fuzz.through_codec(seed=1, count=2500)
    assert sum(found.values()) == 2500
    other = {"wrong_partition", "schema_unavailable", "malformed_avro"}  # need a topic or a schema
    other |= {"unknown_event", "several_segments"}  # need a recogniser's events
    assert set(found) >= {"segment", *codec.REASONS} - other, "every way to end is taken"


def test_an_input_is_known_by_its_seed_and_number() -> None:
    assert [fuzz.hostile(5, n) for n in range(50)] == [fuzz.hostile(5, n) for n in range(50)]
    assert fuzz.hostile(5, 1) != fuzz.hostile(6, 1)


def test_a_codec_that_breaks_a_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lets_through(*_: object, **__: object) -> None:
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "planted")

    monkeypatch.setattr(codec, "decode_segment", lets_through)
    with pytest.raises(AssertionError, match="seed 1, input 0"):
        fuzz.through_codec(seed=1, count=1)

    def invents(*_: object, **__: object) -> None:
        raise SegmentError("because", "no such reason")

    monkeypatch.setattr(codec, "decode_segment", invents)
    with pytest.raises(AssertionError, match="seed 1, input 0"):
        fuzz.through_codec(seed=1, count=1)
