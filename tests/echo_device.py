"""A stand-in for the engine: instant, deterministic, and as wicked as a test's text asks.

Chosen with LONGSTREAM_TEST_OPERATOR=tests.echo_device:make. It keeps the engine's promises (order per
stream, honest SessionState, contiguous revisions), so that what a test sees go wrong is the
pipeline's fault. Words in a segment's text command it:

    SLEEP 0.5   take that long           FAIL    refuse the segment (dead letter)
    CRASH       raise                    EXIT    leave the process without a word
    HANG        never finish the step    MEMORY  ask for more memory than there is
    ONCE name   the word before it counts only the first time (a file of that name remembers)

A model named "slow…" takes a minute to load, one named "none" is missing, and one named "broken…"
dies with every segment.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from operators.config import OperatorConfig
from operators.errors import ModelError
from operators.observer import Observer
from operators.types import (
    Covers,
    Emission,
    Event,
    Failure,
    LedgerItem,
    Segment,
    SessionState,
    Source,
    SummaryEvent,
    TranslationEvent,
    WindowSegment,
)
from pipelines import protocol

SUMMARY_EVERY = 3
WINDOW = 16


class EchoOperator:
    """Summarises every third segment by naming the segments it covers; translates by prefixing."""

    def __init__(self, config: OperatorConfig, observer: Observer) -> None:
        self.config = config
        self.observer = observer
        self.states: dict[str, SessionState] = {}
        self.queue: deque[tuple[Segment, int]] = deque()
        self.broken = False

    def quiet(self, stream_id: str) -> bool:
        return False

    def snapshot(self, stream_id: str) -> bytes:
        raise AssertionError("never quiet")

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> None:
        assert stream_id not in self.states, "opened twice"
        self.states[stream_id] = state or SessionState(stream_id=stream_id)
        if state is not None:
            self.observer.count("kv_restores", kind="replay")

    def feed(self, segment: Segment, ticket: int) -> None:
        assert ticket > self.states[segment.stream_id].cursor, "fed below the cursor"
        self.queue.append((segment, ticket))

    def drop(self, stream_id: str) -> None:
        del self.states[stream_id]
        self.queue = deque(pair for pair in self.queue if pair[0].stream_id != stream_id)

    def close(self) -> None:
        self.states.clear()

    def has_work(self) -> bool:
        return bool(self.queue)

    def idle_until(self) -> float | None:
        return None

    def step(self) -> list[Emission]:
        segment, ticket = self.queue.popleft()
        _obey("EXIT" if self.broken else segment.text)
        state = self.states[segment.stream_id]
        emission = self._process(state, segment, ticket)
        self.states[segment.stream_id] = emission.state
        self.observer.count("prompt_tokens", len(segment.text.split()))
        return [emission]

    def _process(self, state: SessionState, segment: Segment, ticket: int) -> Emission:
        if state.ended:
            state = SessionState(stream_id=state.stream_id, epoch=state.epoch + 1)
        if "FAIL" in segment.text:
            state = msgspec.structs.replace(state, cursor=ticket)
            failure = Failure(ticket, "operator", "asked_for", "the text said FAIL")
            return Emission(stream_id=state.stream_id, state=state, failed=[failure])
        ends = segment.type == "session_end"
        if not ends:
            state = _append(state, segment, ticket)
        state = msgspec.structs.replace(state, cursor=ticket, ended=ends)
        events: list[Event] = []
        for lang in () if ends else self.config.targets:
            state, event = _translate(state, segment, ticket, lang)
            events.append(event)
        if ends or state.next_seq - 1 - state.covered_seq >= SUMMARY_EVERY:
            state, summary = _summarise(state, ends)
            events.append(summary)
        return Emission(stream_id=state.stream_id, state=state, events=events, done=[ticket])


def make(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[EchoOperator, protocol.Ready]:
    if load.model.startswith("slow"):
        time.sleep(60)
    if load.model == "none":
        raise ModelError("no such model: none")
    ready = protocol.Ready(
        model="echo",
        device="none",
        dtype_ingest="none",
        dtype_generation="none",
        slots=config.slots,
        bytes_per_stream=1,
        bytes_total=1,
    )
    operator = EchoOperator(config, observer)
    operator.broken = load.model.startswith("broken")
    return operator, ready


def _obey(text: str) -> None:
    if found := re.search(r"ONCE (\S+)", text):
        try:
            Path(found[1]).touch(exist_ok=False)
        except FileExistsError:
            return
    if found := re.search(r"SLEEP ([\d.]+)", text):
        time.sleep(float(found[1]))
    if "CRASH" in text:
        raise RuntimeError("the text said CRASH")
    if "EXIT" in text:
        os._exit(9)
    if "HANG" in text:
        time.sleep(3600)
    if "MEMORY" in text:
        raise MemoryError("the text asked for too much")


def _append(state: SessionState, segment: Segment, ticket: int) -> SessionState:
    part = WindowSegment(
        segment_id=segment.segment_id,
        seq=state.next_seq,
        text=segment.text,
        tokens=len(segment.text.split()),
        offset=ticket,
    )
    return msgspec.structs.replace(
        state,
        next_seq=state.next_seq + 1,
        window=(*state.window, part)[-WINDOW:],
        uncovered_tokens=state.uncovered_tokens + part.tokens,
    )


def _next_revision(state: SessionState, task: str) -> tuple[SessionState, int]:
    revision = state.revisions.get(task, 0) + 1
    revisions = {**state.revisions, task: revision}
    return msgspec.structs.replace(state, revisions=revisions), revision


def _translate(
    state: SessionState, segment: Segment, ticket: int, lang: str
) -> tuple[SessionState, TranslationEvent]:
    state, revision = _next_revision(state, f"translation:{lang}")
    event = TranslationEvent(
        stream_id=state.stream_id,
        epoch=state.epoch,
        revision=revision,
        target_lang=lang,
        unit_id=segment.segment_id,
        committed=f"[{lang}] {segment.text}",
        source_segment_ids=(segment.segment_id,),
        source=Source(first_offset=ticket, last_offset=ticket),
    )
    return state, event


def _summarise(state: SessionState, final: bool) -> tuple[SessionState, SummaryEvent]:
    """Text differs between processes (pid), so that a regenerated revision would be noticed."""
    state, revision = _next_revision(state, "summary")
    new = [part for part in state.window if part.seq > state.covered_seq]
    last = new[-1] if new else None
    text = f"pid {os.getpid()} covers " + " ".join(part.segment_id for part in new)
    item = LedgerItem(
        id=f"a{state.next_item}", kind="topic", text=text, last_changed_revision=revision
    )
    to_seq = last.seq if last else state.covered_seq
    to_id = last.segment_id if last else state.covered_segment_id
    state = msgspec.structs.replace(
        state,
        items=(*state.items, item)[-8:],
        next_item=state.next_item + 1,
        covered_seq=to_seq,
        covered_segment_id=to_id,
        uncovered_tokens=0,
    )
    event = SummaryEvent(
        stream_id=state.stream_id,
        epoch=state.epoch,
        revision=revision,
        status="final" if final else "partial",
        text=text,
        items=state.items,
        covers=Covers(to_seq=to_seq, to_segment_id=to_id),
        source=Source(
            first_offset=new[0].offset if new else state.cursor,
            last_offset=new[-1].offset if new else state.cursor,
        ),
        trigger="session_end" if final else "tokens",
        degraded=state.degraded,
    )
    return msgspec.structs.replace(state, degraded=()), event


def make_engine(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[Any, protocol.Ready]:
    """The real engine on a toy model: LONGSTREAM_TEST_OPERATOR=tests.echo_device:make_engine."""
    import torch

    from operators.stream_operator import StreamOperator
    from pipelines.device_model import describe
    from pipelines.spill import idle_store
    from tests.engine import toy_decoder

    torch.set_num_threads(1)
    operator = StreamOperator(
        toy_decoder(),
        config,
        clock=time.monotonic,
        observer=observer,
        store=idle_store(load.spill_url),
    )
    return operator, describe(operator, 0.0)
