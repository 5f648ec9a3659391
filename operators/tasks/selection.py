"""Which turns are worth a note, and of what kind: read off the weights that a judge gave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from operators.events import ItemKind
from operators.model.tokenizer import Tokenizer
from operators.tasks.base import StreamView
from operators.tasks.grounding import Draft, Turn
from operators.text import is_question, numbers, parts

SORTS: dict[str, ItemKind | None] = {
    "chat": None,
    "information": "topic",
    "decision": "decision",
    "task": "action_item",
    "question": "open_question",
}
"""The words that a turn is sorted by, as the judge's prompt names them, and the kinds of note."""
SORTED = tuple(SORTS.values())
SURE: dict[ItemKind, float] = {
    "decision": 0.6,
    "action_item": 0.42,
    "open_question": 0.3,
    "topic": 0.35,
}
"""Calibrated probability (chance is 0.2) from which a turn is of a kind."""
ASKED = 0.22
"""Calibrated probability from which a sentence with a question mark is an open question, if it is not
rather small talk ("Can you all hear me?")."""
SMALL_TALK = 0.12
"""Calibrated probability of small talk above which a turn is not worth a topic."""
NOTES, TOKENS_PER_NOTE = 6, 100
"""An update takes at most NOTES decisions, actions and questions, and one more for so many new tokens;
half as many topics."""
CERTAIN = 0.8
"""Calibrated probability from which a decision, action or question is taken however many there are."""
SHARE, OFTEN = 0.1, 4
"""Share of the turns seen, and at least so many, in which a word may occur and still be what a note is
about."""
COMMONEST = 5000
"""So many of a tokenizer's tokens are of words that say nothing by themselves."""


def select(turns: Sequence[Turn]) -> list[Draft]:
    """The weightiest turns as drafts, in order of the transcript; what changes an item is always among
    them. Of the topics come first those with numbers, which are what people look up, and those that are
    rather a decision or a task."""
    found: list[Draft] = []
    changed: list[Draft] = []
    for turn in turns:
        kind, weight = judged(turn)
        if turn.settles:
            continue
        if turn.changes is not None:
            kind = turn.changes.kind if kind in (None, "topic") else kind
            weight = max(weight, turn.changes.importance)
            changed.append(Draft(turn, kind or turn.changes.kind, round(weight, 3)))
        elif kind is not None:
            found.append(Draft(turn, kind, round(weight, 3)))
    most = NOTES + sum(turn.tokens for turn in turns) // TOKENS_PER_NOTE
    topics = [d for d in found if d.kind == "topic"]
    others = [d for d in found if d.kind != "topic"]
    topics.sort(key=lambda d: (not (numbers(d.turn.said) or _settling(d.turn)), -d.importance))
    others.sort(key=lambda d: -d.importance)
    certain = sum(d.importance >= CERTAIN for d in others)
    taken = [*changed, *others[: max(most, certain)], *topics[: max(1, most // 2)]]
    kept = {id(d.turn): d for d in taken}
    return [kept[id(turn)] for turn in turns if id(turn) in kept]


def _settling(turn: Turn) -> bool:
    """Whether it is rather a decision or a task than information, if of neither surely."""
    return bool(turn.weights) and max(turn.weights[2:4]) > turn.weights[1]


def judged(turn: Turn) -> tuple[ItemKind | None, float]:
    """The kind of a turn by its weights, None if it is not worth a note, and the weight."""
    if not turn.weights:
        return None, 0.0
    weight = max(turn.weights)
    kind = SORTED[turn.weights.index(weight)] or "topic"
    if is_question(turn.said):
        if turn.weights[4] >= max(ASKED, turn.weights[0]):
            return "open_question", turn.weights[4]
        return ("action_item" if kind == "action_item" and weight >= SURE[kind] else None), weight
    if turn.states:
        told = turn.weights[:4]  # it may tell of a question, and is none
        weight = max(told)
        kind = SORTED[told.index(weight)] or "topic"
    small_talk, telling = turn.weights[:2]
    if kind != "topic" and weight >= SURE[kind]:
        return kind, weight
    if kind in ("decision", "action_item"):
        telling += weight  # worth a note, if of no sure kind
    if telling >= SURE["topic"] and small_talk <= SMALL_TALK:
        return "topic", telling
    return ("topic" if numbers(turn.said) and telling >= 1.5 * small_talk else None), telling


def calibrated(weights: Sequence[float], prior: Sequence[float]) -> tuple[float, ...]:
    """Probabilities divided by those of a turn without content, scaled to sum to 1."""
    raw = [w / max(p, 1e-6) for w, p in zip(weights, prior, strict=True)]
    total = sum(raw)
    return tuple(r / total for r in raw)


class Usual:
    """Tells words that are in any conversation, or often in this one, from words that a note could be
    about. A tokenizer's first tokens are the commonest; what it cuts up, or makes late, is rare. Where
    it cuts up every word, none is usual."""

    def __init__(self, view: StreamView, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._most = max(OFTEN, SHARE * len(view.segments))
        self._seen = Counter(word for s in view.segments for word in set(parts(s.text)))

    def telling(self, said: str) -> bool:
        """Whether the text has a number or a word that is not usual; "I'll do that next time" has
        none."""
        return bool(numbers(said)) or bool(self.rare(said))

    def rare(self, said: str) -> set[str]:
        """The words of the text that are not usual."""
        return {word for word in set(parts(said)) if not self._usual(word)}

    def _usual(self, word: str) -> bool:
        forms = (self._encode(f" {word}"), self._encode(word))  # a word, and an ending ("ll")
        early = any(len(tokens) == 1 and tokens[0] < COMMONEST for tokens in forms)
        return early or self._seen[word] > self._most
