"""What the documents name exists: files, functions, links, settings, commands."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from pipelines.cli.main import COMMANDS
from pipelines.config.load import Settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "DECISIONS.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "longstream|operators|pipelines|tests|docs|examples|dashboards|docker"
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?:{FOLDERS})/[\w.*/-]*")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(document: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def paths_in(text: str) -> list[str]:
    return [code for code in CODE.findall(text) if PATH.fullmatch(code)]


def exists(path: str) -> bool:
    return (ROOT / path).exists() or ("*" in path and any(ROOT.glob(path)))


def defined_in(file: Path) -> Iterator[str]:
    """Functions, classes and methods (``Class.method``) of a module."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


def steps() -> list[tuple[list[str], list[str]]]:
    """Files and functions of every row of the two lives in docs/architecture.md."""
    found = []
    for line in (ROOT / "docs" / "architecture.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 4 and cells[0].isdigit():
            found.append((CODE.findall(cells[2]), CODE.findall(cells[3])))
    return found


def settings_in_readme() -> list[tuple[str, str]]:
    table = README.read_text("utf-8").partition("| setting | default |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([\w.]+)` \| (.+?) \|", table, re.MULTILINE)


# --- what is named exists ------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_path_named_exists(document: Path) -> None:
    assert [path for path in paths_in(prose(document)) if not exists(path)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_relative_link_resolves(document: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(prose(document))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_every_step_of_the_two_lives_is_in_its_file() -> None:
    missing = []
    for files, functions in steps():
        known = {name for file in files for name in defined_in(ROOT / file)}
        missing += [name for name in functions if name not in known]
    assert missing == []


def test_the_two_lives_are_short() -> None:
    rows = steps()
    segment, record = rows[:8], rows[8:]
    assert len(segment) == 8
    assert len({file for files, _ in segment for file in files}) <= 10
    assert len({file for files, _ in record for file in files}) <= 14


def test_every_package_is_described() -> None:
    described = set(paths_in((ROOT / "docs" / "architecture.md").read_text("utf-8")))
    packages = {f"{p.parent.relative_to(ROOT)}/" for p in ROOT.glob("*/*/__init__.py")}
    assert packages
    assert {p for p in packages if not p.startswith("tests/")} - described == set()


def test_every_command_named_exists() -> None:
    found = [re.findall(r"`longstream ([a-z]+)", path.read_text("utf-8")) for path in DOCUMENTS]
    assert {command for commands in found for command in commands} <= set(COMMANDS)


# --- the README ----------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 150


def test_the_readmes_json_is_valid() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    records = [json.loads(block) for block in blocks]
    assert [record["schema"] for record in records] == [
        "transcript.segment.v1",
        "insight.summary.v1",
    ]
    for record in records:
        schema = ROOT / "pipelines" / "wire" / "schemas" / f"{record['schema']}.json"
        jsonschema.Draft202012Validator(json.loads(schema.read_text("utf-8"))).validate(record)


def test_the_readmes_settings_exist_with_these_defaults() -> None:
    rows = dict(settings_in_readme())
    assert len(rows) == 10
    assert rows.pop("threads") == "cores, at most 16"
    settings = Settings()
    for name, default in rows.items():
        owner = settings.operator if name.startswith("operator.") else settings
        value = getattr(owner, name.removeprefix("operator."))
        shown = f"{value:g}" if isinstance(value, float) else str(value or "none")
        assert (name, default.strip("`")) == (name, shown)


def test_the_readmes_program_uses_public_names() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    imported = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert imported == [("longstream", "load_operator")]


# --- the checks themselves -----------------------------------------------------------------------


def test_a_missing_path_is_noticed() -> None:
    assert paths_in("see `pipelines/nowhere.py` and `longstream run`") == ["pipelines/nowhere.py"]
    assert not exists("pipelines/nowhere.py")
    assert not exists("tests/kafka/test_nothing_*.py")
    assert exists("tests/kafka/test_faults_*.py")


def test_a_function_that_moved_is_noticed() -> None:
    known = set(defined_in(ROOT / "operators" / "stream_operator.py"))
    assert "StreamOperator.feed" in known
    assert "StreamOperator.hear" not in known
