"""The rolling summary: what is new goes into the ledger, a stream's durable memory.

Two methods (``summary_method``). *select*: see :mod:`operators.tasks.minutes`. *lines*: one answer of
several lines over the window; before it, when the ledger has outgrown its budget, another answer merges
the oldest items. All asks are of one run, so what they see does not depend on load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from operators.events import LedgerItem, Stability, SummaryEvent, Trigger, Usage
from operators.render import brief
from operators.tasks import ledger
from operators.tasks.base import (
    EMPTY,
    Answer,
    Ask,
    Due,
    Outcome,
    Progress,
    Steps,
    StreamView,
    Task,
    flags,
    total,
)
from operators.tasks.minutes import MinuteTaker, items_of
from operators.text import lines_erased

TASK = "summary"
COMPACTION = "compaction"
TRIMMED, FORGOTTEN = "ledger_trimmed", "archive_trimmed"
"""In ``degraded``: notes went to the archive; the archive's oldest were forgotten."""
MAX_NOTES = 4
SINCE_WORDS, SINCE_CHARS = 8, 80


class Merge(NamedTuple):
    """Notes that stand for the oldest items of the ledger, whose ids are ``old``."""

    old: tuple[str, ...]
    notes: list[ledger.Note]


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
        merge: Merge | None = None
        if self._too_long(view.ledger.items):
            ask, count = self._compaction(view.ledger.items)
            if len(ask.prompt) < self._branch:
                (merged,) = yield [ask]
                merge = self._merge(view, merged, count)
        (answer,) = yield [self._update(view, *self._merged(view, merge))]
        if not answer.text.strip():
            return Outcome(failed=EMPTY)
        return self._outcome(view, occasion.trigger, answer, merge)

    def standing(self, view: StreamView, trigger: Trigger) -> SummaryEvent:
        """The notes as they are, without an update."""
        return self._event(view, trigger, view.ledger.items, ())

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
        new, done = items_of(made, notes.next_item, revision)
        items = ledger.settle(notes.items, done, revision)
        items = ledger.settle(ledger.add_items(items, new, refused), done, revision)
        items, gone = ledger.trim(items, self.tools.config.ledger_bytes)
        most = self.tools.config.archive_bytes
        archived, forgotten = ledger.archive(notes.archived, gone, most)
        trimmed = (*((TRIMMED,) if gone else ()), *((FORGOTTEN,) if forgotten else ()))
        event = self._event(view, trigger, items, trimmed)
        usage = total([answer.usage for answer in made.answers])
        event = replace(event, usage=usage, refused=dict(refused))
        return Outcome(
            (event,),
            items,
            notes.next_item + len(new),
            archived,
            covers=True,
            remember={"ledger": event.text},
        )

    # --- lines: asks -------------------------------------------------------------------------

    def _too_long(self, items: Sequence[LedgerItem]) -> bool:
        tokens = self.tools.tokenizer.encode(ledger.render(items))
        return len(tokens) > self.tools.config.ledger_tokens

    def _compaction(self, items: tuple[LedgerItem, ...]) -> tuple[Ask, int]:
        """An ask that merges the older half of the ledger, or as much of it as a branch has room for (a
        ledger may come from larger settings); and how many items that are."""
        count = _half(items)
        while True:
            text = ledger.render(items[:count])
            limit = str(max(1, count // 2))
            prompt = self.tools.prompts.render("compact", ledger=text, limit=limit)
            if count <= 2 or len(prompt) + self.tools.config.summary_tokens <= self._branch:
                break
            count = max(2, count // 2)
        opening = self.tools.prompts.opening("compact")
        return self._ask(COMPACTION, prompt, text.removeprefix(opening)), count

    @property
    def _branch(self) -> int:
        return self.tools.config.branch_tokens

    def _update(self, view: StreamView, items: tuple[LedgerItem, ...], next_item: int) -> Ask:
        """An ask for what is new, with the ledger's items."""
        shown = items
        while self._too_long(shown):
            shown = shown[1:]  # the newest items that fit
        new = [segment.text for segment in view.segments if segment.new]
        since = " ".join(new[0].split()[:SINCE_WORDS])[:SINCE_CHARS] if new else ""
        prompt = self.tools.prompts.render(
            "summary", ledger=ledger.render(shown), limit=str(MAX_NOTES), since=since
        )
        opening = self.tools.prompts.opening("summary")
        return self._ask(TASK, prompt, view.last_output.get(TASK, "").removeprefix(opening))

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

    def _merge(self, view: StreamView, answer: Answer, old: int) -> Merge | None:
        """The merged notes in place of the ``old`` oldest; None where the model wrote nothing."""
        if not answer.text.strip():
            return None
        text = self.tools.prompts.opening("compact") + answer.text
        notes = ledger.parse_notes(text, max(1, old // 2))
        return Merge(tuple(item.id for item in view.ledger.items[:old]), notes)

    def _merged(self, view: StreamView, merge: Merge | None) -> tuple[tuple[LedgerItem, ...], int]:
        """The ledger as it is now, after the merge, and the number of its next item. Nothing changes
        before the whole run has succeeded."""
        items, next_item = view.ledger.items, view.ledger.next_item
        if merge is None or tuple(i.id for i in items[: len(merge.old)]) != merge.old:
            return items, next_item
        old, notes, revision = len(merge.old), merge.notes, view.revision
        made = ledger.merge_notes(items, old, notes, revision=revision, next_id=next_item)
        return made, next_item + len(notes)

    def _outcome(
        self, view: StreamView, trigger: Trigger, answer: Answer | None, merge: Merge | None = None
    ) -> Outcome:
        items, next_item = self._merged(view, merge)
        remember: dict[str, str] = {}
        degraded: list[str] = []
        if answer is not None:
            text = self.tools.prompts.opening("summary") + answer.text
            notes = ledger.parse_notes(text, MAX_NOTES)
            degraded += flags([answer])
            if not notes and "NONE" not in text.upper():
                degraded.append("unparsed_update")
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
        shown = ledger.published(items, self.tools.config.view_notes)
        text = brief(shown, view.settings.summary_language)
        deleted, erasure = lines_erased(view.last_output.get("ledger", ""), text)
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
