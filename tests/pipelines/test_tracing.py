"""Trace contexts continue through a partition as spans, with OpenTelemetry's in-memory exporter."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from operators.errors import ConfigError
from operators.events import Source, TranslationEvent
from pipelines.observability import tracing
from pipelines.observability.tracing import OtelTracing, Tracing, make_tracing
from tests.pipelines.test_partition import World, with_world

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01".encode()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> OtelTracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return OtelTracing(provider)


def event(offset: int) -> TranslationEvent:
    return TranslationEvent(
        event_id="e",
        stream_id="a",
        epoch=0,
        revision=0,
        source_lang="en",
        target_lang="fr",
        unit_id="u",
        committed="x",
        is_final=True,
        source=Source(first_offset=offset, last_offset=offset),
    )


def named(spans: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_context_continues_through_the_device_into_the_output(
    traced: OtelTracing, spans: InMemorySpanExporter
) -> None:
    async def test(world: World) -> None:
        world.partition._tracing = traced
        world.partition.accept(with_header(world, 0, HEADER))
        world.partition.accept(with_header(world, 1, None))
        world.done("a", 0, events=[event(0)])
        assert "longstream.device" in named(spans)
        assert "longstream.segment" not in named(spans), "it ends with its commit"
        await world.settle()
        [message] = world.publisher.groups[0].messages[:1]
        found = named(spans)
        segment, device, commit = (
            found[f"longstream.{n}"] for n in ("segment", "device", "commit")
        )
        assert {f"{s.context.trace_id:032x}" for s in (segment, device, commit)} == {TRACE}
        assert f"{segment.parent.span_id:016x}" == PARENT
        assert device.parent.span_id == commit.parent.span_id == segment.context.span_id
        assert segment.start_time <= device.start_time <= device.end_time <= segment.end_time
        out = dict(message.headers)["traceparent"].decode()
        assert out == f"00-{TRACE}-{segment.context.span_id:016x}-01"
        assert "a" not in dict(segment.attributes).values(), "no stream's name in a span"
        world.done("a", 1, events=[event(1)])
        await world.settle()
        assert len(spans.get_finished_spans()) == 3, "no context, no span"

    with_world(test)


def test_off_the_header_is_passed_through() -> None:
    async def test(world: World) -> None:
        world.partition.accept(with_header(world, 0, HEADER))
        world.done("a", 0, events=[event(0)])
        await world.settle()
        [message] = world.publisher.groups[0].messages[:1]
        assert dict(message.headers)["traceparent"] == HEADER

    with_world(test)


def test_a_closed_partition_leaves_no_open_span(
    traced: OtelTracing, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_TRACED", 2)
    for offset in range(3):
        traced.read((0, offset), HEADER)
    traced.read((1, 0), b"no context")
    traced.fed((0, 0))
    traced.forget(0)
    assert sorted(s.name for s in spans.get_finished_spans()) == [
        "longstream.device", "longstream.segment", "longstream.segment",
    ]  # fmt: skip
    assert traced.made([(0, 0)]) is None
    traced.committed((0, 0))
    traced.close()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    assert type(make_tracing(False, "w")) is Tracing
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"longstream\[otel\]"):
        make_tracing(True, "w")


def test_on_it_exports_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    made = make_tracing(True, "w")
    assert isinstance(made, OtelTracing)
    made.close()


def with_header(world: World, offset: int, value: bytes | None) -> Any:
    from tests.pipelines.test_partition import Event

    made = Event(offset, "a", {"text": "x"})
    if value is not None:
        made.message.headers = [("traceparent", value)]
    return made
