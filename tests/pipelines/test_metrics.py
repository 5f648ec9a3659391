"""What a scrape shows after the worker and its device reported something."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from operators.observer import Observer
from pipelines.device.protocol import Beat
from pipelines.observability.catalogue import FROM_DEVICE, SPECS
from pipelines.observability.metrics import EXPORTED, MAX_SERIES, Metrics
from pipelines.observability.telemetry import BeatObserver, decode_key, encode_key

ROOT = Path(__file__).resolve().parents[2]


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every series of a scrape, without the constant labels."""
    series = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("worker", "model")}
            series[sample.name, tuple(sorted(labels.items()))] = sample.value
    return series


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((name, tuple(sorted(labels.items()))))


def test_languages_are_cut_and_the_absent_one_has_a_name() -> None:
    metrics = Metrics(worker="w", model="m")
    for language in ("DE", None, "x" * 400):
        metrics.segment_language(language)
    metrics.threads(3)
    text = metrics.render().decode()
    for value in ("de", "none", "x" * 12):
        series = f'longstream_segment_languages_total{{language="{value}",model="m",worker="w"}}'
        assert f"{series} 1.0" in text
    assert 'longstream_threads{model="m",worker="w"} 3.0' in text


def test_loop_methods_write_the_series_they_say() -> None:
    m = Metrics(worker="w1", model="toy")
    m.segment_consumed(final=True)
    m.segment_consumed(final=False)
    m.segment_consumed(final=False)
    m.output_published("final", "translation:fr")
    m.dead_letter("decode", "invalid_json")
    m.retry("publish")
    m.duplicate_input()
    m.rebalance()
    m.commit(0.02)
    m.commit_gap("t", 0, 7)
    m.consumer_lag("t", 0, 12, 3.5)
    m.end_to_end("summary", 4.0)
    m.coverage_lag(9.0)
    m.queue_depth(3, 64)
    m.device_up(True)
    m.device_restart()
    m.progress(1000.0)
    seen = scrape(m)
    expected = {
        ("longstream_segments_consumed_total", (("final", "true"),)): 1,
        ("longstream_segments_consumed_total", (("final", "false"),)): 2,
        (
            "longstream_outputs_published_total",
            (("status", "final"), ("task", "translation:fr")),
        ): 1,
        (
            "longstream_dead_letters_total",
            (("reason", "invalid_json"), ("stage", "decode")),
        ): 1,
        ("longstream_retries_total", (("stage", "publish"),)): 1,
        ("longstream_duplicate_inputs_total", ()): 1,
        ("longstream_rebalances_total", ()): 1,
        ("longstream_commits_total", ()): 1,
        ("longstream_commit_seconds_sum", ()): 0.02,
        (
            "longstream_commit_watermark_gap_messages",
            (("partition", "0"), ("topic", "t")),
        ): 7,
        ("longstream_consumer_lag_messages", (("partition", "0"), ("topic", "t"))): 12,
        ("longstream_consumer_lag_seconds", (("partition", "0"), ("topic", "t"))): 3.5,
        ("longstream_end_to_end_latency_seconds_sum", (("task", "summary"),)): 4.0,
        (
            "longstream_end_to_end_latency_seconds_bucket",
            (("le", "2.5"), ("task", "summary")),
        ): 0,
        (
            "longstream_end_to_end_latency_seconds_bucket",
            (("le", "5.0"), ("task", "summary")),
        ): 1,
        ("longstream_coverage_lag_seconds", ()): 9.0,
        ("longstream_queue_depth", ()): 3,
        ("longstream_device_up", ()): 1,
        ("longstream_device_restarts_total", ()): 1,
        ("longstream_last_progress_timestamp_seconds", ()): 1000.0,
        ("longstream_unknown_metrics_total", ()): 0,
    }
    assert {key: seen.get(key) for key in expected} == expected


def test_every_series_carries_worker_and_model() -> None:
    m = Metrics(worker="w1", model="toy")
    m.end_to_end("summary", 1.0)
    for family in text_string_to_metric_families(m.render().decode()):
        for sample in family.samples:
            if sample.name.startswith("longstream_"):
                assert sample.labels["worker"] == "w1", sample
                assert sample.labels["model"] == "toy", sample


def test_no_metric_has_a_stream_as_label() -> None:
    assert not [spec.name for spec in SPECS if "stream" in " ".join(spec.labels)]


def test_a_worker_that_did_nothing_shows_its_counters_at_zero() -> None:
    m = Metrics()
    assert value(m, "longstream_duplicate_inputs_total") == 0
    assert value(m, "longstream_segments_consumed_total", final="true") == 0


def test_the_first_restore_and_retry_show_as_an_increase() -> None:
    """Of a counter that appears at 5 Prometheus' increase() sees nothing."""
    text = Metrics(worker="w", model="m").render().decode()
    for kind in ("snapshot", "replay"):
        assert f'longstream_kv_restores_total{{kind="{kind}",model="m",worker="w"}} 0.0' in text
    assert 'longstream_retries_total{model="m",stage="commit",worker="w"} 0.0' in text


def test_what_the_observer_saw_arrives_through_a_beat() -> None:
    observer, m = BeatObserver(), Metrics()
    observer.count("kv_restores", kind="replay")
    observer.count("kv_restores", 2, kind="replay")
    observer.count("spec_decode_accepted_tokens", 5, task="summary", drafter="ngram")
    observer.gauge("kv_slots", 8)
    observer.observe("step_seconds", 0.03)
    for _ in range(2):
        counters, gauges, observations = observer.drain()
        m.apply_beat(
            Beat(steps=1, busy=True, counters=counters, gauges=gauges, observations=observations)
        )
    assert value(m, "longstream_kv_restores_total", kind="replay") == 3
    assert (
        value(m, "longstream_spec_decode_accepted_tokens_total", task="summary", drafter="ngram")
        == 5
    )
    assert value(m, "longstream_kv_slots") == 8
    assert value(m, "longstream_step_seconds_count") == 1
    assert value(m, "longstream_unknown_metrics_total") == 0


def test_a_label_left_out_of_a_beat_is_empty() -> None:
    m = Metrics()
    m.apply_beat(
        Beat(steps=1, busy=True, counters={"spec_decode_accepted_tokens|drafter=ngram": 2})
    )
    assert value(m, "longstream_spec_decode_accepted_tokens_total", drafter="ngram", task="") == 2


@pytest.mark.parametrize(
    "beat",
    [
        pytest.param(Beat(steps=0, busy=False, counters={"nonsense": 1}), id="name"),
        pytest.param(Beat(steps=0, busy=False, counters={"retries|stage=x": 1}), id="loop-owned"),
        pytest.param(
            Beat(steps=0, busy=False, counters={"prompt_tokens|stream_id=a": 1}), id="label"
        ),
        pytest.param(Beat(steps=0, busy=False, counters={"prompt_tokens|task": 1}), id="syntax"),
        pytest.param(Beat(steps=0, busy=False, counters={"prompt_tokens": -1}), id="negative"),
        pytest.param(Beat(steps=0, busy=False, gauges={"prompt_tokens": 1}), id="kind"),
        pytest.param(
            Beat(steps=0, busy=False, observations=[("step_seconds", float("nan"))]), id="nan"
        ),
    ],
)
def test_a_beat_the_catalogue_does_not_know_is_counted_and_logged_once(
    beat: Beat, caplog: pytest.LogCaptureFixture
) -> None:
    m = Metrics()
    with caplog.at_level(logging.WARNING):
        m.apply_beat(beat)
        m.apply_beat(beat)
    assert value(m, "longstream_unknown_metrics_total") == 2
    assert len(caplog.records) == 1


def test_one_bad_value_does_not_hide_the_good_ones_of_its_beat() -> None:
    m = Metrics()
    m.apply_beat(Beat(steps=1, busy=True, counters={"bad": 1, "prompt_tokens|task=prefill": 4}))
    assert value(m, "longstream_prompt_tokens_total", task="prefill") == 4


def test_a_label_with_endless_values_stays_bounded() -> None:
    m = Metrics()
    for i in range(MAX_SERIES + 50):
        m.dead_letter("decode", f"reason-{i}")
    series = [key for key in scrape(m) if key[0] == "longstream_dead_letters_total"]
    assert len(series) == MAX_SERIES + 1
    assert value(m, "longstream_dead_letters_total", stage="other", reason="other") == 50


def test_a_revoked_partition_is_no_longer_reported() -> None:
    m = Metrics()
    m.consumer_lag("t", 1, 5)
    m.commit_gap("t", 1, 5)
    m.consumer_lag("t", 2, 6)
    m.forget_partition("t", 1)
    m.forget_partition("t", 1)
    assert value(m, "longstream_consumer_lag_messages", topic="t", partition="1") is None
    assert value(m, "longstream_commit_watermark_gap_messages", topic="t", partition="1") is None
    assert value(m, "longstream_consumer_lag_messages", topic="t", partition="2") == 6


def test_a_dead_device_holds_no_slots() -> None:
    m = Metrics()
    m.device_up(True)
    m.apply_beat(Beat(steps=1, busy=True, gauges={"kv_slots_used": 5, "active_streams": 5}))
    m.device_up(False)
    assert value(m, "longstream_device_up") == 0
    assert value(m, "longstream_kv_slots_used") == 0
    assert value(m, "longstream_active_streams") == 0


def test_two_workers_in_one_process_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.rebalance()
    assert value(second, "longstream_rebalances_total") == 0


def test_exported_names_are_those_of_a_scrape_with_every_metric_touched() -> None:
    m = Metrics()
    for spec in SPECS:
        m._families[spec.name].record(1, *("x" for _ in spec.labels))
    assert {name for name, _ in scrape(m)} == EXPORTED


def test_build_info_names_the_versions() -> None:
    [labels] = [dict(ls) for name, ls in scrape(Metrics()) if name == "longstream_build_info"]
    assert set(labels) == {"version", "python", "torch", "transformers"}
    assert "unknown" not in labels.values()


def test_key_survives_the_trip_and_reserved_characters_do_not() -> None:
    key = encode_key("x", {"task": "translation:fr", "kind": "a|b,c=d"})
    assert key == "x|kind=a_b_c_d,task=translation:fr"
    assert decode_key(key) == ("x", {"kind": "a_b_c_d", "task": "translation:fr"})
    assert decode_key("x") == ("x", {})


def test_the_observer_is_bounded_and_says_what_it_dropped() -> None:
    observer = BeatObserver(max_keys=2, max_observations=3)
    for i in range(5):
        observer.count(f"c{i}")
        observer.gauge(f"g{i}", i)
        observer.observe("o", i)
    counters, gauges, observations = observer.drain()
    assert counters == {"c0": 1, "c1": 1, "observations_dropped": 3 + 3 + 2}
    assert gauges == {"g0": 0, "g1": 1}
    assert observations == [("o", 0.0), ("o", 1.0), ("o", 2.0)]
    assert observer.drain() == ({}, {}, [])


def reports_in(source: str) -> list[tuple[str, str, frozenset[str]]]:
    """(method, metric name, label names) of every literal report to an observer in the source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        target = ast.unparse(node.func.value)
        if node.func.attr in ("count", "gauge", "observe") and target.endswith("observer"):
            [name, *_] = node.args
            assert isinstance(name, ast.Constant), f"metric name not a literal: {ast.unparse(node)}"
            labels = frozenset(k.arg for k in node.keywords if k.arg not in (None, "value"))
            found.append((node.func.attr, name.value, labels))
    return found


def test_a_device_that_is_gone_has_no_gauges_left_above_zero() -> None:
    m = Metrics()
    m.apply_beat(Beat(steps=1, busy=True, gauges={"kv_slots": 4, "server_trouble|reason=login": 1}))
    m.device_up(False)
    assert value(m, "longstream_kv_slots") == 0
    assert value(m, "longstream_server_trouble", reason="login") == 0
    assert value(m, "longstream_unknown_metrics_total") == 0


def test_the_engine_reports_what_the_catalogue_knows_with_all_its_labels() -> None:
    kind_of = {"count": "counter", "gauge": "gauge", "observe": "histogram"}
    wrong = []
    for path in sorted((ROOT / "operators").rglob("*.py")):
        for method, name, labels in reports_in(path.read_text()):
            spec = FROM_DEVICE.get(name)
            if spec is None or spec.kind != kind_of[method] or labels != set(spec.labels):
                wrong.append(f"{path.name}: {method}({name!r}) with labels {sorted(labels)}")
    assert not wrong


def test_the_search_for_reports_finds_them() -> None:
    source = "self.observer.count('prompt_tokens', 3, task='x')\nself._observer.gauge('g', 1)"
    assert reports_in(source) == [
        ("count", "prompt_tokens", frozenset({"task"})),
        ("gauge", "g", frozenset()),
    ]


def test_beat_observer_has_the_hooks_of_the_engine() -> None:
    hooks = {name for name in vars(Observer) if not name.startswith("_")}
    assert hooks <= set(vars(BeatObserver))
