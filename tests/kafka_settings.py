"""Settings of commands on a test's own topics."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import pytest


def environment_of(topics: Any, **settings: str) -> dict[str, str]:
    """An environment for a longstream command that sees the test's topics and nothing else of ours."""
    names = {
        "bootstrap": topics.bootstrap,
        "app_id": topics.prefix.rstrip("."),
        "topic_segments": topics.segments,
        "topic_summaries": topics.summaries,
        "topic_summaries_latest": topics.latest,
        "topic_translations": topics.translations,
        "topic_questions": topics.questions,
        "topic_answers": topics.answers,
        "topic_sessions": topics.sessions,
        "topic_dlq": topics.dlq,
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith("LONGSTREAM_")}
    env |= {f"LONGSTREAM_{k.upper()}": v for k, v in {**names, **settings}.items()}
    return {**env, "COLUMNS": "200"}


def no_kafka(error: Exception) -> NoReturn:
    """Skip a test for want of a broker of its kind; raise where one is required."""
    if os.environ.get("LONGSTREAM_REQUIRE_KAFKA") == "1":
        raise error
    pytest.skip(str(error))


ENGINE = {
    "test_operator": "tests.echo_device:make_engine",
    "operator__window": 96,
    "operator__slack": 24,
    "operator__branch_tokens": 220,
    "operator__slots": 4,
    "operator__branches": 3,
    "operator__update_tokens": 60,
    "operator__summary_method": "lines",
    "operator__summary_tokens": 24,
    "operator__ledger_tokens": 80,
    "operator__translation_unit_tokens": 24,
    "operator__targets": "fr",
    "operator__prompts": json.dumps(
        {
            "system": "S",
            "user": "U{window}",
            "summary": "{ledger} {limit}",
            "compact": "{ledger} {limit}",
            "translate": "{language} {text}",
        }
    ),
}
"""The real engine on a toy model, with sizes that go round in seconds."""
