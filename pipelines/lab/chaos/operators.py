"""The device's operators for a chaos run: the engine on a tiny random model, or a bare echo.

A worker builds one of them when LONGSTREAM_TEST_OPERATOR names its function here. The toy is the real
engine (cache, branches, snapshots, restores) whose words make no sense. The echo computes nothing, so
that what goes wrong is the delivery's fault; its texts hold the process id, so that a revision that is
made a second time has a second content.
"""

from __future__ import annotations

import os
import time
from collections import deque
from math import inf
from typing import Any

import msgspec

from operators.config import OperatorConfig
from operators.events import (
    AnswerEvent,
    Covers,
    Event,
    LedgerItem,
    Question,
    Segment,
    Source,
    SummaryEvent,
    TranslationEvent,
    Trigger,
)
from operators.observer import Observer
from operators.state import Emission, SessionState, WindowSegment
from pipelines.device import protocol

SUMMARY_EVERY = 3
WINDOW = 16


def make_toy(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[Any, protocol.Ready]:
    """The engine on a tiny random Llama with a byte tokenizer."""
    import torch

    from operators.stream_operator import StreamOperator
    from pipelines.device.loader import describe
    from pipelines.lab.benchmarks.toy import toy_decoder

    torch.set_num_threads(1)
    operator = StreamOperator(toy_decoder(), config, clock=time.monotonic, observer=observer)
    return operator, describe(operator, 0.0)


def make_echo(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[Echo, protocol.Ready]:
    return Echo(config), echo_ready(config)


def echo_ready(config: OperatorConfig) -> protocol.Ready:
    """What an echo reports of itself."""
    return protocol.Ready(
        model="echo",
        device="none",
        dtype_prefill="none",
        dtype_decode="none",
        slots=config.slots,
        bytes_per_stream=1,
        bytes_total=1,
    )


class Echo:
    """Summarises every third segment, and what waits for ``update_interval_s``, by naming what it
    covers; translates by prefixing. It keeps the engine's promises: order per stream, an honest state,
    revisions without a gap."""

    def __init__(self, config: OperatorConfig) -> None:
        self._targets = config.targets
        self._interval_s = config.update_interval_s
        self._due: dict[str, float] = {}
        """When a stream's uncovered text is summarised at the latest (monotonic)."""
        self._states: dict[str, SessionState] = {}
        self._queue: deque[tuple[Segment, int]] = deque()
        self._questions: deque[tuple[Question, int | None]] = deque()

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> None:
        assert stream_id not in self._states, "opened twice"
        self._keep(state or SessionState(stream_id=stream_id))

    def quiet(self, stream_id: str) -> bool:
        return False

    def snapshot(self, stream_id: str) -> bytes:
        raise NotImplementedError("an echo has no memory to take a snapshot of")

    def feed(self, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        assert ticket > self._states[segment.stream_id].cursor, "fed below the cursor"
        self._queue.append((segment, ticket))

    def ask(self, question: Question, ticket: int | None = None) -> None:
        self._questions.append((question, ticket))

    def end(self, stream_id: str) -> None:
        self._queue.append((Segment(stream_id=stream_id, type="session_end"), -1))

    def drop(self, stream_id: str) -> None:
        del self._states[stream_id]
        self._due.pop(stream_id, None)
        self._queue = deque(pair for pair in self._queue if pair[0].stream_id != stream_id)
        self._questions = deque(q for q in self._questions if q[0].stream_id != stream_id)

    def close(self) -> None:
        self._states.clear()
        self._due.clear()

    def has_work(self) -> bool:
        return (
            bool(self._queue or self._questions)
            or min(self._due.values(), default=inf) <= time.monotonic()
        )

    def idle_until(self) -> float | None:
        return min(self._due.values(), default=None)

    def step(self) -> list[Emission]:
        if self._questions:
            question, asked = self._questions.popleft()
            emission = self.answer(self._states[question.stream_id], question, asked)
        elif self._queue:
            segment, ticket = self._queue.popleft()
            emission = self.process(self._states[segment.stream_id], segment, ticket)
        else:
            name = min(self._due, key=lambda name: self._due[name])
            state, event = _summarise(self._states[name], "interval")
            emission = Emission(stream_id=name, state=state, events=[event])
        self._keep(emission.state)
        return [emission]

    def answer(self, state: SessionState, question: Question, ticket: int | None) -> Emission:
        """A text of this process, once per question id."""
        kept = {answer.question_id: answer for answer in state.answers}
        if (answer := kept.get(question.question_id)) is None:
            state, revision = _next_revision(state, "answer")
            answer = AnswerEvent(
                stream_id=state.stream_id,
                epoch=state.epoch,
                revision=revision,
                question_id=question.question_id,
                question=question.text,
                text=f"pid {os.getpid()} answers {question.text}",
                source=Source(first_offset=ticket or 0, last_offset=ticket or 0),
            )
            state = msgspec.structs.replace(state, answers=(*state.answers, answer)[-WINDOW:])
        tickets = [] if ticket is None else [ticket]
        if ticket is not None:
            state = msgspec.structs.replace(state, question_cursor=ticket)
        return Emission(stream_id=state.stream_id, state=state, answers=[answer], answered=tickets)

    def _keep(self, state: SessionState) -> None:
        self._states[state.stream_id] = state
        if not state.uncovered_tokens:
            self._due.pop(state.stream_id, None)
        elif self._interval_s:
            self._due.setdefault(state.stream_id, time.monotonic() + self._interval_s)

    def process(self, state: SessionState, segment: Segment, ticket: int) -> Emission:
        """What one segment makes of its stream's state, and the events it gives."""
        ends = segment.type == "session_end"
        if state.ended and not ends:
            state = SessionState(
                stream_id=state.stream_id,
                epoch=state.epoch + 1,
                question_cursor=state.question_cursor,
                answers=state.answers,
            )
        over = state.ended  # the end of what has ended says nothing new
        state = msgspec.structs.replace(state, cursor=max(state.cursor, ticket), ended=ends)
        events: list[Event] = []
        if not ends:
            state = _append(state, segment, ticket)
            for language in self._targets:
                state, event = _translate(state, segment, ticket, language)
                events.append(event)
        if (ends and not over) or state.next_seq - 1 - state.covered_seq >= SUMMARY_EVERY:
            state, summary = _summarise(state, "session_end" if ends else "tokens")
            events.append(summary)
        done = [ticket] if ticket >= 0 else []
        return Emission(stream_id=state.stream_id, state=state, events=events, done=done)


def _append(state: SessionState, segment: Segment, ticket: int) -> SessionState:
    tokens = len(segment.text.split())
    part = WindowSegment(
        segment_id=segment.segment_id,
        seq=state.next_seq,
        text=segment.text,
        tokens=tokens,
        offset=ticket,
    )
    return msgspec.structs.replace(
        state,
        next_seq=state.next_seq + 1,
        window=(*state.window, part)[-WINDOW:],
        uncovered_tokens=state.uncovered_tokens + tokens,
    )


def _next_revision(state: SessionState, task: str) -> tuple[SessionState, int]:
    revision = state.revisions.get(task, 0) + 1
    return msgspec.structs.replace(state, revisions={**state.revisions, task: revision}), revision


def _translate(
    state: SessionState, segment: Segment, ticket: int, language: str
) -> tuple[SessionState, TranslationEvent]:
    state, revision = _next_revision(state, f"translation:{language}")
    event = TranslationEvent(
        stream_id=state.stream_id,
        epoch=state.epoch,
        revision=revision,
        target_lang=language,
        unit_id=segment.segment_id,
        source_text=segment.text,
        committed=f"[{language} {os.getpid()}] {segment.text}",
        source_segment_ids=(segment.segment_id,),
        source=Source(first_offset=ticket, last_offset=ticket),
    )
    return state, event


def _summarise(state: SessionState, trigger: Trigger) -> tuple[SessionState, SummaryEvent]:
    state, revision = _next_revision(state, "summary")
    new = [part for part in state.window if part.seq > state.covered_seq]
    text = f"pid {os.getpid()} covers " + " ".join(part.segment_id for part in new)
    item = LedgerItem(
        id=f"a{state.next_item}", kind="topic", text=text, last_changed_revision=revision
    )
    last = new[-1] if new else None
    state = msgspec.structs.replace(
        state,
        items=(*state.items, item)[-8:],
        next_item=state.next_item + 1,
        covered_seq=last.seq if last else state.covered_seq,
        covered_segment_id=last.segment_id if last else state.covered_segment_id,
        uncovered_tokens=0,
    )
    event = SummaryEvent(
        stream_id=state.stream_id,
        epoch=state.epoch,
        revision=revision,
        status="final" if trigger == "session_end" else "partial",
        text=text,
        items=state.items,
        covers=Covers(to_seq=state.covered_seq, to_segment_id=state.covered_segment_id),
        source=Source(
            first_offset=new[0].offset if new else state.cursor,
            last_offset=new[-1].offset if new else state.cursor,
        ),
        trigger=trigger,
        degraded=state.degraded,
    )
    return msgspec.structs.replace(state, degraded=()), event
