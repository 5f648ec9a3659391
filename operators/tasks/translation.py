"""Translation of every final segment into any number of languages, each answer on its own branch; of
partial hypotheses likewise, if they are to be shown.

A branch sees the conversation so far and is given the very words to translate. Long segments are
translated in pieces that end at sentences where possible, so that a branch's scratch suffices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from operators.config import LANGUAGES, OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.drafting import decoding
from operators.engine.session import Part, Session, Work
from operators.events import (
    ModelInfo,
    Segment,
    Source,
    Stability,
    TranslationEvent,
    Usage,
    event_id,
)
from operators.model.tokenizer import Tokenizer
from operators.tasks.prompts import Prompts
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


class TranslationTask:
    """Makes the generations a part owes and turns finished ones into events."""

    def __init__(
        self, config: OperatorConfig, prompts: Prompts, tokenizer: Tokenizer, model: ModelInfo
    ) -> None:
        self._config, self._prompts = config, prompts
        self._tokenizer, self._model = tokenizer, model

    def generations(
        self, session: Session, part: Part, on_finish: Callable[[Generation], None]
    ) -> list[Generation]:
        """One generation per language and piece of ``part``; entered in its work. Mutates the work."""
        work = part.work
        assert work is not None
        made: list[Generation] = []
        pieces = self.pieces(part.said)
        for code in self._config.targets:
            if work.segment.language == code:
                continue
            for piece in pieces:
                generation = self.generation(session, code, piece, on_finish)
                work.answers.setdefault(code, []).append(generation)
                made.append(generation)
        work.owed += len(made)
        return made

    def pieces(self, text: str) -> list[str]:
        """``text`` cut as far as a branch needs it, at sentences where possible."""
        limit = self._config.translation_unit_tokens
        return split_text(text, limit, lambda t: len(self._tokenizer.encode(t)))

    def generation(
        self,
        session: Session,
        code: str,
        text: str,
        on_finish: Callable[[Generation], None],
        *,
        number: int = 0,
        previous: str = "",
    ) -> Generation:
        """The translation of one piece into the language of ``code``. ``previous``: what an earlier
        version of the text was translated to, as the draft for this one; of a text in several
        pieces the drafter finds the place that belongs to each."""
        task = f"translation:{code}"
        prompt = self._prompts.render("translate", language=LANGUAGES[code], text=text)
        source_tokens = len(self._tokenizer.encode(text))
        room = self._config.branch_tokens - len(prompt)
        return Generation(
            task=task,
            prompt=prompt,
            max_tokens=min(room, 3 * source_tokens + 16),
            eos_ids=self._tokenizer.eos_ids,
            decoding=decoding(
                self._config, session, task, prompt, self._tokenizer.encode(previous)
            ),
            ends=self._complete,
            number=number,
            on_finish=on_finish,
        )

    def _complete(self, output: Sequence[int]) -> bool:
        """The prompt opens a quotation on one line: its closing mark or a line break ends it."""
        text = self._tokenizer.decode(output)
        return "\n" in text.lstrip() or text.rstrip().endswith(('"', "”", "»"))

    def text(self, made: list[Generation]) -> str:
        """The pieces' translations as one text."""
        pieces = [self._tokenizer.decode(g.output).strip(' \n"“”«»') for g in made]
        return " ".join(p for p in pieces if p)

    def events(self, session: Session, work: Work) -> list[TranslationEvent]:
        """The finished translations of one segment, one event per language, in settings' order."""
        made = []
        for code, answers in work.answers.items():
            event = self._event(
                session, work.segment, work.ticket, code, answers, work.shown.get(code, "")
            )
            made.append(replace(event, committed=self.text(answers)))
        return made

    def hypothesis_event(
        self,
        session: Session,
        segment: Segment,
        ticket: int,
        code: str,
        made: list[Generation],
        shown: str,
        degraded: tuple[str, ...],
    ) -> TranslationEvent:
        """The translation of a partial: all of it may change. ``shown``: the tail before it."""
        event = self._event(session, segment, ticket, code, made, shown)
        return replace(
            event,
            tail=self.text(made),
            is_final=False,
            policy="retranslation",
            degraded=(*degraded, *event.degraded),
        )

    def _event(
        self,
        session: Session,
        segment: Segment,
        ticket: int,
        code: str,
        made: list[Generation],
        shown: str,
    ) -> TranslationEvent:
        """All but the text; takes the next revision."""
        task = f"translation:{code}"
        revision = session.next_revision(task)
        cut = sorted({g.finish_reason for g in made} - {"stop"})
        deleted, erasure = normalized_erasure(shown, self.text(made))
        return TranslationEvent(
            stream_id=session.stream_id,
            epoch=session.epoch,
            revision=revision,
            event_id=event_id(session.stream_id, task, session.epoch, revision),
            target_lang=code,
            unit_id=segment.segment_id,
            source_lang=segment.language,
            source_text=segment.text,
            source_segment_ids=(segment.segment_id,),
            covers=session.covers,
            source=Source(first_offset=ticket, last_offset=ticket),
            model=self._model,
            usage=_usage(made, cut),
            stability=Stability(deleted, round(erasure, 4)),
            degraded=tuple(f"cut_by_{reason}" for reason in cut),
        )


def _usage(made: list[Generation], cut: list[str]) -> Usage:
    usages = [g.usage() for g in made]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in usages),
        output_tokens=sum(u.output_tokens for u in usages),
        drafted=sum(u.drafted for u in usages),
        accepted=sum(u.accepted for u in usages),
        verifies=sum(u.verifies for u in usages),
        finish_reason=cut[0] if cut else "stop",
    )
