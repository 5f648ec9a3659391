"""Whether a note says what its turn says: exact checks of numbers, dates, names, words and language.

No model judges here, and no list of words of a language: words are Unicode's, names are told by their
capitals where these mark names, days and months are CLDR's for the note's language.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from operators import languages
from operators.events import Evidence, ItemKind, LedgerItem
from operators.tasks.base import StreamView
from operators.text import (
    capital_share,
    capitalised,
    cased,
    content,
    counted,
    covered,
    ends_sentence,
    is_question,
    longest_copy,
    mixed,
    names_inside,
    numbers,
    script,
    spelled,
    support,
    units,
    unspaced,
    words,
    words_as_written,
)

MIN_SUPPORT = 0.6
"""Share of a note's content that must stand in its turn or be a person's name."""
KEPT, KEPT_CASELESS = 0.4, 0.6
"""Share of a short turn's content that its note must keep, beside its names; and where names cannot be
told from other words."""
MIN_KEPT = 2.0
"""Content of its turn that a note must have, people's names aside: "Ana asked a question" says nothing.
Half of the turn's, where that is less."""
MAX_COPY = 8
"""Units in a row that a note may not copy."""
TERSE, FIRST_COPY = 12, 5
"""Of a turn of at most TERSE units it may not copy FIRST_COPY from the beginning on: so other words are
found for its verb rather than for its end, which a limit bends ("next Friday" for "on Friday")."""
QUOTE_UNITS, QUOTE_WEIGHT = 18, 0.5
"""A decision or task of at most so many units, and a topic or question of at most TERSE, may stand for
itself when its sentence fails a check, if it is a question, has a number or a name or (in scripts
without capitals) is so sure of its kind."""
CHANGE_UNITS = 25
"""The same of one that changes an item, which else would stand as it was."""
BOUND = 2
"""So many words a word may stand behind the number that counts it ("6.8 million transactions")."""
SPELLED, BEGINNING = 8, 5
"""Letters a word must have to be looked at as misspelled, and among which the wrong one must be: behind
them words have endings, and two spellings ("labelling", "labeling")."""
NOUNS = 0.2
"""Share of words with a capital from which capitals do not mark names. Spoken English, French, Spanish
and Italian have at most 0.09 in any 40 lines, German 0.25 and more."""
ASKED_IN = "en"
"""The prompts' language, which a small model falls into."""


@dataclass(frozen=True)
class Habits:
    """How a stream's turns are written. ``small``: words that also stand without a capital, so that one
    with a capital need not be a name ("Um"). ``marks``: whether questions have a question mark, so that
    a whole sentence without one is none."""

    small: frozenset[str] = frozenset()
    marks: bool = False

    @classmethod
    def of(cls, texts: Iterable[str]) -> Habits:
        """Of the turns that are in the window."""
        said = list(texts)
        written = " ".join(said).split()
        small = (unit for word in written if word[0].islower() for unit in units(word))
        return cls(
            frozenset(small),
            any(is_question(sentence) for text in said for sentence in languages.sentences(text)),
        )


NO_HABITS = Habits()


@dataclass
class Turn:
    """A sentence of one speaker: ``said`` without the name, ``line`` with it. ``weights``: of the
    sorts, calibrated; none where it was too short to be judged."""

    speaker: str
    said: str
    tokens: int
    evidence: list[Evidence]
    weights: tuple[float, ...] = ()
    changes: LedgerItem | None = None
    """An item that is otherwise after this turn."""
    settles: bool = False
    """Whether it says that an action is done."""
    number: int = -1
    """Its place among the turns of the update."""
    habits: Habits = NO_HABITS
    language: str | None = None
    """What it is in (BCP 47): the stream's language where the turn itself does not tell."""

    @property
    def line(self) -> str:
        return f"{self.speaker}: {self.said}" if self.speaker else self.said

    @property
    def names(self) -> list[str]:
        """Its words that a note must keep: names, as far as capitals tell them. Two letters are rather a
        sound ("Um") where they are not both capitals ("EU")."""
        return [
            name
            for name in capitalised(self.said)
            if name.lower() not in self.habits.small and (len(name) > 2 or name.isupper())
        ]

    @property
    def states(self) -> bool:
        """Whether it is a whole sentence that asks nothing, as far as its writing tells."""
        marked = self.habits.marks and not languages.may_ask_unmarked(self.said)
        return marked and ends_sentence(self.said) and not is_question(self.said)


@dataclass
class Draft:
    """A note in the making."""

    turn: Turn
    kind: ItemKind
    importance: float
    text: str = ""
    problem: str = ""
    """Why the sentence cannot stand, if it cannot."""
    owner: str | None = None
    due: str | None = None
    wanted: str | None = None
    """The language the stream wants its notes in; None: the turn's own."""

    @property
    def translated(self) -> bool:
        """Whether the sentence is in another language than the turn: their words cannot be compared."""
        spoken = self.turn.language
        return bool(self.wanted and spoken and not languages.same(self.wanted, spoken))

    @property
    def tag(self) -> str | None:
        """The language the sentence is to be in, where that is known."""
        return self.wanted or self.turn.language

    @property
    def language(self) -> str:
        """The same in words."""
        return languages.name(self.tag) if self.tag else "the language of that turn"


@dataclass(frozen=True)
class Known:
    """What notes may name though their turn does not: people, and the glossary's terms. ``named``:
    whether capitals mark names in this stream."""

    people: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    named: bool = False

    @classmethod
    def of(cls, view: StreamView) -> Known:
        speakers = {s.evidence.speaker for s in view.segments if s.evidence.speaker}
        people = sorted(speakers | set(view.settings.participants or ()))
        glossary: Mapping[str, Mapping[str, str]] = view.settings.glossary or {}
        terms = [t for term, others in glossary.items() for t in (term, *others.values()) if t]
        said = "\n".join(s.text for s in view.segments)
        return cls(tuple(people), tuple(terms), capital_share(said) < NOUNS)


def problem_of(draft: Draft, known: Known) -> str:
    """Why the draft's sentence cannot stand, or an empty string."""
    text, said, sources = draft.text, draft.turn.said, sources_of(draft, known)
    if len(units(text)) < 2:
        return "empty"
    if _in_another_language(draft):
        return "other_language"
    if numbers(text) - numbers(" ".join(sources)):
        return "number_added"
    dates, added = _dates(draft, sources)
    if added:
        return "date_added"
    before = draft.turn.changes.text if draft.turn.changes is not None else ""
    if draft.kind != "topic" and numbers(said) - numbers(f"{text} {before}"):
        return "number_lost"
    if lost_names(draft):
        return "name_lost"
    asked = draft.kind == "open_question" and not languages.may_ask_unmarked(text)
    if asked and not is_question(text):
        return "no_question"  # also where the turn has no mark: what is asked must not be stated
    if draft.translated:
        return ""
    if _numbers_moved(text, said):
        return "number_moved"
    if misspelled(text, sources) or mixed(text) - mixed(" ".join(sources)):
        return "misspelled"
    if known.named and _names_added(draft, sources, dates):
        return "name_added"
    if support(text, sources) < MIN_SUPPORT:
        return "unsupported"
    if _content_lost(draft, known):
        return "content_lost"
    if not fits(said, TERSE) and longest_copy(text, said) > in_words(said, MAX_COPY):
        return "copied"
    return ""


def sources_of(draft: Draft, known: Known) -> list[str]:
    """What the words of a note may come from: its turn and, for names and terms, what is known."""
    turn = draft.turn
    return [turn.line, *spelled(turn.said), *known.people, *known.terms, draft.owner or ""]


def says_it_best(draft: Draft) -> bool:
    """Whether the turn is a note as it is, in the language that is wanted: a question, a decision or a
    task (of whom it begins with) of fewer words than count as a copy; without a false start."""
    turn = draft.turn
    if (draft.wanted and (not turn.language or draft.translated)) or _stumbles(turn.said):
        return False
    if draft.kind == "open_question" and not is_question(turn.said):
        return False
    if draft.kind == "action_item" and not turn.said.startswith(draft.owner or " "):
        return False
    return draft.kind != "topic" and fits(turn.said, MAX_COPY - 1)


def _stumbles(said: str) -> bool:
    """Whether a word is said twice, or begun and said again ("i idea")."""
    found = words(said)
    return any(after.startswith(word) for word, after in itertools.pairwise(found))


def _dates(draft: Draft, sources: Sequence[str]) -> tuple[dict[str, int], set[str]]:
    """The days and months that the sentence names, by CLDR's names for its language, and those of them
    that the sources do not have, in theirs: a translation is checked too."""
    told = languages.dates(draft.text, draft.tag or ASKED_IN, whole=True)
    said = languages.dates(" ".join(sources), draft.turn.language or ASKED_IN).values()
    have = content(" ".join(sources)).keys()
    added = {w for w, date in told.items() if date not in said and not content(w).keys() <= have}
    return told, added


def _names_added(draft: Draft, sources: Sequence[str], dates: Mapping[str, int]) -> bool:
    """Whether a word with a capital inside the sentence, no date, is nowhere in the sources."""
    have = content(" ".join(sources)).keys()
    names = [name for name in names_inside(draft.text) if name not in dates]
    return any(not content(name).keys() <= have for name in names)


def _numbers_moved(text: str, said: str) -> bool:
    """Whether a number of the sentence counts what another number of it counts in what was said: "7904
    transactions" for "6.8 million transactions will be affected by 7904". A word that stands behind
    several numbers of the sentence ("3 days to 5 days") tells nothing."""
    told, heard = counted(text, 1), counted(said, BOUND)
    every = numbers(text)
    return any(
        not counts & heard.get(word, counts) and heard[word] & (every - counts)
        for word, counts in told.items()
        if len(counts) == 1
    )


def misspelled(text: str, sources: Sequence[str]) -> list[str]:
    """Long words of the sources, as written there, that the sentence has but for a letter near their
    beginning ("Speachmodelle"): so a model evades the limit on copies. In scripts with capitals: in
    others an article or a preposition may be a word's first letter."""
    heard = {word.lower(): word for word in words_as_written(" ".join(sources))}
    heard = {low: word for low, word in heard.items() if len(low) >= SPELLED}
    told = {w for w in words(text) if len(w) >= SPELLED and cased(w)} - heard.keys()
    return [word for low, word in heard.items() if any(_off_by_one(wrong, low) for wrong in told)]


def _off_by_one(word: str, other: str) -> bool:
    """Whether one letter in the first BEGINNING is another, missing or one too many."""
    if abs(len(word) - len(other)) > 1:
        return False
    pairs = enumerate(zip(word, other, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), BEGINNING)
    more, less = len(word) > len(other), len(word) < len(other)
    return at < BEGINNING and word[at + (not less) :] == other[at + (not more) :]


def _content_lost(draft: Draft, known: Known) -> bool:
    """Whether too little of the turn is left. Of short turns a share must be, of all of them something
    besides people's names."""
    text, said, speaker = draft.text, draft.turn.said, draft.turn.speaker
    kept = KEPT if cased(said) else KEPT_CASELESS
    if not is_long(said) and support(said, [text, speaker]) < kept:
        return True
    people = content(" ".join((*known.people, draft.owner or "")))
    told, own = ({u: w for u, w in content(t).items() if u not in people} for t in (said, text))
    most = sum(told.values())
    return covered(told, own) * most < min(MIN_KEPT, most / 2)


def checked(draft: Draft, refused: Counter[str]) -> bool:
    """Whether the draft may become a note. One whose sentence fails a check says what its turn says,
    word for word, where that is short enough."""
    if draft.problem and not _says_what_is_new(draft):
        refused[draft.problem] += 1
        said = draft.turn.said
        sure = not cased(said) and draft.importance >= QUOTE_WEIGHT
        telling = numbers(said) or draft.turn.names or is_question(said) or sure
        few = TERSE if draft.kind in ("topic", "open_question") else QUOTE_UNITS
        if not (telling and fits(said, few if draft.turn.changes is None else CHANGE_UNITS)):
            return False
        draft.text = said.strip()
    return bool(draft.text)


def _says_what_is_new(draft: Draft) -> bool:
    """Whether the sentence lost only what the item was before ("… in Porto, not in Lisbon"): names of
    the item with which the turn ends. What the turn is about stands before them."""
    turn = draft.turn
    if draft.problem != "name_lost" or turn.changes is None:
        return False
    lost, before = lost_names(draft), content(turn.changes.text).keys()
    was = all(content(name).keys() <= before for name in lost)
    last = turn.names[-len(lost) :] == lost
    return was and last and support(turn.said, [draft.text, turn.speaker]) >= KEPT


def _in_another_language(draft: Draft) -> bool:
    """Whether the sentence is plainly not in the language it is to be in."""
    if (
        not draft.wanted
        and script(draft.turn.said)
        and script(draft.text) != script(draft.turn.said)
    ):
        return True
    tag = draft.tag
    if tag is None:
        return False
    found = languages.detect(draft.text)
    if found:
        return not languages.same(found, tag)
    return languages.looks_like(draft.text, ASKED_IN, rather_than=tag)


def lost_names(draft: Draft) -> list[str]:
    """The names of a turn that its sentence does not have, if the turn is short enough to stand for
    itself instead, and the sentence no translation."""
    turn = draft.turn
    most = QUOTE_UNITS if turn.changes is None else CHANGE_UNITS
    if not fits(turn.said, most) or draft.translated:
        return []
    kept = content(" ".join((draft.text, draft.owner or "", turn.speaker))).keys()
    dates = languages.dates(turn.said, turn.language or ASKED_IN)
    told = languages.dates(draft.text, draft.tag or ASKED_IN).values()
    names = (name for name in turn.names if dates.get(name) not in told)
    return [name for name in names if not content(name).keys() <= kept]


def is_long(said: str) -> bool:
    return not fits(said, QUOTE_UNITS)


def fits(said: str, count: int) -> bool:
    """Whether the text has at most so many words."""
    return len(units(said)) <= in_words(said, count)


def in_words(text: str, count: int) -> int:
    """How many units of the text so many words are: a word is two pairs of characters, about, in scripts
    without spaces."""
    return 2 * count if unspaced(text) else count
