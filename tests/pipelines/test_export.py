"""A stream as Markdown, JSON, captions and to-dos."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import icalendar
import pytest
import webvtt
import yaml
from typer.testing import CliRunner

from operators.errors import LongstreamError
from operators.events import (
    LedgerItem,
    Segment,
    Speaker,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
)
from pipelines.cli.export import gathered, rendered
from pipelines.cli.main import make_cli
from pipelines.wire.codec import encode_event, encode_segment
from pipelines.wire.todo_calendar import due_date
from pipelines.wire.transcripts import read_transcript

SUNDAY = datetime.date(2026, 11, 29)
STAMP = int(datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC).timestamp() * 1000)


def said(text: str, number: int, **fields: object) -> Segment:
    plain = {"segment_id": f"s{number}", "start_ms": number * 2000, "end_ms": number * 2000 + 1500}
    return Segment(stream_id="m", text=text, **{**plain, **fields})  # type: ignore[arg-type]


def french(number: int, text: str, revision: int = 1) -> TranslationEvent:
    return TranslationEvent(
        stream_id="m",
        epoch=0,
        revision=revision,
        target_lang="fr",
        unit_id=f"s{number}",
        source_segment_ids=(f"s{number}",),
        committed=text,
    )


def notes(*items: LedgerItem, revision: int = 1) -> SummaryEvent:
    return SummaryEvent(
        stream_id="m", epoch=0, revision=revision, items=items, emitted_at_ms=STAMP, status="final"
    )


def action(text: str, due: str | None, number: int = 1, **fields: object) -> LedgerItem:
    return LedgerItem(id=f"a{number}", kind="action_item", text=text, due=due, **fields)  # type: ignore[arg-type]


ANA = Speaker(name="Ana")
TALK = [said("We ship <it> & go.", 1, speaker=ANA), said("On Monday.", 2), french(1, "On y va.")]


# --- captions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_captions_read_back_as_what_was_said(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"m.{form}"
    file.write_text(rendered(gathered("m", TALK), form))  # type: ignore[arg-type]
    again = [(s.text, s.speaker, s.start_ms, s.end_ms) for s in read_transcript(file)]
    text = "We ship & go." if form == "srt" else "We ship <it> & go."  # SRT has no escapes
    assert again[1] == ("On Monday.", None, 4000, 5500)
    if form == "vtt":
        assert again[0] == (text, ANA, 2000, 3500)
    assert len(again) == 2


def test_captions_of_a_translation_leave_out_what_is_not_translated() -> None:
    captions = rendered(gathered("m", [*TALK, french(1, "Nous livrons.", 2)]), "srt", "fr")
    assert captions == "1\n00:00:02,000 --> 00:00:03,500\nAna: Nous livrons.\n"
    with pytest.raises(LongstreamError, match="no translation into de"):
        rendered(gathered("m", TALK), "srt", "de")


def test_times_that_are_missing_follow_the_cue_before() -> None:
    records = [said("One.", 1), said("Two two two two two.", 2, start_ms=None, end_ms=None)]
    captions = webvtt.from_string(rendered(gathered("m", records), "vtt"))
    assert [(c.start, c.end) for c in captions] == [
        ("00:00:02.000", "00:00:03.500"),
        ("00:00:03.500", "00:00:04.833"),
    ]


def test_a_correction_replaces_and_a_withdrawal_removes() -> None:
    records = [
        said("We sheep it.", 1),
        said("We ship it.", 1, revision=2),
        said("We sheep it.", 1, revision=1),
        said("uh", 2),
        said("", 2, revision=1),
    ]
    assert "We ship it." in rendered(gathered("m", records), "srt")
    assert "uh" not in rendered(gathered("m", records), "srt")


def test_only_the_last_life_of_a_stream_is_exported() -> None:
    ended = Segment(stream_id="m", type="session_end")
    captions = rendered(gathered("m", [said("Before.", 1), ended, said("After.", 2)]), "srt")
    assert "Before" not in captions
    assert "After" in captions


# --- notes --------------------------------------------------------------------------------------------


def test_markdown_has_front_matter_that_is_yaml() -> None:
    found = gathered("m", [notes(action("Call: them", "Friday"))])
    found.settings = StreamSettings(title="Stand-up: week 48", participants=("Ana", "Zoë"))
    text = rendered(found, "md")
    _, properties, body = text.split("---\n", 2)
    told = yaml.safe_load(properties)
    assert (told["title"], told["date"]) == ("Stand-up: week 48", SUNDAY)
    assert told["participants"] == ["Ana", "Zoë"]
    assert "Call: them" in body
    assert not rendered(found, "md", front_matter=False).startswith("---")


def test_the_newest_revision_is_exported_as_json() -> None:
    found = gathered("m", [notes(action("New.", None), revision=2), notes(revision=1)])
    assert json.loads(rendered(found, "json"))["actions"][0]["text"] == "New."
    with pytest.raises(LongstreamError, match="no notes of 'm' yet"):
        rendered(gathered("m", TALK), "md")


def test_actions_become_to_dos_with_due_dates() -> None:
    items = (
        action("Call them.", "Friday", 1, owner="Ana"),
        action("Buy bread; milk, eggs.", "when possible", 2, state="done"),
        action("Old.", None, 3, state="superseded"),
        LedgerItem(id="d1", kind="decision", text="Ship."),
    )
    calendar = icalendar.Calendar.from_ical(rendered(gathered("m", [notes(*items)]), "ics"))
    first, second = calendar.walk("VTODO")
    assert first["SUMMARY"] == "Ana: Call them."
    assert first["DUE"].dt == datetime.date(2026, 12, 4)
    assert (second["STATUS"], "DUE" in second) == ("COMPLETED", False)
    assert (second["SUMMARY"], second["DESCRIPTION"]) == ("Buy bread; milk, eggs.", "when possible")
    assert first["UID"] != second["UID"]


@pytest.mark.parametrize(
    ("words", "day"),
    [
        ("Friday", "2026-12-04"),
        ("vendredi", "2026-12-04"),
        ("tomorrow", "2026-11-30"),
        ("明天", "2026-11-30"),
        ("in two weeks", "2026-12-13"),
        ("2026-12-24", "2026-12-24"),
        ("December 5th", "2026-12-05"),
        ("three", None),
        ("5", None),
        ("Monday at 9", None),
        ("2020-01-01", None),
        ("soon", None),
        (None, None),
    ],
)
def test_a_due_date_is_a_day_or_nothing(words: str | None, day: str | None) -> None:
    assert due_date(words, SUNDAY) == (day and datetime.date.fromisoformat(day))


# --- the command -------------------------------------------------------------------------------------


def test_export_reads_what_run_and_watch_write(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [encode_segment(r) if isinstance(r, Segment) else encode_event(r) for r in TALK]
    lines += [encode_event(notes(action("Call them.", "Friday"))), b"not json", b'{"schema":"x"}']
    file.write_bytes(b"\n".join(lines))
    cli, out = make_cli(), tmp_path / "m.md"
    done = CliRunner().invoke(cli, ["export", "m", "--events", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "Call them." in out.read_text()
    done = CliRunner().invoke(cli, ["export", "m", "--events", str(file), "--format", "vtt"])
    assert done.stdout.startswith("WEBVTT")
    done = CliRunner().invoke(cli, ["export", "other", "--events", str(file)])
    assert (done.exit_code, "no notes of 'other'" in done.stderr) == (1, True)
