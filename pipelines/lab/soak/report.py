"""The verdict on a soak and its table."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def problems(result: dict[str, Any], max_growth: float) -> list[str]:
    """What is wrong with a run, one sentence each; empty if nothing is."""
    found = []
    if result["lag_at_end"]:
        found.append(f"{result['lag_at_end']} messages of lag at the end")
    if result["dead_letters"]:
        letters = ", ".join(f"{n} {reason}" for reason, n in result["dead_letters"].items())
        found.append(f"dead letters: {letters}")
    if result["uncovered_streams"]:
        found.append(f"not covered to their end: {', '.join(result['uncovered_streams'])}")
    if wrong := {kind: count for kind, count in result.get("checked", {}).items() if count}:
        found.append(f"the checker found {wrong}")
    kv = result.get("kv", {})
    if kv.get("host_kv_limit_bytes") and kv["host_kv_bytes"] > kv["host_kv_limit_bytes"]:
        found.append("idle streams' KV takes more host memory than operator.host_bytes")
    for name, row in result["processes"].items():
        if name == "kafka":  # the JVM's heap goes up and down as its settings let it
            continue
        if row["growth"] > max_growth:
            found.append(f"memory of {name} grew by {row['growth']:.1%}")
        for measure in ("files", "threads", "tasks"):
            if measure in row and row[measure]["end"] > row[measure]["warm"]:
                found.append(f"{measure} of {name} grew: {row[measure]}")
    return found


def table(processes: dict[str, Any]) -> Table:
    """A row per process: levels when warm and at the end."""
    rows = Table("process", "memory, MiB (warm, end, max)", "growth", "files", "threads", "tasks")
    for name, row in processes.items():
        memory = row["rss_mb"]
        cells = [
            f"{row[m]['warm']:.0f} → {row[m]['end']:.0f}" if m in row else ""
            for m in ("files", "threads", "tasks")
        ]
        levels = f"{memory['warm']:.0f}, {memory['end']:.0f}, {memory['max']:.0f}"
        rows.add_row(name, levels, f"{row['growth']:.2%}", *cells)
    return rows
