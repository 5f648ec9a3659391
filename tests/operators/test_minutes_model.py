"""The minutes of the default model on a few lines. Slow: it loads the model, which must be here."""

from __future__ import annotations

import pytest

from longstream import SummaryEvent, load_operator
from pipelines.models import cached

pytestmark = pytest.mark.slow
MODEL = "qwen2.5-coder-1.5b"
LINES = {
    "en": [
        ("Ana", "We move the review to Friday at ten."),
        ("Ben", "I will call the supplier before Wednesday."),
        ("Ana", "Good. The budget of 40,000 euro is agreed."),
        ("Carla", "Who pays for the labels?"),
    ],
    "de": [
        ("Ana", "Wir verschieben die Abnahme auf Freitag um zehn."),
        ("Ben", "Ich rufe vor Mittwoch den Lieferanten an."),
        ("Ana", "Gut. Das Budget von 40.000 Euro ist beschlossen."),
        ("Carla", "Wer bezahlt die Etiketten?"),
    ],
}
LATER = {
    "en": [
        ("Ana", "Correction: the review is on Monday at ten, not on Friday."),
        ("Ben", "I have called the supplier, that is done."),
    ],
    "de": [
        ("Ana", "Korrektur: Die Abnahme ist am Montag um zehn, nicht am Freitag."),
        ("Ben", "Ich habe den Lieferanten angerufen, das ist erledigt."),
    ],
}
DAYS = {"en": ("Wednesday", "Monday"), "de": ("Mittwoch", "Montag")}


@pytest.mark.parametrize("language", LINES)
def test_four_lines_and_what_becomes_of_them(language: str) -> None:
    """Two decisions, one action with owner and date, one open question, nothing else; then a
    correction supersedes its decision and the action is done."""
    if cached(MODEL) is None:
        pytest.skip(f"{MODEL} is not in the cache")
    operator = load_operator(MODEL, update_tokens=384)
    stream = operator.open("four")
    for speaker, text in LINES[language]:
        stream.feed(text, speaker=speaker)
    first = stream.summarize()
    assert isinstance(first, SummaryEvent)
    due, day = DAYS[language]
    found = [(i.kind, i.owner, due in (i.due or "")) for i in first.items]
    assert found == [
        ("decision", None, False),
        ("action_item", "Ben", True),
        ("decision", None, False),
        ("open_question", None, False),
    ]
    for speaker, text in LATER[language]:
        stream.feed(text, speaker=speaker)
    second = stream.summarize()
    states = {i.id: i.state for i in second.items}
    review, call, budget, labels = (i.id for i in first.items)
    assert (states[review], states[call]) == ("superseded", "done")
    assert (states[budget], states[labels]) == ("open", "open")
    (new,) = [i for i in second.items if i.id not in states or i.supersedes == review]
    assert day in new.text
    operator.close()
