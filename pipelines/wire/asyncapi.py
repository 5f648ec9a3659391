"""The topics, their messages and schemas as an AsyncAPI 3.0 document."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pipelines.config.fields import Settings

SCHEMAS = files("pipelines.wire") / "schemas"
KEY = {"type": "string", "description": "The stream id, in UTF-8."}


def document(settings: Settings, version: str) -> dict[str, Any]:
    """The document for the topic names of ``settings``. What longstream reads is a receive operation."""
    channels = {
        "segments": (settings.topic_segments, "transcript.segment.v1", "receive", "Input."),
        "summaries": (settings.topic_summaries, "insight.summary.v1", "send", "Every revision."),
        "latestSummaries": (
            settings.topic_summaries_latest,
            "insight.summary.v1",
            "send",
            "Compacted: the newest of each stream; a tombstone when it is forgotten.",
        ),
        "translations": (settings.topic_translations, "insight.translation.v1", "send", "Outputs."),
        "questions": (settings.topic_questions, "insight.question.v1", "receive", "Questions."),
        "answers": (settings.topic_answers, "insight.answer.v1", "send", "One of each question."),
        "sessions": (
            settings.topic_sessions,
            "insight.session.v1",
            "send",
            "Compacted: the workers' recovery state. Not for consumers.",
        ),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "longstream",
            "version": version,
            "description": "Rolling summaries and translations of endless text on Kafka.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            name: {
                "address": topic,
                "description": about,
                "messages": {"record": {"$ref": f"#/components/messages/{schema}"}},
                "bindings": {"kafka": {"topic": topic, "bindingVersion": "0.5.0"}},
            }
            for name, (topic, schema, _, about) in channels.items()
        },
        "operations": {
            f"{action}{name[0].upper()}{name[1:]}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
            }
            for name, (_, _, action, _) in channels.items()
        },
        "components": {
            "messages": {
                schema: _message(schema)
                for schema in dict.fromkeys(schema for _, schema, _, _ in channels.values())
            }
        },
    }


def _message(schema: str) -> dict[str, Any]:
    """One message: its payload is the published JSON schema, its references made the document's."""
    payload = json.loads((SCHEMAS / f"{schema}.json").read_text("utf-8"))
    del payload["$id"]  # would make references relative to it, which few tools follow
    base = f"#/components/messages/{schema}/payload/schema/"
    return {
        "name": schema,
        "contentType": "application/json",
        "bindings": {"kafka": {"key": KEY, "bindingVersion": "0.5.0"}},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": _rebased(payload, base),
        },
    }


def _rebased(value: Any, base: str) -> Any:
    if isinstance(value, list):
        return [_rebased(each, base) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base + each.removeprefix("#/")
        if name == "$ref" and isinstance(each, str)
        else _rebased(each, base)
        for name, each in value.items()
    }
