"""The engine knows neither Kafka nor the environment nor a clock; few modules read the environment.

Which package may import which is checked by import-linter (``make lint``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

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
    "config/load.py": "the one place where it becomes settings",
    "dev/broker": "finds Java, a cache folder, brokers named for tests and the demo",
    "models": "finds the cache folder",
    "cli/main.py": "sets how long OpenMP's threads spin, before torch reads it",
    "device/client.py": "hands the child process a copy without credentials",
    "device/process.py": "a test names the toy engine to build",
    "dev/demo": "starts the worker with a copy of it; variables override its plan",
    "lab/benchmarks/contender.py": "the same for a process of its own",
    "lab/chaos": "starts workers with a copy of it",
    "lab/benchmarks/vllm_worker.py": "starts vLLM with a copy of it",
}
"""Modules, or folders of them, under ``pipelines``."""


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


def environment_reads(source: str) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name in uses(ast.parse(source))
        if name in ("os.environ", "os.environb", "os.getenv")
    ]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- the code --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", modules("operators"), ids=ids)
def test_operators_are_pure(path: Path) -> None:
    assert impure(path.read_text()) == []


@pytest.mark.parametrize("path", modules("pipelines"), ids=ids)
def test_only_settings_and_finders_read_the_environment(path: Path) -> None:
    place = path.relative_to(ROOT / "pipelines").as_posix()
    if not any(
        place == allowed or place.startswith(f"{allowed}/") for allowed in READS_ENVIRONMENT
    ):
        assert environment_reads(path.read_text()) == []


# --- the checker -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "import pipelines.wire.codec",
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


def test_environment_read_is_noticed() -> None:
    assert environment_reads("import os\nx = os.environ.get('A')")
    assert environment_reads("from os import environ")
