"""The examples run, on toy models and without a broker (tests/kafka has those that need one)."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import pytest

import longstream
import pipelines.kafka.tools  # noqa: F401  imports kafka-python with its deprecated calls let through
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG
from tests.test_public import example

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """``load_operator`` gives an operator on a toy model, whatever is asked for."""

    def load(model: str, **settings: Any) -> StreamOperator:
        from dataclasses import replace

        return StreamOperator(toy_decoder(), replace(CONFIG, **settings))

    monkeypatch.setattr(longstream, "load_operator", load, raising=False)


def test_a_file_is_summarised(toy: None, tmp_path: Path, capsys: Any) -> None:
    example("summarise_file").main([str(ROOT / "examples" / "standup.txt")])
    assert "Traceback" not in capsys.readouterr().err


def test_captions_are_translated_line_by_line(
    toy: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("We ship it.\n\nOn Monday.\n"))
    example("live_captions").main(["--to", "fr"])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line in ("We ship it.", "On Monday.")] == [
        "We ship it.",
        "On Monday.",
    ]


def test_the_bot_says_each_change_once() -> None:
    bot = example("catch_up_bot").Bot()
    item = {"text": "Ship it.", "state": "open", "last_changed_revision": 1}
    event = {"stream_id": "m", "epoch": 0, "revision": 1, "items": [item]}
    assert bot.answer("m") == ["nothing is known of m"]
    bot.take(event)
    bot.take(event)
    assert [bot.answer("m"), bot.answer("m")] == [["Ship it."], ["nothing new"]]
    done = {**item, "state": "done", "last_changed_revision": 2}
    bot.take({**event, "revision": 2, "items": [done]})
    bot.take(event)  # an old one, delivered late
    assert bot.answer("m") == ["Ship it. (done)"]
    bot.take({**event, "epoch": 1, "revision": 0, "items": [{**item, "last_changed_revision": 0}]})
    assert bot.answer("m") == ["Ship it."]


def test_examples_use_public_names_only() -> None:
    for file in EXAMPLES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            internal = [n for n in names if n and n.split(".")[0] in ("operators", "pipelines")]
            assert internal == [], file.name


def test_the_consumer_is_short() -> None:
    """Ten lines of code that do something; the rest is imports and names."""
    tree = ast.parse((ROOT / "examples" / "kafka_consumer.py").read_text("utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert (function.end_lineno or 0) - function.lineno < 10
