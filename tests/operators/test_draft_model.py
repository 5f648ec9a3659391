"""A draft model in step with its target: same text, same positions, memory that is counted."""

from __future__ import annotations

import pytest
import torch

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs
from operators.errors import ConfigError, ModelError
from operators.events import Segment
from operators.model.loader import DecoderModel
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, Clock, drain, events, ordered, run, speech

FREE = Costs(CostCurve(((1, 1.0), (512, 1.001))), CostCurve(((1, 1e-6), (512, 1e-5))))
"""Drafting costs nothing here, so it is always done and as far as allowed."""


def make(draft: DecoderModel | None, **changes: object) -> StreamOperator:
    settings = {"drafter": "draft" if draft else "none", "draft_model": "toy" if draft else ""}
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **settings, **changes})
    return StreamOperator(toy_decoder(), config, clock=Clock(), draft=draft, costs=FREE)


def drafts(kind: str) -> DecoderModel:
    """The target itself, or models that are mostly wrong."""
    return {
        "same": lambda: toy_decoder(),
        "random": lambda: toy_decoder(seed=7, layers=1),
        "other sizes": lambda: toy_decoder("qwen2", seed=3, layers=1, num_key_value_heads=1),
    }[kind]()


def usage(emissions: list[Emission]) -> tuple[int, int, int]:
    found = [e.usage for m in emissions for e in m.events]
    return (
        sum(u.drafted for u in found),
        sum(u.accepted for u in found),
        sum(u.verifies for u in found),
    )


def interleaved(names: str, count: int) -> list[Segment]:
    talks = [speech(name, count) for name in names]
    return [segment for turn in zip(*talks, strict=True) for segment in turn]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("kind", "slots"), [("same", 1), ("random", 3), ("other sizes", 2)])
def test_a_draft_model_changes_speed_only(kind: str, slots: int) -> None:
    """Invariant 2: three streams that wrap their windows; with fewer slots they also move out and in."""
    words = interleaved("abc", 8)
    plain = run(make(None, slots=slots, targets=("fr",)), words, shuffle=2)
    operator = make(drafts(kind), slots=slots, targets=("fr",))
    fast = run(operator, words, shuffle=2)
    for name in "abc":
        assert ordered(events(fast, name)) == ordered(events(plain, name))
    assert max(e.kv.evicted_total for m in plain for e in m.events if hasattr(e, "kv")) > 0
    drafted, accepted, verifies = usage(fast)
    assert drafted > 0
    if kind == "same":
        assert verifies < usage(plain)[2] / 3
        assert accepted > 0.8 * drafted  # the rest lies behind the end of an answer
    else:
        assert accepted < 0.5 * drafted, "hardly ever wrong: rollback would not be tested"


@pytest.mark.usefixtures("device")
def test_the_drafts_cache_holds_what_the_target_would_hold() -> None:
    """With the target as its own draft every key is the same, after wraps, branches and rollbacks."""
    operator = make(toy_decoder())
    operator.open("a")
    twins = 0
    for at, segment in enumerate(speech("a", 20)[:-1]):
        operator.feed(segment, at)
        while operator.has_work():
            operator.step()
            twins += compare(operator)
    assert operator._sessions["a"].evicted_total > 0
    assert twins > 20


def compare(operator: StreamOperator) -> int:
    """Keys and values of the stream, and of every twin branch as far as it goes; how many there were."""
    session, draft = operator._sessions["a"], operator._draft
    assert draft is not None
    if session.slot is None:
        return 0
    slot, twin = session.slot, draft._twins[session.slot]
    assert twin.length == slot.length
    seen = operator.cache.positions(slot.length) >= slot.length - CONFIG.window
    close = {"rtol": 1e-4, "atol": 1e-4}
    compared = 0
    pools = [(operator.cache, draft.cache)]
    for mine, its in pools:
        for layer in range(mine.shape.layers):
            used = slice(0, len(seen))
            for a, b in ((mine.keys, its.keys), (mine.values, its.values)):
                torch.testing.assert_close(
                    a[layer][slot.index, :, used][:, seen],
                    b[layer][twin.index, :, used][:, seen],
                    **close,
                )
            for generation in session.running:
                for drafter in generation.drafters:
                    branch = getattr(drafter, "branch", None)
                    if branch is None or generation.branch is None:
                        continue
                    assert branch.length <= generation.branch.length
                    own = slice(0, branch.length)
                    torch.testing.assert_close(
                        mine.branch_keys[layer][branch.region, :, own],
                        its.branch_keys[layer][branch.region, :, own],
                        **close,
                    )
                    compared += branch.length > 0
    return compared


def test_after_full_acceptance_the_last_draft_is_fed_first() -> None:
    """The twin lags one token behind for every block accepted whole, and never more."""
    operator = make(toy_decoder(), targets=())
    operator.open("a")
    lags = []
    for at, segment in enumerate(speech("a", 12)[:-1]):
        operator.feed(segment, at)
        while operator.has_work():
            operator.step()
            for generation in operator._sessions["a"].running:
                lags += [
                    d.lag for d in generation.drafters if hasattr(d, "lag") and d.branch.length
                ]
    assert set(lags) == {2}  # the last draft and the pending token


@pytest.mark.usefixtures("device")
def test_a_stream_the_draft_does_not_remember_goes_on() -> None:
    """A snapshot holds the target's memory only; the draft knows the stream from there on."""
    words = speech("a", 20)
    operator, other = make(drafts("same")), make(drafts("same"))
    operator.open("a")
    for at, segment in enumerate(words[:12]):
        operator.feed(segment, at)
    drain(operator)
    other.open("a", snapshot=operator.snapshot("a"))
    outcomes = []
    for each in (operator, other):
        for at, segment in enumerate(words[12:], start=12):
            each.feed(segment, at)
        outcomes.append(drain(each))
    assert ordered(events(outcomes[0], "a")) == ordered(events(outcomes[1], "a"))
    drafted, accepted, _ = usage(outcomes[1])
    assert drafted > 0
    assert accepted > 0


def test_its_memory_is_part_of_the_formula() -> None:
    plain, drafted = make(None, branches=4), make(drafts("random"), branches=4)
    draft = drafted._draft
    assert draft is not None
    total = drafted.cache.nbytes + draft.cache.nbytes
    assert drafted.bytes_per_stream * CONFIG.slots == total
    assert drafted.bytes_per_stream == plain.bytes_per_stream * 3 // 2  # one layer beside two


def test_a_draft_model_with_another_vocabulary_is_refused() -> None:
    other = toy_decoder(seed=7)
    ids = other.tokenizer.vocabulary()
    other.tokenizer.vocabulary = lambda: {**ids, "7": 8, "8": 7}  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="vocabularies differ in 2 tokens, for example '7'"):
        make(other)
    other.tokenizer.vocabulary = lambda: dict(list(ids.items())[:200])  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="vocabularies differ in 58 tokens"):
        make(other)


def test_padding_of_the_vocabulary_may_differ() -> None:
    words = speech("a", 5)
    plain = ordered(events(run(make(None), words), "a"))
    for vocab in (300, 260):
        draft = toy_decoder(seed=7, layers=1, vocab=vocab)
        assert ordered(events(run(make(draft), words), "a")) == plain


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ConfigError, match="set draft_model"):
        OperatorConfig(drafter="draft")
    with pytest.raises(ConfigError, match="not loaded"):
        make(None, draft_model="somebody")
