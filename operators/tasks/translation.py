"""Translation of every final segment into any number of languages, and of partial hypotheses if they are
to be shown.

A segment is translated clause by clause (:meth:`TranslationTask.cut`), each clause in a run of its own,
so that a long segment is published as it gets done. The model is asked in its plain way, in a
conversation that holds nothing but the request: it sees no minutes and no frame that a text could
close, and its answer ends with its end token, never with a character.

What can be checked of the answer is checked (operators.tasks.translation_checks). What fails is asked
for once more with what was missing; what still fails is published with a flag in ``degraded``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import regex
from msgspec.structs import replace

from operators import languages
from operators.events import (
    Event,
    Segment,
    Source,
    Stability,
    StreamSettings,
    TranslationEvent,
    Usage,
)
from operators.stream_settings import ANY_LANGUAGE
from operators.tasks import translation_checks as checks
from operators.tasks.base import (
    Answer,
    Ask,
    Asked,
    Outcome,
    Partial,
    Spoken,
    Steps,
    StreamView,
    Task,
    total,
)
from operators.text import normalized_erasure

TOKENS_PER_TOKEN, TOKENS_AT_LEAST = 4, 24
"""Room for a translation: scripts the model's tokenizer knows little of take several tokens per word."""
REPEATED = 5
"""A segment that says the same as the REPEATED - 1 before it is taken for the recogniser's noise."""
PASSED, NOISE = "same_language", "not_speech"
_BRACKETS = regex.compile(
    r"\[[^\]]*\]|<[^>]*>|\((?:\s*\w+){0,3}\s*\)|\*(?:\s*\w+){0,3}\s*\*|♪[^♪]*♪"
)
_SPEECH = regex.compile(r"[\p{L}\p{N}]")


@dataclass(frozen=True)
class TextToTranslate:
    """Words that are not the stream's own. ``previous``: the translation of an earlier version of
    them, a draft for this one, or empty."""

    text: str
    language: str
    previous: str = ""


@dataclass(frozen=True)
class Clause:
    """One piece of a segment in one language. ``policy``: why it is what it is."""

    text: str
    policy: str = "final"
    usage: Usage = field(default_factory=Usage)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Try:
    """A translation as the model gave it, what is wrong with it, and what was spent."""

    expected: checks.Expected
    answer: Answer
    faults: Sequence[checks.Fault]
    spent: tuple[Usage, ...]

    def better(self, second: Answer) -> _Try:
        """The better of this and a second answer; the first if they are equally bad."""
        spent = (*self.spent, second.usage)
        faults = checks.faults(self.expected, second.text)
        if _weight(faults) < _weight(self.faults):
            return _Try(self.expected, second, faults, spent)
        return dataclasses.replace(self, spent=spent)

    def clause(self) -> Clause:
        flags = [fault.kind for fault in self.faults]
        reason = self.answer.finish_reason
        if reason != "stop":
            flags.append(f"cut_by_{reason}")
        usage = total(self.spent, reason)
        return Clause(self.answer.text.strip(), "final", usage, tuple(flags))


Clauses = Generator[Sequence[Ask], Sequence[Answer], dict[str, Clause]]


class TranslationTask(Task):
    """Translates final segments into every target language, partial hypotheses, and other text."""

    name = "translation"
    early = True

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        drop = self.tools.config.translation_noise == "drop"
        return bool(self.targets(settings)) and not (drop and is_noise(segment.text))

    def targets(self, settings: StreamSettings) -> list[str]:
        """Tags of the languages that are published: the stream's own choice, else the operator's."""
        chosen = self.tools.config.targets if settings.targets is None else settings.targets
        return list(dict.fromkeys(languages.canonical(tag) for tag in chosen))

    def cut(self, segment: Segment, text: str) -> list[str]:
        limit = self.tools.config.translation_unit_tokens
        tag = languages.known(segment.language) or "en"
        return languages.split(" ".join(text.split()), limit, self._count, tag)

    def _count(self, text: str) -> int:
        return len(self.tools.tokenizer.encode(text))

    def run(self, view: StreamView, occasion: Spoken | Partial | Asked) -> Steps:
        match occasion:
            case Spoken(segment, text):
                clauses = yield from self._clause(view, segment, text)
                return Outcome(part=clauses)
            case Partial():
                return (yield from self._partial(view, occasion))
            case Asked(request):
                return (yield from self._asked(view, request))

    def _clause(self, view: StreamView, segment: Segment, text: str) -> Clauses:
        """One clause in all languages: passed on, or translated, checked and perhaps repaired."""
        made: dict[str, Clause] = {}
        wanted: list[checks.Expected] = []
        source_lang = source_language(segment)
        noise = self.tools.config.translation_noise == "pass" and (
            is_noise(text) or _is_repeated(view, text)
        )
        targets = self.targets(view.settings)
        for tag in targets:
            if noise or (source_lang is not None and languages.same(source_lang, tag)):
                made[tag] = Clause(text, NOISE if noise else PASSED)
            else:
                wanted.append(_expected(view, text, source_lang, tag))
        made |= yield from self._translated(wanted)
        return {tag: made[tag] for tag in targets}

    def _translated(self, wanted: Sequence[checks.Expected], previous: str = "") -> Clauses:
        """The checked translations of what is ``wanted``, by language."""
        if not wanted:
            return {}
        answers = yield [self._ask(e, previous=previous) for e in wanted]
        tries = {
            e.target_lang: _Try(e, answer, checks.faults(e, answer.text), (answer.usage,))
            for e, answer in zip(wanted, answers, strict=True)
        }
        bad = [t for t in tries.values() if t.faults and self._can_hint]
        if bad:
            answers = yield [self._ask(t.expected, t.faults, t.answer.text) for t in bad]
            for first, answer in zip(bad, answers, strict=True):
                tries[first.expected.target_lang] = first.better(answer)
        return {tag: made.clause() for tag, made in tries.items()}

    @property
    def _can_hint(self) -> bool:
        return self.tools.prompts.has("translate", "hint")

    def _ask(
        self,
        expected: checks.Expected,
        faults: Sequence[checks.Fault] = (),
        previous: str = "",
    ) -> Ask:
        """An ask for one translation. ``faults``: what was wrong with the first. ``previous``: an
        earlier translation, a draft for this one."""
        tokenizer, tag = self.tools.tokenizer, expected.target_lang
        prompt = self.tools.prompts.alone(
            "translate",
            language=languages.name(tag),
            text=" ".join(expected.source.split()),
            hint=_hint(expected, faults),
        )
        room = self.tools.config.branch_tokens - len(prompt)
        wanted = TOKENS_PER_TOKEN * self._count(expected.source) + TOKENS_AT_LEAST
        return Ask(
            prompt=prompt,
            max_tokens=max(1, min(room, wanted)),
            kind=f"translation:{tag}",
            previous=tokenizer.encode(previous),
            alone=True,
        )

    def _asked(self, view: StreamView, request: TextToTranslate) -> Steps:
        tag = languages.canonical(request.language)
        pieces = self.cut(Segment(stream_id=view.stream_id), request.text)
        source_lang = languages.detect(request.text)
        wanted = [_expected(view, piece, source_lang, tag) for piece in pieces]
        texts = []
        for expected in wanted:
            made = yield from self._translated([expected], request.previous)
            texts.append(made[tag].text)
        return Outcome(text=languages.join(texts))

    def _partial(self, view: StreamView, occasion: Partial) -> Steps:
        segment, tag, shown = occasion.segment, occasion.language, occasion.shown
        if is_noise(segment.text):
            return Outcome()
        source_lang = source_language(segment)
        pieces = self.cut(segment, segment.text)
        clauses = [Clause(piece, PASSED) for piece in pieces]
        if source_lang is None or not languages.same(source_lang, tag):
            wanted = [_expected(view, piece, source_lang, tag) for piece in pieces]
            answers = yield [self._ask(expected, previous=shown) for expected in wanted]
            clauses = [
                _Try(
                    e, answer, (), (answer.usage,)
                ).clause()  # it is not checked: there is more to come
                for e, answer in zip(wanted, answers, strict=True)
            ]
        event = self._event(segment, tag, clauses, shown, view.source)
        text = languages.join([clause.text for clause in clauses])
        tail = replace(event, tail=text, is_final=False, policy="retranslation")
        return Outcome(events=(tail,))

    def join(
        self,
        segment: Segment,
        outcomes: Sequence[Outcome],
        shown: Mapping[str, str],
        published: int = 0,
        complete: bool = True,
    ) -> Sequence[Event]:
        """One event per language, in the settings' order, with all clauses so far as ``committed``."""
        made = []
        for tag in outcomes[0].part if outcomes else ():
            clauses = [outcome.part[tag] for outcome in outcomes]
            before = shown.get(tag, "") if complete else ""
            event = self._event(segment, tag, clauses, before, Source(), published)
            text = languages.join([clause.text for clause in clauses])
            made.append(replace(event, committed=text, is_final=complete))
        return made

    def _event(
        self,
        segment: Segment,
        tag: str,
        clauses: Sequence[Clause],
        shown: str,
        source: Source,
        published: int = 0,
    ) -> TranslationEvent:
        """All but the text. ``published``: how many of the clauses an event has had before."""
        deleted, erasure = normalized_erasure(shown, languages.join([c.text for c in clauses]))
        flags = sorted({flag for clause in clauses for flag in clause.flags})
        new = [clause.usage for clause in clauses[published:]]
        reasons = sorted({usage.finish_reason for usage in new} - {"stop"})
        return TranslationEvent(
            stream_id=segment.stream_id,
            epoch=0,
            revision=0,
            target_lang=tag,
            unit_id=segment.segment_id,
            clauses=len(clauses),
            source_lang=source_language(segment),
            source_text=segment.text,
            source_segment_ids=(segment.segment_id,),
            policy=clauses[0].policy if clauses else "final",
            source=source,
            model=self.tools.model,
            usage=total(new, reasons[0] if reasons else "stop"),
            stability=Stability(deleted, round(erasure, 4)),
            degraded=tuple(flags),
        )


def source_language(segment: Segment) -> str | None:
    """What the recogniser says, else what the text surely is in."""
    return languages.known(segment.language) or languages.detect(segment.text)


def is_noise(text: str) -> bool:
    """Whether nothing is said: ``[BLANK_AUDIO]``, ``(laughs)``, ``♪``. Words in round brackets are
    speech if there are more than three."""
    return _SPEECH.search(_BRACKETS.sub("", text)) is None


def _is_repeated(view: StreamView, text: str) -> bool:
    last = [seen.text.casefold() for seen in view.segments[-REPEATED:]]
    return len(last) == REPEATED and set(last) == {text.casefold()}


def _expected(view: StreamView, text: str, source_lang: str | None, tag: str) -> checks.Expected:
    """A text to be translated, with the stream's glossary and the names of its people."""
    terms = {
        term: _rendering(term, renderings, tag)
        for term, renderings in (view.settings.glossary or {}).items()
    }
    speakers = (seen.evidence.speaker for seen in view.segments)
    people = dict.fromkeys((*(s for s in speakers if s), *(view.settings.participants or ())))
    return checks.Expected(text, source_lang, tag, terms, tuple(people))


def _rendering(term: str, renderings: Mapping[str, str], tag: str) -> str:
    """What a glossary wants for a term: for this very tag, for its language, for any, or the term."""
    for code, text in renderings.items():
        if languages.known(code) == tag:
            return text
    for code, text in renderings.items():
        found = languages.known(code)
        if found is not None and languages.same(found, tag):
            return text
    return renderings.get(ANY_LANGUAGE, term)


def _weight(faults: Sequence[checks.Fault]) -> int:
    """How bad they are: a plain failure counts more than anything missing."""
    return sum(len(fault.keep) or 100 for fault in faults)


def _hint(expected: checks.Expected, faults: Sequence[checks.Fault]) -> str:
    """What the request says besides the language: the glossary's terms, and what a first try missed."""
    terms = checks.applying(expected.terms, expected.source)
    said = [f"{theirs} for {term}" for term, theirs in terms.items()]
    missed = [text for fault in faults if fault.kind != "terms_missing" for text in fault.keep]
    hints = []
    if said:
        hints.append("with " + ", ".join(said))
    if missed:
        hints.append("keeping " + ", ".join(missed))
    if any(not fault.keep for fault in faults):
        hints.append("the translation only")
    return "".join(f", {hint}" for hint in hints)
