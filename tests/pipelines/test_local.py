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

import pipelines.local
from operators.config import OperatorConfig
from operators.errors import ConfigError, LongstreamError, SegmentError, SnapshotError
from operators.events import AnswerEvent, SummaryEvent, TranslationEvent
from operators.stream import Stream
from operators.stream_operator import StreamOperator
from pipelines.cli.run import follow
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, speech

ROOT = Path(__file__).parents[2]


def make(**changes: Any) -> StreamOperator:
    settings = CONFIG.to_dict()
    settings["prompts"] = {**CONFIG.prompts, "answer": "{excerpts} {question}"}
    settings = {**settings, "targets": ("fr",), **changes}
    return StreamOperator(toy_decoder(), OperatorConfig.from_dict(settings))


def opened(**changes: Any) -> Stream:
    return make(**changes).open("a")


def readme_example() -> str:
    """The code block of the section "Without Kafka"."""
    section = (ROOT / "README.md").read_text().split("## Without Kafka", 1)[1]
    return section.split("```python\n", 1)[1].split("```", 1)[0]


def test_the_example_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, with the toy in place of the model's name; the module's documentation shows it too."""
    example = readme_example()
    shown = re.findall(r"^    (.*)$", (pipelines.local.__doc__ or ""), re.MULTILINE)
    lines = [line for line in example.splitlines() if line]
    assert [line for line in shown if line] == lines
    assert len(lines) <= 10
    monkeypatch.setattr(pipelines.local, "load_operator", lambda _, **settings: make(**settings))
    exec(example, found := {})
    out = capsys.readouterr().out
    assert "TranslationEvent" in out
    assert "SummaryEvent" in out
    again = make().open("meeting", snapshot=found["snapshot"])
    assert isinstance(again.ask("When is the review?"), AnswerEvent)


@pytest.mark.slow
def test_the_example_of_the_readme_is_typed(tmp_path: Path) -> None:
    """Strictly, as a user's own code would be; a wrong use is noticed."""
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(readme_example())
    bad.write_text(readme_example().replace("meeting.ask(", "meeting.answer("))
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--config-file", str(ROOT / "pyproject.toml")]
    found = subprocess.run(
        [*command, str(good), str(bad)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    errors = [line for line in found.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, found.stdout
    assert "bad.py:" in errors[0]
    assert '"answer"' in errors[0]


def test_results_come_while_text_is_fed() -> None:
    stream = opened()
    seen = []
    for segment in speech("a", 12)[:-1]:
        stream.feed(segment.text, speaker="Ana")
        seen += list(stream.results())
    translations = [e for e in seen if isinstance(e, TranslationEvent)]
    assert [e.revision for e in translations] == list(range(1, len(translations) + 1))
    assert sum(e.is_final for e in translations) == 12
    assert any(isinstance(e, SummaryEvent) for e in seen)
    assert list(stream.results()) == []


def test_streams_share_the_operator_and_keep_their_results_apart() -> None:
    operator = make()
    a, b = operator.open("a"), operator.open("b")
    for one, two in zip(speech("a", 6)[:-1], speech("b", 6)[:-1], strict=True):
        a.feed(one.text)
        b.feed(two.text)
    assert {e.stream_id for e in a.results()} == {"a"}
    made = [e for e in b.results() if isinstance(e, TranslationEvent)]
    assert sum(e.is_final for e in made) == 6


def test_feeding_without_reading_computes_when_the_queue_is_full() -> None:
    stream = opened(max_queue=2)
    for segment in speech("a", 8)[:-1]:
        stream.feed(segment.text)
    made = [e for e in stream.results() if isinstance(e, TranslationEvent)]
    assert sum(e.is_final for e in made) == 8


def test_summarize_covers_everything_said_and_close_is_final() -> None:
    operator = make(targets=())
    stream = operator.open("a")
    assert stream.summarize() is None
    stream.feed("the red button")
    first = stream.summarize()
    assert first is not None
    assert (first.trigger, first.covers.to_seq) == ("request", 0)
    assert stream.summarize() == first  # nothing new: nothing is asked of the model
    stream.feed("on the remote")
    last = stream.close()
    assert last is not None
    assert (last.status, last.covers.to_seq, last.revision) == ("final", 1, 2)
    assert operator.cache.free_slots == CONFIG.slots
    assert list(stream.results()) == [first, last]


def test_a_closed_stream_says_so() -> None:
    operator = make(targets=())
    stream = operator.open("a")
    stream.feed("the red button")
    stream.close()
    for use in (stream.summarize, stream.snapshot, stream.close, lambda: stream.feed("more")):
        with pytest.raises(LongstreamError, match="closed"):
            use()
    older = operator.open("a")
    operator.open("a")
    with pytest.raises(LongstreamError, match="reopened"):
        older.feed("more")


def test_an_answer_leaves_the_stream_as_it_was() -> None:
    plain, asked = opened(), opened()
    said = [s.text for s in speech("a", 30)[:-1]]
    for stream in (plain, asked):
        for text in said[:20]:
            stream.feed(text)
    answer = asked.ask("the red button?")
    assert isinstance(answer, AnswerEvent)
    assert (answer.question, answer.revision) == ("the red button?", 1)
    assert answer.usage.output_tokens > 0
    assert asked.translate("a new case", "de") != ""
    for stream in (plain, asked):
        for text in said[20:]:
            stream.feed(text)
    told = [[getattr(e, "text", "") or e.committed for e in s.results()] for s in (plain, asked)]
    assert len(told[0]) > 30
    assert told[0] == told[1]


def test_what_cannot_be_asked_is_refused_at_once() -> None:
    operator = make()
    stream = operator.open("a")
    stream.feed("the red button")
    with pytest.raises(SegmentError, match="shorter"):
        stream.ask("why " * 100)
    with pytest.raises(ConfigError, match="xx"):
        stream.translate("hello", "xx")
    with pytest.raises(SnapshotError):
        operator.open("c", snapshot=b"no snapshot")


def test_updates_by_time_need_a_clock() -> None:
    with pytest.raises(ConfigError, match="needs a clock"):
        make(update_interval_s=5.0)


def test_a_stream_goes_on_from_its_snapshot() -> None:
    said = [s.text for s in speech("a", 24)[:-1]]
    stream = opened()
    for text in said[:14]:
        stream.feed(text)
    other = make().open("a", snapshot=stream.snapshot())
    list(stream.results())
    for each in (stream, other):
        for text in said[14:]:
            each.feed(text)
    texts = [
        [e.committed for e in each.results() if isinstance(e, TranslationEvent) and e.is_final]
        for each in (stream, other)
    ]
    assert len(texts[0]) == 10
    assert texts[0] == texts[1]


def events(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_run_writes_what_comes_and_ends_every_stream() -> None:
    out = io.StringIO()
    segments = [s for pair in zip(speech("a", 6), speech("b", 6)[:-1], strict=False) for s in pair]
    follow(make(), segments, out, ["which button?"])
    found = events(out)
    for stream in ("a", "b"):
        mine = [e for e in found if e["stream_id"] == stream]
        assert sum(e["schema"] == "insight.answer.v1" for e in mine) == 1
        assert [e["status"] for e in mine if e["schema"] == "insight.summary.v1"][-1] == "final"
        made = [e for e in mine if e["schema"] == "insight.translation.v1"]
        assert sum(e["is_final"] for e in made) == 6


def test_run_stops_and_goes_on(tmp_path: Path) -> None:
    """Two runs with a snapshot between them publish what one run would have."""
    whole, first, second = io.StringIO(), io.StringIO(), io.StringIO()
    segments, file = speech("a", 20)[:-1], tmp_path / "a.safetensors"
    follow(make(), segments, whole, [])
    follow(make(), segments[:12], first, [], snapshot=file)
    follow(make(), segments[12:], second, [], resume=file.read_bytes())
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
        follow(make(), segments, io.StringIO(), [], snapshot=tmp_path / "x")


def test_run_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    talk = tmp_path / "talk.txt"
    talk.write_text("Ana: We ship on Friday.\n")
    command = [sys.executable, "-m", "pipelines.cli.main", "run", str(talk)]
    done = subprocess.run(
        [*command, "--model", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3  # the model
    assert "longstream run: " in done.stderr
    assert "Traceback" not in done.stderr
