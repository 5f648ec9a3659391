"""Answers to questions about a stream, from its notes and its window.

What is asked for by kind (what is new, decisions, open items) is read off the notes, without the
model. A free question is first searched for in notes and window (:mod:`operators.tasks.retrieval`).
What no passage says is refused; else the model sees the passages found, and nothing else. An answer with
words, names or numbers that are in none of them is replaced by the best passage itself; one with what a
note said before it was changed, by the note of today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from operators import languages
from operators.errors import SegmentError
from operators.events import AnswerEvent, Evidence, LedgerItem, Question, Usage
from operators.render import GONE, grouped, listing
from operators.tasks.base import (
    EMPTY,
    Answer,
    Ask,
    Asked,
    Outcome,
    Steps,
    StreamView,
    Task,
    flags,
)
from operators.tasks.retrieval import Found, Passage, search
from operators.text import cased, content, names_inside, numbers, script, similarity, support, units

TASK = "answer"
SKIPPED = Usage(finish_reason="skipped")
SHORTEST_ANSWER, ROOM_FOR_EXCERPTS = 8, 32
"""Tokens that must be left, or the question is refused as too long."""
MOST_TOKENS = 96
"""Of an answer."""
MIN_SUPPORT = 0.6
"""Share of an answer's content that must stand in the passages or the question."""
MAX_EVIDENCE, MAX_ITEMS, MAX_CHARS = 20, 100, 4000
"""Of an answer: it is part of the stream's state."""
QUESTION_CHARS = 280
"""Of a question, in its answer."""


class AnswerTask(Task):
    """Answers :class:`~operators.events.Question` requests."""

    name = TASK

    def check(self, question: Question) -> None:
        """Raises SegmentError: "missing_text" for a blank one, "question_too_large" when it leaves no
        room for an answer."""
        if question.kind != "free":
            return
        if not question.text.strip():
            raise SegmentError("missing_text", "a question of the kind free needs text")
        most, branch = self.tools.config.max_question, self.tools.config.branch_tokens
        left = branch - len(self._prompt(question, "", None))
        if len(question.text) > most or left < SHORTEST_ANSWER + ROOM_FOR_EXCERPTS:
            raise SegmentError(
                "question_too_large",
                f"the question has {len(question.text)} characters (at most {most}: max_question) and "
                f"leaves {left} tokens of a branch (branch_tokens {branch}): ask a shorter one",
            )

    def run(self, view: StreamView, occasion: Asked) -> Steps:
        question: Question = occasion.request
        if question.kind != "free":
            return Outcome(events=(self._from_notes(view, question),))
        found = search(question.text, passages_of(view))
        if not found.says:
            return Outcome(events=(self._event(view, question, refused=True),))
        ask, shown = self._ask(view, question, found)
        (answer,) = yield [ask]
        return Outcome(events=(self._answer(view, question, shown, answer),))

    # --- from the notes ----------------------------------------------------------------------

    def _from_notes(self, view: StreamView, question: Question) -> AnswerEvent:
        items = chosen(view.ledger.items, question)[:MAX_ITEMS]
        lines = listing(items, question.language or view.settings.summary_language)
        cut = False
        while sum(map(len, lines)) > MAX_CHARS:
            cut = bool(lines.pop())
        return self._event(
            view,
            question,
            text="\n".join(lines),
            refused=not lines,
            items=items,
            evidence=tuple(e for item in items for e in item.evidence),
            degraded=("answer_cut",) if cut else (),
        )

    # --- from passages -----------------------------------------------------------------------

    def _ask(
        self, view: StreamView, question: Question, found: Found
    ) -> tuple[Ask, Sequence[Passage]]:
        """The ask, and the passages that it shows: the best ones that fit, in order of the stream."""
        room = self.tools.config.branch_tokens
        language = (
            self._language(view, question)
            or languages.detect(question.text)
            or languages.detect(" ".join(passage.line for passage in found.passages))
        )
        shown = list(found.passages)
        while True:
            lines = [f"- {passage.line}" for passage in sorted(shown, key=lambda p: p.place)]
            prompt = self._prompt(question, "\n".join(lines), language)
            if len(prompt) + MOST_TOKENS <= room or len(shown) == 1:
                break
            shown.pop()
        prompt = prompt[-(room - SHORTEST_ANSWER) :]  # one passage longer than a branch
        tokens = min(MOST_TOKENS, room - len(prompt))
        return Ask(prompt, tokens, ends=self._line_ended, alone=True), shown

    def _prompt(self, question: Question, excerpts: str, language: str | None) -> list[int]:
        return self.tools.prompts.alone(
            "answer",
            excerpts=excerpts,
            question=" ".join(question.text.split()),
            language=f" in {languages.name(language)}" if language else "",
        )

    def _language(self, view: StreamView, question: Question) -> str | None:
        wanted = question.language or view.settings.summary_language
        return languages.known(wanted)

    def _line_ended(self, output: Sequence[int]) -> bool:
        return "\n" in self.tools.tokenizer.decode(output).lstrip()

    def _answer(
        self, view: StreamView, question: Question, shown: Sequence[Passage], answer: Answer
    ) -> AnswerEvent:
        """The model's words where the passages bear them out, else the best passage."""
        text = " ".join(answer.text.strip().split("\n")[0].split())
        lines = [passage.line for passage in shown]
        translated = self._language(view, question) is not None
        used = sorted(shown, key=lambda p: -similarity(p.line, text))[:3]
        quoted = shown[0] if not borne_out(text, question.text, lines, translated) else None
        quoted = quoted or _changed(view, text, used[0])
        told = flags([answer])
        if quoted is not None:
            told = ("quoted", *(flag for flag in told if flag == EMPTY))
            text, used = quoted.line, [quoted]
        return self._event(
            view,
            question,
            text=text[:MAX_CHARS],
            items=[p.item for p in used if p.item is not None],
            evidence=tuple(e for p in used for e in p.evidence),
            usage=answer.usage,
            degraded=told,
        )

    def _event(
        self,
        view: StreamView,
        question: Question,
        *,
        text: str = "",
        refused: bool = False,
        items: Sequence[LedgerItem] = (),
        evidence: tuple[Evidence, ...] = (),
        usage: Usage = SKIPPED,
        degraded: tuple[str, ...] = (),
    ) -> AnswerEvent:
        unknown = question.language and languages.known(question.language) is None
        return AnswerEvent(
            stream_id=view.stream_id,
            epoch=view.epoch,
            revision=view.revision,
            question_id=question.question_id,
            kind=question.kind,
            question=question.text[:QUESTION_CHARS],
            text=text,
            refused=refused,
            items=tuple(item.id for item in items),
            evidence=tuple(dict.fromkeys(evidence))[:MAX_EVIDENCE],
            model=self.tools.model,
            usage=usage,
            kv=view.kv,
            degraded=(*degraded, *(("unknown_language",) if unknown else ())),
        )


def passages_of(view: StreamView) -> list[Passage]:
    """The live notes, those of the archive first, then the turns of the window, in order of the
    stream."""
    items = (*view.ledger.archived, *view.ledger.items)
    notes = [_passage(view, item) for item in items if item.state not in GONE]
    turns = []
    for segment in view.segments:
        who, said = segment.evidence.speaker, segment.evidence.correction or segment.text
        turns.append(Passage(f"{who}: {said}" if who else said, (segment.evidence,)))
    return [replace(passage, place=at) for at, passage in enumerate((*notes, *turns))]


def _passage(view: StreamView, item: LedgerItem) -> Passage:
    (line,) = listing([item], view.settings.summary_language)
    return Passage(line.removeprefix("- "), item.evidence, item)


def chosen(items: Sequence[LedgerItem], question: Question) -> list[LedgerItem]:
    """The notes that a question of a kind asks for."""
    live = [item for item in items if item.state not in GONE]
    if question.about:
        live = [item for item in live if concerns(item, question.about)]
    if question.kind == "decisions":
        live = [item for item in live if item.kind == "decision"]
    elif question.kind == "open_items":
        kinds = ("action_item", "open_question")
        live = [item for item in live if item.kind in kinds and item.state == "open"]
    since, at = question.since_revision, question.since_ms
    if since is not None:
        live = [item for item in live if item.last_changed_revision > since]
    if at is not None:
        live = [item for item in live if _time(item) >= at]
    if question.kind == "catch_up" and since is None and at is None and not question.about:
        live = [item for found in grouped(live, "executive").values() for item in found]
    return live


def concerns(item: LedgerItem, person: str) -> bool:
    """Whether a note is a person's task, or names them (or a part of their name)."""
    parts = {unit for unit in units(person) if len(unit) > 1}
    spoken = {e.speaker for e in item.evidence}
    return bool(parts & {*units(item.text), *units(item.owner or "")}) or person in spoken


def _time(item: LedgerItem) -> int:
    times = [e.end_ms if e.end_ms is not None else e.start_ms for e in item.evidence]
    return max((time for time in times if time is not None), default=-1)


def borne_out(text: str, question: str, lines: Sequence[str], translated: bool) -> bool:
    """Whether an answer says nothing that the passages' ``lines`` do not: no other number, no name that
    the question alone has (no noun, where nouns have capitals; no long word, where nothing has), and few
    other words. Only numbers can be told of a ``translated`` one."""
    said = " ".join(lines)
    if not units(text) or numbers(text) - numbers(said):
        return False
    if translated:
        return True
    if _names(question) & content(text).keys() - content(said).keys():
        return False
    return (
        script(text) == script(f"{question} {said}")
        and support(text, [question, said]) >= MIN_SUPPORT
    )


def _changed(view: StreamView, text: str, of: Passage) -> Passage | None:
    """The note of today, where the answer ``text``, which is about the passage ``of``, has what the note
    said before and nothing of what it says since."""
    items = {item.id: item for item in (*view.ledger.archived, *view.ledger.items)}
    for now in items.values():
        before: list[LedgerItem] = []
        was = items.get(now.supersedes or "")
        while was is not None and was not in before:
            before.append(was)
            was = items.get(was.supersedes or "")
        if now.state in GONE or not before:
            continue
        where = {place for item in (now, *before) for place in item.evidence}
        former = " ".join(item.text for item in before)
        if where & set(of.evidence) and is_outdated(text, now.text, former):
            return _passage(view, now)
    return None


def is_outdated(text: str, note: str, former: str) -> bool:
    """Whether a text has a number, or else a name, of a note's former words, and none that only its
    words of today have: "by May 21", where that is "by May 28, not May 21" now."""
    for of in (numbers, _names):
        told, before = of(text), of(former)
        new = of(note) - before
        if told & new:
            return False
        if told & before and new:
            return True
    return False


def _names(text: str) -> set[str]:
    """The content of what may be names: words with a capital inside a sentence; in a script without
    capitals long words, and pairs of characters."""
    inside = {unit for name in names_inside(text) for unit in content(name)}
    others = content(text, digits=False).items()
    return inside | {unit for unit, weight in others if weight == 1 and not cased(unit)}
