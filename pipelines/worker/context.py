"""What the partitions of a worker share, and the protocols between the parts of a partition.

The modules of :mod:`pipelines.worker.partition` know this module and not each other; only its
``partition.py`` imports them all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from operators.events import AnyEvent, Question, Segment
from operators.state import Emission, SessionState
from pipelines.config.load import Settings
from pipelines.kafka.offsets import OffsetTracker
from pipelines.kafka.publishers import Publisher
from pipelines.observability.metrics import Metrics
from pipelines.observability.tracing import Tracing
from pipelines.wire.decoding import NO_SCHEMAS
from pipelines.wire.messages import Message, MessageLimit
from pipelines.wire.schema_registry import Schemas


class Device(Protocol):
    """The part of :class:`pipelines.device.client.DeviceClient` that a partition uses."""

    def open(self, stream_id: str, state: SessionState | None = None) -> None: ...
    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None: ...
    def ask(self, question: Question, ticket: int) -> None: ...
    def end(self, stream_id: str) -> None: ...
    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]: ...


class StreamOwner(Protocol):
    """The partition that an open stream belongs to: the device's reports go there."""

    number: int

    def on_emission(self, emission: Emission) -> None: ...
    def on_refused(
        self, stream_id: str, offset: int, reason: str, text: str, question: bool = False
    ) -> None: ...


class Queue(Protocol):
    """One stream's records: :class:`pipelines.worker.partition.queues.StreamQueue`."""

    stream_id: str
    state: SessionState | None
    waiting: deque[tuple[Segment, int]]
    given: dict[int, Segment]
    open: bool
    tried: bool
    stopped: bool
    ending: bool
    end_given: bool
    uncovered_since: float | None
    input_times: dict[int, float]
    newest_input: float | None

    questions: deque[tuple[Question, int]]
    asked: dict[int, Question]
    question_strikes: dict[int, int]

    @property
    def idle(self) -> bool: ...
    def next_question(self, bound: int) -> tuple[Question, int] | None: ...
    def finish_question(self, offset: int) -> None: ...
    def has_work(self, least: int) -> bool: ...
    def next(self, bound: int, suspicious: int) -> tuple[Segment, int] | None: ...
    def suspected(self, strikes: int) -> bool: ...
    def device_lost(self) -> None: ...
    def quarantine(self) -> int: ...


class Record(Protocol):
    """One input record that is not committed yet. ``read_at``: monotonic seconds."""

    read_at: float

    @property
    def message(self) -> Any: ...


class Records(Protocol):
    """The uncommitted records of a partition, by offset."""

    offsets: OffsetTracker

    @property
    def oldest(self) -> Record | None: ...
    def __getitem__(self, offset: int) -> Record: ...
    def get(self, offset: int) -> Record | None: ...


class Sessions(Protocol):
    """The state records of a partition's closed streams."""

    def put(
        self, stream_id: str, value: bytes | None, cursor: int | None = None, at_ms: int = 0
    ) -> None: ...
    def take(self, stream_id: str) -> tuple[SessionState | None, bytes | None]: ...
    def ended_before(self, at_ms: int) -> list[str]: ...
    def live_before(self, at_ms: int) -> list[str]: ...
    def uncovered(self, least: int) -> Iterable[tuple[str, int]]: ...
    def outboxes(self, most: int) -> list[tuple[SessionState, list[Message]]]: ...


class Tenants(Protocol):
    """The limits per tenant; both methods raise SegmentError("tenant_limit")."""

    def admit(self, segment: Segment, live: bool) -> None: ...
    def reserve(self, segment: Segment) -> float: ...


@dataclass
class Entry:
    """What one emission, dead letter or skipped record adds to a commit."""

    messages: Sequence[Message] = ()
    state: SessionState | None = None
    finished: Sequence[int] = ()
    """Input offsets that are finished once this is committed."""
    forgotten: str | None = None
    """A stream whose state is deleted."""
    answered: Sequence[int] = ()
    """The same of the topic of questions."""
    events: Sequence[AnyEvent] = ()
    """The events among the messages; the metrics are taken of them after the commit."""


class Commits(Protocol):
    """Where the parts of a partition put what is to be committed, in order."""

    def add(self, entry: Entry) -> None: ...
    async def flush(self) -> None: ...


class Fitting(Protocol):
    """Makes what is written as small as its topic takes it."""

    def replace_too_large(
        self, messages: Sequence[Message], finished: Sequence[int]
    ) -> list[Message]: ...
    def fit_state(self, state: SessionState) -> SessionState | None: ...


@dataclass
class WorkerContext:
    """Made by :class:`pipelines.worker.app.Worker`; the same object for all partitions."""

    settings: Settings
    metrics: Metrics
    device: Device
    tenants: Tenants
    owners: dict[str, StreamOwner]
    """The owner of each open stream."""
    hold: Callable[[int], None]
    """Stop fetching a partition, by number; ``release`` fetches it again."""
    release: Callable[[int], None]
    recover: Callable[[int], Awaitable[Any]]
    """Reads a partition's states: number -> :class:`~pipelines.worker.partition.state.Recovered`."""
    make_publisher: Callable[[int], Publisher]
    hold_questions: Callable[[int], None] = lambda number: None
    release_questions: Callable[[int], None] = lambda number: None
    on_progress: Callable[[], None] = lambda: None
    admits: Callable[[Queue], bool] = lambda queue: True
    """Whether the device may be fed from this queue now (:mod:`pipelines.worker.supervisor`)."""
    on_report: Callable[[bool], None] = lambda finished: None
    """Called after each report of the device on a stream; True when a segment is finished."""
    schemas: Schemas = NO_SCHEMAS
    """Avro schemas of the input, shared by the partitions."""
    limit: MessageLimit = field(default_factory=lambda: MessageLimit(8 << 20))
    """How large a message may be."""
    partition_count: Callable[[], int | None] = lambda: None
    """How many partitions the input topic has; None: not known."""
    tracing: Tracing = field(default_factory=Tracing)
