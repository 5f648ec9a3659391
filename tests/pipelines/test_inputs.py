"""Transcript files and events of recognisers, with inputs of our own making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from operators.errors import SegmentError
from operators.events import Segment, Speaker
from pipelines.wire.adapters import ADAPTERS, detect
from pipelines.wire.decoding import RecordDecoder
from pipelines.wire.transcripts import read_transcript

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


DEEPGRAM = {"type": "Results", "start": 17.0, "duration": 1.6, "is_final": True,
            "speech_final": True,
            "channel": {"alternatives": [{"transcript": "We ship it."}]}}  # fmt: skip
ASSEMBLYAI = {"type": "Turn", "turn_order": 3, "turn_is_formatted": True, "end_of_turn": True,
              "transcript": "We ship it.", "words": []}  # fmt: skip
AWS = {"Transcript": {"Results": [{"ResultId": "r1", "StartTime": 17.0, "EndTime": 18.6,
       "IsPartial": False, "Alternatives": [{"Transcript": "We ship it."}]}]}}  # fmt: skip
GOOGLE = {"results": [{"alternatives": [{"transcript": "We ship it."}], "isFinal": True}]}
AZURE = {"RecognitionStatus": "Success", "DisplayText": "We ship it.",
         "Offset": 170_000_000, "Duration": 16_000_000}  # fmt: skip


def decoded(event: dict[str, Any]) -> Segment:
    value = json.dumps(event).encode()
    (segment,) = (
        RecordDecoder(max_text_bytes=1000).decode(b"m", value, partition=0, offset=5).segments
    )
    return segment


@pytest.mark.parametrize("event", [DEEPGRAM, ASSEMBLYAI, AWS, GOOGLE, AZURE])
def test_events_of_recognisers_become_segments(event: dict[str, Any]) -> None:
    assert detect(event) is not None
    segment = decoded(event)
    assert (segment.stream_id, segment.text, segment.is_final) == ("m", "We ship it.", True)


@pytest.mark.parametrize("event", [DEEPGRAM, AWS, AZURE])
def test_their_times_become_milliseconds(event: dict[str, Any]) -> None:
    segment = decoded(event)
    assert (segment.start_ms, segment.end_ms) == (17_000, 18_600)


def test_interim_results_are_partials() -> None:
    assert not decoded(DEEPGRAM | {"is_final": False, "speech_final": False}).is_final
    assert not decoded({"results": [{**GOOGLE["results"][0], "isFinal": False}]}).is_final


def test_every_adapter_has_a_name_and_takes_no_segment_of_ours() -> None:
    ours = {"stream_id": "m", "text": "hello", "segment_id": "1"}
    for name, adapter in ADAPTERS.items():
        assert adapter.name == name
        assert not adapter.detect(ours)
