"""Select, then write: how notes are made by a small model.

A model of one or two billion parameters can neither cite nor check itself, but it ranks single turns
well and rewrites one turn well. So an update (1) judges every new turn by the probabilities of five
letters, (2) selects the weightiest, (3) has one sentence written of each, with owner and due date of an
action, and (4) checks every sentence against its turn. Evidence and owner follow from the turn. What
fails a check is replaced by the turn's own words where these are short, else refused and counted.

The letters' probabilities are divided by what the model gives for a turn without content (contextual
calibration, Zhao et al. 2021, arXiv 2102.09690). No rule here knows a language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from operators.decoding.constraints import Grammar
from operators.events import Evidence, ItemKind, LedgerItem
from operators.tasks.base import Answer, Ask, SeenSegment, StreamView, Tools
from operators.text import longest_copy, numbers, script, similarity, support, units

LETTERS = "ABCDE"
KINDS: dict[str, ItemKind] = {
    "B": "topic",
    "C": "decision",
    "D": "action_item",
    "E": "open_question",
}
WHAT: dict[ItemKind, str] = {
    "topic": "what was reported",
    "decision": "what was decided",
    "action_item": "who will do what, and by when",
    "open_question": "the open question",
}
BLANKS = ("", "...", "N/A")
"""Turns without content, for calibration."""
SURE = 0.26
"""Calibrated probability (chance is 0.2) from which a turn is a decision, an action or a question, if it
is also twice that of small talk."""
SURE_TOPIC = 0.5
TURN_TOKENS = 120
"""Neighbouring segments of one speaker are judged as one turn up to this size; longer ones are cut."""
BEFORE = 2
"""Turns before a selected one that are shown with it."""
NOTES, TOKENS_PER_NOTE = 6, 100
"""An update takes at most NOTES notes, and one more for so many new tokens; a quarter of them topics."""
MIN_SUPPORT = 0.6
"""Share of a note's content that must stand in its turn or be a speaker's name."""
MAX_COPY = 8
"""Units in a row that a note may copy, unless it is hardly longer than that."""
QUOTE_UNITS = 30
"""A turn of at most so many units may stand for itself."""
RELATED = 0.5
"""Similarity from which a turn is asked about an open action: is it done?"""
CHANGED = 0.7
"""Similarity from which a turn restates an item, changed."""
DONE = 0.6
"""Calibrated probability (chance is 0.5) from which an action counts as done."""
NOTE_TOKENS, DUE_TOKENS = 48, 10
LINE = Grammar.one_line()


@dataclass
class Turn:
    """Consecutive words of one speaker: ``said`` without the name, ``line`` with it."""

    speaker: str
    said: str
    tokens: int
    evidence: list[Evidence]
    weights: tuple[float, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.speaker}: {self.said}" if self.speaker else self.said


@dataclass
class Draft:
    """A note in the making. ``done``: the item of the ledger that its turn says is finished."""

    turn: Turn
    kind: ItemKind
    importance: float
    before: str
    text: str = ""
    owner: str | None = None
    due: str | None = None
    quoted: bool = False


@dataclass
class Minutes:
    """What an update came to."""

    drafts: list[Draft] = field(default_factory=list)
    done: list[tuple[str, Evidence]] = field(default_factory=list)
    """Items whose task a turn says is done."""
    refused: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)


MinutesSteps = Generator[Sequence[Ask], Sequence[Answer], Minutes]
Part = Generator[Sequence[Ask], Sequence[Answer], None]


class MinuteTaker:
    """Writes the notes on a stretch of transcript. Keeps the calibration of its model."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._letters = {x: tools.tokenizer.encode(x)[0] for x in "ABCDEFGH"}
        self._prior: tuple[float, ...] | None = None
        self._done_prior: tuple[float, ...] | None = None

    def steps(self, view: StreamView) -> MinutesSteps:
        """The asks of one update, and its notes. Reads the view; changes nothing."""
        made = Minutes()
        turns = self._turns([s for s in view.segments if s.new])
        yield from self._judge(turns, made)
        people = sorted({s.evidence.speaker for s in view.segments if s.evidence.speaker})
        made.drafts = select(turns, view.ledger.items)
        yield from self._find_done(turns, view.ledger.items, made)
        yield from self._write(made, people)
        made.drafts = [draft for draft in made.drafts if checked(draft, people, made.refused)]
        return made

    # --- judge -------------------------------------------------------------------------------

    def _turns(self, segments: Sequence[SeenSegment]) -> list[Turn]:
        turns: list[Turn] = []
        for segment in segments:
            size = self._count(segment.text)
            speaker = segment.evidence.speaker or ""
            last = turns[-1] if turns else None
            if last and speaker and last.speaker == speaker and last.tokens + size <= TURN_TOKENS:
                last.said, last.tokens = f"{last.said} {segment.text}", last.tokens + size
                last.evidence.append(segment.evidence)
                continue
            for piece in self._cut(segment.text, size):
                turns.append(Turn(speaker, piece, self._count(piece), [segment.evidence]))
        return turns

    def _cut(self, text: str, size: int) -> list[str]:
        if size <= TURN_TOKENS or len(text) < 2:
            return [text]
        middle = len(text) // 2
        space = text.find(" ", middle)
        at = space if 0 < space < middle * 3 // 2 else middle
        halves = (text[:at].strip(), text[at:].strip())
        return [piece for half in halves if half for piece in self._cut(half, self._count(half))]

    def _count(self, text: str) -> int:
        return len(self._tools.tokenizer.encode(text))

    def _judge(self, turns: list[Turn], made: Minutes) -> Part:
        """Weigh the letters for every turn, and once for turns without content. Mutates the turns."""
        blanks = BLANKS if self._prior is None else ()
        answers = yield [self._choice("judge", LETTERS, turn=t) for t in blanks] + [
            self._choice("judge", LETTERS, turn=turn.line) for turn in turns
        ]
        made.answers += answers
        if self._prior is None:
            self._prior = _mean([answer.weights for answer in answers[: len(blanks)]])
        for turn, answer in zip(turns, answers[len(blanks) :], strict=True):
            turn.weights = calibrated(answer.weights, self._prior)

    # --- write -------------------------------------------------------------------------------

    def _write(self, made: Minutes, people: list[str]) -> Part:
        """One sentence per draft; for actions also the due date, and the owner where another person
        is named. Mutates the drafts."""
        asks: list[Ask] = []
        places: list[tuple[Draft, str, list[str]]] = []
        for draft in made.drafts:
            fields = {"before": draft.before, "turn": draft.turn.line}
            what, speaker = WHAT[draft.kind], draft.turn.speaker or "the speaker"
            form = {"grammar": LINE, "max_copy": MAX_COPY, "sources": (draft.turn.said,)}
            form["free"] = tuple(people)
            asks.append(self._text("note", NOTE_TOKENS, form, what=what, speaker=speaker, **fields))
            places.append((draft, "note", []))
            if draft.kind != "action_item":
                continue
            draft.owner = draft.turn.speaker or None
            when = {"grammar": Grammar.part_of(draft.turn.said)}
            asks.append(self._text("due", DUE_TOKENS, when, turn=draft.turn.line))
            places.append((draft, "due", []))
            named = [p for p in people if p != draft.turn.speaker and _names(p, draft.turn.said)]
            if named:
                options = [p for p in (draft.turn.speaker, *named) if p][:5]
                listed = "\n".join(f"{'ABCDE'[i]} {name}" for i, name in enumerate(options))
                asks.append(self._choice("owner", LETTERS[: len(options)], people=listed, **fields))
                places.append((draft, "owner", options))
        if not asks:
            return
        answers = yield asks
        made.answers += answers
        for (draft, kind, options), answer in zip(places, answers, strict=True):
            if kind == "note":
                draft.text = _one_line(answer.text)
            elif kind == "due":
                draft.due = due_in(answer.text, draft.turn.said)
            elif answer.weights:
                draft.owner = options[answer.weights.index(max(answer.weights))]

    def _find_done(self, turns: list[Turn], items: Sequence[LedgerItem], made: Minutes) -> Part:
        """Which open actions the new turns say are finished: those a turn shares words with are asked
        about one by one."""
        promised = {id(d.turn) for d in made.drafts if d.kind == "action_item"}
        settling: set[int] = set()
        pairs = [
            (item, turn)
            for item in items
            if item.kind == "action_item" and item.state == "open"
            for turn in turns
            if id(turn) not in promised and similarity(item.text, turn.line) >= RELATED
        ][:8]
        if not pairs:
            return
        blanks = [(pairs[0][0].text, "")] if self._done_prior is None else []
        asks = [self._choice("done", "AB", task=task, turn=turn) for task, turn in blanks]
        asks += [self._choice("done", "AB", task=i.text, turn=t.line) for i, t in pairs]
        answers = yield asks
        made.answers += answers
        if self._done_prior is None:
            self._done_prior = answers[0].weights
        for (item, turn), answer in zip(pairs, answers[len(blanks) :], strict=True):
            if calibrated(answer.weights, self._done_prior)[0] >= DONE:
                made.done.append((item.id, turn.evidence[-1]))
                settling.add(id(turn))
        made.drafts = [draft for draft in made.drafts if id(draft.turn) not in settling]

    # --- asks --------------------------------------------------------------------------------

    def _choice(self, prompt: str, letters: str, **fields: str) -> Ask:
        tokens = self._tools.prompts.alone(prompt, **fields)
        return Ask(
            self._fit(tokens, 1),
            1,
            kind="minutes",
            choices=tuple(self._letters[x] for x in letters),
            alone=True,
        )

    def _text(self, prompt: str, limit: int, options: Mapping[str, Any], **fields: str) -> Ask:
        """An answer of one line; by ``options`` of another form."""
        tokens = self._fit(self._tools.prompts.alone(prompt, **fields), limit)
        return Ask(tokens, limit, kind="minutes", alone=True, **options)

    def _fit(self, prompt: list[int], output: int) -> list[int]:
        """The end of the prompt, as far as a branch has room: its instruction stands there."""
        return prompt[-(self._tools.config.branch_tokens - output) :]


def select(turns: Sequence[Turn], items: Sequence[LedgerItem] = ()) -> list[Draft]:
    """The weightiest turns as drafts, in order of the transcript. A statement about what a decision or
    an action of the ledger is about, with other words, numbers or dates, is of that item's kind."""
    settled = [i for i in items if i.kind in ("decision", "action_item") and i.state == "open"]
    found: list[Draft] = []
    for at, turn in enumerate(turns):
        kind, weight = judged(turn)
        if kind in (None, "topic") and turn.weights.index(max(turn.weights)) == LETTERS.index("B"):
            like = next((i for i in settled if similarity(i.text, turn.said) >= CHANGED), None)
            if like is not None and not set(units(turn.said)) <= set(units(like.text)):
                kind, weight = like.kind, max(weight, like.importance)
        if kind is None:
            continue
        before = "\n".join(t.line for t in turns[max(0, at - BEFORE) : at]) or "-"
        found.append(Draft(turn, kind, round(weight, 3), before))
    most = NOTES + sum(turn.tokens for turn in turns) // TOKENS_PER_NOTE
    topics = [d for d in found if d.kind == "topic"]
    others = [d for d in found if d.kind != "topic"]
    topics.sort(key=lambda d: -d.importance)
    others.sort(key=lambda d: -d.importance)
    kept = others[:most] + topics[: max(1, most // 4)]
    return [draft for draft in found if any(draft is k for k in kept)]


def judged(turn: Turn) -> tuple[ItemKind | None, float]:
    """The kind of a turn by its weights, None if it is not worth a note, and the weight."""
    weight = max(turn.weights)
    letter = LETTERS[turn.weights.index(weight)]
    least = max(SURE_TOPIC if letter == "B" else SURE, 2 * turn.weights[0])
    return (None if letter == "A" or weight < least else KINDS[letter]), weight


def calibrated(weights: Sequence[float], prior: Sequence[float]) -> tuple[float, ...]:
    """Probabilities divided by those of a turn without content, scaled to sum to 1."""
    raw = [w / max(p, 1e-6) for w, p in zip(weights, prior, strict=True)]
    total = sum(raw)
    return tuple(r / total for r in raw)


def checked(draft: Draft, people: Sequence[str], refused: Counter[str]) -> bool:
    """Whether the draft may become a note. One whose sentence fails a check says what its turn says,
    word for word, where that is short enough."""
    problem = problem_of(draft, people)
    if problem:
        refused[problem] += 1
        if len(units(draft.turn.said)) > QUOTE_UNITS:
            return False
        draft.text, draft.quoted = draft.turn.said.strip(), True
    return bool(draft.text)


def problem_of(draft: Draft, people: Sequence[str]) -> str:
    """Why the draft's sentence cannot stand, or an empty string."""
    text, said = draft.text, draft.turn.said
    sources = [draft.turn.line, *people]
    if len(units(text)) < 2:
        return "empty"
    if script(text) != script(said) and script(said):
        return "other_script"
    if numbers(text) - numbers(" ".join(sources)):
        return "number_added"
    if draft.kind != "topic" and numbers(said) - numbers(text):
        return "number_lost"
    if support(text, sources) < MIN_SUPPORT:
        return "unsupported"
    if longest_copy(text, said) > MAX_COPY and len(units(said)) > QUOTE_UNITS:
        return "copied"
    return ""


def due_in(answer: str, said: str) -> str | None:
    """The answer, if it is a stretch of the turn itself; None else."""
    text = _one_line(answer).strip(" .,;:-\"'")
    return text if text and text.casefold() in said.casefold() else None


def _names(person: str, said: str) -> bool:
    """Whether the turn names the person, or one part of the name."""
    parts = {u for u in units(person) if len(u) > 1}
    return bool(parts & set(units(said)))


def _one_line(text: str) -> str:
    return " ".join(text.strip().split("\n")[0].split())


def _mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def item_of(draft: Draft, number: int, revision: int) -> LedgerItem:
    """The draft as a new item of the ledger."""
    return LedgerItem(
        id=f"i{number}",
        kind=draft.kind,
        text=draft.text,
        owner=draft.owner,
        due=draft.due,
        importance=draft.importance,
        last_changed_revision=revision,
        evidence=tuple(dict.fromkeys(draft.turn.evidence)),
    )
