"""Imports go down only, and the engine knows neither Kafka nor the environment nor a clock."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OPERATOR_LAYERS = [
    {"errors", "types", "config", "observer"},
    {"kv_cache", "rope", "attention", "plan", "verify", "text", "model", "drafting"}
    | {"sampling", "draft_control", "draft_model", "network", "quantization"},
    {"generation", "session", "scheduler", "tasks", "snapshot", "restore"}
    | {"hypotheses", "partials", "intake", "updates", "requests", "runner", "parking", "archive"},
    {"stream_operator", "stream"},
]
PIPELINE_LAYERS = [
    {"protocol", "codec", "dead_letters", "settings", "settings_fields"}
    | {"metrics", "metric_catalogue", "beats", "frames", "watermark", "threads"},
    {
        "device",
        "device_main",
        "device_model",
        "calibration",
        "broker",
        "model_store",
        "http",
        "snapshot_store",
        "bounded_store",
        "spill",
    }
    | {"clients", "publishers", "outputs", "committer", "transport", "sessions", "partition"}
    | {"keeper", "lanes", "exits", "forgetting", "tenants", "broker_watch", "header_names"}
    | {"host", "records", "pacing", "refusals", "leaving", "resuming", "measuring", "assignment"},
    {"app", "worker"},
    {"tool_clients", "replaying", "following", "tally", "screen"}
    | {"demo", "benchmarks", "chaos", "live"},
    {"commands", "cli"},
]
"""Lowest first. A module may import its own layer and those below."""

LAYERS = {"operators": OPERATOR_LAYERS, "pipelines": PIPELINE_LAYERS}
UNPLACED = {"operators": -1, "pipelines": 3}
"""The layer of a module not named above: in operators below all, so it may import nothing there
unless it is given a place; in pipelines a part of some command, used by commands only."""

FORBIDDEN_IN_OPERATORS = (
    "pipelines",
    "faust",
    "mode",
    "kafka",
    "aiokafka",
    "prometheus_client",
    "time",
    "os.environ",
    "os.environb",
    "os.getenv",
    "os.putenv",
    "datetime.datetime",
)
READS_ENVIRONMENT = {
    "settings": "the one place where it becomes settings",
    "broker": "finds Java, a cache folder, brokers named for tests and the demo",
    "model_store": "finds the cache folder",
    "cli": "sets how long OpenMP's threads spin, before torch reads it",
    "device": "hands the child process a copy without credentials",
    "demo": "starts the worker with a copy of it",
    "chaos": "starts workers with a copy of it",
    "commands": "the demo lets variables override its plan",
    "device_main": "a test names the toy engine to build",
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}"


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What a module imports, and dotted names it looks up, such as ``os.environ``."""
    yield from imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def impure(source: str) -> list[str]:
    """What an operators module does that it must not."""
    return [
        f"line {line}: {name}"
        for line, name in uses(ast.parse(source))
        if name.startswith(".") or any(within(name, bad) for bad in FORBIDDEN_IN_OPERATORS)
    ]


def upward(source: str, package: str, module: str, layers: list[set[str]]) -> list[str]:
    """Imports of ``package.module`` that point to a higher layer, and relative ones."""
    rank = {name: number for number, layer in enumerate(layers) for name in layer}
    own = rank.get(module, UNPLACED[package])
    found = []
    for line, name in imports(ast.parse(source)):
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}")
        elif within(name, package) and name != package:
            target = name.split(".")[1]
            above = rank.get(target, UNPLACED[package]) > own
            if target != module and (above or (package == "operators" and target not in rank)):
                found.append(f"line {line}: {module} imports {target}")
    return found


def environment_reads(source: str) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name in uses(ast.parse(source))
        if name in ("os.environ", "os.environb", "os.getenv")
    ]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path, package: str) -> str:
    """The module's name, or for one in a folder the folder's."""
    return path.relative_to(ROOT / package).with_suffix("").parts[0]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- the code --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", modules("operators"), ids=ids)
def test_operators_are_pure(path: Path) -> None:
    assert impure(path.read_text()) == []


@pytest.mark.parametrize("path", modules("operators") + modules("pipelines"), ids=ids)
def test_imports_go_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    module = module_name(path, package)
    if module == "__init__":
        assert not [
            name for _, name in imports(ast.parse(path.read_text())) if within(name, package)
        ]
        return
    assert upward(path.read_text(), package, module, LAYERS[package]) == []


@pytest.mark.parametrize("path", modules("pipelines"), ids=ids)
def test_only_settings_and_finders_read_the_environment(path: Path) -> None:
    if module_name(path, "pipelines") not in READS_ENVIRONMENT:
        assert environment_reads(path.read_text()) == []


# --- the checker -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "import pipelines.codec",
        "from pipelines import codec",
        "import faust",
        "from aiokafka.errors import KafkaError",
        "def f():\n    import prometheus_client",
        "import os\nhome = os.environ['HOME']",
        "from os import getenv",
        "import time\nnow = time.monotonic()",
        "from time import time",
        "from datetime import datetime\nnow = datetime.now()",
        "from . import types",
    ],
)
def test_impurity_is_noticed(line: str) -> None:
    assert impure(line)


@pytest.mark.parametrize(
    "line",
    ["import os.path", "from operators import types", "import timeit", "from math import pi"],
)
def test_the_innocent_pass(line: str) -> None:
    assert impure(line) == []


UPWARD = [
    ("operators", "config", "from operators.model import Model"),
    ("operators", "kv_cache", "from operators import session"),
    ("operators", "tasks", "import operators.stream_operator"),
    ("operators", "config", "from operators.not_placed import x"),
    ("operators", "not_placed", "from operators.config import x"),
    ("operators", "config", "from .errors import ConfigError"),
    ("pipelines", "codec", "from pipelines.broker import start"),
    ("pipelines", "transport", "def f():\n    from pipelines.app import App"),
    ("pipelines", "app", "from pipelines.not_placed import x"),
    ("pipelines", "not_placed", "from pipelines.commands import replay"),
]
DOWNWARD = [
    ("operators", "session", "from operators.kv_cache import KvCache"),
    ("operators", "attention", "from operators.kv_cache import KvCache"),
    ("operators", "tasks", "from operators.tasks.ledger import merge"),
    ("operators", "config", "import torch"),
    ("pipelines", "commands", "from pipelines.not_placed import x"),
    ("pipelines", "not_placed", "from pipelines.codec import x"),
    ("pipelines", "codec", "from operators.types import Segment"),
]


@pytest.mark.parametrize(("package", "module", "line"), UPWARD)
def test_import_upward_is_noticed(package: str, module: str, line: str) -> None:
    assert upward(line, package, module, LAYERS[package])


@pytest.mark.parametrize(("package", "module", "line"), DOWNWARD)
def test_import_downward_passes(package: str, module: str, line: str) -> None:
    assert upward(line, package, module, LAYERS[package]) == []


def test_environment_read_is_noticed() -> None:
    assert environment_reads("import os\nx = os.environ.get('A')")
    assert environment_reads("from os import environ")
