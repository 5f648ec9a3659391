"""``longstream bench pipeline`` from end to end on a real broker."""

from __future__ import annotations

import pytest

from tests.lab.test_benchmarks import FACTS, FIELDS, quick


@pytest.mark.slow
def test_a_quick_run_gives_every_field(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_BOOTSTRAP", kafka)
    result = quick("pipeline")
    assert result.keys() >= FIELDS["pipeline"] | FACTS
    assert result["segments_s_longstream_exactly_once_1"] > 0
    assert 0 < result["write_amplification"] < 100
