"""The drawing of boards: expressions as Grafana sends them, units, gaps, panels without data named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dashboards.render import _with_gaps, draw, expression, name_of, scale

BOARD = json.loads((Path(__file__).parent.parent / "dashboards/grafana/kafka.json").read_text())


def test_expressions_are_filled_in() -> None:
    text = 'rate(x{worker=~"$worker",partition=~"$partition"}[$__rate_interval])'
    assert expression(text, 3.0) == 'rate(x{worker=~".*",partition=~".*"}[20s])'
    assert expression("increase(x[$__rate_interval])", 30.0) == "increase(x[120s])"


def test_names_and_units() -> None:
    assert name_of({"topic": "t", "partition": "3"}, "{{topic}}[{{ partition }}]") == "t[3]"
    assert name_of({"worker": "w", "job": "longstream"}, "") == "w"
    assert scale("s", 0.02) == (1e-3, "ms")
    assert scale("s", 240.0) == (60, "min")
    assert scale("bytes", 3 << 20) == (1 << 20, "MiB")
    assert scale("percentunit", 0.4) == (0.01, "%")
    assert scale("ops", 5.0) == (1.0, "/s")


def test_a_worker_that_was_gone_leaves_a_gap() -> None:
    xs, ys = _with_gaps([0, 1, 2, 9, 10], [1.0, 1.0, 1.0, 2.0, 2.0])
    assert xs == [0, 1, 2, 9, 9, 10]
    assert math.isnan(ys[3])
    assert [y for y in ys if not math.isnan(y)] == [1.0, 1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("empty", [True, False])
def test_a_board_is_drawn_and_panels_without_data_are_named(tmp_path: Path, empty: bool) -> None:
    class Source:
        def lines(self, expr: str, legend: str) -> list[Any]:
            return [] if empty else [("w0", [-2.0, -1.0, 0.0], [1.0, math.nan, 3.0])]

    file = tmp_path / "boards" / "kafka.png"
    named = draw(BOARD, Source(), file)  # type: ignore[arg-type]
    assert file.read_bytes().startswith(b"\x89PNG")
    titles = [p["title"] for p in BOARD["panels"] if p["type"] != "row"]
    assert named == (titles if empty else [])
