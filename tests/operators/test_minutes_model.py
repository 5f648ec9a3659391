"""The minutes of the default model on a few lines. Slow: it loads the model, which must be here."""

from __future__ import annotations

import pytest

from longstream import SummaryEvent, load_operator
from pipelines.models import cached

pytestmark = pytest.mark.slow
MODEL = "qwen2.5-coder-1.5b"
LINES = [
    ("Ana", "We move the review to Friday at ten."),
    ("Ben", "I will call the supplier before Wednesday."),
    ("Ana", "Good. The budget of 40,000 euro is agreed."),
    ("Carla", "Who pays for the labels?"),
]
LATER = [
    ("Ana", "Correction: the review is on Monday at ten, not on Friday."),
    ("Ben", "I have called the supplier, that is done."),
]


def test_four_lines_and_what_becomes_of_them() -> None:
    """Two decisions, one action with owner and date, one open question, nothing else; then a
    correction supersedes its decision and the action is done."""
    if cached(MODEL) is None:
        pytest.skip(f"{MODEL} is not in the cache")
    operator = load_operator(MODEL, update_tokens=384)
    stream = operator.open("four")
    for speaker, text in LINES:
        stream.feed(text, speaker=speaker)
    first = stream.summarize()
    assert isinstance(first, SummaryEvent)
    found = [(i.kind, i.owner, i.due) for i in first.items]
    assert found == [
        ("decision", None, None),
        ("action_item", "Ben", "Wednesday"),
        ("decision", None, None),
        ("open_question", None, None),
    ]
    for speaker, text in LATER:
        stream.feed(text, speaker=speaker)
    second = stream.summarize()
    states = {i.id: i.state for i in second.items}
    review, call, budget, labels = (i.id for i in first.items)
    assert (states[review], states[call]) == ("superseded", "done")
    assert (states[budget], states[labels]) == ("open", "open")
    (new,) = [i for i in second.items if i.id not in states or i.supersedes == review]
    assert "Monday" in new.text
    operator.close()
