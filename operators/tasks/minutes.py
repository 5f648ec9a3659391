"""Select, then write: how notes are made by a small model.

A model of one or two billion parameters can neither cite nor check itself, but it ranks single turns
well and rewrites one turn well. So an update (1) judges every new turn by the probabilities of five
words, (2) selects the weightiest, (3) has one sentence written of each, with owner and due date of an
action, and (4) checks every sentence against its turn. Evidence and owner follow from the turn. What
fails a check is written once more with the reason, then replaced by the turn's own words where these
are short and say something that can be looked up, else refused and counted.

The judge has seen examples, which all turns share and which are run once an update. Its words'
probabilities are divided by their mean over turns of all kinds (as batch calibration does, Zhou et al.
2023, arXiv 2309.17249). No rule here knows a language.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from operators import languages
from operators.decoding.constraints import Grammar
from operators.events import Evidence, ItemKind, LedgerItem
from operators.tasks.base import Answer, Ask, StreamView, Tools
from operators.tasks.grounding import (
    FIRST_COPY,
    MAX_COPY,
    TERSE,
    Draft,
    Habits,
    Known,
    Turn,
    checked,
    fits,
    in_words,
    lost_names,
    misspelled,
    problem_of,
    says_it_best,
    sources_of,
)
from operators.tasks.relations import (
    UNWRITTEN,
    Exchange,
    exchanges,
    name_of,
    related,
    within,
)
from operators.tasks.selection import SORTS, Usual, calibrated, select
from operators.text import content, covered, trimmed, units

CHANGES = ("done", "changed", "same")
"""The words that say what a turn does to a note."""
HINTS = {
    "number_added": "Use no number that is not in the turn.",
    "date_added": "Name no day or month that is not in the turn.",
    "name_added": "Use no name that is not in the turn.",
    "number_lost": "Keep every number and date of the turn.",
    "number_moved": "Leave every number with the word that it counts.",
    "unsupported": "Say nothing that is not in the turn.",
    "content_lost": "Keep the names and things that the turn is about.",
    "name_lost": "Use these words: {words}.",
    "misspelled": "Spell these words right: {words}.",
    "other_language": "Write in {language}.",
    "no_question": "Write it as a question.",
    "cut": "Write one short sentence.",
    "empty": "Write one sentence.",
}
"""What a second try is told, by what was wrong with the first; what asks is to ask from the first."""
ONCE = ("unsupported", "content_lost", "copied")
"""What is wrong with a topic and mostly stays wrong when it is written again."""
WHAT: dict[ItemKind, str] = {
    "topic": "what was reported",
    "decision": "what was decided",
    "action_item": "who will do what, and by when",
    "open_question": "the open question",
}
BALANCED = (
    *("Ruth: Good evening, nice to see you all.", "Nils: Right, next slide please."),
    *("Karl: Last year 40 members joined the club.", "Eva: I find the new path too narrow."),
    *("Ruth: We have settled on the stone wall.", "Karl: The vote is clear, the shed stays."),
    *("Nils: I will paint the gate on Monday.", "Ruth: Eva writes to the mayor this week."),
    *("Karl: Who has the key of the shed?", "Eva: How many chairs do we need?"),
)
"""As many turns of one kind as of another: what a judge who has no leaning gives them is even. A turn
without content is small talk to one who has seen examples, so it says nothing of his leaning."""
REPLIED = (
    ("Eva: Who painted the bench?", "Ruth: Nils did."),
    ("Karl: Is the water on?", "Eva: Yes, since Friday."),
    ("Nils: When is the sale?", "Karl: On the second Sunday in June."),
    ("Ruth: Shall I lock the gate?", "Nils: No, leave it open."),
    ("Ruth: Who painted the bench?", "Eva: That is a long story."),
    ("Eva: Is the water on?", "Karl: We have to ask the neighbour."),
    ("Karl: When is the sale?", "Ruth: The cakes are ordered."),
    ("Nils: Shall I lock the gate?", "Karl: Wait, where is my bag."),
)
"""As many exchanges with an answer as without one."""
YES_NO = ("yes", "no")
NOTED = (
    ("The sale is on June 4.", "Eva: The sale is a week later now, June 11."),
    ("The bench costs 200 euro.", "Karl: No, the bench costs 250 euro."),
    ("Karl repairs the roof.", "Karl: The roof is repaired."),
    ("Ruth sends the list to Otto.", "Ruth: I sent Otto the list last night."),
    ("The sale is on June 4.", "Nils: There will be cakes at the sale."),
    ("Karl repairs the roof.", "Eva: Right, Karl repairs the roof."),
)
"""As many notes that are done as such that are changed, or only spoken of."""
TURN_TOKENS, TURN_WORDS = 120, 40
"""Sentences are judged one by one. A longer one is cut: speech without a full stop is of several kinds,
and too long to stand for itself where its note fails."""
TURN_UNITS = 4
"""A shorter sentence is not noted."""
ANSWERED = 0.9
"""Calibrated probability (chance is 0.5) from which a reply answers a question."""
DONE, OTHER, SAME = 0.32, 0.6, 0.32
"""Calibrated probabilities (chance is 0.33) from which an action is done, an item is otherwise, and
below which a turn does not say the same again."""
CHANGED, NEAR, RATHER = 0.7, 0.5, 0.3
"""Share of an item's content from which a turn that has it restates the item, and from which it may, if
so much of the turn is about the item."""
RARE = 0.05
"""Share of the turns seen in which a word may occur and still be a name."""
NOTE_TOKENS, DUE_TOKENS, OWNER_TOKENS = 48, 10, 8
"""At most. A note may have as many as its turn, within a quarter of a branch: languages differ in how
many a sentence takes."""


@dataclass
class Minutes:
    """What an update came to."""

    drafts: list[Draft] = field(default_factory=list)
    done: list[tuple[str, Evidence]] = field(default_factory=list)
    """Items that are settled: actions that a turn says are done, questions that it answers."""
    refused: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)


MinutesSteps = Generator[Sequence[Ask], Sequence[Answer], Minutes]
Part = Generator[Sequence[Ask], Sequence[Answer], None]
Weights = Generator[Sequence[Ask], Sequence[Answer], list[tuple[float, ...]]]


class MinuteTaker:
    """Writes the notes on a stretch of transcript. Keeps the calibration of its model."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._first = {word: tools.tokenizer.first(word) for word in (*SORTS, *CHANGES, *YES_NO)}
        self._priors: dict[str, tuple[float, ...]] = {}
        """What each of the judges gives what is even, by prompt."""

    def steps(self, view: StreamView) -> MinutesSteps:
        """The asks of one update, and its notes. Reads the view; changes nothing."""
        made = Minutes()
        turns = self._turns(view)
        usual = Usual(view, self._tools.tokenizer)
        yield from self._judge([turn for turn in turns if usual.telling(turn.said)], made)
        known = Known.of(view)
        yield from self._relate(related(turns, view.ledger.items, usual.rare), made)
        yield from self._relate(within(turns, select(turns), usual.rare), made)
        made.drafts = select(turns)
        yield from self._answer(exchanges(view, made.drafts, turns), made)
        yield from self._details(made, known.people, Names(view))
        wanted = languages.known(view.settings.summary_language)
        for draft in made.drafts:
            draft.wanted = wanted
            draft.text = draft.turn.said.strip() if says_it_best(draft) else ""
        yield from self._write([draft for draft in made.drafts if not draft.text], made, known)
        yield from self._write([draft for draft in made.drafts if _again(draft)], made, known)
        made.drafts = [draft for draft in made.drafts if checked(draft, made.refused)]
        return made

    # --- judge -------------------------------------------------------------------------------

    def _turns(self, view: StreamView) -> list[Turn]:
        """The sentences of what is new."""
        habits = Habits.of(segment.text for segment in view.segments)
        usual = languages.detect(" ".join(segment.text for segment in view.segments))
        found = [
            (segment.evidence, piece)
            for segment in view.segments
            if segment.new
            for sentence in languages.sentences(segment.text)
            for piece in languages.split(sentence, TURN_TOKENS, self._size)
            if piece
        ]
        return [
            Turn(
                said.speaker or "",
                piece,
                self._count(piece),
                [said],
                number=at,
                habits=habits,
                language=languages.detect(piece) or usual,
            )
            for at, (said, piece) in enumerate(found)
        ]

    def _size(self, text: str) -> int:
        """The text's tokens, or what its words are worth if that is more."""
        return max(self._count(text), len(languages.words(text)) * TURN_TOKENS // TURN_WORDS)

    def _count(self, text: str) -> int:
        return len(self._tools.tokenizer.encode(text))

    def _judge(self, turns: Sequence[Turn], made: Minutes) -> Part:
        """Weigh the sorts for every turn that is long enough, by a judge who has seen examples in its
        language. Mutates the turns."""
        groups: dict[str, list[Turn]] = {}
        for turn in turns:
            if len(units(turn.said)) >= TURN_UNITS:
                form = self._tools.prompts.form("judge", turn.language)
                groups.setdefault(form, []).append(turn)
        even = [{"turn": line} for line in BALANCED]
        for prompt, group in groups.items():
            asked = [{"turn": turn.line} for turn in group]
            found = yield from self._weights(prompt, tuple(SORTS), even, asked, made)
            for turn, weights in zip(group, found, strict=True):
                turn.weights = weights

    # --- write -------------------------------------------------------------------------------

    def _write(self, drafts: Sequence[Draft], made: Minutes, known: Known) -> Part:
        """One sentence per draft. Mutates the drafts."""
        if not drafts:
            return
        answers = yield [self._note(draft, known) for draft in drafts]
        made.answers += answers
        for draft, answer in zip(drafts, answers, strict=True):
            draft.text = _one_line(answer.text)
            draft.problem = problem_of(draft, known)
            if not draft.problem and answer.finish_reason != "stop":
                draft.problem = "cut"

    def _note(self, draft: Draft, known: Known) -> Ask:
        said, speaker = draft.turn.said, draft.turn.speaker or "the speaker"
        most, first = in_words(said, MAX_COPY), 0
        if fits(said, TERSE):
            first = 0 if fits(said, MAX_COPY - 1) else in_words(said, FIRST_COPY)
        form = note_form(said, draft.owner)
        limits = {"grammar": form, "max_copy": most, "first_copy": first}
        wrong = misspelled(
            draft.text, sources_of(draft, known)
        )  # they have no other form: no limit
        limits |= {"sources": (said,), "free": (*known.people, *known.terms, *wrong)}
        return self._text(
            "note",
            max(NOTE_TOKENS, min(draft.turn.tokens, self._tools.config.branch_tokens // 4)),
            limits,
            what=WHAT[draft.kind],
            speaker=speaker,
            turn=draft.turn.line,
            language=draft.language,
            hint=_hint(draft, wrong),
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

    def _relate(self, pairs: Sequence[tuple[LedgerItem, Turn]], made: Minutes) -> Part:
        """What the turns say of items they share words with: an action is done, or something is now
        otherwise. Mutates the turns and what was made."""
        if not pairs:
            return
        even = [{"note": note, "turn": turn} for note, turn in NOTED]
        asked = [{"note": item.text, "turn": turn.line} for item, turn in pairs]
        weights = yield from self._weights("relation", CHANGES, even, asked, made)
        for (item, turn), (done, other, same) in zip(pairs, weights, strict=True):
            note, said = (content(text, digits=False) for text in (item.text, turn.said))
            again, of_it = covered(note, said), covered(said, note)
            if item.kind == "action_item" and done >= DONE:
                made.done.append((item.id, turn.evidence[-1]))
                turn.settles = True
            elif (
                again >= CHANGED
                or other >= OTHER
                or (again >= NEAR and of_it >= RATHER and same < SAME)
            ):
                turn.changes = item

    def _answer(self, found: Sequence[Exchange], made: Minutes) -> Part:
        """Which open questions are answered by what was said next. Mutates what was made."""
        if not found:
            return
        even = [{"question": question, "reply": reply} for question, reply in REPLIED]
        asked = [{"question": one.question, "reply": self._beginning(one.reply)} for one in found]
        weights = yield from self._weights("answered", YES_NO, even, asked, made)
        settled = dict[str, Evidence]()
        for one, (yes, _) in zip(found, weights, strict=True):
            if yes >= ANSWERED:
                settled.setdefault(one.note, one.evidence)
        made.done += settled.items()

    def _beginning(self, text: str) -> str:
        return languages.split(text, TURN_TOKENS, self._size)[0]

    # --- asks --------------------------------------------------------------------------------

    def _weights(
        self,
        prompt: str,
        words: Sequence[str],
        even: Sequence[Mapping[str, str]],
        asked: Sequence[Mapping[str, str]],
        made: Minutes,
    ) -> Weights:
        """The calibrated probabilities of the ``words`` for each of ``asked``, the prompt's fields.
        ``even``: fields for which a judge without a leaning gives all words the same; asked once."""
        known = () if prompt in self._priors else even
        answers = yield self._choices(prompt, words, [*known, *asked])
        made.answers += answers
        if known:
            self._priors[prompt] = _mean([answer.weights for answer in answers[: len(known)]])
        prior = self._priors[prompt]
        return [calibrated(answer.weights, prior) for answer in answers[len(known) :]]

    def _choices(
        self, prompt: str, answers: Sequence[str], asked: Sequence[Mapping[str, str]]
    ) -> list[Ask]:
        """An ask for each of ``asked``, the prompt's fields. All with the prompt's examples, which are
        then run once, or, where these leave a branch too little room, all without."""
        made, room = self._tools.prompts, self._tools.config.branch_tokens
        prompts = [made.alone(prompt, **fields) for fields in asked]
        if any(len(tokens) >= room for tokens in prompts):
            prompts = [made.without_examples(prompt, **fields) for fields in asked]
        choices = tuple(self._first[word] for word in answers)
        return [
            Ask(self._fit(tokens, 1), 1, kind="minutes", choices=choices, alone=True)
            for tokens in prompts
        ]

    def _text(self, prompt: str, limit: int, options: Mapping[str, Any], **fields: str) -> Ask:
        """An answer of one line; by ``options`` of another form. Without the prompt's examples where
        these leave a branch too little room."""
        made, room = self._tools.prompts, self._tools.config.branch_tokens - limit
        tokens = made.alone(prompt, **fields)
        if len(tokens) > room:
            tokens = self._fit(made.without_examples(prompt, **fields), limit)
        return Ask(tokens, limit, kind="minutes", alone=True, **options)

    def _fit(self, prompt: list[int], output: int) -> list[int]:
        """The end of the prompt, as far as a branch has room: its instruction stands there."""
        return prompt[-(self._tools.config.branch_tokens - output) :]


def _again(draft: Draft) -> bool:
    """Whether the sentence is written once more."""
    return bool(draft.problem) and not (draft.kind == "topic" and draft.problem in ONCE)


def _hint(draft: Draft, misspelled: Sequence[str]) -> str:
    """What the writer is told beside the turn: by the kind of note, and by what was wrong before."""
    asks = "no_question" if draft.kind == "open_question" else ""
    told = " ".join(HINTS[why] for why in dict.fromkeys((asks, draft.problem)) if why in HINTS)
    words = ", ".join(lost_names(draft) or misspelled) or "all"
    return told.format(words=words, language=draft.language)


def note_form(said: str, owner: str | None = None) -> Grammar:
    """The form of a note: one line, which tells what the ``owner`` will do and begins with the name, or
    else begins with no name and colon. It joins no words by an underscore, unless the turn has one: that
    makes a copy look like other words ("four or_five years")."""
    no = r"\n" if "_" in said else r"\n_"
    if owner is None:
        return Grammar.regex(rf"([^{no}:：]{{1,59}}|[^{no}:：]{{60}}[^{no}]{{0,340}})\n?")
    literal = "".join(rf"\{char}" if char in string.punctuation else char for char in owner)
    return Grammar.regex(rf"{literal}[^{no}:：]{{2,300}}\n?")


class Names:
    """Tells names from other words by how many of the turns seen have them, since pronouns are in many,
    and where there are capitals by whether they stand with and without one, or always with one."""

    def __init__(self, view: StreamView) -> None:
        self._most = max(1, int(RARE * len(view.segments)))
        self._seen = Counter(u for s in view.segments for u in set(units(s.text)))
        written = {word for s in view.segments for word in s.text.split() if len(word) > 1}
        self._small = {u for word in written if word[0].islower() for u in units(word)}
        self._large = {u for word in written if word[0].isupper() for u in units(word)}

    def may_be(self, words: str) -> bool:
        return bool(units(words)) and all(map(self._one, units(words)))

    def _one(self, unit: str) -> bool:
        small, large = unit in self._small, unit in self._large
        if small and large:
            return False
        return self._seen[unit] <= self._most or (large and len(unit) > 1)


def owner_in(answer: str, turn: Turn, people: Sequence[str], names: Names) -> str | None:
    """Who is to do it: a person known, else a rare word of the turn that the model took for a name;
    else the speaker."""
    text = trimmed(_one_line(answer))
    named = [p for p in people if set(units(text)) & set(units(p)) and _names(p, turn.line)]
    if named:  # parts of a name or of a role may be several people's
        return max(named, key=lambda person: len(set(units(text)) & set(units(person))))
    if text and text.casefold() in turn.said.casefold() and names.may_be(text):
        return text
    return turn.speaker or None


def due_in(answer: str, said: str) -> str | None:
    """The answer, if it is a stretch of the turn itself; None else."""
    text = trimmed(_one_line(answer))
    return text if text and text.casefold() in said.casefold() else None


def _names(person: str, said: str) -> bool:
    """Whether the turn names the person, or one part of the name."""
    parts = {u for u in units(person) if len(u) > 1}
    return bool(parts & set(units(said)))


def _one_line(text: str) -> str:
    return " ".join(text.strip().split("\n")[0].split())


def _mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def items_of(
    made: Minutes, first: int, revision: int
) -> tuple[list[LedgerItem], list[tuple[str, Evidence]]]:
    """The drafts as new items of the ledger, from number ``first`` on, and what is done, by id."""
    ids = {name_of(draft): f"i{first + at}" for at, draft in enumerate(made.drafts)}
    items = [
        LedgerItem(
            id=ids[name_of(draft)],
            kind=draft.kind,
            text=draft.text,
            owner=draft.owner,
            due=draft.due,
            importance=draft.importance,
            last_changed_revision=revision,
            evidence=tuple(dict.fromkeys(draft.turn.evidence)),
            supersedes=_id_of(old.id, ids) if (old := draft.turn.changes) is not None else None,
        )
        for draft in made.drafts
    ]
    done = [(_id_of(name, ids), evidence) for name, evidence in made.done]
    return items, [(found, evidence) for found, evidence in done if found]


def _id_of(name: str, ids: Mapping[str, str]) -> str | None:
    """The id of an item of the ledger, or of a draft by its name; None where no note came of it."""
    return ids.get(name) if name.startswith(UNWRITTEN) else name
