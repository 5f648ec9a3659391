"""``longstream decode`` shows what records become; ``longstream run`` checks before it loads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import make_cli

RUNNER = CliRunner()


def decoded(lines: list[Any], *options: str, code: int = 0) -> list[dict[str, Any]]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    result = RUNNER.invoke(make_cli(), ["decode", "-", *options], input=text)
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_record_is_shown_as_the_worker_takes_it() -> None:
    made = decoded(
        [
            {"key": "m1", "value": {"text": "We ship on Friday.", "speaker": 0, "start_ms": "x"}},
            {"key": "m1", "value": "{inaudible} so we agreed"},
            {"key": "m1", "hex": "000000000c7b2274657874223a225965732e227d"},
            {"key": "m1", "value": None},
            {"key": "m1", "value": [1, 2]},
            {
                "key": "m1",
                "value": {"transcript": "Yes."},
                "headers": {"content-type": "application/json"},
            },
        ]
    )
    assert [line["line"] for line in made] == [1, 2, 3, 4, 5, 6]
    first = made[0]
    assert first["segment"]["text"] == "We ship on Friday."
    assert first["segment"]["speaker"]["id"] == "0"
    assert first["segment"]["segment_id"] == "0-0"
    assert first["dropped"] == ["start_ms"]
    assert made[1]["segment"]["text"] == "{inaudible} so we agreed"
    assert made[2]["segment"]["text"] == "Yes."
    reasons = [line["dead_letter"]["reason"] for line in made[3:]]
    assert reasons == ["null_value", "unknown_format", "missing_text"]
    assert "array" in made[4]["dead_letter"]["message"]


def test_the_place_of_a_record_without_a_key_is_checked_on_request() -> None:
    record = {"value": {"stream_id": "m1", "text": "Yes."}}
    places = [decoded([record], "--partition", str(n), "--partitions", "3")[0] for n in range(3)]
    assert sum("segment" in place for place in places) == 1
    assert decoded([record])[0]["segment"]["stream_id"] == "m1"


@pytest.mark.parametrize(
    "line",
    ["no json", "[1]", '{"key": "a"}', '{"value": "a", "hex": "00"}', '{"hex": "xyz"}',
     '{"value": "a", "header": {}}', '{"value": "a", "key": 5}', '{"value": "a", "headers": 5}'],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named_and_the_others_go_on(line: str) -> None:
    text = f'{line}\n{{"key": "m1", "value": "Yes."}}\n'
    result = RUNNER.invoke(make_cli(), ["decode", "-"], input=text)
    assert result.exit_code == 1
    assert "line 1" in result.stderr
    assert json.loads(result.stdout)["segment"]["text"] == "Yes."


def test_settings_are_those_of_a_worker(tmp_path: Path) -> None:
    settings = tmp_path / "x.toml"
    settings.write_text('input_format = "json"\n')
    text = {"key": "m1", "value": "Just text."}
    assert "segment" in decoded([text])[0]
    refused = decoded([text], "--config", str(settings))[0]
    assert refused["dead_letter"]["reason"] == "malformed_json"
    decoded([text], "--input-format", "xml", code=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["missing.jsonl"], "missing.jsonl"),
        (["empty.txt"], "no segment"),
        (["office.docx"], "office document"),
        (["good.txt", "--translate", "klingon"], "klingon"),
        (["good.txt", "--window", "3"], "window"),
        (["good.txt", "--device", "tpu"], "--device tpu"),
        (["good.txt", "--resume", "nothing"], "nothing"),
        (["good.txt", "--snapshot", "no/such/folder"], "no such folder"),
    ],
)
def test_run_says_what_is_wrong_before_it_loads_a_model(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt file name was told after minutes of loading."""
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "office.docx").write_bytes(b"PK\x03\x04rest")
    (tmp_path / "good.txt").write_text("We ship on Friday.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pipelines.local", None)  # loading would be an ImportError
    result = RUNNER.invoke(make_cli(), ["run", *options])
    assert result.exit_code in (1, 2)
    assert not isinstance(result.exception, ImportError)
    assert told in result.stderr
