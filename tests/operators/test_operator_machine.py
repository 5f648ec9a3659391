"""Streams opened, fed, parked, spilled, restored and dropped in any order say what each says alone.

The cache's own machine (test_cache_machine) checks logits against the slow reference; this one checks
that nothing the operator does with a stream shows in its texts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operators.config import OperatorConfig
from operators.events import Segment
from operators.model.loader import DecoderModel
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_offload import MemoryStore
from tests.operators.test_stream_operator import CONFIG, Clock, drain, essence, speech

NAMES = ("a", "b", "c")
LENGTH = 7


@functools.cache
def model(device: str) -> DecoderModel:
    return toy_decoder(layers=1, device=device)


def make(device: str, store: MemoryStore | None = None, **changes: object) -> StreamOperator:
    short = {"targets": (), "summary_tokens": 10, "update_tokens": 40, "window": 64, "slack": 16}
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **short, **changes})
    return StreamOperator(model(device), config, clock=Clock(), store=store)


@functools.cache
def talk(name: str) -> list[Segment]:
    return speech(name, LENGTH)


def told(emissions: list[Emission]) -> set[tuple[object, ...]]:
    """Every event, and with the newest summary of each emission what the model really wrote."""
    found = set()
    for emission in emissions:
        found |= {essence(event) for event in emission.events}
        if emission.events:
            answer = emission.state.last_output.get("summary")
            found.add(("answer", emission.events[-1].revision, answer))
    return found


@functools.cache
def alone(device: str, name: str) -> set[tuple[object, ...]]:
    """Everything the stream ever says, with an operator to itself."""
    operator = make(device)
    operator.open(name)
    for at, segment in enumerate(talk(name)):
        operator.feed(segment, at)
    return told(drain(operator))


def events_of(found: set[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """How answers fall into emissions is a matter of load; which there are is not."""
    return {each for each in found if each[0] != "answer"}


def comparable(
    found: set[tuple[object, ...]], expected: set[tuple[object, ...]]
) -> set[tuple[object, ...]]:
    """What can be held against the stream alone: all events, and the answers to those revisions
    that were the newest of an emission there too."""
    known = {each[1] for each in expected if each[0] == "answer"}
    return {each for each in found if each[0] != "answer" or each[1] in known}


@dataclass
class Known:
    """A stream as its user sees it. ``saved``: a snapshot, with how much had been fed and told."""

    fed: int = 0
    told: set[tuple[object, ...]] = field(default_factory=set)
    saved: tuple[bytes, int, set[tuple[object, ...]]] | None = None


class OperatorMachine(RuleBasedStateMachine):
    device = "cpu"

    @initialize(slots=st.integers(1, 2), host_streams=st.integers(0, 2), branches=st.integers(1, 3))
    def begin(self, **sizes: int) -> None:
        self.store, self.sizes = MemoryStore(), sizes
        self.operator = make(self.device, self.store, **sizes)
        self.streams = {name: Known() for name in NAMES}
        for name in NAMES:
            self.operator.open(name)

    def note(self, emissions: list[Emission]) -> None:
        for emission in emissions:
            self.streams[emission.stream_id].told |= told([emission])

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 5))
    def feed(self, name: str, count: int) -> None:
        stream = self.streams[name]
        for at in range(stream.fed, min(stream.fed + count, len(talk(name)))):
            self.operator.feed(talk(name)[at], at)
            stream.fed += 1

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.note(self.operator.step())

    @rule()
    def settle(self) -> None:
        self.note(drain(self.operator))

    @rule(name=st.sampled_from(NAMES))
    def park(self, name: str) -> None:
        session = self.operator._sessions[name]
        if session.slot is not None and session.idle:
            self.operator._residency.evict(session)

    @rule(name=st.sampled_from(NAMES))
    def snapshot(self, name: str) -> None:
        if self.operator.quiet(name):
            stream = self.streams[name]
            stream.saved = (self.operator.snapshot(name), stream.fed, set(stream.told))

    @rule(name=st.sampled_from(NAMES), elsewhere=st.booleans())
    def restore(self, name: str, elsewhere: bool) -> None:
        """Whatever came after the snapshot is fed and told again; elsewhere: in a new operator, to
        which the other streams go from the start."""
        saved = self.streams[name].saved
        if saved is None:
            return
        if elsewhere:
            self.store = MemoryStore()
            self.operator = make(self.device, self.store, **self.sizes)
            for other in NAMES:
                self.operator.open(other)
                self.streams[other] = Known()
        self.operator.open(name, snapshot=saved[0])
        self.streams[name] = Known(saved[1], set(saved[2]), saved)

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: str) -> None:
        self.operator.drop(name)
        self.operator.open(name)
        self.streams[name] = Known()

    @invariant()
    def nothing_is_said_that_would_not_be_said_alone(self) -> None:
        for name, stream in getattr(self, "streams", {}).items():
            expected = alone(self.device, name)
            assert comparable(stream.told, expected) <= expected
            offload = self.operator._residency.offload
            assert offload.on_disk == len(self.store.files)
            assert not offload.in_host or offload.in_host <= self.sizes["host_streams"]

    def teardown(self) -> None:
        """Fed to their ends, the streams have said all they say alone."""
        for name, stream in getattr(self, "streams", {}).items():
            self.feed(name, len(talk(name)))
            self.note(drain(self.operator))
            assert events_of(stream.told) == events_of(alone(self.device, name))
        if hasattr(self, "store"):
            assert self.store.files == {}
            self.operator.cache.check_integrity()


class CudaOperatorMachine(OperatorMachine):
    device = "cuda"


STEPS = settings(max_examples=8, stateful_step_count=25, deadline=None)
OperatorMachine.TestCase.settings = CudaOperatorMachine.TestCase.settings = STEPS
TestOperatorMachine = OperatorMachine.TestCase
TestOperatorMachineOnCuda = pytest.mark.cuda(CudaOperatorMachine.TestCase)
