"""The rolling summary: ask for what is new given the ledger, and put it there.

An *update* is one generation on a branch. Before it, when the ledger has outgrown its budget, a
*compaction* merges the oldest items; both fork at the same frontier, so what they see does not
depend on how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from operators.config import OperatorConfig
from operators.decoding.generation import Generation
from operators.engine.drafting import decoding
from operators.engine.session import Session
from operators.events import (
    Covers,
    Evidence,
    KvInfo,
    LedgerItem,
    ModelInfo,
    Source,
    Stability,
    SummaryEvent,
    Trigger,
    Usage,
    event_id,
)
from operators.model.tokenizer import Tokenizer
from operators.tasks import ledger
from operators.tasks.prompts import Prompts
from operators.text import normalized_erasure

TASK = "summary"
COMPACTION = "compaction"
MAX_NOTES = 4
SINCE_WORDS, SINCE_CHARS = 8, 80


@dataclass(frozen=True)
class View:
    """What the update saw, taken when it became due (ingest may run on before it is finished)."""

    fork: int
    trigger: Trigger
    segments: tuple[tuple[Evidence, str], ...]
    source: Source
    kv: KvInfo


class SummaryTask:
    """Makes and finishes summary updates for all streams of one operator."""

    def __init__(
        self, config: OperatorConfig, prompts: Prompts, tokenizer: Tokenizer, model: ModelInfo
    ) -> None:
        self._config, self._prompts = config, prompts
        self._tokenizer, self._model = tokenizer, model

    # --- before ------------------------------------------------------------------------------

    def view(self, session: Session, trigger: Trigger) -> View:
        fresh = [p.info.offset for p in session.window if p.end > session.covered]
        return View(
            fork=session.frontier,
            trigger=trigger,
            segments=tuple(session.visible_parts(since=0)),
            source=Source(first_offset=min(fresh, default=-1), last_offset=max(fresh, default=-1)),
            kv=KvInfo(
                session.layout.sinks,
                session.layout.window,
                session.evicted_total,
                session.restored,
            ),
        )

    def needs_compaction(self, session: Session) -> bool:
        text = ledger.render(session.items)
        return len(self._tokenizer.encode(text)) > self._config.ledger_tokens

    def compaction(self, session: Session, on_finish: Callable[[Generation], None]) -> Generation:
        """A generation that merges the older half of the ledger."""
        old = session.items[: self._half(session)]
        limit = max(1, len(old) // 2)
        text = ledger.render(old)
        prompt = self._prompts.render("compact", ledger=text, limit=str(limit))
        return self._generation(session, COMPACTION, prompt, on_finish, text)

    def compacted(self, session: Session, generation: Generation) -> None:
        """Put the merged items in place of the older half. Mutates the session's ledger."""
        answer = self._prompts.opening("compact") + self._tokenizer.decode(generation.output)
        old = self._half(session)
        notes = ledger.parse_notes(answer, max(1, old // 2))
        session.items = ledger.merge_notes(
            session.items,
            old,
            notes,
            revision=session.revisions.get(TASK, 0) + 1,
            next_id=session.next_item,
        )
        session.next_item += len(notes)

    @staticmethod
    def _half(session: Session) -> int:
        return max(2, len(session.items) // 2)

    def update(self, session: Session, on_finish: Callable[[Generation], None]) -> Generation:
        """A generation that asks what is new."""
        text = ledger.render(self._shown(session.items))
        new = session.visible_parts(since=session.covered)
        since = " ".join(new[0][1].split()[:SINCE_WORDS])[:SINCE_CHARS] if new else ""
        prompt = self._prompts.render("summary", ledger=text, limit=str(MAX_NOTES), since=since)
        return self._generation(session, TASK, prompt, on_finish, session.last_output.get(TASK, ""))

    def _shown(self, items: tuple[LedgerItem, ...]) -> tuple[LedgerItem, ...]:
        """The newest items that fit the ledger's token budget."""
        shown = items
        while len(self._tokenizer.encode(ledger.render(shown))) > self._config.ledger_tokens:
            shown = shown[1:]
        return shown

    def _generation(
        self,
        session: Session,
        task: str,
        prompt: list[int],
        on_finish: Callable[[Generation], None],
        previous: str,
    ) -> Generation:
        config = self._config
        return Generation(
            task=task,
            prompt=prompt,
            max_tokens=min(config.summary_tokens, config.branch_tokens - len(prompt)),
            eos_ids=self._tokenizer.eos_ids,
            decoding=decoding(config, session, task, prompt, self._tokenizer.encode(previous)),
            ends=lambda output: self._tokenizer.decode(output).count("\n") >= MAX_NOTES,
            on_finish=on_finish,
        )

    # --- after -------------------------------------------------------------------------------

    def finish(self, session: Session, view: View, generation: Generation | None) -> SummaryEvent:
        """Advance coverage, extend the ledger, return the event. ``generation`` None: nothing was
        asked because nothing was new (a final event). Mutates the session."""
        session.cover(max(view.fork, session.covered))
        revision = session.next_revision(TASK)
        degraded = list(session.degraded)
        session.degraded = ()
        if generation is not None:
            answer = self._prompts.opening("summary") + self._tokenizer.decode(generation.output)
            notes = ledger.parse_notes(answer, MAX_NOTES)
            if not notes and "NONE" not in answer.upper():
                degraded.append("unparsed_update")
            if generation.finish_reason in ("length", "repetition"):
                degraded.append(f"cut_by_{generation.finish_reason}")
            update = ledger.add_notes(
                session.items,
                notes,
                view.segments,
                revision=revision,
                next_id=session.next_item,
            )
            session.items, session.next_item = update.items, session.next_item + update.added
            session.cite_corrections()
            session.last_output[TASK] = answer
        return self._event(session, view, revision, generation, tuple(degraded))

    def _event(
        self,
        session: Session,
        view: View,
        revision: int,
        generation: Generation | None,
        degraded: tuple[str, ...],
    ) -> SummaryEvent:
        text = ledger.render(session.items)
        deleted, erasure = normalized_erasure(session.last_output.get("ledger", ""), text)
        session.last_output["ledger"] = text
        final = view.trigger == "session_end"
        return SummaryEvent(
            stream_id=session.stream_id,
            epoch=session.epoch,
            revision=revision,
            event_id=event_id(session.stream_id, TASK, session.epoch, revision),
            status="final" if final else "partial",
            text=text,
            items=session.items,
            covers=with_lag(session.covers, session),
            source=view.source,
            trigger=view.trigger,
            model=self._model,
            usage=generation.usage() if generation is not None else Usage(finish_reason="skipped"),
            kv=view.kv,
            stability=Stability(deleted, round(erasure, 4)),
            degraded=degraded,
        )


def with_lag(covers: Covers, session: Session) -> Covers:
    """``covers`` with how far (in stream time) it lags behind the newest segment in the window."""
    ends = [p.info.end_ms for p in session.window if p.info.end_ms is not None]
    if not ends or covers.to_ms is None:
        return covers
    return replace_lag(covers, max(0, max(ends) - covers.to_ms))


def replace_lag(covers: Covers, lag_ms: int) -> Covers:
    return Covers(covers.to_seq, covers.to_segment_id, covers.to_ms, lag_ms)
