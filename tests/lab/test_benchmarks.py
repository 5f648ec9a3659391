"""Every benchmark runs on the toy model, and its last line is JSON with the promised fields."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from operators.decoding.acceptance import CostCurve
from operators.decoding.drafters import PreviousOutputDrafter
from pipelines.lab.benchmarks import BENCHMARKS, find
from pipelines.lab.benchmarks.command import app
from pipelines.lab.benchmarks.contention import _case, fair_cores
from pipelines.lab.benchmarks.harness import cores, interleaved, medians, set_threads
from pipelines.lab.benchmarks.replay import replay
from pipelines.lab.benchmarks.streams import jain

FACTS = {"benchmark", "model", "date", "processor", "cores", "memory_gib", "torch_threads"} | {
    "versions",
    "load_before",
    "load_after",
    "took_s",
    "quick",
}
FIELDS = {
    "window": {"ratio_recompute", "ratio_hop", "ratio_rerotate", "per_token_ms", "ratios"},
    "memory": {"growth", "bytes_per_stream", "bytes_formula", "last_tenth_ratio", "samples"},
    "restore": {"ratio", "snapshot_bytes", "save_ms", "restore_ms", "prefill_ms", "identical"},
    "perplexity": {"ppl_ratio_recompute", "ppl_ratio_interval", "perplexity", "tenths", "drift"},
    "forward": {"ms_per_forward", "int8_speedup"},
    "weights": {"tokens", "perplexity", "ppl_ratio", "weight_bytes", "tied"},
    "speculation": {"best_summary_speedup", "retranslation_speedup", "worst_speedup"}
    | {"identical_text", "tasks", "by_drafter", "acceptance_by_position", "cost_curve_ms"},
    "retranslation": {"retranslation_speedup", "committed_speedup", "by_growth", "same_text"},
    "streams": {
        "ratio_16",
        "tokens_s_16",
        "of_products_16",
        "jain",
        "best",
        "by_setting",
        "fairness",
    },
    "idle": {"ratio_idle", "step_ms_few", "step_ms_many"},
    "pipeline": {
        "added_latency_p50_ms",
        "write_amplification",
        "added_latency_p99_ms_at_least_once",
    }
    | {"segments_s_longstream_exactly_once_1", "segments_s_longstream_at_least_once_1"},
    "step-cost": {
        "share_out_ms",
        "plan_ms",
        "winners_ms",
        "idle_ms",
        "dispatches_per_layer",
        "dispatches_per_layer_scattered",
    },
    "gpu": {
        "device",
        "measured",
        "broken",
        "left_out",
        "tokens_s",
        "of_limit",
        "transformers_tokens_s",
    },
    "contention": {"worst_fair_share", "worst_fair_share_llamacpp", "quota_by", "cases", "missing"},
    "plain": {"plain_vs_llamacpp", "tokens_s", "rounds", "missing"},
    "peers": {
        "vs_best_peer_1",
        "vs_hf_best_1",
        "vs_llamacpp_1",
        "sides",
        "missing",
        "peer_versions",
        "precision",
    },
}
"""What each benchmark's JSON object must have, besides the facts."""


@functools.cache
def quick(name: str, *options: str) -> dict[str, Any]:
    """Run the command as a user would; the object of its last line."""
    command = [name, "--quick", "--threads", "1", *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"pipeline"}))  # that one needs a Kafka
def test_a_quick_run_gives_every_field(name: str) -> None:
    result = quick(name)
    assert result.keys() >= FIELDS[name] | FACTS
    assert result["benchmark"] == name
    assert result["quick"] is True


def test_every_benchmark_has_its_fields_checked() -> None:
    assert FIELDS.keys() == BENCHMARKS.keys()
    assert all(find(name).MODEL for name in BENCHMARKS)


def test_the_fair_share_of_a_process_beside_busy_ones() -> None:
    assert [fair_cores(2, k) for k in (0, 1, 3)] == [2.0, 1.0, 0.5]
    assert fair_cores(8, 1) == 4.0
    assert _case(alone=10.0, here=4.0, part=0.5)["fair_share"] == 0.8


def test_what_must_hold_on_a_gpu_holds_here() -> None:
    assert quick("gpu")["broken"] == []


def test_json_goes_to_a_file_too(tmp_path: Any) -> None:
    file = tmp_path / "forward.json"
    result = quick("forward", "--json", str(file))
    assert json.loads(file.read_text()) == result


def test_every_setting_runs_in_every_round() -> None:
    result = quick("streams", "--rounds", "2")
    assert (result["rounds"], len(result["ratio_16_rounds"]), len(result["jain_rounds"])) == (
        2,
        2,
        2,
    )
    speeds = [found for row in result["tokens_s_rounds"].values() for found in row.values()]
    assert {len(found) for found in speeds} == {2}
    assert min(result["ratio_16_rounds"]) <= result["ratio_16"] <= max(result["ratio_16_rounds"])


def test_texts_do_not_depend_on_the_drafter() -> None:
    assert quick("speculation")["identical_text"] is True


def test_what_replay_counts_is_what_the_engine_does() -> None:
    """Tokens per verify of an answer gone through without the model, against the same with it."""
    result = quick("speculation")
    for drafter in ("ngram", "previous"):
        for length, tasks in result["fixed"][drafter].items():
            for task, numbers in tasks.items():
                replayed = result["by_drafter"][drafter][task][length]
                assert numbers["tokens_per_verify"] == replayed["tokens_per_verify"], (
                    drafter,
                    task,
                )


def test_replay_follows_a_draft_as_far_as_it_stands() -> None:
    known = [([PreviousOutputDrafter([1, 2, 3, 4, 9, 6])], [1, 2, 3, 4, 5, 6])]
    found = replay(known, 2)
    assert (found.drafted, found.tokens) == ([2, 2, 1], [3, 1, 1])
    assert found.acceptance() == [0.667, 0.5]
    assert found.speedup(CostCurve(((1, 1.0), (2, 1.0), (3, 1.5)))) == 5 / 4
    assert replay([([], [1, 2, 3])], 16).tokens == [1, 1]


def test_fairness_is_one_for_equals_and_a_share_for_a_monopoly() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_steps_are_interleaved_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(steps, rounds=3, warm_up=2)
    assert order == list("ab" * 5)
    assert [len(values) for values in times.values()] == [3, 3]


def test_median() -> None:
    assert medians({"odd": [9.0, 1.0, 2.0], "even": [4.0, 1.0, 3.0, 100.0]}) == {
        "odd": 2.0,
        "even": 3.5,
    }


def test_never_more_threads_than_cores() -> None:
    try:
        assert set_threads(10_000) == cores()
        assert set_threads(0) == 1
    finally:
        set_threads(1)
