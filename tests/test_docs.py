"""What the documents name exists: files, functions, links, settings, commands."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from docs.generate import PAGES
from operators.tasks.minutes import HINTS, ONCE
from pipelines.cli.main import COMMANDS, make_cli
from pipelines.config.load import Settings
from tests.newcomer import steps as steps_of

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "DECISIONS.md", *sorted((ROOT / "docs").rglob("*.md"))]
MORE = [ROOT / "CHANGELOG.md", *sorted(ROOT.glob("[CS][OE]*.md"))]
"""Also read by people: CONTRIBUTING.md, SECURITY.md, CODE_OF_CONDUCT.md."""
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


# --- every shell command shown can be typed ------------------------------------------------------


def shown_commands(document: Path) -> Iterator[str]:
    """Lines of shell blocks, indented lines that call longstream, and calls within backticks."""
    text = document.read_text("utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language in ("sh", "bash", "console"):
            yield from re.sub(r"\\\n", " ", block).splitlines()
        elif not language:
            yield from (line for line in block.splitlines() if line.startswith("longstream "))
    outside = prose(document)
    yield from re.findall(r"^ {4}(longstream .*)$", outside, re.M)
    yield from (code for code in CODE.findall(outside) if code.startswith("longstream "))


def words_of(line: str) -> list[str]:
    """The words of the first program of a line, without variables in front; [] where there is none."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: not set(word) <= set("|;&<>"), lexer))
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        words = words[1:]
    return words


def check_command(words: list[str]) -> None:
    """Raise if the program, its subcommand or an option does not exist, or a value cannot be right."""
    program, *rest = words
    if program == "make":
        target = next((word for word in rest if "=" not in word), "help")
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.M), target
    elif program == "longstream":
        check_longstream(rest)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for name in re.findall(r"longstream\[(\w+)\]", " ".join(rest)):
            assert name in extras["optional-dependencies"]
    else:
        assert program in OTHER_PROGRAMS, f"unknown program {program}"


OTHER_PROGRAMS = ("python3", ".", "docker", "python", "git", "cd", "export", "sudo", "apt-get",
                  "helm", "kubectl", "curl", "tail", "find", "ls", "cat", "mkdocs")  # fmt: skip


PLACEHOLDERS = ("…", "...", "COMMAND", "NAME")


def check_longstream(rest: list[str]) -> None:
    command: Any = typer.main.get_command(make_cli())
    path = ["longstream"]
    if rest[:1] == ["--install-completion"]:  # parsing it would install it
        assert any(rest[0] in option.opts for option in command.params)
        return
    if any(word in PLACEHOLDERS or "…" in word for word in rest):
        return  # cut short on purpose
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        path.append(rest[0])
        assert rest[0] in command.commands, " ".join(path)
        command, rest = command.commands[rest[0]], rest[1:]
    if not rest and (hasattr(command, "commands") or any(p.required for p in command.params)):
        return  # "longstream dlq" or "longstream run", only named
    try:
        command.make_context(
            path[-1], list(rest), resilient_parsing=bool({"--help", "--version"} & set(rest))
        )
    except Exception as error:  # typer brings a click of its own, whose errors have no public name
        raise AssertionError(str(error)) from error


@pytest.mark.parametrize("document", [*DOCUMENTS, *MORE], ids=names)
def test_every_command_shown_can_be_typed(document: Path) -> None:
    wrong = []
    for line in shown_commands(document):
        words = words_of(line)
        if not words:
            continue
        try:
            check_command(words)
        except (Exception, SystemExit) as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


def test_the_quick_starts_small_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need neither model nor broker; `make newcomer` runs all of them."""
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    small = ("longstream convert", "longstream init", "longstream config")
    commands = [step.command for step in steps_of(page) if step.command.startswith(small)]
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for command in commands:
        done = CliRunner().invoke(make_cli(), shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output)


def test_a_wrong_command_is_noticed() -> None:
    for line in ("longstream rum x", "longstream run x --modell y", "make nothing", "longstrem"):
        with pytest.raises(AssertionError):
            check_command(words_of(line))
    assert words_of("A=1 longstream run x | head  # why") == ["longstream", "run", "x"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_section_linked_exists(document: Path) -> None:
    missing = []
    for link in LINK.findall(prose(document)):
        target, _, section = link.partition("#")
        page = document if not target else document.parent / target
        if section and "://" not in link and page.suffix == ".md":
            found = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
            slugs = [
                re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in found
            ]
            missing += [link] if section not in slugs else []
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_what_the_code_says(page: str) -> None:
    written = (ROOT / "docs" / page).read_text("utf-8")
    assert written == PAGES[page](), "it changed: run python -m docs.generate"


def test_every_reason_for_which_a_note_is_refused_is_told() -> None:
    events = (ROOT / "docs" / "events.md").read_text("utf-8")
    table = events.split("## Notes that an update did not take")[1]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert told == {*ONCE, *HINTS, "duplicate", "person"}


def test_every_page_of_the_sites_navigation_exists() -> None:
    """mkdocs.yml is written by hand."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r": ([\w/-]+\.md)$", text, re.M))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("*.md")}
    assert listed <= pages


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
