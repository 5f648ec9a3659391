"""Transcript files and events of recognisers, with inputs of our own making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from operators.errors import SegmentError
from operators.events import Segment, Speaker
from pipelines.cli.main import make_cli
from pipelines.wire.adapters import ADAPTERS, is_own
from pipelines.wire.decoding import RecordDecoder
from pipelines.wire.segments import OWN_FIELDS, OWN_TYPES
from pipelines.wire.transcripts import FORMATS, read_transcript

ZOOM = """WEBVTT

1
00:00:09.835 --> 00:00:13.995
<v Ana Ruiz>We meet on Friday.</v>

2
00:00:14.100 --> 00:00:16.000
<v Ben>I will call them.</v>
"""
YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:02.000 align:start position:0%

we<00:00:00.500><c> ship</c><00:00:01.000><c> it</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
we ship it


00:00:02.010 --> 00:00:04.000 align:start position:0%
we ship it
on monday<00:00:03.000><c> at</c><00:00:03.500><c> nine</c>
"""
SRT = """1
00:00:01,000 --> 00:00:02,500
The review moves.

2
00:00:03,000 --> 00:00:04,000
To Friday.
"""
OTTER = """Ana Ruiz  0:49
It is the board, and it pulls together
a bunch of repos.

Ben Ode  1:09
There it is.
"""


def read(tmp_path: Path, name: str, text: str | bytes) -> list[Segment]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_transcript(path))


def test_zoom_captions_have_speakers_and_times(tmp_path: Path) -> None:
    found = [(s.text, s.speaker, s.start_ms, s.end_ms) for s in read(tmp_path, "a.vtt", ZOOM)]
    assert found == [
        ("We meet on Friday.", Speaker(name="Ana Ruiz"), 9835, 13995),
        ("I will call them.", Speaker(name="Ben"), 14100, 16000),
    ]


def test_rolling_captions_come_once_and_without_tags(tmp_path: Path) -> None:
    said = " ".join(s.text for s in read(tmp_path, "y.vtt", YOUTUBE))
    assert said == "we ship it on monday at nine"


@pytest.mark.parametrize("name", ["a.srt", "a.txt"])
def test_subtitles_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    found = [(s.text, s.start_ms) for s in read(tmp_path, name, SRT)]
    assert found == [("The review moves.", 1000), ("To Friday.", 3000)]


def test_text_with_speakers_and_times(tmp_path: Path) -> None:
    found = [(s.speaker, s.start_ms) for s in read(tmp_path, "o.txt", OTTER)]
    assert found == [(Speaker(name="Ana Ruiz"), 49_000), (Speaker(name="Ben Ode"), 69_000)]


def test_a_byte_order_mark_says_the_encoding(tmp_path: Path) -> None:
    found = read(tmp_path, "u.srt", SRT.encode("utf-16"))
    assert [s.text for s in found] == ["The review moves.", "To Friday."]


@pytest.mark.parametrize("data", [b"PK\x03\x04rest", b"%PDF-1.7", b"{\\rtf1 hello}"])
def test_other_documents_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SegmentError, match="save it as text"):
        read(tmp_path, "x.txt", data)


def test_a_bad_line_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text":"one"}\n{"text":\n{"text":"three"}\n')
    bad: list[SegmentError] = []
    assert [s.text for s in read_transcript(path, on_bad=bad.append)] == ["one", "three"]
    assert "line 2" in str(bad[0])


# --- events of recognisers: what goes in and what comes out, in tests/pipelines/inputs ----------------

INPUTS = Path(__file__).parent / "inputs"
FIXTURES = {path.stem: json.loads(path.read_text("utf-8")) for path in INPUTS.glob("*.json")}
CASES = [
    (name, case["case"]) for name, found in sorted(FIXTURES.items()) for case in found["cases"]
]


def decoded(adapter: str, case: str) -> list[dict[str, Any]]:
    """The segments of a case's events, as records 0, 1, 2 … of partition 0, without defaults."""
    (found,) = (each for each in FIXTURES[adapter]["cases"] if each["case"] == case)
    decoder = RecordDecoder(max_text_bytes=10_000)
    key = None if any("stream_id" in each for each in found["segments"]) else b"m"
    segments: list[Segment] = []
    for offset, event in enumerate(found["events"]):
        read = decoder.decode(key, json.dumps(event).encode(), partition=0, offset=offset)
        assert read.adapter == adapter
        segments += read.segments
    return [short(segment, keyed=key is not None) for segment in segments]


def short(segment: Segment, keyed: bool) -> dict[str, Any]:
    """Only what is not the default; a speaker without what is not known of it."""
    plain = Segment(stream_id=segment.stream_id)
    fields = {
        name: value
        for name, value in msgspec.to_builtins(segment).items()
        if value != getattr(plain, name)
    }
    if segment.speaker:
        fields["speaker"] = {k: v for k, v in fields["speaker"].items() if v is not None}
    return fields if keyed else {"stream_id": segment.stream_id, **fields}


@pytest.mark.parametrize(("adapter", "case"), CASES)
def test_events_of_recognisers_become_these_segments(adapter: str, case: str) -> None:
    (found,) = (each for each in FIXTURES[adapter]["cases"] if each["case"] == case)
    assert decoded(adapter, case) == found["segments"]


def test_every_adapter_has_its_cases() -> None:
    assert set(FIXTURES) == set(ADAPTERS)
    for found in FIXTURES.values():
        assert "missing fields" in {case["case"] for case in found["cases"]}
    partials = {name for name, case in CASES if case == "partial, then final"}
    assert set(ADAPTERS) - partials == {"simulstreaming"}  # which has no drafts


@pytest.mark.parametrize(("adapter", "case"), CASES)
def test_no_id_is_given_to_two_texts_that_are_settled(adapter: str, case: str) -> None:
    """The second would be taken as a mere correction of the first, and its words lost."""
    said: dict[str, set[str]] = {}
    for segment in decoded(adapter, case):
        if segment.get("is_final", True) and segment.get("text"):
            said.setdefault(segment["segment_id"], set()).add(segment["text"].casefold().strip("."))
    assert [texts for texts in said.values() if len(texts) > 1] == []


def test_counting_anew_never_repeats_an_id() -> None:
    """Another worker goes on with a stream whose utterances are counted: it knows nothing of before."""
    ids = []
    for offset in (0, 7):
        decoder = RecordDecoder(max_text_bytes=1000)
        value = b'{"result":[{"word":"yes"}],"text":"yes"}'
        ids += [
            segment.segment_id
            for segment in decoder.decode(b"m", value, partition=0, offset=offset).segments
        ]
    assert len(set(ids)) == 2


# --- convert -----------------------------------------------------------------------------------------


def test_convert_writes_records_that_read_back_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "zoom.vtt"
    path.write_text(ZOOM)
    done = CliRunner().invoke(make_cli(), ["convert", str(path)])
    assert done.exit_code == 0
    again = tmp_path / "again.jsonl"
    again.write_text(done.stdout)
    assert list(read_transcript(again)) == list(read_transcript(path))


def test_convert_takes_the_events_of_a_named_recogniser(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    events = FIXTURES["vosk"]["cases"][0]["events"]
    path.write_text("".join(json.dumps(event) + "\n" for event in [*events, {"other": 1}]))
    done = CliRunner().invoke(make_cli(), ["convert", str(path), "--from", "vosk", "--finals"])
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [
        "we ship it",
        "on monday",
    ]
    assert done.exit_code == 1
    assert "line 5" in done.stderr


def test_convert_names_the_formats_it_knows() -> None:
    done = CliRunner().invoke(make_cli(), ["convert", "x", "--from", "mp3"])
    assert done.exit_code == 2
    assert "whisperlive" in done.stderr
    listed = json.loads(CliRunner().invoke(make_cli(), ["convert", "--formats", "--json"]).stdout)
    assert set(listed) == {*FORMATS, *ADAPTERS}


def test_no_event_of_a_recogniser_is_taken_for_one_of_our_schema() -> None:
    """Those that have only fields of it are not looked at any further."""
    for found in FIXTURES.values():
        for case in found["cases"]:
            assert not any(is_own(event) for event in case["events"])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.none() | st.text() | st.integers() for name in sorted(OWN_FIELDS - {"type"})
        }
        | {"type": st.sampled_from(OWN_TYPES)},
    )
)
def test_no_adapter_takes_an_event_with_only_our_fields(event: dict[str, Any]) -> None:
    assert is_own(event)
    assert not [name for name, adapter in ADAPTERS.items() if adapter.detect(event)]


def test_every_adapter_has_a_name_and_takes_no_segment_of_ours() -> None:
    ours = {"stream_id": "m", "text": "hello", "segment_id": "1"}
    for name, adapter in ADAPTERS.items():
        assert adapter.name == name
        assert not adapter.detect(ours)
