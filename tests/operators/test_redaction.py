"""Personal data that has a form is replaced before text is used, stored or published."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.events import Question, Segment, Speaker
from operators.redaction import KINDS, redact
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, drain

FOUND = {
    "Write to ana.ruiz@example.co.uk, please.": "Write to [email], please.",
    "почта иван@пример.рф да": "почта [email] да",
    "+49 (0)30 1234567 ok": "[phone] ok",
    "call 0171 234 5678.": "call [phone].",
    "4111 1111 1111 1111 x": "[card] x",
    "٤١١١ ١١١١ ١١١١ ١١١١": "[card]",
    "DE89 3704 0044 0532 0130 00.": "[iban].",
    "192.168.1.10 and 1.2.3": "[ip] and 1.2.3",
}
KEPT = (
    "4111 1111 1111 1112",  # no card: its check digit is wrong
    "on 01.02.2031 at 10:30, or 2031-02-01",
    "version 1.2.3.4.5 and 0.12345678",
    "order 123456789012",
    "the 00s, 0 1 2 3 4 5 6, 000000000",
    "a@b and @home",
)


@pytest.mark.parametrize("text", FOUND)
def test_each_kind_is_replaced_in_any_script(text: str) -> None:
    assert redact(text, KINDS) == FOUND[text]
    assert redact(text, ()) == text


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact(text, KINDS) == text


def test_only_the_kinds_that_are_set_are_replaced() -> None:
    assert redact("a@b.org 0171 234 5678", ("phone",)) == "a@b.org [phone]"
    with pytest.raises(ConfigError, match="redact"):
        OperatorConfig(redact=("names",))


def test_nothing_of_it_is_in_state_snapshot_or_events() -> None:
    operator = StreamOperator(toy_decoder(), replace(CONFIG, branch_tokens=400, redact=("email",)))
    operator.open("a")
    secret = "ana@example.org"
    ana = Speaker(id=secret, name=f"Ana {secret}")
    operator.feed(Segment(stream_id="a", text=f"I am {secret}.", segment_id="1", speaker=ana), 0)
    operator.feed(Segment(stream_id="a", text=f"No: {secret}", segment_id="1", revision=1), 1)
    operator.ask(Question(stream_id="a", text=f"Who is {secret}?", question_id="q"))
    emissions = drain(operator)
    written = msgspec.json.encode(emissions)
    assert secret.encode() not in written
    assert b"[email]" in written
    assert secret.encode() not in operator.snapshot("a")
