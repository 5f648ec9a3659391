"""Weights that streams' states name, and what the engine says of a state made with others."""

from __future__ import annotations

import msgspec

from operators.events import Segment
from operators.state import SessionState
from operators.stream_operator import StreamOperator
from pipelines.wire.codec import encode_state
from pipelines.worker.known_weights import newest_weights
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG


def test_the_newest_states_say_which_weights_are_in_use() -> None:
    def state(weights: str) -> bytes:
        return encode_state(SessionState(stream_id="a", weights=weights))

    records = [(1, state("m bf16+w8a8")), (3, state("m bf16+int8")), (2, state("m bf16+w8a8"))]
    assert newest_weights(records) == ("m bf16+int8", "m bf16+w8a8")
    assert newest_weights([(1, None), (2, b"\xff{"), (3, b"{}"), (4, state(""))]) == ()


def test_a_state_made_with_other_weights_is_said() -> None:
    operator = StreamOperator(toy_decoder(), CONFIG)
    operator.open("a")
    operator.feed(Segment(stream_id="a", text="a red button", segment_id="1"), 0)
    states = []
    while operator.has_work():
        states += [emission.state for emission in operator.step()]
    assert states[-1].weights == operator.model.weights
    for weights, flags in (
        (operator.model.weights, ()),
        ("other bf16+w8a8", ("weights_changed",)),
        ("", ()),
    ):
        operator.open("a", msgspec.structs.replace(states[-1], weights=weights))
        session = operator._sessions["a"]
        assert session.degraded == flags
        assert session.state().weights == operator.model.weights
