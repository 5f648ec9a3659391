"""The chaos run's echo, as wicked as a test's text asks: instant and deterministic otherwise.

Chosen with LONGSTREAM_TEST_OPERATOR=tests.echo_device:make. Words in a segment's text command it:

    SLEEP 0.5   take that long           FAIL    refuse the segment (dead letter)
    CRASH       raise                    EXIT    leave the process without a word
    HANG        never finish the step    MEMORY  ask for more memory than there is
    ONCE name   the word before it counts only the first time (a file of that name remembers)
    WHILE name  SLEEP counts only as long as there is a file of that name

A model named "slow…" takes a minute to load, one named "none" is missing, and one named "broken…"
dies with every segment.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec

from operators.config import OperatorConfig
from operators.errors import ModelError
from operators.events import Question, Segment
from operators.observer import Observer
from operators.state import Emission, Failure, SessionState
from pipelines.device import protocol
from pipelines.lab.chaos.operators import Echo, echo_ready


class EchoOperator(Echo):
    """An echo that obeys."""

    def __init__(self, config: OperatorConfig, observer: Observer, broken: bool) -> None:
        super().__init__(config)
        self._observer = observer
        self._broken = broken

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> None:
        super().open(stream_id, state, snapshot)
        if state is not None:
            self._observer.count("kv_restores", kind="replay")

    def process(self, state: SessionState, segment: Segment, ticket: int) -> Emission:
        _obey("EXIT" if self._broken else segment.text)
        self._observer.count("prompt_tokens", len(segment.text.split()))
        if "FAIL" in segment.text:
            state = msgspec.structs.replace(state, cursor=ticket)
            failure = Failure(ticket, "operator", "asked_for", "the text said FAIL")
            return Emission(stream_id=state.stream_id, state=state, failed=[failure])
        return super().process(state, segment, ticket)

    def answer(self, state: SessionState, question: Question, ticket: int | None) -> Emission:
        _obey(question.text)
        return super().answer(state, question, ticket)


def make(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[EchoOperator, protocol.Ready]:
    if load.model.startswith("slow"):
        time.sleep(60)
    if load.model == "none":
        raise ModelError("no such model: none")
    operator = EchoOperator(config, observer, broken=load.model.startswith("broken"))
    return operator, echo_ready(config)


def _obey(text: str) -> None:
    if found := re.search(r"ONCE (\S+)", text):
        try:
            Path(found[1]).touch(exist_ok=False)
        except FileExistsError:
            return
    switch = re.search(r"WHILE (\S+)", text)
    slow = switch is None or Path(switch[1]).exists()
    if slow and (found := re.search(r"SLEEP ([\d.]+)", text)):
        time.sleep(float(found[1]))
    if "CRASH" in text:
        raise RuntimeError("the text said CRASH")
    if "EXIT" in text:
        os._exit(9)
    if "HANG" in text:
        time.sleep(3600)
    if "MEMORY" in text:
        raise MemoryError("the text asked for too much")


def make_engine(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[Any, protocol.Ready]:
    """The real engine on a toy model: LONGSTREAM_TEST_OPERATOR=tests.echo_device:make_engine."""
    import torch

    from operators.stream_operator import StreamOperator
    from pipelines.device.loader import describe
    from pipelines.storage.idle import idle_store
    from tests.engine import toy_decoder

    torch.set_num_threads(1)
    operator = StreamOperator(
        toy_decoder(),
        config,
        clock=time.monotonic,
        observer=observer,
        store=idle_store(load.offload_url, load.again),
    )
    return operator, describe(operator, 0.0)
