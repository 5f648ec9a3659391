"""Resuming a stream from another process: from its text, or exactly, from a snapshot.

Both begin with the stream's state as of its cursor (ledger, revisions, the window's text). From text
the window is prefilled again: an approximation, since the lost KV also carried evicted context. From a
snapshot the KV is put back bit for bit, and only the text between the snapshot and the state is
prefilled again behind it.
"""

from __future__ import annotations

from collections.abc import Callable

from operators.decoding.acceptance import DraftControl
from operators.engine.session import Part, Session
from operators.engine.snapshot import DraftRecord, PartRecord, StreamMemory
from operators.state import SessionState, WindowSegment
from operators.tasks.base import Ledger

Encode = Callable[[str], list[int]]


def memory_of(
    session: Session, identity: dict[str, str], settings: str, draft: DraftRecord | None
) -> StreamMemory:
    """What a snapshot of a quiet session holds besides its KV."""
    return StreamMemory(
        identity=identity,
        settings=settings,
        state=session.state(),
        length=session.frontier,
        covered=session.covered,
        last_fork=session.last_fork,
        window=[PartRecord(p.start, tuple(p.tokens), p.said, p.info) for p in session.window],
        index=session.index.tokens,
        draft_arms={task: control.memory for task, control in session.draft_controls.items()},
        known=session.known.records(),
        draft=draft,
    )


def from_text(session: Session, state: SessionState, encode: Encode) -> None:
    """Queue the window's text as far as it fits. Mutates the fresh session."""
    _take_over(session, state)
    parts = [_part(info, encode) for info in state.window]
    total = sum(len(p.tokens) for p in parts)
    while parts and total > session.layout.window:
        total -= len(parts.pop(0).tokens)
    session.tokens_total = max(0, state.tokens_total - total)
    session.covered += max(0, total - state.uncovered_tokens)
    session.last_fork = session.covered
    session.queue.extend(parts)
    if parts:
        session.restored = "replay"


def requeue_window_text(session: Session, encode: Encode) -> None:
    """The KV of an idle session is lost: queue its window's text before what is queued already.
    Mutates the session."""
    again, next_seq, state = session.read_again(), session.next_seq, session.state()
    waiting = [part for part in session.queue if part not in again]
    settings = session.settings
    session.queue.clear()
    session.window.clear()
    session.index = type(session.index)(session.layout.window)
    session.offloaded_length = session.covered = session.layout.sinks
    from_text(session, state, encode)
    session.queue.extend(waiting)
    session.next_seq, session.settings = next_seq, settings


def text_since(memory: StreamMemory, state: SessionState) -> list[WindowSegment] | None:
    """The text between the snapshot and the state, or None if they do not belong together:
    another epoch, a state older than the snapshot, or some of it no longer known."""
    before = memory.state
    if before.epoch != state.epoch or before.cursor > state.cursor or state.ended:
        return None
    since = [info for info in state.window if info.offset > before.cursor]
    grown = state.tokens_total - before.tokens_total
    return since if sum(info.tokens for info in since) == grown else None


def from_snapshot(
    session: Session,
    state: SessionState,
    memory: StreamMemory,
    since: list[WindowSegment],
    *,
    encode: Encode,
) -> None:
    """Put all but the KV back and queue what was said ``since``. Mutates the fresh session."""
    _take_over(session, state)
    for record in memory.window:
        part = Part(record.info.text, record.said, list(record.tokens), record.info)
        part.start = record.start
        session.window.append(part)
    session.index.extend(memory.index)
    for task, kept in memory.draft_arms.items():
        session.draft_controls[task] = DraftControl.restored(kept)
    session.tokens_total = memory.state.tokens_total
    # Also with nothing said since then: an update may have come between the snapshot and the state.
    frontier = memory.length + sum(info.tokens for info in since)
    session.covered = session.last_fork = frontier - state.uncovered_tokens
    session.queue.extend(_part(info, encode) for info in since)
    session.restored = "snapshot"


def _take_over(session: Session, state: SessionState) -> None:
    session.ended, session.cursor = state.ended, state.cursor
    session.next_seq = session.settled_seq = state.next_seq
    session.revisions = dict(state.revisions)
    session.ledger = Ledger(state.items, state.next_item, state.archived)
    session.last_output = dict(state.last_output)
    session.degraded = state.degraded
    session.settings = session.settled_settings = state.settings
    session.question_cursor = state.question_cursor
    for name in state.answered:
        session.keep_answer(name, None)
    for answer in state.answers:
        session.keep_answer(answer.question_id, answer)
    session.restore_covers(state)


def _part(info: WindowSegment, encode: Encode) -> Part:
    """A part to be ingested again."""
    return Part(info.text, said_in(info), encode(info.text), info)


def said_in(info: WindowSegment) -> str:
    """The part's line without the speaker's name."""
    label = f"{(info.speaker or '')[:80]}: "
    text = info.text.rstrip("\n")
    return text[len(label) :] if info.speaker and text.startswith(label) else text
