"""OpenTelemetry: a record's ``traceparent`` continues through the worker into what is made of it.

A record that comes with a trace context gets three spans: ``longstream.segment`` from its reading to the
commit, and within it ``longstream.device`` (with the model) and ``longstream.commit`` (made, until
acknowledged). Outputs carry the first one's context, so a consumer's spans hang below it. Records
without a context are not traced: their producer did not want that. No span holds a stream's name or
text.

Off by default (the setting ``otel``); needs the extra ``otel``, and the standard variables of
OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME…) say where spans go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from operators.errors import ConfigError

log = logging.getLogger(__name__)

MAX_TRACED = 65_536
"""Records under way with spans; further ones are not traced."""
STOP_MS = 5000


class Tracing:
    """Does nothing. ``key``: what the caller names a record by, (partition, offset)."""

    def read(self, key: tuple[int, int], traceparent: bytes | None) -> None:
        """A record was read; ``traceparent`` is its header's."""

    def fed(self, key: tuple[int, int]) -> None:
        """It was handed to the device."""

    def made(self, keys: Iterable[tuple[int, int]]) -> bytes | None:
        """The device has finished these; the context for what was made of the last of them, None where
        it is not traced."""
        return None

    def committed(self, key: tuple[int, int]) -> None:
        """What was made of it counts."""

    def forget(self, number: int) -> None:
        """The partition is closed; its records are somebody else's now."""

    def close(self) -> None:
        """Export what is left."""


@dataclass
class _Traced:
    segment: Any
    part: Any = None


class OtelTracing(Tracing):
    """Spans by OpenTelemetry. ``provider``: a TracerProvider; it is shut down by :meth:`close`."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._provider = trace, provider
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("longstream")
        self._records: dict[tuple[int, int], _Traced] = {}

    def read(self, key: tuple[int, int], traceparent: bytes | None) -> None:
        if not traceparent or key in self._records or len(self._records) >= MAX_TRACED:
            return
        carrier = {"traceparent": traceparent.decode("latin-1")}
        context = self._propagator.extract(carrier)
        if not self._trace.get_current_span(context).get_span_context().is_valid:
            return
        attributes = {
            "messaging.system": "kafka",
            "messaging.destination.partition.id": str(key[0]),
            "messaging.kafka.message.offset": key[1],
        }
        span = self._tracer.start_span(
            "longstream.segment",
            context=context,
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
        )
        self._records[key] = _Traced(span)

    def fed(self, key: tuple[int, int]) -> None:
        self._next(key, "longstream.device")

    def made(self, keys: Iterable[tuple[int, int]]) -> bytes | None:
        last: bytes | None = None
        for key in keys:
            last = None
            if (traced := self._next(key, "longstream.commit")) is not None:
                carrier: dict[str, str] = {}
                self._propagator.inject(carrier, self._trace.set_span_in_context(traced.segment))
                last = carrier["traceparent"].encode()
        return last

    def committed(self, key: tuple[int, int]) -> None:
        if (traced := self._records.pop(key, None)) is not None:
            self._end(traced)

    def forget(self, number: int) -> None:
        for key in [key for key in self._records if key[0] == number]:
            traced = self._records.pop(key)
            traced.segment.set_attribute("longstream.given_up", True)
            self._end(traced)

    def close(self) -> None:
        for number in {key[0] for key in self._records}:
            self.forget(number)
        self._provider.force_flush(STOP_MS)
        self._provider.shutdown()

    def _next(self, key: tuple[int, int], name: str) -> _Traced | None:
        """End the record's current part and begin the next one."""
        if (traced := self._records.get(key)) is None:
            return None
        if traced.part is not None:
            traced.part.end()
        context = self._trace.set_span_in_context(traced.segment)
        traced.part = self._tracer.start_span(name, context=context)
        return traced

    def _end(self, traced: _Traced) -> None:
        if traced.part is not None:
            traced.part.end()
        traced.segment.end()


def make_tracing(on: bool, worker: str) -> Tracing:
    """What the setting ``otel`` asks for. Raises ConfigError where the extra is not installed."""
    if not on:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise ConfigError("otel needs the extra: pip install 'longstream[otel]'") from None
    defaults = {"service.name": "longstream", "service.instance.id": worker}
    provider = TracerProvider(resource=Resource.create(defaults), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider)
