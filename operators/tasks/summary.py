"""The rolling summary: what is new goes into the ledger, a stream's durable memory.

Two methods (``summary_method``). *select*: see :mod:`operators.tasks.minutes`. *lines*: one answer of
several lines over the window; before it, when the ledger has outgrown its budget, another answer merges
the oldest items. All asks are of one run, so what they see does not depend on load.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from operators.events import LedgerItem, Stability, SummaryEvent, Trigger, Usage
from operators.tasks import ledger
from operators.tasks.base import (
    Answer,
    Ask,
    Due,
    Outcome,
    Progress,
    Steps,
    StreamView,
    Task,
    total,
)
from operators.tasks.minutes import MinuteTaker, item_of
from operators.text import normalized_erasure

TASK = "summary"
COMPACTION = "compaction"
MAX_NOTES = 4
SINCE_WORDS, SINCE_CHARS = 8, 80


class SummaryTask(Task):
    """Its events are the stream's summaries; its outcomes alone say what is covered."""

    name = TASK
    _taker: MinuteTaker | None = None

    def due(self, progress: Progress) -> Trigger | None:
        config = self.tools.config
        if progress.tokens >= min(config.window, config.update_tokens * progress.factor):
            return "tokens"
        apart = progress.tokens >= config.update_tokens // 4
        if config.topic_shift and apart and progress.shift >= config.topic_shift:
            return "topic_shift"
        left = self._left(progress)
        return next((trigger for trigger, seconds in left.items() if seconds <= 0), None)

    def seconds_left(self, progress: Progress) -> float | None:
        return min(self._left(progress).values(), default=None)

    def _left(self, progress: Progress) -> dict[Trigger, float]:
        """Seconds until each rule by time is due; empty with nothing new."""
        config, left = self.tools.config, dict[Trigger, float]()
        if progress.uncovered and config.update_interval_s:
            left["interval"] = config.update_interval_s - progress.seconds
        if progress.uncovered and config.update_silence_s:
            left["silence"] = config.update_silence_s - progress.silent
        return left

    def run(self, view: StreamView, occasion: Due) -> Steps:
        if not any(segment.new for segment in view.segments):
            return self._outcome(view, occasion.trigger, None)  # a final event with nothing new
        if self.tools.config.summary_method == "select":
            return (yield from self._select(view, occasion.trigger))
        if self._too_long(view.ledger.items):
            (merged,) = yield [self._compaction(view.ledger.items)]
            self._compact(view, merged)
        (answer,) = yield [self._update(view)]
        return self._outcome(view, occasion.trigger, answer)

    def after_edit(self, view: StreamView, ended: bool) -> SummaryEvent:
        """The notes as they are now, for an edit: a revision of its own, without the model."""
        event = self._event(view, "edit", view.ledger.items, ())
        return replace(event, status="final") if ended else event

    # --- select ------------------------------------------------------------------------------

    def _select(self, view: StreamView, trigger: Trigger) -> Steps:
        if self._taker is None:
            self._taker = MinuteTaker(self.tools)
        made = yield from self._taker.steps(view)
        notes, refused, revision = view.ledger, made.refused, view.revision
        items = ledger.settle(notes.items, made.done, revision)
        new = [item_of(d, notes.next_item + at, revision) for at, d in enumerate(made.drafts)]
        items = ledger.add_items(items, new, refused)
        items, trimmed = ledger.trim(items, self.tools.config.ledger_bytes)
        event = self._event(view, trigger, items, ("ledger_trimmed",) if trimmed else ())
        usage = total([answer.usage for answer in made.answers])
        event = replace(event, usage=usage, refused=dict(refused))
        return Outcome(
            (event,),
            items,
            notes.next_item + len(new),
            covers=True,
            remember={"ledger": event.text},
        )

    # --- lines: asks -------------------------------------------------------------------------

    def _too_long(self, items: Sequence[LedgerItem]) -> bool:
        tokens = self.tools.tokenizer.encode(ledger.render(items))
        return len(tokens) > self.tools.config.ledger_tokens

    def _compaction(self, items: tuple[LedgerItem, ...]) -> Ask:
        """An ask that merges the older half of the ledger."""
        old = items[: _half(items)]
        text = ledger.render(old)
        limit = str(max(1, len(old) // 2))
        prompt = self.tools.prompts.render("compact", ledger=text, limit=limit)
        return self._ask(COMPACTION, prompt, text)

    def _update(self, view: StreamView) -> Ask:
        """An ask for what is new."""
        shown = view.ledger.items
        while self._too_long(shown):
            shown = shown[1:]  # the newest items that fit
        new = [segment.text for segment in view.segments if segment.new]
        since = " ".join(new[0].split()[:SINCE_WORDS])[:SINCE_CHARS] if new else ""
        prompt = self.tools.prompts.render(
            "summary", ledger=ledger.render(shown), limit=str(MAX_NOTES), since=since
        )
        return self._ask(TASK, prompt, view.last_output.get(TASK, ""))

    def _ask(self, kind: str, prompt: list[int], previous: str) -> Ask:
        config, tokenizer = self.tools.config, self.tools.tokenizer
        return Ask(
            prompt=prompt,
            max_tokens=min(config.summary_tokens, config.branch_tokens - len(prompt)),
            kind=kind,
            previous=tokenizer.encode(previous),
            ends=lambda output: tokenizer.decode(output).count("\n") >= MAX_NOTES,
        )

    # --- lines: outcomes ----------------------------------------------------------------------------

    def _compact(self, view: StreamView, answer: Answer) -> None:
        """Put the merged items in place of the older half. Mutates the view's ledger."""
        persons = tuple(item for item in view.ledger.items if item.by == "person")
        items = tuple(item for item in view.ledger.items if item.by != "person")
        old = _half(items)
        text = self.tools.prompts.opening("compact") + answer.text
        notes = ledger.parse_notes(text, max(1, old // 2))
        merged = ledger.merge_notes(
            items, old, notes, revision=view.revision, next_id=view.ledger.next_item
        )
        view.ledger.items = persons + merged
        view.ledger.next_item += len(notes)

    def _outcome(self, view: StreamView, trigger: Trigger, answer: Answer | None) -> Outcome:
        items, next_item = view.ledger.items, view.ledger.next_item
        remember: dict[str, str] = {}
        degraded: list[str] = []
        if answer is not None:
            text = self.tools.prompts.opening("summary") + answer.text
            notes = ledger.parse_notes(text, MAX_NOTES)
            if not notes and "NONE" not in text.upper():
                degraded.append("unparsed_update")
            if answer.finish_reason in ("length", "repetition"):
                degraded.append(f"cut_by_{answer.finish_reason}")
            seen = [(segment.evidence, segment.text) for segment in view.segments]
            update = ledger.add_notes(items, notes, seen, revision=view.revision, next_id=next_item)
            items, next_item = update.items, next_item + update.added
            remember[TASK] = text
        event = self._event(view, trigger, items, tuple(degraded))
        if answer is not None:
            event = replace(event, usage=answer.usage)
        remember["ledger"] = event.text
        return Outcome((event,), items, next_item, covers=True, remember=remember)

    def _event(
        self,
        view: StreamView,
        trigger: Trigger,
        items: tuple[LedgerItem, ...],
        degraded: tuple[str, ...],
    ) -> SummaryEvent:
        text = ledger.render(items)
        deleted, erasure = normalized_erasure(view.last_output.get("ledger", ""), text)
        return SummaryEvent(
            stream_id=view.stream_id,
            epoch=view.epoch,
            revision=view.revision,
            status="final" if trigger == "session_end" else "partial",
            text=text,
            items=items,
            source=view.source,
            trigger=trigger,
            model=self.tools.model,
            usage=Usage(finish_reason="skipped"),
            kv=view.kv,
            stability=Stability(deleted, round(erasure, 4)),
            degraded=degraded,
        )


def _half(items: Sequence[LedgerItem]) -> int:
    return max(2, len(items) // 2)
