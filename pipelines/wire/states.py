"""A stream's state that has to fit into one message of its topic.

What is left out, in this order, until it fits:

1. ``last_output``: drafts of the next answers; only speed is lost.
2. Answers that are kept in case their question comes again: it stays known, and is not answered twice.
3. The archive, oldest first.
4. Items that were superseded or withdrawn, oldest first.
5. Evidence of items beyond the first place of each.
6. Text of the window that a summary covers, oldest first: a stream restored from it has less context.
7. Finished actions and settled topics, the least important first.

Decisions, open actions, open questions, what a person wrote or took back, and text that no summary
covers are never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from operators.events import LedgerItem
from operators.state import SessionState, WindowSegment

SHRUNK = "state_shrunk"
"""In ``degraded``: parts of the state were left out, since it did not fit its topic."""
T = TypeVar("T")
_GONE = ("superseded", "withdrawn")


def fit_state(
    state: SessionState, max_bytes: int, size: Callable[[SessionState], int]
) -> SessionState | None:
    """The state in at most ``max_bytes`` (by ``size``), the same object if it fits as it is; None where
    it cannot be made to fit."""
    if size(state) <= max_bytes:
        return state
    for smaller in _smaller(state):
        if size(smaller) <= max_bytes:
            flags = tuple(dict.fromkeys((*smaller.degraded, SHRUNK)))
            return msgspec.structs.replace(smaller, degraded=flags)
    return None


def _smaller(state: SessionState) -> Iterator[SessionState]:
    """Ever smaller states. Each loop halves what it may leave out, so there are few of them."""
    replace = msgspec.structs.replace
    state = replace(state, last_output={}, degraded=(*state.degraded, SHRUNK))
    yield state
    if state.answers:
        known = tuple(answer.question_id for answer in state.answers)
        state = replace(state, answers=(), answered=(*state.answered, *known))
        yield state
    for left_out in _halves(list(state.archived)):
        yield replace(state, archived=state.archived[len(left_out) :])
    state = replace(state, archived=())
    gone = [item for item in state.items if _is_gone(item)]
    for left_out in _halves(gone):
        yield replace(state, items=tuple(i for i in state.items if i not in left_out))
    state = replace(state, items=tuple(i for i in state.items if not _is_gone(i)))
    state = replace(state, items=tuple(replace(i, evidence=i.evidence[:1]) for i in state.items))
    yield state
    covered = _covered(state)
    for parts in _halves(covered):
        yield replace(state, window=state.window[len(parts) :])
    state = replace(state, window=state.window[len(covered) :])
    for items in _halves(sorted(filter(_may_go, state.items), key=lambda i: i.importance)):
        ids = {item.id for item in items}
        yield replace(state, items=tuple(i for i in state.items if i.id not in ids))


def _covered(state: SessionState) -> list[WindowSegment]:
    """The window's oldest parts that are not among its uncovered tokens."""
    covered = sum(part.tokens for part in state.window) - state.uncovered_tokens
    found = []
    for part in state.window:
        covered -= part.tokens
        if covered < 0:
            break
        found.append(part)
    return found


def _may_go(item: LedgerItem) -> bool:
    return item.by != "person" and (item.kind == "topic" or item.state == "done")


def _is_gone(item: LedgerItem) -> bool:
    return item.by != "person" and item.state in _GONE


def _halves(parts: list[T]) -> Iterator[list[T]]:
    """A half of the parts, three quarters, and so on, then all."""
    count = len(parts) // 2
    while parts and count < len(parts):
        yield parts[:count]
        count += max(1, (len(parts) - count) // 2)
    if parts:
        yield parts
