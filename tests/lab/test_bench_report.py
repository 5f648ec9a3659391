"""The page made from the JSON results: targets judged, every number shown, plots drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.lab.benchmarks.command import app
from pipelines.lab.benchmarks.plots import PLOTS, plot_all
from pipelines.lab.benchmarks.report import TARGETS, met, render
from tests.lab.test_benchmarks import FIELDS

FACTS: dict[str, Any] = {
    "model": "toy",
    "date": "2026-01-02T03:04+00:00",
    "processor": "a processor",
    "cores": 2,
    "memory_gib": 3.0,
    "torch_threads": 1,
    "versions": {"torch": "2"},
    "load_before": [0.1, 0.2, 0.3],
    "load_after": [0.4, 0.5, 0.6],
    "took_s": 12.0,
}
ROW = {"ours": 2.0, "recompute": 100.0, "hop": 5.0, "rerotate": 3.0}
WINDOW: dict[str, Any] = {
    "benchmark": "window",
    "ratio_recompute": 50.0,
    "ratio_rerotate": 1.5,
    "per_token_ms": {"256": ROW, "1024": ROW},
    "dtype": "bf16",
    **FACTS,
}


def test_every_target_is_a_field_that_its_benchmark_gives() -> None:
    long = {
        "vs_hf_best_8",
        "vs_llamacpp_8",
        "vs_best_peer_8",
        "vs_best_peer_16",
        "ratio_plain_faust",
    }
    given = {name: fields | long for name, fields in FIELDS.items()}
    for name, targets in TARGETS.items():
        assert targets.keys() <= given[name], name


@pytest.mark.parametrize(
    ("value", "target", "reached"),
    [
        (1.3, (">=", 1.3), True),
        (1.29, (">=", 1.3), False),
        (1.05, ("<=", 1.05), True),
        (0.01, ("<", 0.01), False),
        (-0.5, ("<", 0.01), True),
    ],
)
def test_targets(value: float, target: tuple[str, float], reached: bool) -> None:
    assert met(value, target) is reached


def test_a_missed_target_is_said_first(tmp_path: Path) -> None:
    text = render({"window": WINDOW}, tmp_path, {}, tmp_path / "page.md")
    assert "| window | `ratio_recompute` | >= 100 | 50.0 | **no** |" in text
    assert "| window | `ratio_rerotate` | >= 1.3 | 1.5 | yes |" in text
    assert "| restore | `ratio` | >= 10 | – | not measured |" in text
    assert "load 0.1, 0.2, 0.3 before, 0.4, 0.5, 0.6 after" in text
    assert "| 1024 | 2.0 | 100.0 | 5.0 | 3.0 |" in text


def test_the_command_makes_page_and_plots(tmp_path: Path) -> None:
    (tmp_path / "window.json").write_text(json.dumps(WINDOW))
    (tmp_path / "window.md").write_text("A remark.")
    (tmp_path / "by-hand.md").write_text("# Measured by hand")
    page, plots = tmp_path / "docs" / "page.md", tmp_path / "docs" / "plots"
    page.parent.mkdir()
    command = ["report", "--results", str(tmp_path), "--page", str(page), "--plots", str(plots)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "![window](plots/window.png)" in text
    assert text.index("A remark.") < text.index("# Measured by hand")
    assert (plots / "window.png").read_bytes().startswith(b"\x89PNG")


TENTHS = [1.0] * 10
DRAWN: dict[str, dict[str, Any]] = {
    "window": WINDOW,
    "perplexity": {
        "tokens": 1000,
        "samples": 20,
        "tenths": {"0": TENTHS, "4": TENTHS, "prefix": TENTHS},
        "sampled_tenths": {"ours": TENTHS, "recompute": TENTHS},
    },
    "memory": {
        **FACTS,
        "growth": 0.001,
        "last_tenth_ratio": 1.0,
        "samples": {
            "tokens": [100 * (i + 1) for i in range(20)],
            "seconds": [i + 1.0 for i in range(20)],
            "rss": [1000] * 20,
        },
    },
    "streams": {**FACTS, "by_setting": {n: {"bf16, none": {"tokens_s": 9.0}} for n in ("1", "2")}},
    "speculation": {
        "acceptance_by_position": {
            "ngram": {"update": [0.9, 0.5], "translation": []},
            "previous": {"update": [], "translation": []},
            "draft": {"update": [0.9], "translation": [0.8, 0.7]},
        }
    },
}


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    assert DRAWN.keys() == PLOTS.keys()
    files = plot_all(DRAWN, tmp_path)
    assert files.keys() == PLOTS.keys()
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files.values())


def test_without_results_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert "--json" in done.output


def test_a_list_in_a_row_hides_no_number_beside_it(tmp_path: Path) -> None:
    sides = {"ours": {"seconds": 6.1, "runs": [6.0, 6.2]}, "theirs": {"seconds": 30.0}}
    text = render({"peers": {"sides": sides, **FACTS}}, tmp_path, {}, tmp_path / "page.md")
    assert "| `sides` | seconds |" in text
    assert "| ours | 6.1 |\n| theirs | 30.0 |" in text
