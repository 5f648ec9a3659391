"""The little statistics that the benchmarks need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979). ``values`` are taken as independent.

    Raises ValueError for fewer than two values.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(data)}")
    rng = np.random.default_rng(seed)
    means = data[rng.integers(len(data), size=(resamples, len(data)))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def tenths(values: Sequence[float]) -> list[float]:
    """Means of ten equal stretches (sizes differ by one at most)."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values), 10)]


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of ``values`` over ``places``."""
    return float(np.polyfit(np.asarray(places), np.asarray(values), 1)[0])
