"""The OpenAPI document, made from the types that are answered."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from pipelines.gateway import shapes

STREAM = "/v1/streams/{stream_id}"
_REF = "#/components/schemas/{name}"
_TEXT = {"type": "string"}
_REVISION = {"type": "string", "pattern": r"^[0-9]{1,18}(\.[0-9]{1,18})?$"}
_FORMAT = {"type": "string", "enum": ["json", "md"]}


def _param(
    name: str, schema: dict[str, Any], description: str, where: str = "query"
) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": schema,
        "description": description,
    }


_STREAM_ID = _param(
    "stream_id",
    {
        "type": "string",
        "maxLength": 256,
        "pattern": r"^[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
    },
    "The stream; 256 bytes of UTF-8 at most.",
    "path",
)
_SINCE = _param("since", _REVISION, "Only what changed after this revision.")
_AS = _param("format", _FORMAT, "Or by the Accept header: text/markdown.")
_ETAG = _param("If-None-Match", _TEXT, "An ETag: 304 if it is still current.", "header")


def _answers(
    ok: dict[str, Any], *problems: int, code: int = 200, etag: bool = False
) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}}
    found: dict[str, Any] = {str(code): {"description": "The answer.", "content": ok}}
    if etag:
        found[str(code)]["headers"] = {"ETag": {"schema": _TEXT, "description": "The revision."}}
        found["304"] = {"description": "The caller has it."}
    for status in sorted({401, 429, 503, *problems}):
        found[str(status)] = {"description": "Refused.", "content": content}
    return found


def _of(kind: type, *media: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}
    }
    return answer | {name: {"schema": _TEXT} for name in media}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


MARKS = ["session_start", "session_update", "session_end", "speaker_revision"]
SEGMENT: dict[str, Any] = {
    "type": "object",
    "description": "A segment as on the topic; segment_id makes it safe to send it again.",
    "properties": {
        "type": {
            "type": "string",
            "enum": ["segment", *MARKS],
        },
        "text": _TEXT,
        "segment_id": {"type": "string", "maxLength": 256},
        "revision": {"type": "integer", "minimum": 0, "maximum": 2**31},
        "is_final": {"type": "boolean"},
        "end_of_turn": {"type": "boolean"},
        "speaker": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "maxLength": 256},
                "name": {"type": "string", "maxLength": 256},
            },
        },
        "start_ms": {"type": "integer", "minimum": 0, "maximum": 2**53},
        "end_ms": {"type": "integer", "minimum": 0, "maximum": 2**53},
        "language": {"type": "string", "maxLength": 64},
        "tenant": {"type": "string", "maxLength": 256},
    },
    "anyOf": [
        {"required": ["text"]},
        {"properties": {"type": {"enum": MARKS}}, "required": ["type"]},
    ],
}


QUESTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "question_id": {"type": "string", "maxLength": 256},
        "kind": {"type": "string", "enum": ["free", "catch_up", "decisions", "open_items"]},
        "text": {"type": "string", "minLength": 1, "maxLength": 1000, "pattern": r"\S"},
        "since_revision": {"type": "integer", "minimum": 0, "maximum": 2**53},
        "since_ms": {"type": "integer", "minimum": 0, "maximum": 2**53},
        "for": {"type": "string", "maxLength": 256},
        "language": {"type": "string", "maxLength": 64},
    },
    "anyOf": [
        {"required": ["text"]},
        {
            "required": ["kind"],
            "properties": {"kind": {"enum": ["catch_up", "decisions", "open_items"]}},
        },
    ],
}


def _edit_schema(ops: list[str], required: list[str]) -> dict[str, Any]:
    label = {"type": "string", "maxLength": 256}
    return {
        "type": "object",
        "properties": {
            "op": {"type": "string", "enum": ops},
            "kind": {"enum": ["topic", "decision", "action_item", "open_question"]},
            "text": {"type": "string", "minLength": 1, "maxLength": 1000},
            "owner": {**label, "description": "Empty: nobody."},
            "due": {**label, "description": "Empty: no date."},
            "by": {**label, "description": "Who edits."},
            "edit_id": {**label, "description": "The same one is done once."},
        },
        "required": required,
        "additionalProperties": False,
    }


def _paths() -> dict[str, Any]:
    md = "text/markdown"
    return {
        "/v1/streams": {
            "get": {
                "operationId": "listStreams",
                "summary": "Streams, those with news first.",
                "parameters": [
                    _param(
                        "limit",
                        {"type": "integer", "minimum": 0, "maximum": 1000},
                        "How many at most.",
                    ),
                    _ETAG,
                ],
                "responses": _answers(_of(shapes.StreamList), 400, etag=True),
            }
        },
        STREAM: {
            "get": {
                "operationId": "getStream",
                "summary": "Notes, newest transcript, translations and a cursor for events.",
                "parameters": [_STREAM_ID],
                "responses": _answers(_of(shapes.Stream), 404),
            },
            "delete": {
                "operationId": "forgetStream",
                "summary": "Forget the stream everywhere; what stays, and for how long.",
                "parameters": [_STREAM_ID],
                "responses": _answers(_of(shapes.Forgotten), 403, 404)
                | {
                    "202": {
                        "description": "Asked for; no worker has come to it yet.",
                        "content": _of(shapes.Forgotten),
                    }
                },
            },
        },
        f"{STREAM}/summary": {
            "get": {
                "operationId": "getSummary",
                "summary": "The notes.",
                "parameters": [_STREAM_ID, _SINCE, _AS, _ETAG],
                "responses": _answers(_of(shapes.Summary, md), 400, 404, etag=True),
            }
        },
        f"{STREAM}/transcript": {
            "get": {
                "operationId": "getTranscript",
                "summary": "The newest transcript.",
                "parameters": [
                    _STREAM_ID,
                    _param(
                        "since",
                        {"type": "integer", "minimum": 0, "maximum": 2**53},
                        "Only segments after this `revision`.",
                    ),
                    _AS,
                    _ETAG,
                ],
                "responses": _answers(_of(shapes.Transcript, md), 400, 404, etag=True),
            }
        },
        f"{STREAM}/translations/{{lang}}": {
            "get": {
                "operationId": "getTranslation",
                "summary": "Translations into one language.",
                "parameters": [
                    _STREAM_ID,
                    _param("lang", {"type": "string", "minLength": 1}, "Language tag.", "path"),
                    _SINCE,
                    _AS,
                    _ETAG,
                ],
                "responses": _answers(_of(shapes.Translation, md), 400, 404, etag=True),
            }
        },
        f"{STREAM}/export": {
            "get": {
                "operationId": "exportStream",
                "summary": "Notes and transcript as a file.",
                "parameters": [
                    _STREAM_ID,
                    _param(
                        "format",
                        {"type": "string", "enum": ["md", "json", "srt", "vtt"]},
                        "md and json hold notes and transcript, srt and vtt are subtitles.",
                    ),
                    _param("lang", {"type": "string", "minLength": 1}, "A translation instead."),
                ],
                "responses": _answers(
                    _of(shapes.Stream, md, "application/x-subrip", "text/vtt"), 400, 404
                ),
            }
        },
        f"{STREAM}/events": {
            "get": {
                "operationId": "followStream",
                "summary": "Server-sent events: hello, segment, session, summary, translation, "
                "answer, question, reset, forgotten.",
                "description": "Resumes after Last-Event-ID or `after`. `reset`: what was missed is "
                "no longer held, get the stream anew.",
                "parameters": [
                    _STREAM_ID,
                    _param(
                        "after",
                        {"type": "string", "pattern": r"^[0-9]{1,18}(-[0-9]{1,18}){4}$"},
                        "A cursor.",
                    ),
                    _param("Last-Event-ID", _TEXT, "A cursor.", "header"),
                ],
                "responses": _answers({"text/event-stream": {"schema": _TEXT}}, 400, 404),
            }
        },
        f"{STREAM}/questions": {
            "post": {
                "operationId": "ask",
                "summary": "Ask about the stream; the same question_id is answered once.",
                "parameters": [
                    _STREAM_ID,
                    _param(
                        "wait",
                        {"type": "integer", "minimum": 0, "maximum": 60},
                        "Seconds to wait for the answer.",
                    ),
                ],
                "requestBody": _body(QUESTION),
                "responses": _answers(_of(shapes.Asked), 400, 403, 404, 413, 415)
                | {
                    "202": {"description": "Asked; not answered yet.", "content": _of(shapes.Asked)}
                },
            }
        },
        f"{STREAM}/answers": {
            "get": {
                "operationId": "listAnswers",
                "summary": "Questions and their answers.",
                "parameters": [_STREAM_ID, _ETAG],
                "responses": _answers(_of(shapes.Answers), 404, etag=True),
            }
        },
        f"{STREAM}/answers/{{question}}": {
            "get": {
                "operationId": "getAnswer",
                "summary": "One question and its answer.",
                "parameters": [
                    _STREAM_ID,
                    _param("question", {"type": "string", "minLength": 1}, "Its id.", "path"),
                    _ETAG,
                ],
                "responses": _answers(_of(shapes.Asked), 404, etag=True),
            }
        },
        f"{STREAM}/items": {
            "post": {
                "operationId": "addNote",
                "summary": "A note that a person writes.",
                "parameters": [_STREAM_ID],
                "requestBody": _body(_edit_schema(["add"], ["text"])),
                "responses": _answers(_of(shapes.Taken), 400, 403, 404, 413, 415, code=202),
            }
        },
        f"{STREAM}/items/{{item}}": {
            "patch": {
                "operationId": "editNote",
                "summary": "A person corrects a note, marks it done, withdraws or reopens it.",
                "parameters": [
                    _STREAM_ID,
                    _param("item", {"type": "string", "minLength": 1}, "The note's id.", "path"),
                ],
                "requestBody": _body(
                    _edit_schema(["update", "done", "withdraw", "reopen"], ["op"])
                ),
                "responses": _answers(_of(shapes.Taken), 400, 403, 404, 413, 415, code=202),
            }
        },
        f"{STREAM}/segments": {
            "post": {
                "operationId": "addSegments",
                "summary": "Say something; answered when Kafka has it.",
                "description": "One segment, or `segments` with up to 100. A WebSocket on the same "
                "path takes a segment a message. The same segment_id with the same text is written "
                "once.",
                "parameters": [_STREAM_ID],
                "requestBody": _body(
                    {
                        "anyOf": [
                            SEGMENT,
                            {
                                "type": "object",
                                "properties": {
                                    "segments": {
                                        "type": "array",
                                        "minItems": 1,
                                        "maxItems": 100,
                                        "items": SEGMENT,
                                    }
                                },
                                "required": ["segments"],
                                "additionalProperties": False,
                            },
                        ]
                    }
                ),
                "responses": _answers(
                    {
                        "application/json": {
                            "schema": {
                                "anyOf": [
                                    {"$ref": _REF.format(name="Taken")},
                                    {"$ref": _REF.format(name="TakenList")},
                                ]
                            }
                        }
                    },
                    *(400, 403, 404, 413, 415),
                    code=201,
                ),
            }
        },
    }


@functools.cache
def document() -> bytes:
    """The document as JSON (OpenAPI 3.1)."""
    kinds = [
        shapes.Problem,
        shapes.StreamList,
        shapes.Stream,
        shapes.Summary,
        shapes.Transcript,
        shapes.Translation,
        shapes.Taken,
        shapes.TakenList,
        shapes.Forgotten,
        shapes.Asked,
        shapes.Answers,
    ]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "longstream gateway",
                "version": "1",
                "description": "Live transcripts, their notes, translations and answers.",
            },
            "paths": _paths(),
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"token": []}],
        }
    )
