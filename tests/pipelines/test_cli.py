"""The command line as its users see it: settings, exit codes, JSON, what a first run says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli.init import settings_file
from pipelines.cli.main import COMMANDS, make_cli
from pipelines.config.load import default_values, describe, load_settings
from pipelines.worker import exit_codes

ROOT = Path(__file__).parents[2]
WITHOUT_JSON = {"mcp"}
"""Their results are JSON lines in any case, or files, or there is none."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.upper().startswith("LONGSTREAM_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def cli() -> typer.Typer:
    return make_cli()


def call(cli: typer.Typer, *words: str) -> Any:
    return CliRunner().invoke(cli, list(words))


# --- config ----------------------------------------------------------------------------------------


def test_every_setting_is_shown_with_its_value_and_source(
    cli: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text("partitions = 7\n[operator]\ntargets = ['fr']\n")
    monkeypatch.setenv("LONGSTREAM_OPERATOR__WINDOW", "2048")
    shown = json.loads(call(cli, "config", "show", "--config", str(file), "--json").stdout)
    assert [row["name"] for row in shown] == [row.name for row in describe()]
    rows = {row["name"]: (row["value"], row["source"]) for row in shown}
    assert rows["partitions"] == (7, str(file))
    assert rows["operator.targets"] == (["fr"], str(file))
    assert rows["operator.window"] == (2048, "LONGSTREAM_OPERATOR__WINDOW")
    assert rows["delivery"] == ("exactly_once", "default")


def test_changed_shows_only_what_was_set(cli: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "defaults" in call(cli, "config", "show", "--changed").stdout
    monkeypatch.setenv("LONGSTREAM_PARTITIONS", "9")
    shown = json.loads(call(cli, "config", "show", "--changed", "--json").stdout)
    assert [row["name"] for row in shown] == ["partitions"]


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_secrets_are_masked(
    cli: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "password").write_text("correct-horse\n")
    monkeypatch.setenv("LONGSTREAM_SASL_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("LONGSTREAM_SASL_USERNAME", "ana")
    monkeypatch.setenv("LONGSTREAM_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("LONGSTREAM_HTTP_TOKEN", "correct-horse")
    shown = call(cli, "config", "show", "--changed", *words)
    assert shown.exit_code == 0
    assert "sasl_password_file" in shown.stdout
    assert "http_token" in shown.stdout
    assert "correct-horse" not in shown.output


def test_validate_names_every_mistake_with_its_place(cli: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("partitons = 7\nreplication = 0\n")
    done = call(cli, "config", "validate", str(file))
    assert done.exit_code == exit_codes.CONFIG
    assert f"{file}: unknown setting partitons; did you mean partitions?" in done.stderr
    assert f"replication=0 ({file})" in done.stderr
    told = json.loads(call(cli, "config", "validate", str(file), "--json").stdout)
    assert (told["ok"], len(told["problems"])) == (False, 2)
    file.write_text("partitions = 7\n")
    assert call(cli, "config", "validate", str(file)).stdout == f"{file}: ok\n"


# --- init ------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_is_valid_and_changes_nothing(
    cli: typer.Typer, tmp_path: Path
) -> None:
    file = tmp_path / "longstream.toml"
    assert call(cli, "init", str(file)).exit_code == 0
    assert load_settings(file) == load_settings()
    again = call(cli, "init", str(file))
    assert again.exit_code == exit_codes.CONFIG
    assert "--force" in again.stderr
    assert call(cli, "init", str(file), "--force", "--all").exit_code == 0
    assert file.read_text().count("\n#") > 90


def test_every_line_of_a_full_file_is_the_default(tmp_path: Path) -> None:
    """Taking the # away from each setting that has a default changes nothing either."""
    text = settings_file(describe(), "x.toml")
    lines = [
        line.removeprefix("#") if re.match(r"#\w+ = .", line) else line
        for line in text.splitlines()
    ]
    file = tmp_path / "x.toml"
    file.write_text("\n".join(lines))
    assert load_settings(file) == load_settings()
    known = {name for name, value in default_values().items() if value is not None}
    assert len([line for line in lines if re.match(r"\w+ = ", line)]) == len(known)


# --- what holds for all commands ---------------------------------------------------------------------


def leaves(command: Any, path: tuple[str, ...] = ()) -> Any:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield path, command
        return
    for name, inner in subcommands.items():
        yield from leaves(inner, (*path, name))


def test_every_command_can_answer_in_json(cli: typer.Typer) -> None:
    without = [
        path
        for path, command in leaves(typer.main.get_command(cli))
        if not any("--json" in option.opts for option in command.params)
    ]
    assert {path[0] for path in without} <= WITHOUT_JSON


def test_every_command_is_described(cli: typer.Typer) -> None:
    commands = dict(leaves(typer.main.get_command(cli)))
    assert {path[0] for path in commands} == set(COMMANDS)
    assert [path for path, command in commands.items() if not command.help] == []
    unexplained = [
        (path, option.name)
        for path, command in commands.items()
        for option in command.params
        if not getattr(option, "help", None)
    ]
    assert unexplained == []


def test_the_version_is_that_of_the_installed_package(cli: typer.Typer) -> None:
    assert call(cli, "--version").stdout == f"longstream {metadata.version('longstream')}\n"


def test_help_says_the_first_steps_and_the_exit_codes(cli: typer.Typer) -> None:
    said = " ".join(call(cli, "--help").stdout.split())
    assert "longstream run FILE" in said
    assert all(f"{code} " in said for code in exit_codes.MEANINGS)
    assert "--install-completion" in said


def test_a_misspelt_command_gets_a_suggestion(cli: typer.Typer) -> None:
    done = call(cli, "topcs")
    assert done.exit_code == 2
    assert "topics" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("state", "show", "a", "--bootstrap", "nowhere"), exit_codes.CONFIG, "host:port"),
        (("model", "path", "smollm2-360m-not"), exit_codes.MODEL, "longstream model pull"),
    ],
)
def test_without_a_model_or_an_address_it_says_what_to_do(
    cli: typer.Typer, words: tuple[str, ...], code: int, said: str
) -> None:
    done = call(cli, *words)
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_broker_it_says_what_to_do() -> None:
    done = program("lag", "--bootstrap", "127.0.0.1:1")
    assert done.returncode == exit_codes.BROKER
    assert "longstream kafka" in done.stderr
    assert "Traceback" not in done.stderr


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_no_colours_in_a_pipe() -> None:
    done = program("config", "show")
    assert "\x1b" not in done.stdout + done.stderr
    assert "operator.window" in done.stdout
