"""``longstream plan``: its memory is what a worker is admitted by, its time what the curves say, and its
simulation obeys arithmetic that can be done by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve
from operators.errors import ConfigError
from pipelines.cli.main import make_cli
from pipelines.device import calibration
from pipelines.device.memory import Footprint, Memory, admit
from pipelines.lab.benchmarks.toy import toy_decoder
from pipelines.lab.plan.arithmetic import Costs, Plan, Speech, Work, make_plan, partitions_for
from pipelines.lab.plan.simulate import Scenario, simulate
from pipelines.lab.plan.work import run_engine

GB = 10**9
COSTS = Costs(CostCurve(((1, 0.05), (8, 0.08))), CostCurve(((128, 0.128),)))
NEED = Footprint(3 * GB, 50_000_000, 400_000_000, 8, 64, on_cpu=False)
THERE = Memory(8 * GB, 8 * GB, "this machine")


def made(streams: int, **speech: float) -> Plan:
    return make_plan(
        streams, Speech(60.0, 1.0, **speech), Work(1.0, 0.5), COSTS, OperatorConfig(), NEED, THERE,
        targets=0,
    )  # fmt: skip


def test_time_by_hand() -> None:
    # One token a second: one read of the transcript and one of prompts at 1 ms, half a written one at
    # 80 ms / 8 with eight answers at once.
    plan = made(10)
    assert plan.seconds_per_stream_second == pytest.approx(0.002 + 0.5 * 0.01)
    assert plan.streams_by_time == pytest.approx(0.7 / 0.007)
    assert (plan.read_there, plan.write_there) == (pytest.approx(1000), pytest.approx(100))
    assert plan.workers == 1
    assert made(10, speaking=0.5).busy == pytest.approx(plan.busy / 2)


def test_memory_is_that_of_admission() -> None:
    fit = made(10).streams_by_memory
    assert admit(dataclasses.replace(NEED, slots=fit, host_streams=0), THERE) is None
    with pytest.raises(ConfigError):
        admit(dataclasses.replace(NEED, slots=fit + 1, host_streams=0), THERE)


def test_more_streams_more_workers_with_room_for_uneven_names() -> None:
    plan = made(1000)
    assert plan.workers > 1000 * plan.seconds_per_stream_second
    assert plan.busy < 1
    assert plan.partitions >= 4 * plan.workers
    assert partitions_for(1) == 4
    assert any(line.startswith("one worker less") for line in plan.wrong)
    assert "lag grows by" in made(1000, speaking=1.0).wrong[1]


def test_a_worker_with_time_to_spare_has_no_lag_and_one_without_falls_behind() -> None:
    calm = simulate(Scenario(50, 2, 8, each=0.001, restore=0.0, fail=0.0, hours=0.5))
    assert float(calm.lag_max.max()) == 0.0
    assert 0 < float(calm.busy.max()) < 0.2
    late = simulate(Scenario(50, 2, 8, each=0.2, restore=0.0, fail=0.0, hours=0.5))
    assert float(late.lag_max[-1]) > 600
    assert np.all(np.diff(late.lag_max[5:60]) > 0)


def test_a_failed_tenth_makes_lag_that_goes_again() -> None:
    scenario = Scenario(200, 10, 40, each=0.02, restore=0.5, hours=1.5)
    out, again = simulate(scenario), simulate(scenario)
    assert np.array_equal(out.lag_max, again.lag_max)
    after = out.lag_max[out.at >= out.failed_at]
    assert float(after.max()) >= scenario.takeover_s - scenario.step_s
    assert float(after.max()) > float(out.lag_max[out.at < out.failed_at].max())
    assert out.recovered_s is not None
    assert out.summary()["worker_hours_per_stream_hour"] == pytest.approx(
        10 * 1.5 / out.stream_hours, rel=0.01
    )


def test_the_work_of_a_model_is_measured() -> None:
    config = OperatorConfig(
        window=400, update_tokens=200, slots=2, branches=2, summary_method="lines",
        summary_tokens=16, branch_tokens=2400,
    )  # fmt: skip
    run = run_engine(toy_decoder(), config, streams=2, tokens=500)
    assert run.transcript >= 1000
    assert run.seconds > 0
    assert run.work.summary_prompt > 0
    assert run.work.summary_output > 0
    assert run.work.translation_output == 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "LONG_ROUNDS", 1)
    options = ["--model", "toy", "--window", "512", "--streams", "20", "--targets", "fr"]
    done = CliRunner().invoke(make_cli(), ["plan", *options, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["window"], said["targets"], said["streams"]) == (512, ["fr"], 20)
    assert said["work"]["source"].startswith("assumed")
    assert said["workers"] >= 1
    assert list((tmp_path / "calibration").glob("*.json"))
    text = CliRunner().invoke(make_cli(), ["plan", *options]).stdout
    assert "longstream topics create" in text
    assert "if wrong:" in text
