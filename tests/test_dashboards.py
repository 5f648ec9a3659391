"""Boards and alerts name only what the worker exports, and Prometheus itself accepts them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.build import generated
from pipelines.observability.catalogue import SPECS
from pipelines.observability.http import Readiness, serve
from pipelines.observability.metrics import EXPORTED, Metrics
from tests.promql import labels_in, series_in

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "dashboards" / "prometheus"
GRAFANA = ROOT / "dashboards" / "grafana"
BOARDS = sorted(GRAFANA.glob("*.json"))
DATASOURCE = "longstream-prometheus"
OF_PROMETHEUS = {"up", "ALERTS"}
"""Series Prometheus makes itself."""
OF_SCRAPE = {"job", "instance"}


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def panels(board: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(board.read_text())["panels"]:
        yield from panel.get("panels", [])
        yield panel


def panel_expressions() -> list[tuple[str, str]]:
    return [
        (f"{board.stem}: {panel['title']}", target["expr"])
        for board in BOARDS
        for panel in panels(board)
        for target in panel.get("targets", [])
    ]


def recorded() -> dict[str, str]:
    """Expressions of the recording rules, by the name of their series."""
    groups = load_yaml(PROMETHEUS / "rules.yml")["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def rules() -> list[dict[str, Any]]:
    groups = load_yaml(PROMETHEUS / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def fill_in(expression: str, interval: str = "1m") -> str:
    """A panel's expression as Grafana would send it with everything selected."""
    expression = expression.replace("$__rate_interval", interval).replace("$__range", "1h")
    return re.sub(r"\$(worker|model|partition)", ".*", expression)


def labels_of(series: set[str]) -> set[str]:
    labels = {"worker", "model", "le", *OF_SCRAPE}
    if "ALERTS" in series:
        labels |= {"alertstate", "alertname", "service"}
    series = series | {
        name for s in series & recorded().keys() for name in series_in(recorded()[s])
    }
    for spec in SPECS:
        if any(name.startswith(f"longstream_{spec.name}") for name in series):
            labels |= set(spec.labels)
    return labels


def program(name: str) -> str:
    """Where promtool or prometheus is; without it the test is skipped, or fails where required."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed: `apt-get install prometheus` brings it"
        if os.environ.get("LONGSTREAM_REQUIRE_PROMTOOL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> None:
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "series", "labels"),
    [
        ('sum by (le, task) (rate(a_bucket{w=~"x|and y"}[5m]))', {"a_bucket"}, {"le", "task", "w"}),
        ("a / on (i) group_left (w) b_total", {"a", "b_total"}, {"i", "w"}),
        ("a > 0 unless a offset 10m", {"a"}, set()),
        ("1 + sum(a)(b)", {"b"}, set()),
        ('absent(up{job="c"}) or vector(1e3) # d', {"up"}, {"job"}),
        ("deriv (a:b[$__rate_interval]) * 60 > bool 1", {"a:b"}, set()),
        ('{__name__="a"}', set(), {"__name__"}),
    ],
)
def test_series_and_labels_are_found(expression: str, series: set[str], labels: set[str]) -> None:
    assert series_in(expression) - {"a"} == series - {"a"}
    assert labels_in(expression) == labels


def test_every_panel_names_exported_metrics_only() -> None:
    found = panel_expressions()
    assert len(found) > 30
    known = EXPORTED | OF_PROMETHEUS | recorded().keys()
    unknown = {title: series_in(expr) - known for title, expr in found}
    assert not {title: names for title, names in unknown.items() if names}
    assert all(series_in(expr) for _, expr in found)


def test_every_rule_names_exported_metrics_only() -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in rules()} | recorded()
    known = EXPORTED | OF_PROMETHEUS | recorded().keys()
    unknown = {name: series_in(expr) - known for name, expr in expressions.items()}
    assert not {name: names for name, names in unknown.items() if names}
    assert all(series_in(expr) for expr in expressions.values())


def test_labels_in_panels_and_rules_exist_on_their_metrics() -> None:
    alerts = ((rule["alert"], rule["expr"]) for rule in rules())
    found = [*panel_expressions(), *alerts, *recorded().items()]
    wrong = {title: labels_in(expr) - labels_of(series_in(expr)) for title, expr in found}
    assert not {title: labels for title, labels in wrong.items() if labels}


# --- boards ----------------------------------------------------------------------------------


def datasources_in(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        if isinstance(value.get("datasource"), dict):
            yield value["datasource"]
        for inner in value.values():
            yield from datasources_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from datasources_in(inner)


def test_one_datasource_everywhere() -> None:
    [provisioned] = load_yaml(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    assert (provisioned["uid"], provisioned["type"]) == (DATASOURCE, "prometheus")
    for board in BOARDS:
        used = list(datasources_in(json.loads(board.read_text())))
        assert {source["uid"] for source in used} == {DATASOURCE}
        for panel in panels(board):
            assert panel["type"] == "row" or panel["datasource"]["uid"] == DATASOURCE
            assert all(t["datasource"]["uid"] == DATASOURCE for t in panel.get("targets", []))


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    for board in BOARDS:
        found = list(panels(board))
        assert len({panel["id"] for panel in found}) == len(found)
        cells: set[tuple[int, int]] = set()
        for panel in found:
            at = panel["gridPos"]
            mine = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert at["x"] + at["w"] <= 24, panel["title"]
            assert not mine & cells, panel["title"]
            cells |= mine


def test_every_panel_obeys_the_worker_variable() -> None:
    for board in BOARDS:
        names = [v["name"] for v in json.loads(board.read_text())["templating"]["list"]]
        assert names[:2] == ["worker", "model"]
        assert set(names) <= {"worker", "model", "partition"}
    ours = [(title, e) for title, e in panel_expressions() if not series_in(e) & OF_PROMETHEUS]
    assert not [title for title, expr in ours if 'worker=~"$worker"' not in expr]


def test_every_panel_has_a_unit_a_description_and_no_bare_zero_denominator() -> None:
    for board in BOARDS:
        for panel in panels(board):
            if panel["type"] == "row":
                continue
            assert panel.get("description"), (board.stem, panel["title"])
            assert panel["fieldConfig"]["defaults"].get("unit"), (board.stem, panel["title"])
    for title, expr in panel_expressions():
        for denominator in re.findall(r"/ ?\(?((?:sum|longstream)[^/]*)", expr):
            assert "> 0" in denominator or "/ (" not in expr, (title, expr)


def test_generated_files_are_what_their_source_writes() -> None:
    """Run `python -m dashboards.build` after a change to a board or to the catalogue of metrics."""
    for path, text in generated().items():
        assert path.read_text("utf-8") == text, path.name


def test_boards_survive_the_types_of_grafanas_own_library() -> None:
    for board in BOARDS:
        read = Dashboard.from_json(json.loads(board.read_text()))
        again = json.loads(JSONEncoder(sort_keys=True).encode(read))
        assert {p["title"] for p in again["panels"]} == {p["title"] for p in panels(board)}


# --- Prometheus ------------------------------------------------------------------------------


def test_promtool_accepts_config_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "alerts.yml", "rules.yml")


def test_promtool_alert_cases() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_promtool_accepts_every_panel_expression(tmp_path: Path) -> None:
    asked = [
        {"record": f"panel:{i}", "expr": fill_in(expr)}
        for i, (_, expr) in enumerate(panel_expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    promtool("check", "rules", str(file), cwd=tmp_path)


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    cases: dict[str, set[bool]] = {}
    for test in load_yaml(PROMETHEUS / "alerts_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert cases == {rule["alert"]: {True, False} for rule in rules()}


def test_every_alert_says_what_to_do_where_it_points() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    headings = {h.strip().lower() for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    for rule in rules():
        notes = rule["annotations"]
        assert notes["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings
        assert notes["summary"]
        assert notes["description"]
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.slow
def test_a_real_prometheus_has_data_for_every_panel(tmp_path: Path) -> None:
    asyncio.run(_scrape_and_query(tmp_path))


async def _scrape_and_query(folder: Path) -> None:
    metrics = Metrics(worker="w1", model="toy")
    server = await serve("127.0.0.1", 0, metrics, Readiness())
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "rules.yml")],
        "scrape_configs": [
            {
                "job_name": "longstream",
                "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(  # noqa: ASYNC220
        [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=error",
        ]
    )
    try:
        deadline = time.monotonic() + 60.0
        empty = ["not asked yet"]
        while empty and time.monotonic() < deadline:
            touch_everything(metrics)
            await asyncio.sleep(0.5)
            empty = await asyncio.to_thread(panels_without_data, address)
        assert not empty
    finally:
        process.terminate()
        process.wait(20)
        await server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def touch_everything(metrics: Metrics) -> None:
    """A little of everything a busy worker reports."""
    for spec in SPECS:
        metrics._families[spec.name].record(1.0, *("x" for _ in spec.labels))


def panels_without_data(address: str) -> list[str]:
    empty = []
    for title, expr in panel_expressions():
        query = urllib.parse.urlencode({"query": fill_in(expr, interval="15s")})
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}") as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return ["Prometheus does not answer"]
        if not any(sample["value"][1] != "NaN" for sample in result):
            empty.append(f"{title}: {expr}")
    return empty
