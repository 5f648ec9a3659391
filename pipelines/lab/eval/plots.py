"""Pictures of the results: one PNG per command, from the JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.lab.benchmarks.plots import COLOURS


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ConfigError("plots need matplotlib: pip install 'longstream[eval]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})
    _pyplot().close(figure)
    return file


def _panel(pyplot: Any, width: float = 6.4) -> tuple[Any, Any]:
    figure, panel = pyplot.subplots(figsize=(width, 3.6))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    return figure, panel


def draw_summaries(result: Mapping[str, Any], folder: Path) -> Path:
    """ROUGE-1 of the current summary against the full reference, along the meetings (mean)."""
    pyplot = _pyplot()
    figure, panel = _panel(pyplot)
    for colour, (side, meetings) in zip(COLOURS, result["meetings"].items(), strict=False):
        curves = [m["curve"] for m in meetings.values() if m.get("curve")]
        if not curves:
            continue
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        along = [(k + 1) / len(mean) for k in range(len(mean))]
        panel.plot([0, *along], [0, *mean], marker="o", ms=3, color=colour, label=side)
    panel.set(xlabel="share of the meeting heard", ylabel="ROUGE-1 F", ylim=(0, None))
    panel.legend(frameon=False, fontsize=8)
    return _save(figure, folder, "summaries")


def draw_facts(result: Mapping[str, Any], folder: Path) -> Path:
    """Retention at the end by the place where a fact was said."""
    pyplot = _pyplot()
    figure, panel = _panel(pyplot)
    for colour, (side, values) in zip(COLOURS, result["by_position"].items(), strict=False):
        known = [(k + 0.5) / len(values) for k, v in enumerate(values) if v is not None]
        shown = [v for v in values if v is not None]
        panel.plot(known, shown, marker="o", color=colour, label=side)
    panel.set(
        xlabel="where the fact was said (share of the transcript)",
        ylabel="kept at the end",
        ylim=(-0.03, 1.03),
        xlim=(0, 1),
    )
    panel.legend(frameon=False, fontsize=8)
    return _save(figure, folder, "facts")


def draw_translation(result: Mapping[str, Any], folder: Path) -> Path:
    """chrF of every side, by set and pair."""
    pyplot = _pyplot()
    pairs = result["pairs"]
    figure, panel = _panel(pyplot, 2.4 + 1.6 * len(pairs))
    sides = list(next(iter(pairs.values()))["sides"])
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        places = [at + (number - (len(sides) - 1) / 2) * width for at in range(len(pairs))]
        heights = [found["sides"][side]["chrf"] for found in pairs.values()]
        panel.bar(places, heights, width, color=COLOURS[number % len(COLOURS)], label=side)
    panel.set_xticks(range(len(pairs)), list(pairs), fontsize=8)
    panel.set(ylabel="chrF")
    panel.legend(frameon=False, fontsize=8)
    return _save(figure, folder, "translation")
