"""Draws what the boards' panels show, from a running Prometheus, without Grafana:

    python -m dashboards.render --prometheus http://127.0.0.1:9090 --minutes 10

One PNG per board in docs/img/boards, panels in Grafana's places. It asks the same expressions as
Grafana would with everything selected; drawing is matplotlib's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "img" / "boards"
POINTS = 120
TITLE = 1.6
"""Height of the board's title, in Grafana's rows."""
MAX_LINES = 8
SCALES = {
    "bytes": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "Bps": ((1 << 20, "MiB/s"), (1 << 10, "KiB/s"), (1, "B/s")),
    "s": ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "percentunit": ((0.01, "%"),),
}


def expression(text: str, step: float) -> str:
    """A panel's expression as Grafana sends it with everything selected: its rates look back over at
    least four scrapes."""
    text = text.replace("$__rate_interval", f"{max(20, int(4 * step))}s").replace("$__range", "1h")
    return re.sub(r"\$(worker|model|partition)", ".*", text)


class Source:
    """A Prometheus, asked over the last minutes."""

    def __init__(self, url: str, minutes: float, end: float | None = None) -> None:
        self._url = url.rstrip("/")
        self._end = end or time.time()
        self._start = self._end - minutes * 60
        self.step = minutes * 60 / POINTS

    def lines(self, expr: str, legend: str) -> list[tuple[str, list[float], list[float]]]:
        """(name, minutes before the end, values) of every series."""
        asked = {
            "query": expression(expr, self.step),
            "start": self._start,
            "end": self._end,
            "step": self.step,
        }
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the operator's own
            found = json.load(answer)["data"]["result"]
        return [
            (
                name_of(series["metric"], legend),
                [(float(at) - self._end) / 60 for at, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in found
        ]


def name_of(labels: dict[str, str], legend: str) -> str:
    """The legend with its labels filled in; without a legend, the labels."""
    if legend:
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: labels.get(m[1], ""), legend)
    return ", ".join(v for k, v in labels.items() if k not in ("__name__", "job", "instance"))


def scale(unit: str, largest: float) -> tuple[float, str]:
    """(divisor, name) in which the largest value reads well."""
    for divisor, name in SCALES.get(unit, ()):
        if largest >= divisor:
            return divisor, name
    return SCALES[unit][-1] if unit in SCALES else (1.0, {"ops": "/s", "short": ""}.get(unit, unit))


def draw(board: dict[str, Any], source: Source, path: Path) -> list[str]:
    """Draw one board; returns the titles of panels without any value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [p for p in board["panels"] if p["type"] != "row"]
    height = TITLE + max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    figure = pyplot.figure(figsize=(13, height * 0.34))
    figure.text(0.01, 1 - 1.1 / height, board["title"], fontsize=12)
    empty = []
    for panel in panels:
        at = panel["gridPos"]
        pad_x, pad_y = 0.9, 1.5
        axis = figure.add_axes(
            (
                (at["x"] + pad_x) / 24,
                1 - (TITLE + at["y"] + at["h"] - 1.0) / height,
                (at["w"] - pad_x - 0.35) / 24,
                max(0.5, at["h"] - pad_y - 1.2) / height,
            )
        )
        lines = [
            line
            for target in panel["targets"]
            for line in source.lines(target["expr"], target.get("legendFormat", ""))
        ]
        lines = [line for line in lines if any(math.isfinite(v) for v in line[2])]
        if not lines:
            empty.append(panel["title"])
        _panel(axis, panel, lines)
    for row in (p for p in board["panels"] if p["type"] == "row"):
        y = 1 - (TITLE + row["gridPos"]["y"] + 0.8) / height
        figure.text(0.01, y, row["title"], fontsize=9, weight="bold", color="#555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72, pil_kwargs={"optimize": True})
    pyplot.close(figure)
    return empty


def _panel(axis: Any, panel: dict[str, Any], lines: list[Any]) -> None:
    axis.set_title(panel["title"], fontsize=8, loc="left", pad=3)
    axis.tick_params(labelsize=6)
    defaults = panel["fieldConfig"]["defaults"]
    values = [v for _, _, vs in lines for v in vs if math.isfinite(v)]
    if not values:
        axis.text(
            0.5, 0.5, "no data", ha="center", transform=axis.transAxes, color="#999", fontsize=8
        )
        axis.set_axis_off()
        return
    divisor, unit = scale(defaults.get("unit", ""), max(map(abs, values)))
    if panel["type"] == "stat":
        last = lines[-1][2][-1]
        divisor, unit = scale(defaults.get("unit", ""), abs(last))
        last /= divisor
        axis.text(
            0.5, 0.35, f"{last:.3g} {unit}", ha="center", transform=axis.transAxes, fontsize=13
        )
        axis.set_axis_off()
        return
    if panel["type"] == "bargauge":
        lines = sorted(lines, key=lambda line: (len(line[0]), line[0]))
        axis.barh([line[0] for line in lines], [line[2][-1] / divisor for line in lines])
        axis.invert_yaxis()
        axis.set_xlabel(unit, fontsize=6)
        return
    for name, minutes, series in lines[:MAX_LINES]:
        shown = [v / divisor for v in series]
        axis.plot(*_with_gaps(minutes, shown), linewidth=1, label=name[-34:])
    limits = [s["value"] / divisor for s in defaults["thresholds"]["steps"] if s.get("value")]
    top = max(values) / divisor
    for limit in limits:
        if 0 < limit <= 2 * top:
            axis.axhline(limit, color="#c44e52", linestyle=":", linewidth=0.8)
    axis.set_ylabel(unit, fontsize=6)
    low = min(0.0, min(values) / divisor)
    axis.set_ylim(bottom=low - 0.03 * (top - low or 1.0), top=top * 1.15 or 1.0)
    axis.grid(alpha=0.25, linewidth=0.5)
    if len(lines) > 1 or lines[0][0]:
        axis.legend(fontsize=5.5, loc="upper left", framealpha=0.6, ncol=2 if len(lines) > 4 else 1)


def _with_gaps(minutes: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """A break where a series has no value for a while: its worker was gone."""
    xs, ys = minutes[:1], values[:1]
    usual = min((b - a for a, b in itertools.pairwise(minutes)), default=0.0)
    for (before, at), value in zip(itertools.pairwise(minutes), values[1:], strict=True):
        if at - before > 1.5 * usual:
            xs.append(at)
            ys.append(math.nan)
        xs.append(at)
        ys.append(value)
    return xs, ys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--end", type=float, help="unix time; default: now")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    source = Source(given.prometheus, given.minutes, given.end)
    for file in sorted((ROOT / "dashboards" / "grafana").glob("*.json")):
        board = json.loads(file.read_text("utf-8"))
        empty = draw(board, source, given.out / f"{file.stem}.png")
        print(f"{file.stem}.png" + (f"; without data: {', '.join(empty)}" if empty else ""))


if __name__ == "__main__":
    main()
