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
from operators.tasks import ledger
from operators.tasks.base import Answer, Ask, SeenSegment, StreamView, Tools
from operators.text import longest_copy, numbers, script, sentences, support, units

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
SURE: dict[ItemKind, float] = {
    "decision": 0.36,
    "action_item": 0.36,
    "open_question": 0.3,
    "topic": 0.35,
}
"""Calibrated probability (chance is 0.2) from which a turn is of a kind."""
SMALL_TALK = 0.12
"""Calibrated probability of small talk above which a turn is not worth a topic."""
TURN_TOKENS = 120
"""Sentences of one speaker are judged one by one; a longer one is cut."""
TURN_UNITS = 4
"""A shorter sentence is judged together with the speaker's next one, and alone never noted."""
BEFORE = 2
"""Turns before a selected one that are shown with it."""
NOTES, TOKENS_PER_NOTE = 4, 100
"""An update takes at most NOTES decisions, actions and questions, and one more for so many new tokens;
half as many topics."""
MIN_SUPPORT = 0.6
"""Share of a note's content that must stand in its turn, the turns before it, or be a speaker's name."""
OWN_SUPPORT = 0.35
"""Share of it that must stand in the turn itself."""
KEPT = 0.5
"""Share of a short turn's content that its note must keep."""
MAX_COPY = 8
"""Units in a row that a note may not copy."""
QUOTE_UNITS = 18
"""A turn of at most so many units may stand for itself, when its sentence fails a check twice."""
RELATED = 0.4
"""Share of an open action's content in a turn from which that is asked: is it done?"""
CHANGED = 0.7
"""Similarity from which a turn restates an item, changed."""
DONE = 0.6
"""Calibrated probability (chance is 0.5) from which an action counts as done."""
RARE = 0.05
"""Share of the turns seen in which a word may occur and still be a name."""
NOTE_TOKENS, DUE_TOKENS, OWNER_TOKENS = 48, 10, 8
LINE = Grammar.regex(r"[^\n:：]{1,60}([^\n:：][^\n]{0,340})?\n?")
"""One line that does not begin with a speaker's name and a colon."""


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
        speakers = {s.evidence.speaker for s in view.segments if s.evidence.speaker}
        people = sorted(speakers | set(view.settings.participants or ()))
        made.drafts = select(turns, view.ledger.items)
        yield from self._find_done(turns, view.ledger.items, made)
        yield from self._write(made.drafts, made, people)
        again = [draft for draft in made.drafts if problem_of(draft, people)]
        for draft in again:  # what stands before a turn misleads most often
            draft.before = ""
        yield from self._write(again, made, people)
        yield from self._details(made, people, Names(view))
        made.drafts = [draft for draft in made.drafts if checked(draft, people, made.refused)]
        return made

    # --- judge -------------------------------------------------------------------------------

    def _turns(self, segments: Sequence[SeenSegment]) -> list[Turn]:
        """The segments' sentences; short ones are put before the next of their speaker."""
        turns: list[Turn] = []
        for segment in segments:
            speaker = segment.evidence.speaker or ""
            for sentence in sentences(segment.text):
                for piece in self._cut(sentence, self._count(sentence)):
                    last = turns[-1] if turns else None
                    if last and last.speaker == speaker and len(units(last.said)) < TURN_UNITS:
                        last.said = f"{last.said} {piece}"
                        last.tokens += self._count(piece)
                        if last.evidence[-1] is not segment.evidence:
                            last.evidence.append(segment.evidence)
                    else:
                        size = self._count(piece)
                        turns.append(Turn(speaker, piece, size, [segment.evidence]))
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

    def _write(self, drafts: Sequence[Draft], made: Minutes, people: list[str]) -> Part:
        """One sentence per draft. Mutates the drafts."""
        if not drafts:
            return
        answers = yield [self._note(draft, people) for draft in drafts]
        made.answers += answers
        for draft, answer in zip(drafts, answers, strict=True):
            draft.text = _one_line(answer.text)

    def _note(self, draft: Draft, people: list[str]) -> Ask:
        said, speaker = draft.turn.said, draft.turn.speaker or "the speaker"
        most = MAX_COPY if len(units(said)) > QUOTE_UNITS else 0
        limits = {"grammar": LINE, "max_copy": most, "sources": (said,), "free": tuple(people)}
        return self._text(
            "note",
            NOTE_TOKENS,
            limits,
            what=WHAT[draft.kind],
            speaker=speaker,
            before=draft.before or "-",
            turn=draft.turn.line,
        )

    def _details(self, made: Minutes, people: Sequence[str], names: Names) -> Part:
        """Owner and due date of the actions, both words of the turn. Mutates the drafts."""
        drafts = [draft for draft in made.drafts if draft.kind == "action_item"]
        if not drafts:
            return
        asks = []
        for draft in drafts:
            said, speaker = draft.turn.said, draft.turn.speaker or "-"
            form = {"grammar": Grammar.part_of(said)}
            asks.append(self._text("due", DUE_TOKENS, form, turn=draft.turn.line))
            form = {"grammar": Grammar.part_of(said, speaker)}
            asks.append(self._text("owner", OWNER_TOKENS, form, speaker=speaker, turn=said))
        answers = yield asks
        made.answers += answers
        for at, draft in enumerate(drafts):
            due, owner = answers[2 * at], answers[2 * at + 1]
            draft.due = due_in(due.text, draft.turn.said)
            draft.owner = owner_in(owner.text, draft.turn, people, names)

    def _find_done(self, turns: list[Turn], items: Sequence[LedgerItem], made: Minutes) -> Part:
        """Which open actions the new turns say are finished: those a turn shares words with are asked
        about one by one."""
        settling: set[int] = set()
        pairs = [
            (item, turn)
            for item in items
            if item.kind == "action_item" and item.state == "open"
            for turn in turns
            if support(item.text, [turn.said]) >= RELATED
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
    an action of the ledger is about, with other words, numbers or dates, is of that item's kind. Of
    the topics those with numbers come first: they are what people look up."""
    settled = [i for i in items if i.kind in ("decision", "action_item") and i.state == "open"]
    found: list[Draft] = []
    for at, turn in enumerate(turns):
        kind, weight = judged(turn)
        if kind in (None, "topic"):
            like = next((i for i in settled if ledger.about(i.text, turn.said) >= CHANGED), None)
            if like is not None and not set(units(turn.said)) <= set(units(like.text)):
                kind, weight = like.kind, max(weight, like.importance)
        if kind is None:
            continue
        before = "\n".join(t.line for t in turns[max(0, at - BEFORE) : at])
        found.append(Draft(turn, kind, round(weight, 3), before))
    most = NOTES + sum(turn.tokens for turn in turns) // TOKENS_PER_NOTE
    topics = [d for d in found if d.kind == "topic"]
    others = [d for d in found if d.kind != "topic"]
    topics.sort(key=lambda d: (not numbers(d.turn.said), -d.importance))
    others.sort(key=lambda d: -d.importance)
    kept = others[:most] + topics[: max(1, most // 2)]
    return [draft for draft in found if any(draft is k for k in kept)]


def judged(turn: Turn) -> tuple[ItemKind | None, float]:
    """The kind of a turn by its weights, None if it is not worth a note, and the weight."""
    weight = max(turn.weights)
    if len(units(turn.said)) < TURN_UNITS:
        return None, weight
    letter = LETTERS[turn.weights.index(weight)]
    kind: ItemKind = KINDS.get(letter, "topic")
    if kind != "topic" and weight >= SURE[kind]:
        return kind, weight
    telling = turn.weights[1] >= SURE["topic"] or bool(numbers(turn.said))
    return ("topic" if telling and turn.weights[0] <= SMALL_TALK else None), turn.weights[1]


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
    if (
        min(
            support(text, [*sources, draft.before]),
            support(text, sources) + MIN_SUPPORT - OWN_SUPPORT,
        )
        < MIN_SUPPORT
    ):
        return "unsupported"
    if len(units(said)) <= QUOTE_UNITS and support(said, [text, draft.turn.speaker]) < KEPT:
        return "content_lost"
    if longest_copy(text, said) > MAX_COPY and len(units(said)) > QUOTE_UNITS:
        return "copied"
    return ""


class Names:
    """Tells names from other words by how many of the turns seen have them: pronouns are in many."""

    def __init__(self, view: StreamView) -> None:
        self._turns = len(view.segments)
        self._seen = Counter(u for s in view.segments for u in set(units(s.text)))

    def may_be(self, words: str) -> bool:
        found = units(words)
        most = max(1, int(RARE * self._turns))
        return bool(found) and all(self._seen[unit] <= most for unit in found)


def owner_in(answer: str, turn: Turn, people: Sequence[str], names: Names) -> str | None:
    """Who is to do it: a person known, else a rare word of the turn that the model took for a name;
    else the speaker."""
    text = _one_line(answer).strip(" .,;:")
    known = next(
        (p for p in people if set(units(text)) & set(units(p)) and _names(p, turn.line)), None
    )
    if known:
        return known
    if text and text.casefold() in turn.said.casefold() and names.may_be(text):
        return text
    return turn.speaker or None


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
