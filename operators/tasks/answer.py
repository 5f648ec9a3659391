"""Answers to questions about a stream, from its window and its ledger, each on a branch of its own."""

from __future__ import annotations

from dataclasses import dataclass

from operators.errors import SegmentError
from operators.events import AnswerEvent, LedgerItem
from operators.tasks import ledger
from operators.tasks.base import Answer, Ask, Asked, Outcome, Steps, StreamView, Task, flags

TASK = "answer"
SHORTEST_ANSWER = 8
"""Tokens that must be left for the answer, or the question is refused as too long."""


@dataclass(frozen=True)
class Question:
    """A question and the caller's name for it."""

    question_id: str
    text: str


class AnswerTask(Task):
    """Answers :class:`Question` requests."""

    name = TASK

    def check(self, question: Question) -> None:
        """Raises SegmentError("question_too_large") when it leaves no room for an answer."""
        tokens = len(self._prompt((), question))
        if self.tools.config.branch_tokens - tokens < SHORTEST_ANSWER:
            raise SegmentError(
                "question_too_large",
                f"the question and its instruction take {tokens} tokens, a branch has "
                f"{self.tools.config.branch_tokens}: ask a shorter one, or raise branch_tokens",
            )

    def run(self, view: StreamView, occasion: Asked) -> Steps:
        question: Question = occasion.request
        (answer,) = yield [self._ask(view.ledger.items, question)]
        return Outcome(events=(self._event(view, question, answer),))

    def _ask(self, items: tuple[LedgerItem, ...], question: Question) -> Ask:
        config = self.tools.config
        prompt = self._prompt(items, question)
        while items and len(prompt) + config.summary_tokens > config.branch_tokens:
            items = items[1:]  # the oldest notes first
            prompt = self._prompt(items, question)
        return Ask(prompt, min(config.branch_tokens - len(prompt), config.summary_tokens))

    def _prompt(self, items: tuple[LedgerItem, ...], question: Question) -> list[int]:
        notes = ledger.render(items)
        return self.tools.prompts.render("answer", ledger=notes, question=question.text)

    def _event(self, view: StreamView, question: Question, answer: Answer) -> AnswerEvent:
        text = answer.text.strip()
        seen = [(segment.evidence, segment.text) for segment in view.segments]
        return AnswerEvent(
            stream_id=view.stream_id,
            epoch=view.epoch,
            revision=view.revision,
            question_id=question.question_id,
            question=question.text,
            text=text,
            evidence=ledger.find_evidence(text, seen),
            model=self.tools.model,
            usage=answer.usage,
            kv=view.kv,
            degraded=flags([answer]),
        )
