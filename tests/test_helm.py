"""The Helm chart: what it renders is committed, checked against the types of the Kubernetes API and of
KEDA, and rendered anew where Helm is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.config.fields import Settings
from pipelines.config.load import describe
from tests.test_dashboards import promtool

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "longstream"
RENDERED = ROOT / "deploy" / "kubernetes"
VALUES = {"longstream.yaml": None, "gpu.yaml": RENDERED / "gpu-values.yaml"}
TYPES = {
    "v1": "kubernetes.core.v1",
    "apps/v1": "kubernetes.apps.v1",
    "batch/v1": "kubernetes.batch.v1",
    "policy/v1": "kubernetes.policy.v1",
    "keda.sh/v1alpha1": "keda.v1alpha1",
}


def objects(name: str) -> dict[str, dict[str, Any]]:
    loaded = yaml.safe_load_all((RENDERED / name).read_text())
    return {found["kind"]: found for found in loaded}


def pods(name: str) -> list[dict[str, Any]]:
    return [
        found["spec"]["template"]["spec"]
        for kind, found in objects(name).items()
        if kind in ("Deployment", "Job")
    ]


def keys(value: Any, at: str = "") -> set[str]:
    if isinstance(value, dict):
        return {path for k, v in value.items() for path in ({f"{at}.{k}"} | keys(v, f"{at}.{k}"))}
    if isinstance(value, list):
        return {path for n, v in enumerate(value) for path in keys(v, f"{at}[{n}]")}
    return set()


def test_the_schema_refuses_what_would_not_work() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    check = jsonschema.Draft7Validator(schema)
    check.validate(values)
    check.validate(values | yaml.safe_load((RENDERED / "gpu-values.yaml").read_text()))
    for wrong in (
        {"replica": 2},
        {"partitions": 0},
        {"kafka": {"bootstrap": "user:word@kafka:9092"}},
        {"kafka": {**values["kafka"], "securityProtocol": "SASL_SSL"}},
        {"settings": {"LONGSTREAM_SASL_PASSWORD": "x"}},
        {"snapshotUrl": "s3://key:secret@bucket/x"},
        {"resources": {"limits": {"memory": "much"}}},
        {"podDisruptionBudget": {"maxUnavailable": 0}},
    ):
        assert not check.is_valid(values | wrong), wrong


@pytest.mark.parametrize("name", VALUES)
def test_what_is_rendered_has_the_types_of_the_api(name: str) -> None:
    """A field that the API does not know is dropped by its types, so it shows as missing."""
    for kind, found in objects(name).items():
        if kind == "PodMonitor":  # no types of it are installed
            continue
        version = f"cloudcoil.models.{TYPES[found['apiVersion']]}"
        model = getattr(pytest.importorskip(version), kind).model_validate(found)
        again = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
        assert not keys(found) - keys(again), kind


@pytest.mark.parametrize("name", VALUES)
def test_pods_run_with_nothing_they_do_not_need(name: str) -> None:
    for pod in pods(name):
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        [container] = pod["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", VALUES)
def test_settings_exist_and_secrets_are_files(name: str) -> None:
    known = {row.env for row in describe()}
    for pod in pods(name):
        env = pod["containers"][0]["env"]
        assert {entry["name"] for entry in env} <= known
        assert len({entry["name"] for entry in env}) == len(env)
        secret = [e for e in env if any(w in e["name"] for w in ("PASSWORD", "TOKEN", "SECRET"))]
        assert all(e["name"].endswith("_FILE") for e in secret)


@pytest.mark.parametrize("name", VALUES)
def test_a_worker_has_time_to_stop_and_is_ready_by_progress(name: str) -> None:
    deployment = objects(name)["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    container = pod["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(env["LONGSTREAM_STOP_DEADLINE_S"])
    assert float(env["LONGSTREAM_STOP_DEADLINE_S"]) == Settings().stop_deadline_s
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert objects(name)["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_one_gpu_each_and_idle_kv_on_a_local_disk() -> None:
    [pod] = [p for p in pods("gpu.yaml") if p["containers"][0]["name"] == "worker"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert env["LONGSTREAM_DEVICE"] == "cuda"
    [disk] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "idle-kv"]
    assert env["LONGSTREAM_OFFLOAD_URL"] == disk["mountPath"]
    assert "LONGSTREAM_OFFLOAD_URL" not in str(objects("longstream.yaml"))


def test_scaling_follows_lag_and_holds_while_a_worker_loads(tmp_path: Path) -> None:
    """The ScaledObject's query, asked of Prometheus' own engine."""
    spec = objects("gpu.yaml")["ScaledObject"]["spec"]
    [trigger] = spec["triggers"]
    assert trigger["metricType"] == "Value"
    assert spec["maxReplicaCount"] <= 12
    threshold = float(trigger["metadata"]["threshold"])
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"][
        "stabilizationWindowSeconds"
    ] >= 900  # fmt: skip

    def case(eval_time: str, value: float) -> dict[str, Any]:
        sample = {"labels": "{}", "value": value}
        query = trigger["metadata"]["query"]
        return {"expr": query, "eval_time": eval_time, "exp_samples": [sample]}

    def series(name: str, instance: str, values: str, labels: str = "") -> dict[str, str]:
        return {
            "series": f'{name}{{job="longstream",instance="{instance}"{labels}}}',
            "values": values,
        }

    lag, up, start = (
        "longstream_consumer_lag_seconds", "longstream_device_up", "process_start_time_seconds",
    )  # fmt: skip
    tests = {
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    series(lag, "a", "90x60", ',partition="0"'),
                    series(lag, "a", "5x60", ',partition="1"'),
                    series(up, "a", "1x60"),
                    series(start, "a", "0x60"),
                    # the second worker starts at 10 m and loads for 5 m; at 40 m it is broken
                    series(up, "b", "_x9 0x5 1x24 0x20"),
                    series(start, "b", "_x9 600x50"),
                ],
                "promql_expr_test": [
                    case("5m", 90), case("12m", threshold), case("30m", 90), case("45m", 90),
                ],
            },
            {"interval": "1m", "input_series": [], "promql_expr_test": [case("5m", 0)]},
        ]
    }  # fmt: skip
    file = tmp_path / "scaling.yml"
    file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(file), cwd=tmp_path)


@pytest.mark.parametrize(("name", "values"), VALUES.items())
def test_helm_renders_what_is_committed(name: str, values: Path | None) -> None:
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed: the chart was not rendered anew")
    options = ["--kube-version", "1.31.0", *(["-f", str(values)] if values else [])]
    done = subprocess.run(
        [program, "template", "longstream", str(CHART), *options],
        capture_output=True, text=True, timeout=60, env={**os.environ, "HELM_DEBUG": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (RENDERED / name).read_text()


def test_helm_refuses_more_workers_than_partitions() -> None:
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed")
    done = subprocess.run(
        [program, "template", "x", str(CHART), "--kube-version", "1.31.0", "--set",
         "autoscaling.enabled=true,autoscaling.maxReplicas=13"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "at most one worker per partition" in done.stderr
