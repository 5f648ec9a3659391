"""Answers to questions about a stream, from its window and its ledger, each on a branch of its own."""

from __future__ import annotations

from collections.abc import Callable

from operators.config import OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.drafting import decoding
from operators.engine.session import Session
from operators.errors import SegmentError
from operators.events import AnswerEvent, KvInfo, LedgerItem, ModelInfo, event_id
from operators.model.tokenizer import Tokenizer
from operators.tasks import ledger
from operators.tasks.prompts import Prompts

TASK = "answer"
SHORTEST_ANSWER = 8
"""Tokens that must be left for the answer, or the question is refused as too long."""


class AnswerTask:
    """Makes the generation a question needs and turns it into an event."""

    def __init__(
        self, config: OperatorConfig, prompts: Prompts, tokenizer: Tokenizer, model: ModelInfo
    ) -> None:
        self._config, self._prompts = config, prompts
        self._tokenizer, self._model = tokenizer, model

    def generation(
        self, session: Session, question: str, on_finish: Callable[[Generation], None]
    ) -> Generation:
        """Raises SegmentError("question_too_large") when it leaves no room for an answer."""
        items = session.items
        prompt = self._prompt(items, question)
        while items and len(prompt) + self._config.summary_tokens > self._config.branch_tokens:
            items = items[1:]  # the oldest notes first
            prompt = self._prompt(items, question)
        room = self._config.branch_tokens - len(prompt)
        if room < SHORTEST_ANSWER:
            raise SegmentError(
                "question_too_large",
                f"the question and its instruction take {len(prompt)} tokens, a branch has "
                f"{self._config.branch_tokens}: ask a shorter one, or raise branch_tokens",
            )
        return Generation(
            task=TASK,
            prompt=prompt,
            max_tokens=min(room, self._config.summary_tokens),
            eos_ids=self._tokenizer.eos_ids,
            decoding=decoding(self._config, session, TASK, prompt),
            on_finish=on_finish,
        )

    def _prompt(self, items: tuple[LedgerItem, ...], question: str) -> list[int]:
        return self._prompts.render("answer", ledger=ledger.render(items), question=question)

    def event(
        self, session: Session, question_id: str, question: str, generation: Generation
    ) -> AnswerEvent:
        """What is published. Counts the stream's answers up. Mutates the session."""
        revision = session.next_revision(TASK)
        text = self._tokenizer.decode(generation.output).strip()
        degraded = (
            [] if generation.finish_reason == "stop" else [f"cut_by_{generation.finish_reason}"]
        )
        return AnswerEvent(
            stream_id=session.stream_id,
            epoch=session.epoch,
            revision=revision,
            event_id=event_id(session.stream_id, TASK, session.epoch, revision),
            question_id=question_id,
            question=question,
            text=text,
            evidence=ledger.find_evidence(text, session.visible_parts(since=0)),
            covers=session.covers,
            model=self._model,
            usage=generation.usage(),
            kv=KvInfo(
                session.layout.sinks,
                session.layout.window,
                session.evicted_total,
                session.restored,
            ),
            degraded=tuple(degraded),
        )
