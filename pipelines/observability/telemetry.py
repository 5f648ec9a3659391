"""Metrics of the device process: the beat that carries them, its keys, and the observer that fills it.

A key is ``name`` or ``name|label=value,label=value`` (see :class:`Beat`).
Everything kept between two beats is bounded; what does not fit is counted, not hidden.
"""

from __future__ import annotations

import threading

import msgspec

from operators.observer import Observer

MAX_KEYS = 1024
MAX_OBSERVATIONS = 8192
DROPPED = "observations_dropped"

_RESERVED = str.maketrans({"|": "_", ",": "_", "=": "_"})


class Beat(msgspec.Struct, tag="beat", kw_only=True):
    """Sent at least once a second: proof of progress, and metric deltas since the last beat.

    ``counters`` and ``gauges`` are keyed "name|label=value,label=value"; ``observations`` holds
    (name-key, value in seconds/tokens) pairs for histograms.
    """

    steps: int
    busy: bool
    starved_s: float = 0.0
    """Seconds, since the process began, that it was ready to run and had no core."""
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    observations: list[tuple[str, float]] = []


def encode_key(name: str, labels: dict[str, str]) -> str:
    """``("kv_restores", {"kind": "replay"})`` -> ``"kv_restores|kind=replay"``, labels sorted.

    The three characters with a meaning here become ``_`` inside a label value.
    """
    if not labels:
        return name
    pairs = (f"{label}={str(labels[label]).translate(_RESERVED)}" for label in sorted(labels))
    return f"{name}|{','.join(pairs)}"


def decode_key(key: str) -> tuple[str, dict[str, str]]:
    """The reverse of :func:`encode_key`. Raises ValueError for a key of another shape."""
    name, bar, rest = key.partition("|")
    labels: dict[str, str] = {}
    for pair in rest.split(",") if bar else ():
        label, equals, value = pair.partition("=")
        if not equals or not label:
            raise ValueError(f"metric key {key!r}: expected label=value after the bar")
        labels[label] = value
    return name, labels


class BeatObserver(Observer):
    """Collects what the engine reports until the next beat takes it away. Safe across threads.

    Between two calls of :meth:`drain` it keeps at most ``max_keys`` different counters, as many
    gauges, and ``max_observations`` values; the rest is counted as ``observations_dropped``.
    """

    def __init__(self, max_keys: int = MAX_KEYS, max_observations: int = MAX_OBSERVATIONS) -> None:
        self._max_keys = max_keys
        self._max_observations = max_observations
        self._lock = threading.Lock()
        self._counters: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._observations: list[tuple[str, float]] = []
        self._dropped = 0

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        key = encode_key(name, labels)
        with self._lock:
            if self._has_room(self._counters, key):
                self._counters[key] = self._counters.get(key, 0.0) + value

    def gauge(self, name: str, value: float, **labels: str) -> None:
        key = encode_key(name, labels)
        with self._lock:
            if self._has_room(self._gauges, key):
                self._gauges[key] = float(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        key = encode_key(name, labels)
        with self._lock:
            if len(self._observations) < self._max_observations:
                self._observations.append((key, float(value)))
            else:
                self._dropped += 1

    def drain(self) -> tuple[dict[str, float], dict[str, float], list[tuple[str, float]]]:
        """Counters, gauges and observations since the last call, in a beat's form; then empty."""
        with self._lock:
            if self._dropped:
                self._counters[DROPPED] = self._counters.get(DROPPED, 0.0) + self._dropped
            taken = self._counters, self._gauges, self._observations
            self._counters, self._gauges, self._observations, self._dropped = {}, {}, [], 0
        return taken

    def _has_room(self, values: dict[str, float], key: str) -> bool:
        if key in values or len(values) < self._max_keys:
            return True
        self._dropped += 1
        return False
