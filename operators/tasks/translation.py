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
from operators.commit import (
    ALIGNATT,
    NOTHING_HELD,
    Held,
    Hypothesis,
    Policy,
    committed,
    policy,
)
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
from operators.tasks.alignment import span_of
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
from operators.text import is_question, normalized_erasure

TOKENS_PER_TOKEN, TOKENS_AT_LEAST = 4, 24
"""Room for a translation: scripts the model's tokenizer knows little of take several tokens per word."""
REPEATED = 5
"""A segment that says the same as the REPEATED - 1 before it is taken for the recogniser's noise."""
MAX_BEFORE = 8
"""Hypotheses of a piece that are kept for local agreement."""
REPEAT = "or repeat it if there is nothing to translate"
"""Asked of a few words whose first translation was an answer or an invention ("Mm.")."""
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
class _Wanted:
    """A text to be translated. ``opening``: tokens that its translation begins with; ``previous``: those
    of an earlier translation behind them, a draft for this one; ``opening_ends_in_a_name``: perhaps in
    the middle of one, in letters of the source where the target has others."""

    expected: checks.Expected
    opening: tuple[int, ...] = ()
    previous: tuple[int, ...] = ()
    opening_ends_in_a_name: bool = False


@dataclass(frozen=True)
class _Try:
    """A translation as the model gave it, what is wrong with it, and what was spent."""

    wanted: _Wanted
    answer: Answer
    text: str
    faults: Sequence[checks.Fault]
    spent: tuple[Usage, ...]

    @property
    def mendable(self) -> bool:
        """Whether a second ask would differ: a form is not asked for behind what is committed."""
        drop_only = all(fault.drop for fault in self.faults)
        return bool(self.faults) and not (drop_only and self.wanted.opening_ends_in_a_name)

    def again(self) -> _Wanted:
        return dataclasses.replace(self.wanted, previous=tuple(self.answer.tokens))

    def better(self, second: _Try) -> _Try:
        """The better of two; the first if they are equally bad."""
        chosen = second if _weight(second.faults) < _weight(self.faults) else self
        return dataclasses.replace(chosen, spent=(*self.spent, *second.spent))

    def clause(self, policy_name: str) -> Clause:
        flags = [fault.kind for fault in self.faults]
        reason = self.answer.finish_reason
        if reason != "stop":
            flags.append(f"cut_by_{reason}")
        return Clause(self.text, policy_name, total(self.spent, reason), tuple(flags))


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
            case Spoken():
                clauses = yield from self._clause(view, occasion)
                return Outcome(part=clauses)
            case Partial():
                return (yield from self._partial(view, occasion))
            case Asked(request):
                return (yield from self._asked(view, request))

    def _clause(self, view: StreamView, occasion: Spoken) -> Clauses:
        """One clause in all languages: passed on, or translated, checked and perhaps repaired. It begins
        with what is committed of it already."""
        segment, text = occasion.segment, occasion.text
        made: dict[str, Clause] = {}
        wanted: list[_Wanted] = []
        source_lang = source_language(segment)
        noise = self.tools.config.translation_noise == "pass" and (
            is_noise(text) or _is_repeated(view, text)
        )
        targets = self.targets(view.settings)
        for tag in targets:
            held = occasion.held.get(tag, NOTHING_HELD)
            passes = noise or (source_lang is not None and languages.same(source_lang, tag))
            opening = held.opening if occasion.index == len(held.clauses) else ()
            if occasion.index < len(held.clauses):
                made[tag] = Clause(held.clauses[occasion.index], self._policy_name)
            elif passes and not opening:
                made[tag] = Clause(text, NOISE if noise else PASSED)
            else:
                wanted.append(self._wanted(_expected(view, text, source_lang, tag), opening))
        made |= yield from self._translated(wanted)
        return {tag: made[tag] for tag in targets}

    def _wanted(
        self,
        expected: checks.Expected,
        opening: tuple[int, ...],
        previous: tuple[int, ...] = (),
    ) -> _Wanted:
        inside = checks.ends_in_a_name(expected, self.tools.tokenizer.decode(opening))
        return _Wanted(expected, opening, previous, inside)

    def _translated(self, wanted: Sequence[_Wanted]) -> Clauses:
        """The checked translations of what is ``wanted``, by language."""
        if not wanted:
            return {}
        answers = yield [self._ask(w) for w in wanted]
        tries = {
            w.expected.target_lang: self._try(w, answer)
            for w, answer in zip(wanted, answers, strict=True)
        }
        bad = [t for t in tries.values() if t.mendable and self._can_hint]
        if bad:
            answers = yield [self._ask(t.again(), t.faults) for t in bad]
            for first, answer in zip(bad, answers, strict=True):
                tag = first.wanted.expected.target_lang
                tries[tag] = first.better(self._try(first.wanted, answer))
        return {tag: made.clause(self._policy_name) for tag, made in tries.items()}

    def _try(self, wanted: _Wanted, answer: Answer) -> _Try:
        text = self._text(wanted, answer)
        if not wanted.opening:  # what is committed must stay as it is
            text = checks.mended(wanted.expected.source, text)
        return _Try(wanted, answer, text, checks.faults(wanted.expected, text), (answer.usage,))

    def _hypothesis(self, wanted: _Wanted, answer: Answer) -> _Try:
        """Unchecked, and without a line that announces it or quotation marks around it: committed, these
        could not be cut off any more. A first line that may become one is shown and not committed."""
        source, text = wanted.expected.source, self._text(wanted, answer)
        cut = 0
        if not wanted.opening:
            cut = checks.announcement(source, text) or int(checks.quoted(source, text))
        if cut:
            rest = text[cut:]
            tokens = tuple(self.tools.tokenizer.encode(rest))
            begin = len(answer.tokens) - len(tokens)
            known = bool(tokens) and answer.tokens[begin:] == tokens
            alignment = answer.alignment[begin:] if known else ()
            answer = dataclasses.replace(answer, tokens=tokens, alignment=alignment)
            text = rest or text
        return _Try(wanted, answer, text, (), (answer.usage,))

    def _text(self, wanted: _Wanted, answer: Answer) -> str:
        return self.tools.tokenizer.decode((*wanted.opening, *answer.tokens)).strip()

    @property
    def _policy(self) -> Policy:
        return policy(self.tools.config.translation_policy)

    @property
    def _policy_name(self) -> str:
        """What a final's event says about when its text was committed."""
        return self._policy.name if self._policy.commits else "final"

    @property
    def _can_hint(self) -> bool:
        return self.tools.prompts.has("translate", "hint")

    def _ask(self, wanted: _Wanted, faults: Sequence[checks.Fault] = ()) -> Ask:
        """An ask for one translation. ``faults``: what was wrong with the first."""
        expected, encode = wanted.expected, self.tools.tokenizer.encode
        tag, text = expected.target_lang, " ".join(expected.source.split())
        fields = {"language": languages.name(tag), "hint": _hint(expected, faults)}
        prompt = self.tools.prompts.alone("translate", text=text, **fields)
        watched = None
        if self._policy.kind == ALIGNATT:
            watched = span_of(prompt, encode(text), encode(f" {text}"))
        left = any(fault.drop for fault in faults)
        masked = left and not wanted.opening_ends_in_a_name
        prompt = [*prompt, *wanted.opening]
        room = self.tools.config.branch_tokens - len(prompt)
        most = TOKENS_PER_TOKEN * self._count(expected.source) + TOKENS_AT_LEAST
        return Ask(
            prompt=prompt,
            max_tokens=max(1, min(room, most)),
            kind=f"translation:{tag}",
            previous=wanted.previous,
            grammar=checks.without_source_words(expected) if masked else None,
            alone=True,
            watched=watched,
        )

    def _asked(self, view: StreamView, request: TextToTranslate) -> Steps:
        tag = languages.canonical(request.language)
        pieces = self.cut(Segment(stream_id=view.stream_id), request.text)
        source_lang = languages.detect(request.text)
        previous = tuple(self.tools.tokenizer.encode(request.previous))
        texts = []
        for piece in pieces:
            expected = _expected(view, piece, source_lang, tag)
            made = yield from self._translated([_Wanted(expected, (), previous)])
            texts.append(made[tag].text)
        return Outcome(text=languages.join(texts))

    def _partial(self, view: StreamView, occasion: Partial) -> Steps:
        """A hypothesis of a text that still grows: the pieces that are done are committed whole, of the
        last what the policy says."""
        segment, tag, held = occasion.segment, occasion.language, occasion.held
        source_lang = source_language(segment)
        passes = source_lang is not None and languages.same(source_lang, tag)
        if is_noise(segment.text) or (passes and not held.opening and not held.clauses):
            return Outcome(
                events=() if is_noise(segment.text) else (self._passed(segment, tag, held),)
            )
        done = len(held.clauses)
        pieces = self.cut(segment, segment.text)[done:]
        wanted = [
            self._wanted(_expected(view, piece, source_lang, tag), held.opening, _draft(held))
            if at == 0
            else _Wanted(_expected(view, piece, source_lang, tag))
            for at, piece in enumerate(pieces)
        ]
        if not wanted:
            return Outcome()  # it has become shorter than what is done
        answers = yield [self._ask(w) for w in wanted]
        tries = [self._hypothesis(w, a) for w, a in zip(wanted, answers, strict=True)]
        after = self._after(held, pieces, tries)
        whole = languages.join([*held.clauses, *(t.text for t in tries)])
        sure = after.text(self.tools.tokenizer.decode)
        spent = [t.clause("") for t in tries]
        event = self._event(segment, tag, spent, held.shown, whole, view.source)
        event = replace(
            event,
            committed=sure,
            tail=whole[len(sure) :],
            clauses=len(after.clauses),
            is_final=False,
            policy=self._policy.name if self._policy.commits else "retranslation",
        )
        return Outcome(events=(event,), part=dataclasses.replace(after, shown=whole))

    def _after(self, held: Held, pieces: Sequence[str], tries: Sequence[_Try]) -> Held:
        """What is held after a hypothesis; all but what was shown."""
        last = tries[-1]
        tokens = (*last.wanted.opening, *last.answer.tokens)
        if not self._policy.commits:
            return Held(before=(tokens,))
        clauses = (*held.clauses, *(t.text for t in tries[:-1]))
        before = held if len(tries) == 1 else NOTHING_HELD
        alignment = (-1,) * len(last.wanted.opening) + tuple(last.answer.alignment)
        made = Hypothesis(pieces[-1], self._count(pieces[-1]), tokens, alignment)
        opening = committed(self._policy, before, made, self.tools.tokenizer.decode)
        opening = self._without_words_left(last.wanted, opening, len(before.opening))
        return Held("", clauses, opening, (*before.before, tokens)[-MAX_BEFORE:])

    def _without_words_left(
        self, wanted: _Wanted, opening: tuple[int, ...], least: int
    ) -> tuple[int, ...]:
        """What may be committed, up to a word of the source that should not stand there: the final may
        have another in its place."""
        decode = self.tools.tokenizer.decode
        text = decode(opening)
        if left := checks.words_left(wanted.expected, text):
            sure = min(text.find(word) for word in left)
            while len(opening) > least and len(decode(opening)) > sure:
                opening = opening[:-1]
        return opening

    def _passed(self, segment: Segment, tag: str, held: Held) -> TranslationEvent:
        """A hypothesis that is in the target's language already."""
        text = " ".join(segment.text.split())
        event = self._event(segment, tag, [Clause(text)], held.shown, text, Source())
        return replace(event, tail=text, clauses=0, is_final=False, policy=PASSED)

    def join(
        self,
        segment: Segment,
        outcomes: Sequence[Outcome],
        held: Mapping[str, Held],
        published: int = 0,
        complete: bool = True,
    ) -> Sequence[Event]:
        """One event per language, in the settings' order, with all clauses so far as ``committed``. It
        begins with what was committed before, also where the final has become shorter."""
        made = []
        for tag in outcomes[0].part if outcomes else ():
            clauses = [outcome.part[tag] for outcome in outcomes]
            text = languages.join([clause.text for clause in clauses])
            before = held.get(tag, NOTHING_HELD)
            sure = before.text(self.tools.tokenizer.decode)
            if not text.startswith(sure):
                text = sure
            shown = before.shown if complete else ""
            event = self._event(segment, tag, clauses[published:], shown, text, Source())
            flags = sorted({flag for clause in clauses for flag in clause.flags})
            made.append(
                replace(
                    event,
                    committed=text,
                    clauses=max(len(clauses), len(before.clauses)),
                    is_final=complete,
                    policy=clauses[0].policy,
                    degraded=tuple(flags),
                )
            )
        return made

    def _event(
        self,
        segment: Segment,
        tag: str,
        new: Sequence[Clause],
        shown: str,
        text: str,
        source: Source,
    ) -> TranslationEvent:
        """All but the text and how far it goes. ``new``: clauses whose tokens are to be counted."""
        deleted, erasure = normalized_erasure(shown, text)
        reasons = sorted({clause.usage.finish_reason for clause in new} - {"stop"})
        flags = {flag for clause in new for flag in clause.flags}
        return TranslationEvent(
            stream_id=segment.stream_id,
            epoch=0,
            revision=0,
            target_lang=tag,
            unit_id=segment.segment_id,
            source_lang=source_language(segment),
            source_text=segment.text,
            source_segment_ids=(segment.segment_id,),
            source=source,
            model=self.tools.model,
            usage=total([clause.usage for clause in new], reasons[0] if reasons else "stop"),
            stability=Stability(deleted, round(erasure, 4)),
            degraded=tuple(sorted(flags)),
        )


def _draft(held: Held) -> tuple[int, ...]:
    """The last hypothesis behind what is committed: a draft for the next."""
    return held.before[-1][len(held.opening) :] if held.before else ()


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
    marked = any(is_question(seen.text) for seen in view.segments)
    return checks.Expected(text, source_lang, tag, terms, tuple(people), marked)


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
    """How bad they are: a plain failure counts more than anything missing or left."""
    return sum(len(fault.keep) + len(fault.drop) or 100 for fault in faults)


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
    if any(fault.kind == checks.QUESTION_CHANGED for fault in faults) and expected.asks:
        hints.append("as a question")
    elif any(not fault.keep and not fault.drop for fault in faults):
        invented = faults[0].kind == checks.NO_TRANSLATION and checks.is_short(expected.source)
        hints.append(REPEAT if invented else "the translation only")
    return "".join(f", {hint}" for hint in hints)
