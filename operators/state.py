"""What a stream's state is between processes, and what a step of the engine hands out.

Plain ``msgspec`` structs, as in :mod:`operators.events`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from operators.events import NO_SETTINGS, AnswerEvent, Event, LedgerItem, StreamSettings

STATE_FORMAT = 1
"""Raised when a reader of an older version would misunderstand a state; such a reader refuses it."""


class WindowSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A final segment (or part of a long one) whose tokens may still be inside the window."""

    segment_id: str
    seq: int
    text: str
    tokens: int
    offset: int = -1
    last_part: bool = True
    speaker: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    correction: str | None = None
    """See :class:`Evidence`."""
    revision: int = 0


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """All a new process needs to continue a stream: the value of the compacted session topic.

    Bounded: the ledger by its budget, ``window`` by the ring, ``last_output`` by one text per task.
    ``cursor`` is the ticket (input offset) of the last segment fully done; replayed input at or
    below it is skipped. ``revisions`` holds the last revision issued per task ("summary",
    "translation:fr", …).
    """

    stream_id: str
    schema: Literal["insight.session.v1"] = "insight.session.v1"
    format: int = STATE_FORMAT
    app_id: str = ""
    """Whose it is: the application that wrote it; filled in by ``pipelines``."""
    epoch: int = 0
    ended: bool = False
    cursor: int = -1
    next_seq: int = 0
    revisions: dict[str, int] = {}
    items: tuple[LedgerItem, ...] = ()
    next_item: int = 1
    archived: tuple[LedgerItem, ...] = ()
    """Items that had no room in the ledger, oldest first; bounded by ``archive_bytes``."""
    window: tuple[WindowSegment, ...] = ()
    covered_seq: int = -1
    covered_segment_id: str = ""
    covered_ms: int | None = None
    uncovered_tokens: int = 0
    tokens_total: int = 0
    last_output: dict[str, str] = {}
    degraded: tuple[str, ...] = ()
    settings: StreamSettings = NO_SETTINGS
    question_cursor: int = -1
    """Ticket (offset on the topic of questions) of the last question answered."""
    answers: tuple[AnswerEvent, ...] = ()
    """The last answers, oldest first: given again when their question comes again."""
    answered: tuple[str, ...] = ()
    """Ids of questions answered before these."""
    snapshot: str | None = None
    weights: str = ""
    """Which weights made the stream's memory: :attr:`DecoderModel.weights`; empty: not said."""


class Failure(msgspec.Struct, frozen=True):
    """A segment that will not be processed: goes to the dead-letter topic with its reason."""

    ticket: int
    stage: str
    reason: str
    message: str


class Emission(msgspec.Struct, kw_only=True):
    """What one step produced for one stream, with the state that goes with it.

    ``done`` and ``failed`` carry the tickets given to ``feed``, in feed order. Publishing ``events``
    and ``state`` and acknowledging ``done`` belong together (one transaction). So do ``answers`` and the
    tickets of the questions that are ``answered``.
    """

    stream_id: str
    state: SessionState
    events: list[Event] = []
    done: list[int] = []
    failed: list[Failure] = []
    answers: list[AnswerEvent] = []
    answered: list[int] = []
