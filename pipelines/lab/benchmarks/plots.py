"""Pictures of the benchmarks' results: one PNG each, from the JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.lab.benchmarks.harness import Result

COLOURS = ("#1f5fa8", "#c8553d", "#4c8a4a", "#8a5fa8", "#b8860b", "#555555")


def plot_all(results: dict[str, Result], folder: Path) -> dict[str, Path]:
    """Draw what there are results for; benchmark → file. Raises ConfigError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ConfigError("plots need matplotlib: pip install 'longstream[plots]'") from None
    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    style: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.prop_cycle": cycler(color=COLOURS),
        "font.size": 9,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with pyplot.rc_context(style):
        for name, draw in PLOTS.items():
            if name in results:
                figure = draw(pyplot, results[name])
                files[name] = folder / f"{name}.png"
                figure.savefig(
                    files[name], dpi=110, bbox_inches="tight", metadata={"Software": None}
                )
                pyplot.close(figure)
    return files


def _window(pyplot: Any, result: Result) -> Any:
    """Latency against cache size."""
    figure, panel = pyplot.subplots(figsize=(6.4, 3.6))
    sizes = [int(size) for size in result["per_token_ms"]]
    labels = {
        "ours": "longstream",
        "rerotate": "re-rotate all keys every token",
        "hop": "recompute every W/2 tokens",
        "recompute": "recompute every token",
    }
    for name, label in labels.items():
        times = [row[name] for row in result["per_token_ms"].values()]
        panel.plot(sizes, times, marker="o", markersize=4, label=label)
        panel.annotate(
            f"{times[-1]:,.0f} ms", (sizes[-1], times[-1]), (6, -3), textcoords="offset points"
        )
    panel.set(xscale="log", yscale="log", xlabel="cache, tokens", ylabel="ms per token")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.minorticks_off()
    panel.set_title(f"Latency per token against cache size ({result['model']}, {result['dtype']})")
    panel.legend()
    return figure


def _perplexity(pyplot: Any, result: Result) -> Any:
    """Perplexity along the text, in tenths."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    tokens = result["tokens"]
    middle = [tokens * (i + 0.5) / 10 / 1000 for i in range(10)]
    names = {"0": "no sinks", "1": "1 sink", "4": "4 sinks", "prefix": "prompt prefix as sinks"}
    for key, values in result["tenths"].items():
        left.plot(middle, values, marker="o", markersize=3, label=names.get(key, key))
    left.set(yscale="log", ylabel="perplexity (log)", xlabel="thousand tokens into the text")
    left.set_title("All tokens, by tenths")
    left.legend()
    for key, label in (("ours", "4 sinks"), ("recompute", "recomputed for every token")):
        right.plot(middle, result["sampled_tenths"][key], marker="o", markersize=3, label=label)
    right.set(ylim=(0, None), ylabel="perplexity", xlabel="thousand tokens into the text")
    right.set_title(f"{result['samples']} sampled tokens: ours against recompute")
    right.legend()
    return figure


def _memory(pyplot: Any, result: Result) -> Any:
    """Memory and speed along the stream."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    samples = result["samples"]
    tokens = [count / 1e6 for count in samples["tokens"]]
    left.plot(tokens, [rss / 2**20 for rss in samples["rss"]])
    left.axvspan(0, tokens[len(tokens) // 10 - 1], alpha=0.12, color="#555555", label="warm-up")
    top = 1.25 * max(samples["rss"]) / 2**20
    left.set(ylim=(0, top), xlabel="million tokens into one stream", ylabel="resident memory, MiB")
    left.set_title(f"Memory ({result['model']}): growth after warm-up {result['growth']:+.2%}")
    left.legend()
    seconds = [0.0, *samples["seconds"]]
    counts = [0, *samples["tokens"]]
    speed = [
        (counts[i + 1] - counts[i]) / (seconds[i + 1] - seconds[i]) for i in range(len(tokens))
    ]
    right.plot(tokens, speed)
    right.set(ylim=(0, None), xlabel="million tokens into one stream", ylabel="tokens per second")
    right.set_title(f"Speed: last tenth's time over the first's {result['last_tenth_ratio']:.2f}")
    return figure


def _streams(pyplot: Any, result: Result) -> Any:
    """Tokens per second against the number of streams."""
    figure, panel = pyplot.subplots(figsize=(6.4, 3.6))
    counts = [int(count) for count in result["by_setting"]]
    for setting in next(iter(result["by_setting"].values())):
        speeds = [row[setting]["tokens_s"] for row in result["by_setting"].values()]
        label = setting.replace(", none", ", plain").replace(", auto", ", with drafts")
        panel.plot(counts, speeds, marker="o", markersize=4, label=label)
    panel.set(
        xscale="log", ylim=(0, None), xlabel="streams at once", ylabel="tokens per second, together"
    )
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.minorticks_off()
    panel.set_title(f"Decoding many streams ({result['model']})")
    panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _acceptance(pyplot: Any, result: Result) -> Any:
    """Acceptance by position in the draft, a panel per drafter."""
    drafters = {
        drafter: {task: shares for task, shares in tasks.items() if shares}
        for drafter, tasks in result["acceptance_by_position"].items()
    }
    drafters = {drafter: tasks for drafter, tasks in drafters.items() if tasks}
    figure, panels = pyplot.subplots(
        1, len(drafters), figsize=(3 * len(drafters) + 1, 3.4), sharey=True, squeeze=False
    )
    tasks = list(dict.fromkeys(task for found in drafters.values() for task in found))
    for panel, (drafter, found) in zip(panels[0], drafters.items(), strict=True):
        for task, shares in found.items():
            places = range(1, len(shares) + 1)
            colour = COLOURS[tasks.index(task) % len(COLOURS)]
            panel.plot(places, shares, marker="o", markersize=3, label=task, color=colour)
        panel.set(ylim=(0, 1.02), xlabel="place in the draft")
        panel.set_title(drafter)
    panels[0][0].set_ylabel("share accepted")
    handles: dict[Any, Any] = {}
    for panel in panels[0]:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(tasks))
    figure.subplots_adjust(bottom=0.26)
    return figure


PLOTS: dict[str, Callable[[Any, Result], Any]] = {
    "window": _window,
    "perplexity": _perplexity,
    "memory": _memory,
    "streams": _streams,
    "speculation": _acceptance,
}
