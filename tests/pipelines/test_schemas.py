"""The published JSON schemas, their golden examples, and the structs say the same thing."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

import pipelines
from operators.errors import SegmentError
from operators.events import (
    AnswerEvent,
    ItemEdit,
    Question,
    Segment,
    SummaryEvent,
    TranslationEvent,
)
from operators.state import STATE_FORMAT, SessionState
from operators.stream_settings import NAMES
from pipelines.config.fields import Settings
from pipelines.wire import asyncapi, codec
from pipelines.wire.messages import messages_of
from pipelines.wire.questions import QUESTION_SCHEMA, decode_question, encode_question

SCHEMAS = Path(pipelines.__file__).parent / "wire" / "schemas"
EXAMPLES = sorted((SCHEMAS / "examples").glob("*.json"))
STRUCTS = {
    "transcript.segment.v1": Segment,
    "insight.summary.v1": SummaryEvent,
    "insight.translation.v1": TranslationEvent,
    "insight.session.v1": SessionState,
    "insight.question.v1": Question,
    "insight.answer.v1": AnswerEvent,
}


def load_schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def validate(name: str, value: bytes) -> None:
    """Raise ``ValidationError`` unless ``value`` is JSON of the schema."""
    Draft202012Validator(load_schema(name)).validate(json.loads(value))


def schema_of(example: Path) -> str:
    return ".".join(example.name.split(".")[:3])


def round_trip(name: str, value: bytes) -> bytes:
    """Through the codec and back."""
    if name == codec.SEGMENT_SCHEMA:
        segment = codec.decode_segment(None, value, partition=0, offset=0, max_text_bytes=10_000)
        return codec.encode_segment(segment)
    if name == codec.STATE_SCHEMA:
        state, problem = codec.decode_state(value)
        assert state is not None, problem
        return codec.encode_state(state)
    if name == QUESTION_SCHEMA:
        return encode_question(decode_question(None, value, partition=0, offset=0))
    return codec.encode_event(codec.decode_event(value))


def test_every_schema_file_is_known_and_has_an_example() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(STRUCTS)
    assert {schema_of(path) for path in EXAMPLES} == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_schema_is_valid_and_described(name: str) -> None:
    schema = load_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:longstream:{name}"
    for field, rule in schema["properties"].items():
        described = rule if "description" in rule else resolve(schema, rule)
        assert described.get("description"), f"{name}.{field} has no description"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_golden_example_validates_and_survives_the_codec(path: Path) -> None:
    name, value = schema_of(path), path.read_bytes()
    validate(name, value)
    again = round_trip(name, value)
    validate(name, again)
    if name == QUESTION_SCHEMA:
        questions = [decode_question(None, each, partition=0, offset=0) for each in (value, again)]
        assert questions[0] == questions[1]
    elif name.startswith("insight."):
        assert json.loads(again) == json.loads(value), "the codec lost or changed a field"
    else:
        before = codec.decode_segment(None, value, partition=0, offset=0, max_text_bytes=10_000)
        after = codec.decode_segment(None, again, partition=9, offset=9, max_text_bytes=10_000)
        assert before == after


@pytest.mark.parametrize(
    "name", ["insight.summary.v1", "insight.translation.v1", "insight.answer.v1"]
)
def test_a_missing_or_wrong_field_is_caught(name: str) -> None:
    """The schemas are strict enough to notice."""
    good = json.loads((SCHEMAS / "examples" / f"{name}.json").read_text())
    for field in good:
        with pytest.raises(ValidationError):
            validate(name, json.dumps({k: v for k, v in good.items() if k != field}).encode())
        with pytest.raises(ValidationError):
            validate(name, json.dumps({**good, field: {"a": [1]}}).encode())
    validate(name, json.dumps({**good, "added_in_a_later_version": 1}).encode())


# --- structs and schemas name the same fields --------------------------------------------------


def resolve(schema: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    reference = rule.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else rule


def structs_in(annotation: Any) -> list[type[msgspec.Struct]]:
    """The structs an annotation mentions: of ``tuple[Evidence, ...]``, Evidence."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [found for arg in get_args(annotation) for found in structs_in(arg)]


def object_rule(schema: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    """The part of a field's rule that describes its object, or the objects in its array."""
    rule = resolve(schema, rule)
    if "anyOf" in rule:
        return next(option for option in rule["anyOf"] if option.get("type") == "object")
    return resolve(schema, rule["items"]) if rule.get("type") == "array" else rule


def differences(
    struct: type[msgspec.Struct], schema: dict[str, Any], rule: dict[str, Any]
) -> list[str]:
    fields = {field.encode_name for field in msgspec.structs.fields(struct)}
    if struct.__struct_config__.tag_field:
        fields.add(struct.__struct_config__.tag_field)
    named = set(rule["properties"]) - ({"schema"} if struct in (Segment, Question) else set())
    if struct is Segment:  # its settings stand beside the other fields
        fields = (fields - {"settings"}) | set(NAMES)
    found = [f"{struct.__name__}.{name}" for name in fields ^ named]
    if struct not in (Segment, Question, *structs_in(get_type_hints(Segment)["speaker"]), ItemEdit):
        found += [f"{struct.__name__}.{name} not required" for name in named - {*rule["required"]}]
    for name, annotation in get_type_hints(struct).items():
        for inner in structs_in(annotation) if name != "settings" or struct is not Segment else ():
            below = object_rule(schema, rule["properties"].get(name, {"properties": {}}))
            found += differences(inner, schema, below)
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_and_schema_name_the_same_fields(name: str) -> None:
    schema = load_schema(name)
    assert differences(STRUCTS[name], schema, schema) == []


def test_a_renamed_field_would_be_noticed() -> None:
    schema = load_schema("insight.summary.v1")
    evidence = schema["$defs"]["item"]["properties"]["evidence"]["items"]
    evidence["properties"]["who"] = evidence["properties"].pop("speaker")
    assert sorted(differences(SummaryEvent, schema, schema)) == [
        "Evidence.speaker",
        "Evidence.who",
        "Evidence.who not required",
    ]


# --- whatever the structs can hold, the schemas allow -------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FILLED = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def values(annotation: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a type as used in operators.events, numbers not negative; ``fields``: those of a struct
    that are not as their types say."""
    origin, args = get_origin(annotation), get_args(annotation)
    simple = {
        str: TEXT,
        int: st.integers(0, 2**53),
        bool: st.booleans(),
        float: st.floats(0, 1e6),
        type(None): st.none(),
    }
    if annotation in simple:
        return simple[annotation]
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values(args[1]), max_size=2)
    hints = get_type_hints(annotation)
    found = {name: values(hint) for name, hint in hints.items()} | fields
    return st.builds(annotation, **found)


@pytest.mark.parametrize("struct", [SummaryEvent, TranslationEvent], ids=lambda s: s.__name__)
@given(data=st.data())
def test_any_event_validates_and_survives_the_codec(
    struct: type[SummaryEvent | TranslationEvent], data: st.DataObject
) -> None:
    filled = {"stream_id", "target_lang"} & set(struct.__struct_fields__)
    event = data.draw(values(struct, **dict.fromkeys(filled, FILLED)))
    value = codec.encode_event(event)
    validate(str(struct.__struct_config__.tag), value)
    assert codec.decode_event(value) == event


@settings(max_examples=50)  # a state is large: half a second each on a busy machine
@given(values(SessionState, stream_id=FILLED, format=st.integers(0, STATE_FORMAT)))
def test_any_state_validates_and_survives_the_codec(state: SessionState) -> None:
    value = codec.encode_state(state)
    validate(codec.STATE_SCHEMA, value)
    assert codec.decode_state(value) == (state, None)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
FIELDS = sorted(load_schema(codec.SEGMENT_SCHEMA)["properties"])


@given(st.dictionaries(st.sampled_from(FIELDS) | TEXT, ANYTHING, max_size=4))
def test_what_the_codec_takes_the_schema_allows(fields: dict[str, Any]) -> None:
    """What the codec makes of an input, after what it converts or leaves out, is a valid segment."""
    value = json.dumps({"text": "hello", **fields}).encode()
    try:
        segment = codec.decode_segment(b"key", value, partition=0, offset=0, max_text_bytes=10_000)
    except SegmentError:
        return
    validate(codec.SEGMENT_SCHEMA, codec.encode_segment(segment))


# --- AsyncAPI, and CloudEvents ----------------------------------------------------------------------


def test_every_reference_of_the_asyncapi_document_resolves() -> None:
    document = asyncapi.document(Settings(topic_segments="in.v1"), "1.2.3")
    assert document["channels"]["segments"]["address"] == "in.v1"
    names = {message["payload"]["schema"]["title"] for message in _messages(document)}
    assert names == {load_schema(name)["title"] for name in document["components"]["messages"]}
    for reference in _references(document):
        found: Any = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        assert found


def _messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(document["components"]["messages"].values())


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref" and isinstance(each, str):
                yield each
            else:
                yield from _references(each)


def test_results_are_cloud_events_where_that_is_set() -> None:
    event = SummaryEvent(
        stream_id="ü", epoch=0, revision=3, event_id="id-1", emitted_at_ms=1_924_992_003_400
    )
    plain, cloud = (
        messages_of([event], Settings(cloudevents_source=source), None)[0]
        for source in ("", "//example.org/longstream")
    )
    assert plain.value == cloud.value
    assert not [name for name, _ in plain.headers if name.startswith("ce_")]
    assert dict(cloud.headers[len(plain.headers) :]) == {
        "ce_specversion": b"1.0",
        "ce_id": b"id-1",
        "ce_source": b"//example.org/longstream",
        "ce_type": b"insight.summary.v1",
        "ce_subject": "ü".encode(),
        "ce_time": b"2031-01-01T00:00:03.400Z",
    }
