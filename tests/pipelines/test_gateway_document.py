"""The gateway's answers are those that its OpenAPI document promises, whatever it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from pipelines.gateway.openapi import document
from tests.pipelines.gateway import filled, made

DOCUMENT = json.loads(document())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
NO_KAFKA = ("/v1/streams/{stream_id}/events", "delete")
"""An answer without end, and one that needs Kafka: tested apart."""
OPERATIONS = [
    (path, method)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if path not in NO_KAFKA and method not in NO_KAFKA
]
UNSUPPORTED = schemathesis.checks.CHECKS.get_one("unsupported_method")
REJECTION = schemathesis.checks.CHECKS.get_one("negative_data_rejection")
TOLERANT = ("segments", "questions")
"""Where more is taken than the document says. A number for an id is made a string, a field that
can be done without is dropped where it is wrong: the words count. What is refused
all the same: tests/pipelines/test_gateway.py."""


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_answers_are_those_of_the_document(path: str, method: str, mode: Any) -> None:
    operation = SCHEMA[path][method.upper()]
    excluded = [UNSUPPORTED, *([REJECTION] if path.endswith(TOLERANT) else [])]

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        gateway, _ = made(gateway_requests_per_s=100_000)
        filled(gateway)
        if known and "stream_id" in case.path_parameters and mode is GenerationMode.POSITIVE:
            case.path_parameters["stream_id"] = "s"  # else hardly any stream would be found
        if mode is GenerationMode.POSITIVE and "wait" in case.query:
            case.query["wait"] = 0  # nobody answers here
        case.call_and_validate(
            app=gateway.app, base_url="http://localhost", excluded_checks=excluded
        )

    ask()
