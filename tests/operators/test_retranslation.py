"""A partial hypothesis is translated anew with the translation before it as the draft: same text, fewer
forwards."""

from __future__ import annotations

import pytest
from torch import Tensor

from operators.decoding.acceptance import CostCurve, Costs
from operators.observer import Observer
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, Clock, drain, speech

FREE = Costs(CostCurve(((1, 1.0), (512, 1.001))))
"""Drafting costs nothing here, so it is always done."""
HEARD = ["the red", "the red button", "the red button moves", "the red button moves on friday."]


class Counts(Observer):
    def __init__(self) -> None:
        self.counts: dict[str, float] = {}

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + value


def make(drafter: str) -> tuple[StreamOperator, Counts]:
    """An operator that has heard something and writes ASCII only, so that a text gives its tokens."""
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": (), "drafter": drafter})
    observer, model = Counts(), toy_decoder()
    forward = model.forward

    def ascii_only(role, cache, rows) -> Tensor:  # type: ignore[no-untyped-def]
        logits = forward(role, cache, rows).clone()
        logits[:, 127:256] = -1e9
        return logits

    model.forward = ascii_only  # type: ignore[method-assign]
    operator = StreamOperator(model, config, clock=Clock(), observer=observer, costs=FREE)
    operator.open("a")
    for at, segment in enumerate(speech("a", 6)[:-1]):
        operator.feed(segment, at)
    drain(operator)
    observer.counts.clear()
    return operator, observer


def translate(operator: StreamOperator, text: str, previous: str = "") -> str:
    pending = operator.translate("a", text, "fr", previous)
    drain(operator)
    assert pending.text is not None
    return pending.text


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kind", ["the one before", "the very same", "of something else"])
def test_a_translation_before_it_changes_nothing_about_a_translation(kind: str) -> None:
    plain, counted_plain = make("none")
    drafted, counted = make("previous")
    before = ""
    for text in HEARD:
        want = translate(plain, text)
        previous = {"the one before": before, "the very same": want}.get(kind, "no " * 30)
        assert translate(drafted, text, previous) == want
        before = want
    assert counted_plain.counts["generation_tokens"] == counted.counts["generation_tokens"]
    if kind == "the very same":
        accepted = counted.counts["spec_decode_accepted_tokens"]
        assert accepted > 0.7 * counted.counts["generation_tokens"]
    assert counted_plain.counts.get("spec_decode_drafts", 0) == 0


@pytest.mark.usefixtures("device", "dtype")
def test_retranslation_leaves_the_stream_as_it_was() -> None:
    operator, _ = make("auto")
    before = operator.snapshot("a")
    memory = operator._sessions["a"].draft_controls
    translate(operator, HEARD[-1], translate(operator, HEARD[0]))
    assert memory.pop("translation:fr").arms  # what was learned about drafting is all that is new
    assert operator.snapshot("a") == before


@pytest.mark.usefixtures("device")
def test_a_long_text_in_pieces_finds_the_place_of_each() -> None:
    text = "we move the red button. we test it again. and on a remote we test the button."
    plain, _ = make("none")
    drafted, counted = make("previous")
    want = translate(plain, text)
    assert translate(drafted, text, want) == want
    assert counted.counts["spec_decode_accepted_tokens"] > 0
