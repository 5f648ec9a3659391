"""Prometheus metrics of a worker: what the event loop counts, what the device process reports.

Names and labels come from ``pipelines.observability.catalogue``. The engine knows nothing of Prometheus:
in the device process a ``BeatObserver`` collects, beats carry the deltas over, ``apply_beat`` adds
them here. A value the catalogue does not know is counted and logged once, never an exception: a
metric must not be able to stop a pipeline.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import time
from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pipelines.observability.catalogue import DEVICE_SPECS, FROM_DEVICE, SPECS, Spec
from pipelines.observability.telemetry import Beat, BeatObserver, decode_key

__all__ = ["CONTENT_TYPE", "EXPORTED", "BeatObserver", "Metrics", "SideMetrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "longstream"
MAX_SERIES = 256
"""Label combinations one metric may have; further ones are summed up under the value "other"."""
MAX_LOGGED = 100

log = logging.getLogger(__name__)

# A second series per counter and histogram saying when it was made: nobody here reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Family:
    """One Prometheus metric with the process's constant labels filled in."""

    def __init__(self, spec: Spec, registry: CollectorRegistry, constant: dict[str, str]) -> None:
        self.spec = spec
        self._constant = tuple(constant.values())
        self._seen: set[tuple[str, ...]] = set()
        self._takes: dict[tuple[str, ...], Callable[[float], None]] = {}
        """What a value goes to, by labels."""
        names = (*constant, *spec.labels)
        full = f"{PREFIX}_{spec.name}"
        self._parent: Counter | Gauge | Histogram
        if spec.kind == "counter":
            self._parent = Counter(full, spec.help, names, registry=registry)
        elif spec.kind == "gauge":
            self._parent = Gauge(full, spec.help, names, registry=registry)
        else:
            self._parent = Histogram(
                full, spec.help, names, buckets=spec.buckets, registry=registry
            )
        if not spec.labels:
            self._take(())  # visible at 0 from the start
        for value in spec.known:
            self.record(0.0, value)

    def record(self, value: float, *labels: str) -> None:
        """Add to a counter, set a gauge, observe into a histogram.

        Raises ValueError for a value Prometheus cannot take (not finite; a negative count).
        """
        if not math.isfinite(value):
            raise ValueError(f"{self.spec.name}: {value} is not a finite number")
        take = self._takes.get(labels)
        (take or self._take(self._bounded(labels)))(value)

    def _take(self, labels: tuple[str, ...]) -> Callable[[float], None]:
        take = self._takes.get(labels)
        if take is None:
            values = (*self._constant, *labels)
            child = self._parent.labels(*values) if values else self._parent
            if isinstance(child, Counter):
                take = child.inc
            elif isinstance(child, Gauge):
                take = child.set
            else:
                take = child.observe
            self._takes[labels] = take
        return take

    def clear(self) -> None:
        """A gauge to 0, for every label combination that was exported."""
        for labels in tuple(self._seen) if self.spec.labels else ((),):
            self.record(0.0, *labels)

    def remove(self, *labels: str) -> None:
        """Stop exporting one label combination, if it was exported."""
        if labels in self._seen:
            self._seen.discard(labels)
            self._takes.pop(labels, None)
            self._parent.remove(*self._constant, *labels)

    def _bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels in self._seen or not labels:
            return labels
        if len(self._seen) >= MAX_SERIES:
            return ("other",) * len(labels)
        self._seen.add(labels)
        return labels


class SideMetrics:
    """Metrics of a process that is no worker: without labels of its own."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.registry = CollectorRegistry()
        self._families = {spec.name: Family(spec, self.registry, {}) for spec in specs}
        ProcessCollector(registry=self.registry)

    def record(self, name: str, value: float, *labels: str) -> None:
        """Add to a counter, set a gauge, observe into a histogram. Raises KeyError, ValueError."""
        self._families[name].record(value, *labels)

    def render(self) -> bytes:
        """The text a scrape gets (content type ``CONTENT_TYPE``)."""
        return generate_latest(self.registry)


class Metrics:
    """All metrics of one worker. Used from the event loop's thread; reading is safe from any.

    ``registry`` defaults to a fresh one, so that two workers in one test do not meet. ``worker``
    and ``model`` become labels of every series.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        worker: str = "worker",
        model: str = "",
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        constant = {"worker": worker, "model": model}
        self._families = {spec.name: Family(spec, self.registry, constant) for spec in SPECS}
        self._logged: set[str] = set()
        _build_info(self.registry, constant)
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """The text a scrape gets (content type ``CONTENT_TYPE``)."""
        return generate_latest(self.registry)

    # --- input -------------------------------------------------------------------------------

    def segment_consumed(self, final: bool = True) -> None:
        """A record of the input topic was read and decoded."""
        self._record("segments_consumed", 1, _flag(final))

    def segment_language(self, language: str | None) -> None:
        """What its producer calls a segment's language, cut to a tag's length."""
        self._record("segment_languages", 1, (language or "none").lower()[:12])

    def threads(self, count: int) -> None:
        self._record("threads", count)

    def input_decoded(self, adapter: str, dropped: Sequence[str] = (), empty: bool = False) -> None:
        """A record was decoded: which optional fields were left out, and whether it holds no words."""
        for field in dropped:
            self._record("input_fields_dropped", 1, field)
        if empty:
            self._record("input_events_ignored", 1, adapter)

    def duplicate_input(self) -> None:
        """An input was skipped: at or below its stream's cursor, or already in flight."""
        self._record("duplicate_inputs", 1)

    def dead_letter(self, stage: str, reason: str) -> None:
        """A record went to the dead-letter topic. ``reason`` is a stable word, never a message."""
        self._record("dead_letters", 1, stage, reason)

    def tenant_limited(self, limit: str) -> None:
        """A segment was delayed or refused by its tenant's limit of streams, segments or bytes."""
        self._record("tenant_limited", 1, limit)

    def stream_ended_idle(self) -> None:
        """A stream is ended of which no record came for ``stream_idle_timeout_s``."""
        self._record("streams_ended_idle", 1)

    def retry(self, stage: str) -> None:
        self._record("retries", 1, stage)

    def event_loop_tasks(self, tasks: int) -> None:
        self._record("event_loop_tasks", tasks)

    def queue_depth(self, segments: int, bound: int) -> None:
        """Segments read and not finished, now, and how many there may be with these partitions."""
        self._record("queue_depth", segments)
        self._record("queue_limit", bound)

    # --- output ------------------------------------------------------------------------------

    def output_published(self, status: str, task: str) -> None:
        """An event was acknowledged by the broker. ``task``: "summary", "translation:fr"…"""
        self._record("outputs_published", 1, status, task)

    def end_to_end(self, task: str, seconds: float) -> None:
        """Newest input of an event -> acknowledgement. Clock skew below zero counts as 0."""
        self._record("end_to_end_latency_seconds", max(0.0, seconds), task)

    def coverage_lag(self, seconds: float) -> None:
        """Age of the oldest final segment read and not yet covered, over all streams; 0 if none."""
        self._record("coverage_lag_seconds", max(0.0, seconds))

    def state_written(self, size: int) -> None:
        """A stream's state of so many bytes goes to its topic."""
        self._record("state_bytes", size)

    def state_shrunk(self) -> None:
        self._record("states_shrunk", 1)

    # --- partitions --------------------------------------------------------------------------

    def rebalance(self) -> None:
        self._record("rebalances", 1)

    def streams(self, opened: int, table_bytes: int, limit: int) -> None:
        """Streams in memory, and the states of those that are closed."""
        self._record("open_streams", opened)
        self._record("states_table_bytes", table_bytes)
        self._record("states_table_limit_bytes", limit)

    def recovered(self, seconds: float) -> None:
        """A partition's states were read, its owner before fenced."""
        self._record("recovery_seconds", seconds)

    def commit(self, seconds: float) -> None:
        """One commit succeeded after ``seconds``."""
        self._record("commits", 1)
        self._record("commit_seconds", seconds)

    def commit_gap(self, topic: str, partition: int, messages: int) -> None:
        """Messages between the highest offset finished and the one committed."""
        self._record("commit_watermark_gap_messages", max(0, messages), topic, str(partition))

    def consumer_lag(
        self, topic: str, partition: int, messages: int, seconds: float | None = None
    ) -> None:
        """Messages behind the end of the partition; ``seconds`` = age of the oldest, if known."""
        self._record("consumer_lag_messages", max(0, messages), topic, str(partition))
        if seconds is not None:
            self._record("consumer_lag_seconds", max(0.0, seconds), topic, str(partition))

    def forget_partition(self, topic: str, partition: int) -> None:
        """The partition was revoked: another worker reports its lag from now on."""
        for name in (
            "commit_watermark_gap_messages",
            "consumer_lag_messages",
            "consumer_lag_seconds",
        ):
            self._families[name].remove(topic, str(partition))

    # --- device ------------------------------------------------------------------------------

    def device_up(self, up: bool) -> None:
        """The device process is loaded (True) or gone (False: its gauges fall to 0)."""
        self._record("device_up", float(up))
        if not up:
            for spec in DEVICE_SPECS:
                if spec.kind == "gauge":
                    self._families[spec.name].clear()

    def device_restart(self) -> None:
        self._record("device_restarts", 1)

    def progress(self, unix_seconds: float | None = None) -> None:
        """Something was finished, now or at ``unix_seconds``."""
        now = time.time() if unix_seconds is None else unix_seconds
        self._record("last_progress_timestamp_seconds", now)

    def apply_beat(self, beat: Beat) -> None:
        """Add a beat's deltas. Unknown names, labels or values are counted, never raised."""
        for key, value in beat.counters.items():
            self._apply("counter", key, value)
        for key, value in beat.gauges.items():
            self._apply("gauge", key, value)
        for key, value in beat.observations:
            self._apply("histogram", key, value)

    # --- inside ------------------------------------------------------------------------------

    def _apply(self, kind: str, key: str, value: float) -> None:
        name = key.partition("|")[0]
        try:
            spec = FROM_DEVICE[name]
            labels = _labels_of(spec, key)
            if spec.kind != kind:
                raise ValueError(f"{name} is a {spec.kind}, not a {kind}")
            self._families[name].record(value, *labels)
        except KeyError:
            self._unknown(name, "no metric of the device has this name")
        except ValueError as error:
            self._unknown(name, str(error))

    def _record(self, name: str, value: float, *labels: str) -> None:
        try:
            self._families[name].record(value, *labels)
        except ValueError as error:
            self._unknown(name, str(error))

    def _unknown(self, name: str, why: str) -> None:
        self._families["unknown_metrics"].record(1)
        if name not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(name)
            log.warning("metric %r not recorded: %s (said once)", name[:80], why[:200])


def _labels_of(spec: Spec, key: str) -> tuple[str, ...]:
    """Label values in the order of the catalogue; a label left out is the empty string."""
    _, given = decode_key(key)
    surplus = set(given) - set(spec.labels)
    if surplus:
        raise ValueError(f"{spec.name} has no label {', '.join(sorted(surplus))}")
    return tuple(given.get(label, "") for label in spec.labels)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _build_info(registry: CollectorRegistry, constant: dict[str, str]) -> None:
    """``longstream_build_info``: always 1, the versions as labels."""
    versions = {"python": platform.python_version()}
    for label, package in (
        ("version", "longstream"),
        ("torch", "torch"),
        ("transformers", "transformers"),
    ):
        try:
            versions[label] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[label] = "unknown"
    labels = {**constant, **versions}
    gauge = Gauge(
        f"{PREFIX}_build_info", "Versions of this worker.", tuple(labels), registry=registry
    )
    gauge.labels(**labels).set(1)


def _exported() -> frozenset[str]:
    """Names of all series a scrape can return, read from the registry itself."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return frozenset(
        family.name + suffix
        for family in Metrics().registry.collect()
        for suffix in suffixes.get(family.type, ("",))
    )


EXPORTED: frozenset[str] = _exported()
