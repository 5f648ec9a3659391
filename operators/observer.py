"""Hooks through which the engine is measured. The default does nothing; Prometheus is one subclass.

Names are those of the metrics without the ``longstream_`` prefix and the ``_total`` suffix
(see ``pipelines/observability/metrics.py``). Seconds for times, tokens for sizes.
"""

from __future__ import annotations


class Observer:
    """No-op observer; subclass and override what you want to see. Called from the engine's thread."""

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add ``value`` to a counter."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Record one value of a distribution."""
