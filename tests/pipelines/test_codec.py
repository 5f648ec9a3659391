"""Judging input, encoding output, dead letters, transcript files."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pipelines
from operators.errors import LongstreamError, SegmentError
from operators.events import (
    Segment,
    Source,
    Speaker,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
)
from operators.state import SessionState
from pipelines.wire import codec
from pipelines.wire.dead_letters import HEADER_BYTES
from pipelines.wire.decoding import RecordDecoder
from pipelines.wire.partitioning import partition_of
from pipelines.wire.schema_registry import Schemas

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MEETINGS = sorted((Path(pipelines.__file__).parent / "dev" / "data" / "meetings").glob("*.jsonl"))


def decode(value: bytes | None, key: bytes | None = b"a", **more: Any) -> Segment:
    options = {"partition": 3, "offset": 17, "max_text_bytes": 1000} | more
    return codec.decode_segment(key, value, **options)


def as_json(**fields: Any) -> bytes:
    return json.dumps({"stream_id": "a", "text": "hello"} | fields).encode()


# --- what is accepted ------------------------------------------------------------------------


def test_json_with_defaults() -> None:
    segment = decode(b'{"stream_id":"a","text":"hello"}', key=None)
    assert segment == Segment(stream_id="a", text="hello", segment_id="3-17")
    assert segment.is_final
    assert segment.seq is None


def test_plain_text_with_a_key() -> None:
    assert decode(b"hello there", key=b"a") == decode(as_json(text="hello there"))


@pytest.mark.parametrize("blank", [b"", b" \n\t ", b"\xef\xbb\xbf"])
def test_leading_space_or_byte_order_mark_does_not_hide_json(blank: bytes) -> None:
    assert decode(blank + as_json()).text == "hello"


def test_content_type_header_makes_a_brace_plain_text() -> None:
    headers = [("content-type", b"text/plain; charset=utf-8")]
    assert decode(b"{laughs}", headers=headers).text == "{laughs}"
    assert decode(b"{laughs}", headers=dict(headers)).text == "{laughs}"


def test_every_field_arrives() -> None:
    value = (
        Path(pipelines.__file__).parent / "wire/schemas/examples/transcript.segment.v1.json"
    ).read_bytes()
    given_fields = json.loads(value)
    segment = msgspec.to_builtins(decode(value, key=None))
    assert segment.pop("settings") is None
    assert segment.pop("edit") is None
    assert segment == {k: v for k, v in given_fields.items() if k != "schema"}


def test_null_means_not_given_and_unknown_fields_pass() -> None:
    nulls = dict.fromkeys(set(Segment.__struct_fields__) - {"text", "stream_id"})
    assert decode(as_json(**nulls, new_in_a_later_version={"a": [1]})) == decode(as_json())


def test_speaker_may_be_a_name_alone() -> None:
    assert decode(as_json(speaker="Project Manager")).speaker == Speaker(name="Project Manager")
    assert decode(as_json(speaker={"id": "s1"})).speaker == Speaker(id="s1")
    assert decode(as_json(speaker="")).speaker is None


def test_control_characters_become_spaces_and_nothing_else_changes() -> None:
    text = "a\x00b\r\nSpeaker 2: c\x1b[31m\x85  é 🙂 \u2028 \t."
    segment = decode(as_json(text=text, speaker="A\nB", segment_id="u\x001"))
    assert segment.text == "a b  Speaker 2: c [31m   é 🙂 \u2028  ."
    assert segment.speaker == Speaker(name="A B")
    assert segment.segment_id == "u 1"


def test_marks_and_partials_need_no_text() -> None:
    assert decode(b'{"type":"session_end"}').type == "session_end"
    assert decode(as_json(text=" ", is_final=False)).text == " "


def test_text_of_exactly_the_limit_passes() -> None:
    assert decode("é".encode() * 500).text == "é" * 500


@pytest.mark.parametrize("path", MEETINGS, ids=lambda path: path.stem)
def test_real_meetings_decode_and_encode(path: Path) -> None:
    segments = list(codec.read_transcript(path))
    assert len(segments) > 100
    for offset, segment in enumerate(segments):
        value = codec.encode_segment(segment)
        again = decode(value, segment.stream_id.encode(), offset=offset, max_text_bytes=100_000)
        assert again == segment


# --- what is refused, and why ------------------------------------------------------------------

AVRO = b"\x00\x00\x00\x00\x07\x0chello!"
REFUSED = {
    "avro frame": (AVRO, "unknown_format", "schema 7"),
    "array": (b'[{"text":"a"}]', "unknown_format", "array"),
    "json null": (b"null", "unknown_format", "null"),
    "json in json": (json.dumps(as_json().decode()).encode(), "unknown_format", "JSON"),
    "null": (None, "null_value", "session_end"),
    "bad utf-8": (b"caf\xe9", "invalid_utf8", "the value is not UTF-8 (first bad byte at 3)"),
    "half json": (b'{"text":', "malformed_json", "truncated"),
    "two objects": (as_json() + b"{}", "malformed_json", "trailing"),
    "too deep": (b'{"x":' + b"[" * 100_000, "malformed_json", "nested too deeply"),
    "unknown type": (as_json(type="hearbeat"), "wrong_type", "type: Expected one of segment,"),
    "schema": (as_json(schema="transcript.segment.v2"), "unsupported_schema", "segment.v1"),
    "key": (as_json(stream_id="b"), "key_mismatch", "Kafka key and stream_id differ"),
    "no text": (b'{"stream_id":"a"}', "missing_text", "needs text"),
    "empty": (b"", "missing_text", "the value is empty"),
    "large": (b"x" * 1001, "text_too_large", "text has 1001 bytes, the limit is 1000"),
    "large json": (as_json(text="é" * 501), "text_too_large", "text has 1002 bytes"),
}


KEPT: dict[str, tuple[bytes, dict[str, Any], tuple[str, ...]]] = {
    "not a number": (b'{"text":"a","confidence":NaN}', {"confidence": None}, ("confidence",)),
    "infinite": (b'{"text":"a","confidence":1e999}', {"confidence": None}, ("confidence",)),
    "lone surrogate": (b'{"text":"\\ud800 and more"}', {"text": "\ufffd and more"}, ("text",)),
    "number as text": (as_json(text=5), {"text": "5"}, ()),
    "text as number": (as_json(start_ms="12"), {"start_ms": 12}, ()),
    "fraction": (as_json(start_ms=12.7), {"start_ms": 13}, ()),
    "numeric speaker": (as_json(speaker=3), {"speaker": Speaker(id="3")}, ()),
    "negative": (as_json(seq=-1), {"seq": None}, ("seq",)),
    "huge": (as_json(seq=10**30), {"seq": None}, ("seq",)),
}
"""Values that are not what they should be: the words are kept, and what was left out is said."""


@pytest.mark.parametrize("case", KEPT)
def test_an_optional_field_never_costs_the_words(case: str) -> None:
    value, fields, dropped = KEPT[case]
    decoder = RecordDecoder(max_text_bytes=1000)
    decoded = decoder.decode(b"a", value, partition=3, offset=17)
    (segment,) = decoded.segments
    assert segment.text
    assert {name: getattr(segment, name) for name in fields} == fields
    assert decoded.dropped == dropped


@pytest.mark.parametrize("draft", ["is_final", "isFinal", "final", "completed"])
def test_a_draft_is_a_draft_whatever_its_producer_calls_it(draft: str) -> None:
    assert not decode(as_json(**{draft: False})).is_final
    assert decode(as_json(**{draft: True})).is_final
    assert not decode(as_json(is_partial=True)).is_final


def test_braces_that_are_no_json_are_speech() -> None:
    assert decode(b"{inaudible} so we agreed").text == "{inaudible} so we agreed"


def test_without_a_key_a_record_must_lie_where_its_stream_belongs() -> None:
    decoder = RecordDecoder(max_text_bytes=1000)
    right = partition_of("a", 4)
    value = as_json()
    assert decoder.decode(None, value, partition=right, offset=0, partitions=4).segments
    with pytest.raises(SegmentError) as caught:
        decoder.decode(None, value, partition=(right + 1) % 4, offset=0, partitions=4)
    assert caught.value.reason == "wrong_partition"


def test_framed_json_is_read_and_framed_avro_with_its_schema(tmp_path: Path) -> None:
    framed = b"\x00\x00\x00\x00\x07" + as_json(text="framed")
    assert decode(framed).text == "framed"
    schema = {
        "type": "record",
        "name": "Line",
        "fields": [{"name": "stream_id", "type": "string"}, {"name": "text", "type": "string"}],
    }
    file = tmp_path / "line.avsc"
    file.write_text(json.dumps(schema))
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, {"stream_id": "a", "text": "from Avro"})
    decoder = RecordDecoder(max_text_bytes=1000, schemas=Schemas(file=file))
    framed = b"\x00\x00\x00\x00\x07" + body.getvalue()
    (segment,) = decoder.decode(b"a", framed, partition=0, offset=0).segments
    assert segment.text == "from Avro"


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_reason_and_sentence(case: str) -> None:
    value, reason, sentence = REFUSED[case]
    with pytest.raises(SegmentError) as caught:
        decode(value)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)


@pytest.mark.parametrize("key", [None, b""])
@pytest.mark.parametrize("value", [b"hello", b'{"text":"hello"}', b'{"stream_id":"","text":"hi"}'])
def test_without_key_and_stream_id(key: bytes | None, value: bytes) -> None:
    with pytest.raises(SegmentError) as caught:
        decode(value, key=key)
    assert caught.value.reason == "missing_stream_id"


@pytest.mark.parametrize("key", [b"x" * 257, "é".encode() * 129, b" ", b"a\x1fb", b"a\n"])
def test_stream_id_is_bounded(key: bytes) -> None:
    with pytest.raises(SegmentError) as caught:
        decode(b"hello", key=key)
    assert caught.value.reason == "stream_id_invalid"


def test_key_that_is_not_utf8() -> None:
    with pytest.raises(SegmentError) as caught:
        decode(b"hello", key=b"\xff")
    assert caught.value.reason == "invalid_utf8"
    assert "the key" in str(caught.value)


def test_every_reason_is_listed_and_reached() -> None:
    reached = {reason for _, reason, _ in REFUSED.values()}
    elsewhere = {"missing_stream_id", "stream_id_invalid", "wrong_partition"}
    of_adapters = {"schema_unavailable", "unknown_event", "several_segments", "malformed_avro"}
    assert reached | elsewhere | of_adapters == set(codec.REASONS)


SECRET = "correct-horse"


@pytest.mark.parametrize(
    "field", ["schema", "type", "stream_id", "text", "seq", "speaker", "other"]
)
@pytest.mark.parametrize("value", [SECRET, [SECRET], {SECRET: SECRET}, SECRET * 100])
def test_refusals_never_quote_the_input(field: str, value: Any) -> None:
    whole = as_json(**{field: value})
    messages = [refusal(raw) for raw in (whole, whole[:-1], b"\xff" + whole)]
    assert messages[1:] != [None, None], "a cut and a non-UTF-8 value are always refused"
    assert not [message for message in messages if message and SECRET in message]


def refusal(raw: bytes) -> str | None:
    """The message a value is refused with, or None; with all that a traceback would print."""
    try:
        decode(raw)
    except SegmentError as error:
        return "".join(traceback.format_exception(error))
    return None


# --- arbitrary input ---------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["schema", *Segment.__struct_fields__])
OBJECTS = st.dictionaries(FIELDS, JSON, max_size=5).map(lambda o: json.dumps(o).encode())
KEYS = st.none() | st.binary(max_size=8) | st.sampled_from([b"a", b"key"])


@given(KEYS, st.none() | st.binary(max_size=200) | st.text().map(str.encode) | OBJECTS)
@example(b"a", b"{")
@example(b"a", b'{"text":"a","revision":4611686018427387904}')
def test_any_bytes_are_a_segment_or_a_segment_error(key: bytes | None, value: bytes | None) -> None:
    try:
        segment = decode(value, key)
    except SegmentError as error:
        refused_for = error.reason
    else:
        refused_for = None
    if refused_for is not None:
        assert refused_for in codec.REASONS
        return
    assert segment.segment_id
    again = decode(codec.encode_segment(segment), segment.stream_id.encode(), offset=99)
    assert again == segment, "an accepted segment survives JSON"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(segment), type=Segment) == segment


# --- events and state --------------------------------------------------------------------------


def test_event_key_and_headers() -> None:
    event = SummaryEvent(stream_id="é", epoch=0, revision=1, source=Source("t", 0, 5, 9))
    assert codec.event_key(event) == "é".encode()
    assert codec.event_headers(event) == [
        ("content-type", b"application/json"),
        ("schema", b"insight.summary.v1"),
        ("source-offset", b"9"),
    ]
    assert codec.event_headers(event, TRACE.decode(), source_offset=4)[2:] == [
        ("source-offset", b"4"),
        ("traceparent", TRACE),
    ]


@pytest.mark.parametrize(
    ("trace", "kept"),
    [
        (TRACE, True),
        (b"cc" + TRACE[2:] + b"-what.comes:later", True),
        (b"00-1-2-01", False),
        (b"ff" + TRACE[2:], False),
        (TRACE.upper(), False),
        (TRACE + b"\n", False),
        (TRACE + b"x", False),
        (TRACE[:3] + b"0" * 32 + TRACE[35:], False),
        (TRACE + b"-" + b"y" * 201, False),
        (b"y" * 300, False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_only_a_traceparent_is_passed_on(trace: bytes, kept: bool) -> None:
    """A segment's header is a stranger's, and every result would carry it."""
    event = SummaryEvent(stream_id="a", epoch=0, revision=1)
    assert (codec.event_headers(event, trace)[2:] == [("traceparent", trace)]) is kept


def test_event_of_unknown_source_has_no_offset_header() -> None:
    event = TranslationEvent(stream_id="a", epoch=0, revision=1, target_lang="fr", unit_id="u")
    assert [name for name, _ in codec.event_headers(event)] == ["content-type", "schema"]


def test_decode_event_ignores_new_fields_and_refuses_foreign_records() -> None:
    event = SummaryEvent(stream_id="a", epoch=0, revision=1, text="x")
    value = json.loads(codec.encode_event(event)) | {"added_later": 1}
    assert codec.decode_event(json.dumps(value).encode()) == event
    for foreign in (b"", b"[]", b"\xff", b"{}", b'{"schema":"insight.summary.v9"}', b"[" * 99_999):
        with pytest.raises(LongstreamError, match="not an event this version can read"):
            codec.decode_event(foreign)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"hello",
        b"\xff\xff",
        b'{"stream_id":"\xff"}',
        b'{"stream_id":1}',
        b"[" * 99_999,
        b'{"stream_id":"a","schema":"insight.session.v2"}',
    ],
)
def test_foreign_state_is_reported_not_raised(value: bytes) -> None:
    state, problem = codec.decode_state(value)
    assert state is None
    assert problem is not None
    assert problem.startswith("not an insight.session.v1 record")


def test_state_tombstone_and_older_record() -> None:
    assert codec.decode_state(None) == (None, "tombstone")
    assert codec.decode_state(b'{"stream_id":"a","gone":1}') == (SessionState(stream_id="a"), None)


# --- dead letters --------------------------------------------------------------------------------


def letter(key: bytes | None, value: bytes | None, headers: Any, **more: Any) -> Any:
    options = {
        "topic": "t",
        "partition": 3,
        "offset": 17,
        "stage": "decode",
        "reason": "wrong_type",
        "message": "text: Expected `str`",
        "attempts": 1,
        "retryable": False,
        "failed_at_ms": 1234,
    } | more
    return codec.dead_letter(key, value, headers, **options)


def test_dead_letter_keeps_the_record_and_says_why() -> None:
    sent = [("traceparent", b"00-1"), ("x", None), ("x", b"\xff")]
    key, value, headers = letter(b"\xff", b"\x00\xff", sent)
    assert (key, value) == (b"\xff", b"\x00\xff")
    assert headers[:3] == sent
    assert dict(headers[3:]) == {
        "__streams.errors.exception": b"wrong_type",
        "__streams.errors.message": b"text: Expected `str`",
        "__streams.errors.topic": b"t",
        "__streams.errors.partition": b"3",
        "__streams.errors.offset": b"17",
        "longstream.dlq.stage": b"decode",
        "longstream.dlq.reason": b"wrong_type",
        "longstream.dlq.attempts": b"1",
        "longstream.dlq.retryable": b"false",
        "longstream.dlq.failed_at": b"1234",
    }
    assert codec.original_headers(headers) == sent


def test_dead_letter_of_a_null_record() -> None:
    key, value, _ = letter(None, None, None, max_bytes=0)
    assert (key, value) == (None, None)


def test_second_dead_letter_carries_the_latest_failure_only() -> None:
    _, _, first = letter(b"a", b"x", {"mine": b"1"}, reason="malformed_json")
    _, _, second = letter(b"a", b"x", first, reason="device_fault", attempts=4)
    assert len(second) == len(first)
    assert codec.header(second, "longstream.dlq.reason") == b"device_fault"


def test_dead_letter_message_is_one_bounded_line() -> None:
    _, _, headers = letter(b"a", b"x", None, message="a\r\nb\x00\x1b[0m" + "é" * 9999)
    message = codec.header(headers, "__streams.errors.message")
    assert message is not None
    assert message.decode().startswith("a b [0mé")
    assert len(message.decode()) == 500


HASH = hashlib.sha256


def wire_size(letter: Any) -> int:
    """Bytes of a record on the wire without the few its frame takes."""
    key, value, headers = letter
    told = sum(len(name.encode()) + len(content or b"") + 2 for name, content in headers)
    return len(key or b"") + len(value or b"") + told


def test_large_dead_letter_is_cut_and_says_of_what() -> None:
    value = b"x" * 5_000_000
    room = 1000 - len(b"a") - len("h") - 99 - HEADER_BYTES
    _, kept, headers = letter(b"a", value, [("h", b"y" * 99)], max_bytes=1000)
    assert kept == value[:room]
    digest = HASH(value).hexdigest()
    assert (
        codec.header(headers, "longstream.dlq.truncated")
        == f"size=5000000 sha256={digest}".encode()
    )
    assert headers[0] == ("h", b"y" * 99)
    _, kept, headers = letter(b"a", value[:room], [("h", b"y" * 99)], max_bytes=1000)
    assert kept == value[:room]
    assert not any(name.startswith("longstream.dlq.truncated") for name, _ in headers)


def test_a_large_key_is_cut_too() -> None:
    """A key of 20 kB above a value just under the limit: the value alone was looked at once."""
    given = b"k" * 20_000
    key, value, headers = letter(given, b"v" * 990, [("h", b"1")], max_bytes=1000)
    assert key == given[:250]
    told = f"size=20000 sha256={HASH(given).hexdigest()}".encode()
    assert codec.header(headers, "longstream.dlq.truncated_key") == told
    assert codec.original_headers(headers) == [("h", b"1")]
    assert value == b"v" * (1000 - 250 - 2 - HEADER_BYTES)


def test_headers_that_do_not_fit_are_left_out_and_counted() -> None:
    """Also of a record without a value: nothing was cut of one once."""
    small, large = ("small", b"1"), ("large", b"y" * 8_000_000)
    key, value, headers = letter(b"a", None, [small, large, ("é", None)], max_bytes=1000)
    assert (key, value) == (b"a", None)
    assert codec.original_headers(headers) == [small, ("é", None)]
    told = f"count=1 size=8000005 sha256={HASH(b'large' + large[1]).hexdigest()}".encode()
    assert codec.header(headers, "longstream.dlq.truncated_headers") == told
    assert codec.header(headers, "longstream.dlq.truncated") is None


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k" * 10_000, b"v" * 10_000, [("h", b"y" * 10_000)]),
        (None, None, [("", None)] * 5000),
        (None, b"", [("é" * 3000, b"")] * 3),
        (b"k" * 10_000, None, []),
        (b"a", b"v" * 10_000, [("h", b"1")] * 500),
    ],
    ids=["all", "empty headers", "names", "key", "value and headers"],
)
def test_a_dead_letter_fits_whatever_the_record(key: Any, value: Any, headers: Any) -> None:
    ours = wire_size(letter(b"", b"", [])) + 3 * len("longstream.dlq.truncated_headers" + "9" * 99)
    assert wire_size((key, value, headers)) > 4000
    assert wire_size(letter(key, value, headers, max_bytes=4000)) < 4000 + ours


def test_last_of_repeated_headers_counts() -> None:
    assert codec.header([("a", b"1"), ("b", b"2"), ("a", b"3")], "a") == b"3"
    assert codec.header(None, "a") is None


# --- transcript files ------------------------------------------------------------------------------


def test_json_lines_file(tmp_path: Path) -> None:
    path = tmp_path / "standup.jsonl"
    path.write_text(
        '{"text":"a","speaker":"Ana","start_ms":null}\n\n{"stream_id":"s","text":"b"}\n'
    )
    assert list(codec.read_transcript(path)) == [
        Segment(stream_id="standup", text="a", speaker=Speaker(name="Ana")),
        Segment(stream_id="s", text="b"),
    ]
    assert {s.stream_id for s in codec.read_transcript(path, stream_id="z")} == {"z"}


def test_plain_text_file(tmp_path: Path) -> None:
    path = tmp_path / "town hall.txt"
    path.write_bytes(b"\xef\xbb\xbfGood morning.\r\n\r\n  {laughs}\r\nBye")
    segments = list(codec.read_transcript(path))
    assert [segment.text for segment in segments] == ["Good morning.", "{laughs}", "Bye"]
    assert {segment.stream_id for segment in segments} == {"town hall"}


def test_standard_input_is_told_apart_by_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in ((b'\n{"text":"a"}\n', "a"), (b"a\n", "a")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert [(s.stream_id, s.text) for s in codec.read_transcript("-")] == [("stdin", expected)]


@pytest.mark.parametrize(
    ("line", "reason", "sentence"),
    [
        (b'{"text":', "malformed_json", "bad.jsonl, line 3: "),
        (b'{"text":[5]}', "wrong_type", "bad.jsonl, line 3: text"),
        (b"plain", "malformed_json", "bad.jsonl, line 3: "),
        (b"caf\xe9", "invalid_utf8", "bad.jsonl, line 3: the line is not UTF-8"),
    ],
)
def test_error_in_a_file_names_file_and_line(
    tmp_path: Path, line: bytes, reason: str, sentence: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text":"fine"}\n\n' + line + b"\n")
    reading = codec.read_transcript(path)
    assert next(reading).text == "fine"
    with pytest.raises(SegmentError) as caught:
        next(reading)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(sentence)


# --- settings of a stream ---------------------------------------------------------------------


def test_a_streams_settings_are_read_in_the_forms_people_write_them() -> None:
    fields = {
        "type": "session_start",
        "title": "Stand-up\n",
        "targets": "fr, de",
        "participants": ["Ana", {"name": "Ben"}, 3],
        "glossary": {"beta": {"fr": "bêta"}, "API": None, "roadmap": "plan"},
        "template": "{{ title }}\n{{ text }}",
    }
    settings = codec.decode_segment(
        b"a", json.dumps(fields).encode(), partition=0, offset=0, max_text_bytes=100
    ).settings
    assert settings == StreamSettings(
        title="Stand-up ",
        targets=("fr", "de"),
        participants=("Ana", "Ben", "3"),
        glossary={"beta": {"fr": "bêta"}, "API": {}, "roadmap": {"*": "plan"}},
        template="{{ title }}\n{{ text }}",
    )


def test_settings_of_a_wrong_type_are_left_out_and_named() -> None:
    fields = {
        "type": "session_update",
        "targets": {"fr": True},
        "glossary": ["Longstream", {"no": "name"}],
        "title": ["T"],
        "style": "minutes",
        "instructions": "a\ud800b",
    }
    settings = codec.decode_segment(
        b"a", json.dumps(fields).encode(), partition=0, offset=0, max_text_bytes=100
    ).settings
    assert settings is not None
    assert settings.style == "minutes"
    assert settings.glossary == {"Longstream": {}}
    assert settings.instructions == "a\ufffdb"
    assert set(settings.dropped) == {"targets", "glossary", "title", "instructions"}


def test_a_segment_carries_no_settings() -> None:
    value = b'{"text": "hello", "title": "T", "targets": ["fr"]}'
    segment = codec.decode_segment(b"a", value, partition=0, offset=0, max_text_bytes=100)
    assert segment.settings is None
