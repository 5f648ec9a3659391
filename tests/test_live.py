"""The operator without Kafka: the Python API and ``longstream run``, on a toy model."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipelines.live
from operators.errors import ConfigError, LongstreamError, SegmentError, SnapshotError
from operators.types import AnswerEvent, SummaryEvent, TranslationEvent
from pipelines.commands.run import follow
from pipelines.live import Live
from tests.engine import toy_decoder
from tests.test_stream_operator import CONFIG, speech

ROOT = Path(__file__).parent.parent


def live(**changes: Any) -> Live:
    settings = CONFIG.to_dict()
    settings["prompts"] = {**CONFIG.prompts, "answer": "{ledger} {question}"}
    return Live(toy_decoder(), **{**settings, "targets": ("fr",), **changes})


def test_the_example_of_the_documentation_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, with the toy in place of the model's name; README shows the same lines."""
    lines = re.findall(r"^    (.*)$", (pipelines.live.__doc__ or ""), re.MULTILINE)
    example = "\n".join(lines)
    assert example.replace("\n\n", "\n") in (ROOT / "README.md").read_text().replace("\n\n", "\n")
    assert len([line for line in lines if line]) <= 10
    monkeypatch.setattr(pipelines.live, "Live", lambda _, **settings: live(**settings))
    exec(example, {})
    shown = capsys.readouterr().out
    assert "TranslationEvent" in shown
    assert "SummaryEvent" in shown


def test_results_come_while_text_is_fed() -> None:
    api = live()
    seen = []
    for segment in speech("a", 12)[:-1]:
        api.feed("a", segment.text, speaker="Ana")
        seen += list(api.results())
    translations = [e for e in seen if isinstance(e, TranslationEvent)]
    assert [e.revision for e in translations] == list(range(1, 13))
    assert any(isinstance(e, SummaryEvent) for e in seen)
    assert list(api.results()) == []


def test_feeding_without_reading_computes_when_the_queue_is_full() -> None:
    api = live(max_queue=2)
    for segment in speech("a", 8)[:-1]:
        api.feed("a", segment.text)
    assert len([e for e in api.results() if isinstance(e, TranslationEvent)]) == 8


def test_summarize_covers_everything_said_and_close_is_final() -> None:
    api = live(targets=())
    assert_nothing = api.summarize
    api.feed("a", "the red button")
    first = api.summarize("a")
    assert first is not None
    assert (first.trigger, first.covers.to_seq) == ("request", 0)
    assert assert_nothing("a") == first  # nothing new: nothing is asked of the model
    api.feed("a", "on the remote")
    last = api.close("a")
    assert last is not None
    assert (last.status, last.covers.to_seq, last.revision) == ("final", 1, 2)
    assert api.operator.cache.free_slots == CONFIG.slots


def test_an_answer_leaves_the_stream_as_it_was() -> None:
    plain, asked = live(), live()
    said = [s.text for s in speech("a", 30)[:-1]]
    for api in (plain, asked):
        for text in said[:20]:
            api.feed("a", text)
    answer = asked.ask("a", "which button?")
    assert isinstance(answer, AnswerEvent)
    assert (answer.question, answer.revision) == ("which button?", 1)
    assert answer.usage.output_tokens > 0
    assert asked.translate("a", "a new case", "de") != ""
    for api in (plain, asked):
        for text in said[20:]:
            api.feed("a", text)
    told = [[e for e in api.results() if not isinstance(e, AnswerEvent)] for api in (plain, asked)]
    assert [getattr(e, "text", "") or getattr(e, "committed", "") for e in told[0]] == [
        getattr(e, "text", "") or getattr(e, "committed", "") for e in told[1]
    ]


def test_what_cannot_be_asked_is_refused_at_once() -> None:
    api = live()
    api.feed("a", "the red button")
    with pytest.raises(SegmentError, match="shorter"):
        api.ask("a", "why " * 100)
    with pytest.raises(ConfigError, match="xx"):
        api.translate("a", "hello", "xx")
    with pytest.raises(KeyError):
        api.ask("b", "who?")
    with pytest.raises(SnapshotError):
        api.restore("c", b"no snapshot")


def test_a_stream_goes_on_from_its_snapshot() -> None:
    said = [s.text for s in speech("a", 24)[:-1]]
    api, other = live(), live()
    for text in said[:14]:
        api.feed("a", text)
    other.restore("a", api.snapshot("a"))
    list(api.results())
    for each in (api, other):
        for text in said[14:]:
            each.feed("a", text)
    texts = [
        [e.committed for e in each.results() if isinstance(e, TranslationEvent)]
        for each in (api, other)
    ]
    assert len(texts[0]) == 10
    assert texts[0] == texts[1]


def events(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_run_writes_what_comes_and_ends_every_stream() -> None:
    out = io.StringIO()
    segments = [s for pair in zip(speech("a", 6), speech("b", 6)[:-1], strict=False) for s in pair]
    follow(live(), segments, out, ["which button?"])
    found = events(out)
    for stream in ("a", "b"):
        mine = [e for e in found if e["stream_id"] == stream]
        assert sum(e["schema"] == "insight.answer.v1" for e in mine) == 1
        assert [e["status"] for e in mine if e["schema"] == "insight.summary.v1"][-1] == "final"
        assert sum(e["schema"] == "insight.translation.v1" for e in mine) == 6


def test_run_stops_and_goes_on(tmp_path: Path) -> None:
    """Two runs with a snapshot between them publish what one run would have."""
    whole, first, second = io.StringIO(), io.StringIO(), io.StringIO()
    segments, file = speech("a", 20)[:-1], tmp_path / "a.safetensors"
    follow(live(), segments, whole, [])
    follow(live(), segments[:12], first, [], snapshot=file)
    follow(live(), segments[12:], second, [], resume=file.read_bytes())
    assert not file.with_name("a.safetensors.part").exists()

    def told(*outs: io.StringIO) -> list[tuple[str, int, str]]:
        return [
            (e["schema"], e["revision"], e.get("text") or e.get("committed", ""))
            for out in outs
            for e in events(out)
        ]

    assert told(first, second) == told(whole)


def test_run_saves_one_stream_only(tmp_path: Path) -> None:
    segments = [*speech("a", 2)[:-1], *speech("b", 2)[:-1]]
    with pytest.raises(LongstreamError, match="one stream"):
        follow(live(), segments, io.StringIO(), [], snapshot=tmp_path / "x")


def test_run_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "none.txt")]
    done = subprocess.run(
        [*command, "--model", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert "longstream run: " in done.stderr
    assert "Traceback" not in done.stderr
