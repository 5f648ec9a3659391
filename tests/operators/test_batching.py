"""Continuous batching, counted in steps: who waits for whom, and what shares a forward."""

from __future__ import annotations

import pytest
import torch

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache
from operators.events import Segment
from operators.model.loader import DecoderModel
from operators.model.quantization import runs_w8a8
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import ToyTokenizer, toy_decoder
from tests.operators.test_shared_prompts import Several
from tests.operators.test_stream_operator import CONFIG, Clock, drain, make, speech
from tests.toy import toy_model

LONG = "so the plan is that everybody tests the button on every remote we have. "
TOKENS = 2_000


class Steps:
    """What every forward of an operator was made of, by step."""

    def __init__(self, operator: StreamOperator) -> None:
        self.operator = operator
        self.forwards: list[list[tuple[str, list[Row]]]] = []
        forward = operator.model.forward

        def watched(role, cache, rows):  # type: ignore[no-untyped-def]
            self.forwards[-1].append((role, list(rows)))
            return forward(role, cache, rows)

        operator.model.forward = watched  # type: ignore[method-assign]

    def step(self) -> list[Emission]:
        self.forwards.append([])
        assert len(self.forwards) < 2000, "the operator never came to rest"
        return self.operator.step()

    def rows(self, at: int = -1) -> list[Row]:
        return [row for _, rows in self.forwards[at] for row in rows]


def long_text(tokens: int) -> str:
    """A byte is a token here."""
    return (LONG * (tokens // len(LONG) + 1))[:tokens]


@pytest.mark.parametrize("slack", [24, 64], ids=["small blocks", "blocks as large as the budget"])
def test_a_long_ingest_delays_nobodys_next_token(slack: int) -> None:
    """While one stream takes in 2,000 tokens, another's answer grows in every single step, and no
    step holds more prompt tokens than the budget: the delay is at most one such step."""
    operator = make(
        slack=slack, window=400, update_tokens=400, targets=(), drafter="none", branch_tokens=260
    )
    steps = Steps(operator)
    operator.open("a")
    operator.open("b")
    for at, segment in enumerate(speech("b", 6)[:-1]):
        operator.feed(segment, at)
    for _ in range(50):
        steps.step()
    operator.request_summary("b")
    steps.step()
    (answer,) = operator._sessions["b"].running
    assert not operator._sessions["b"].queue
    operator.feed(Segment(stream_id="a", segment_id="long", text=long_text(TOKENS)), 0)
    taken = 0
    while not answer.finish_reason:
        before = answer.verifies
        steps.step()
        assert answer.verifies == before + 1
        prompts = [
            len(r.tokens) for role, rows in steps.forwards[-1] for r in rows if role == "prefill"
        ]
        assert sum(prompts) <= CONFIG.prefill_budget
        taken += sum(prompts)
    assert taken > 3 * slack  # the long text did go in meanwhile


def test_a_long_ingest_delays_another_ones_ingest_by_one_step_at_most() -> None:
    """A short segment gets its first token in no later than one step after it would have alone."""
    operator = make(slack=64, window=160, targets=(), update_tokens=160, branch_tokens=260)
    steps = Steps(operator)
    operator.open("a")
    operator.open("b")
    operator.feed(Segment(stream_id="a", segment_id="long", text=long_text(TOKENS)), 0)
    steps.step()
    for at, segment in enumerate(speech("b", 3)[:-1]):
        operator.feed(segment, at)
        waited = 0
        while operator._sessions["b"].queue and operator._sessions["b"].current is None:
            steps.step()
            waited += 1
            mine = operator._sessions["b"].slot
            if any(row.stream is mine for row in steps.rows()):
                break
        assert waited <= 2
        while operator._sessions["b"].works:
            steps.step()
    assert operator._sessions["a"].queue  # it was not over by then


def test_a_summary_and_three_languages_run_in_one_forward_over_one_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four branches of one stream at once; the window is read where it lies, nothing is copied."""
    operator = make(targets=("fr", "de", "es"), branches=4, update_tokens=20, drafter="none")
    steps = Steps(operator)
    operator.open("a")
    operator.feed(speech("a", 1)[0], 0)
    operator.feed(Segment(stream_id="a", segment_id="x", text="and the red one too"), 1)
    copies: list[object] = []
    steps.step()  # the slot is filled with the prefix here
    monkeypatch.setattr(KvCache, "export", lambda *_: copies.append("export"))
    monkeypatch.setattr(KvCache, "restore", lambda *_: copies.append("restore"))
    bytes_before, most = operator.cache.nbytes, 0
    slot = operator._sessions["a"].slot
    while operator.has_work():
        steps.step()
        for role, rows in steps.forwards[-1]:
            branches = {row.branch.region for row in rows if row.branch is not None}
            assert all(row.stream is slot for row in rows)
            if role == "decode":
                most = max(most, len(branches))
        assert len([role for role, _ in steps.forwards[-1] if role == "decode"]) <= 1
    assert most == 4
    assert copies == []
    assert operator.cache.nbytes == bytes_before


def test_ingest_goes_on_within_slack_while_branches_are_open() -> None:
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": (), "drafter": "none"})
    operator = StreamOperator(
        toy_decoder(), config, clock=Clock(), tasks=[Several(["one"], alone=False)]
    )
    steps = Steps(operator)
    operator.open("a")
    for at, segment in enumerate(speech("a", 12)[:-1]):
        operator.feed(segment, at)
    session, slack, beyond = operator._sessions["a"], operator.layout.slack, 0
    while operator.has_work():
        steps.step()
        seeing = [g.branch for g in session.running if g.branch is not None and not g.alone]
        if seeing and session.slot is not None:
            oldest = min(branch.fork for branch in seeing)
            assert session.frontier - oldest <= slack
            beyond = max(beyond, session.frontier - oldest)
    assert beyond > slack // 2
    drain(operator)


@pytest.mark.skipif(not runs_w8a8(torch.device("cpu")), reason="NOT TESTED HERE: needs VNNI")
def test_rows_of_both_roles_share_a_forward_where_products_are_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With w8a8 for both roles a step is one forward, and the texts are those of two forwards."""

    def events(*, apart: bool) -> tuple[set[str], int]:
        model = DecoderModel(
            toy_model(), ToyTokenizer(), name="toy", dtype_prefill="w8a8", dtype_decode="w8a8"
        )
        assert model.one_forward
        if apart:
            monkeypatch.setattr(DecoderModel, "one_forward", False)
        operator = StreamOperator(model, CONFIG, clock=Clock())
        steps, found = Steps(operator), []
        for name in "ab":
            operator.open(name)
            for at, segment in enumerate(speech(name, 8)):
                operator.feed(segment, at)
        while operator.has_work():
            found += [str(event) for emission in steps.step() for event in emission.events]
        return set(found), sum(len(forwards) > 1 for forwards in steps.forwards)

    together, twice = events(apart=False)
    separate, often = events(apart=True)
    assert together == separate
    assert together
    assert twice == 0
    assert often > 0
