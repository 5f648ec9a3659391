"""Translation of every final segment into any number of languages, each answer on its own branch; of
partial hypotheses likewise, if they are to be shown.

A branch sees the conversation so far and is given the very words to translate. Long segments are
translated in pieces that end at sentences where possible, so that a branch's scratch suffices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from operators.config import LANGUAGES
from operators.events import (
    Event,
    Segment,
    Source,
    Stability,
    StreamSettings,
    TranslationEvent,
)
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

_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+")


def split_text(text: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """Pieces of at most ``limit`` tokens (by ``count``): whole sentences packed together where that
    is possible, else cut near the middle at a space. Joined by spaces they give the text back
    (up to white space at the seams)."""
    if count(text) <= limit or len(text) < 2:
        return [text]
    sentences = _SENTENCE_END.split(text)
    if len(sentences) == 1:
        middle = len(text) // 2
        cut = text.rfind(" ", 1, middle)
        if cut < 1:
            cut = text.find(" ", middle)
        cut = cut if cut > 0 else middle
        halves = [text[:cut].strip(), text[cut:].strip()]
        return [p for half in halves if half for p in split_text(half, limit, count)]
    pieces: list[str] = []
    for sentence in sentences:
        joined = f"{pieces[-1]} {sentence}" if pieces else sentence
        if pieces and count(joined) <= limit:
            pieces[-1] = joined
        else:
            pieces.append(sentence)
    return [p for piece in pieces for p in split_text(piece, limit, count)]


@dataclass(frozen=True)
class TextToTranslate:
    """Words that are not the stream's own. ``previous``: the translation of an earlier version of
    them, a draft for this one, or empty."""

    text: str
    language: str
    previous: str = ""


class TranslationTask(Task):
    """Translates final segments into every target language, partial hypotheses, and other text."""

    name = "translation"

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        return bool(self.targets(segment, settings))

    def targets(self, segment: Segment, settings: StreamSettings) -> list[str]:
        """The languages the segment is translated into: the stream's own choice, else the operator's."""
        chosen = self.tools.config.targets if settings.targets is None else settings.targets
        return [code for code in chosen if code != segment.language]

    def run(self, view: StreamView, occasion: Spoken | Partial | Asked) -> Steps:
        match occasion:
            case Spoken(segment, text):
                return (yield from self._part(view, segment, text))
            case Partial():
                return (yield from self._partial(view, occasion))
            case Asked(request):
                pieces = self.pieces(" ".join(request.text.split()))
                answers = yield [self.ask(request.language, p, request.previous) for p in pieces]
                return Outcome(text=joined(answers))

    def _part(self, view: StreamView, segment: Segment, text: str) -> Steps:
        codes, pieces = self.targets(segment, view.settings), self.pieces(text)
        answers = yield [self.ask(code, piece) for code in codes for piece in pieces]
        n = len(pieces)
        return Outcome(part={code: answers[at * n :][:n] for at, code in enumerate(codes)})

    def _partial(self, view: StreamView, occasion: Partial) -> Steps:
        segment, code, shown = occasion.segment, occasion.language, occasion.shown
        pieces = self.pieces(" ".join(segment.text.split()))
        answers = yield [self.ask(code, piece, shown) for piece in pieces]
        event = self._event(segment, code, answers, shown, view.source)
        tail = replace(event, tail=joined(answers), is_final=False, policy="retranslation")
        return Outcome(events=(tail,))

    def pieces(self, text: str) -> list[str]:
        """``text`` cut as far as a branch needs it, at sentences where possible."""
        limit = self.tools.config.translation_unit_tokens
        return split_text(text, limit, lambda t: len(self.tools.tokenizer.encode(t)))

    def ask(self, code: str, text: str, previous: str = "") -> Ask:
        """An ask for the translation of one piece into the language of ``code``. ``previous``: what
        an earlier version of the text was translated to; of a text in several pieces the drafter
        finds the place that belongs to each."""
        config, tokenizer = self.tools.config, self.tools.tokenizer
        prompt = self.tools.prompts.render("translate", language=LANGUAGES[code], text=text)
        room = config.branch_tokens - len(prompt)
        return Ask(
            prompt=prompt,
            max_tokens=min(room, 3 * len(tokenizer.encode(text)) + 16),
            kind=f"translation:{code}",
            previous=tokenizer.encode(previous),
            ends=self._complete,
        )

    def _complete(self, output: Sequence[int]) -> bool:
        """The prompt opens a quotation on one line: its closing mark or a line break ends it."""
        text = self.tools.tokenizer.decode(output)
        return "\n" in text.lstrip() or text.rstrip().endswith(('"', "”", "»"))

    def join(
        self, segment: Segment, outcomes: Sequence[Outcome], shown: Mapping[str, str]
    ) -> Sequence[Event]:
        """The translations of one segment, one event per language, in the settings' order."""
        made = []
        for code in outcomes[0].part:
            answers = [answer for outcome in outcomes for answer in outcome.part[code]]
            event = self._event(segment, code, answers, shown.get(code, ""), Source())
            made.append(replace(event, committed=joined(answers)))
        return made

    def _event(
        self, segment: Segment, code: str, answers: Sequence[Answer], shown: str, source: Source
    ) -> TranslationEvent:
        """All but the text."""
        cut = sorted({answer.finish_reason for answer in answers} - {"stop"})
        deleted, erasure = normalized_erasure(shown, joined(answers))
        return TranslationEvent(
            stream_id=segment.stream_id,
            epoch=0,
            revision=0,
            target_lang=code,
            unit_id=segment.segment_id,
            source_lang=segment.language,
            source_text=segment.text,
            source_segment_ids=(segment.segment_id,),
            source=source,
            model=self.tools.model,
            usage=total([a.usage for a in answers], cut[0] if cut else "stop"),
            stability=Stability(deleted, round(erasure, 4)),
            degraded=tuple(f"cut_by_{reason}" for reason in cut),
        )


def joined(answers: Sequence[Answer]) -> str:
    """The pieces' translations as one text."""
    pieces = [answer.text.strip(' \n"“”«»') for answer in answers]
    return " ".join(piece for piece in pieces if piece)
