"""The fast path equals the slow reference: every token, every block size, batch and position."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from operators.cache.batch import ForwardBatch, Row
from operators.cache.kv_cache import bytes_per_stream
from operators.errors import CapacityError, ModelError
from operators.model.loader import check_supported
from operators.model.network import Norm
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import SINKS, Driver, assert_same_logits, layout, random_tokens, toy_decoder
from tests.toy import ARCHITECTURES, toy_model

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@pytest.mark.parametrize("offset", [0, 1_000_000, 4_000_000])
def test_random_blocks_over_many_wraps(arch: str, offset: int) -> None:
    driver = Driver(toy_decoder(arch), layout())
    tokens = random_tokens(450, seed=1)
    got = driver.feed(driver.stream(SINKS, offset), tokens, random.Random(7))
    want = StreamReference(toy_model(arch), SINKS, window=24, offset=offset).ingest(tokens)
    assert_same_logits(got, want)


def test_one_token_at_a_time_equals_blocks_of_slack() -> None:
    driver = Driver(toy_decoder(), layout())
    tokens = random_tokens(200, seed=2)
    one = driver.feed(driver.stream(SINKS), tokens)
    slot = driver.stream(SINKS)
    blocks = torch.cat([driver.run([Row(slot, tokens[i : i + 8])])[0] for i in range(0, 200, 8)])
    assert_same_logits(blocks, one)


@settings(max_examples=25, deadline=None)
@given(
    window=st.integers(1, 40),
    slack=st.integers(1, 20),
    sinks=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
def test_any_geometry(window: int, slack: int, sinks: int, seed: int) -> None:
    prefix, tokens = random_tokens(sinks, seed), random_tokens(120, seed + 1)
    driver = Driver(toy_decoder(), layout(window, slack, sinks=sinks))
    got = driver.feed(driver.stream(prefix), tokens, random.Random(seed))
    want = StreamReference(toy_model(), prefix, window=window).ingest(tokens)
    assert_same_logits(got, want)


def test_ragged_batch_of_streams_and_branches_in_one_forward() -> None:
    """Rows of different length, role and stream packed together give what each gives alone."""
    driver, rng = Driver(toy_decoder(), layout()), random.Random(3)
    references = [StreamReference(toy_model(), SINKS, window=24) for _ in range(3)]
    slots = [driver.stream(SINKS) for _ in references]
    for at, (slot, reference) in enumerate(zip(slots, references, strict=True)):
        history = random_tokens(30 * at + 5, seed=at)
        driver.feed(slot, history, rng)
        reference.ingest(history)
    branches = [driver.cache.fork(slot) for slot in slots]
    forks = [reference.fork() for reference in references]
    for turn in range(4):
        rows, want = [], []
        for at in range(3):
            size = rng.randint(1, min(6, driver.cache.branch_room(branches[at])))
            block = random_tokens(size, seed=100 * turn + at)
            rows.append(Row(slots[at], block, branches[at]))
            want.append(forks[at].append(block))
            room = driver.cache.ingest_room(slots[at])
            if room and turn < 2:
                block = random_tokens(min(room, 3), seed=1000 * turn + at)
                rows.append(Row(slots[at], block))
                want.append(references[at].ingest(block))
        order = list(range(len(rows)))
        rng.shuffle(order)
        got = driver.run([rows[i] for i in order])
        for i, logits in zip(order, got, strict=True):
            assert_same_logits(logits, want[i])


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_short_rows_on_neighbouring_slots_are_attended_together(arch: str) -> None:
    """Decode and verify rows of many streams, two branches each, and one stream that listens on."""
    driver, rng = Driver(toy_decoder(arch), layout(), slots=5, branches=10), random.Random(8)
    references = [StreamReference(toy_model(arch), SINKS, window=24) for _ in range(5)]
    slots = [driver.stream(SINKS) for _ in references]
    for at, (slot, reference) in enumerate(zip(slots, references, strict=True)):
        history = random_tokens(14 * at + 3, seed=at)  # some windows full, some not
        driver.feed(slot, history, rng)
        reference.ingest(history)
    both = list(zip(slots, references, strict=True)) * 2
    pairs = [(driver.cache.fork(slot), reference.fork()) for slot, reference in both]
    for turn, lengths in enumerate([(1,) * 10, (4, 3, 4, 1, 2, 4, 3, 3, 1, 4), (5,) * 10]):
        rows, want = [], []
        for at, ((branch, fork), size) in enumerate(zip(pairs, lengths, strict=True)):
            block = random_tokens(size, seed=50 * turn + at)
            rows.append(Row(branch.stream, block, branch))
            want.append(fork.append(block))
        block = random_tokens(2, seed=turn)
        rows += [Row(slots[1], block), Row(slots[2], block)]
        want += [references[1].ingest(block), references[2].ingest(block)]
        assert ForwardBatch(driver.cache, rows, driver.model.rope)._groups
        for logits, reference_logits in zip(driver.run(rows), want, strict=True):
            assert_same_logits(logits, reference_logits)


def test_what_one_branch_broke_does_not_reach_the_next() -> None:
    """Memory that held something not finite is wiped before somebody else's rows lie beside it."""
    driver = Driver(toy_decoder(), layout(), slots=2, branches=2)
    references = [StreamReference(toy_model(), SINKS, window=24) for _ in range(2)]
    broken = driver.cache.fork(driver.stream(SINKS))
    for pool in (driver.cache.keys, driver.cache.values):
        pool[0][broken.stream.index].fill_(torch.nan)
    for pool in (driver.cache.branch_keys, driver.cache.branch_values):
        pool[0][broken.region].fill_(torch.nan)
    driver.cache.drop(broken)
    driver.cache.release(broken.stream)
    branches = [driver.cache.fork(driver.stream(SINKS)) for _ in references]
    blocks = [random_tokens(n, seed=n) for n in (3, 4)]
    got = driver.run([Row(b.stream, t, b) for b, t in zip(branches, blocks, strict=True)])
    for reference, block, logits in zip(references, blocks, got, strict=True):
        assert_same_logits(logits, reference.fork().append(block))


@pytest.mark.parametrize("history", [0, 10, 29, 30, 100])
def test_branch_survives_ingest_up_to_slack_and_not_beyond(history: int) -> None:
    """A branch's view is frozen while ingest runs on, for exactly ``slack`` tokens."""
    driver = Driver(toy_decoder(), layout())
    reference = StreamReference(toy_model(), SINKS, window=24)
    slot = driver.stream(SINKS)
    before = random_tokens(history, seed=4)
    if before:
        driver.feed(slot, before, random.Random(4))
        reference.ingest(before)
    branch, fork = driver.cache.fork(slot), reference.fork()
    prompt, answer, later = (random_tokens(n, seed=n) for n in (6, 9, 8))
    assert_same_logits(driver.append(branch, prompt), fork.append(prompt))
    driver.feed(slot, later, random.Random(5))
    reference.ingest(later)
    assert driver.cache.ingest_room(slot) == 0
    with pytest.raises(ValueError, match="room for 0"):
        driver.run([Row(slot, [1])])
    assert_same_logits(driver.append(branch, answer), fork.append(answer))


def test_junk_drafts_leave_no_trace_after_rollback() -> None:
    driver = Driver(toy_decoder(), layout())
    slot, reference = driver.stream(SINKS), StreamReference(toy_model(), SINKS, window=24)
    history = random_tokens(80, seed=6)
    driver.feed(slot, history, random.Random(6))
    reference.ingest(history)
    branch, fork = driver.cache.fork(slot), reference.fork()
    rng = random.Random(8)
    for turn in range(10):
        token = [rng.randrange(256)]
        driver.append(branch, random_tokens(5, seed=turn))
        branch.length -= 5
        assert_same_logits(driver.append(branch, token), fork.append(token))


@pytest.mark.usefixtures("dtype")
def test_dropped_branch_leaves_the_stream_bit_identical() -> None:
    """The same blocks with and without branches in between: equal to the last bit."""
    tokens, outcomes = random_tokens(160, seed=9), []
    for branching in (False, True):
        driver = Driver(toy_decoder(), layout())
        slot, out = driver.stream(SINKS), []
        for at in range(0, 160, 8):
            if branching:
                opened = [driver.cache.fork(slot) for _ in range(2)]
                for b, branch in enumerate(opened):
                    driver.append(branch, random_tokens(12, seed=at + b))
                for branch in opened:
                    driver.cache.drop(branch)
            out += driver.run([Row(slot, tokens[at : at + 8])])
        outcomes.append((torch.cat(out), driver.cache.export(slot)))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])


def test_branches_of_one_stream_do_not_see_each_other() -> None:
    driver = Driver(toy_decoder(), layout())
    slot, reference = driver.stream(SINKS), StreamReference(toy_model(), SINKS, window=24)
    history = random_tokens(50, seed=10)
    driver.feed(slot, history, random.Random(1))
    reference.ingest(history)
    pairs = [(driver.cache.fork(slot), reference.fork()) for _ in range(3)]
    for turn in range(3):
        for at, (branch, fork) in enumerate(pairs):
            block = random_tokens(2 + at, seed=10 * turn + at)
            assert_same_logits(driver.append(branch, block), fork.append(block))


@pytest.mark.usefixtures("dtype")
def test_slot_moved_to_host_and_back_is_bit_identical() -> None:
    driver = Driver(toy_decoder(), layout())
    tokens = random_tokens(100, seed=11)
    stay, move = driver.stream(SINKS), driver.stream(SINKS)
    for slot in (stay, move):
        for at in range(0, 64, 8):
            driver.run([Row(slot, tokens[at : at + 8])])
    kept, length = driver.cache.export(move), move.length
    driver.cache.release(move)
    other = driver.cache.allocate()  # takes the freed memory and scribbles on it
    driver.feed(other, random_tokens(40, seed=12), random.Random(2))
    back = driver.cache.allocate()
    driver.cache.restore(back, kept, length)
    for at in range(64, 96, 8):
        block = tokens[at : at + 8]
        assert torch.equal(driver.run([Row(stay, block)])[0], driver.run([Row(back, block)])[0])


@pytest.mark.usefixtures("dtype")
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 5, 4), (8, 1, 3)])
def test_what_neighbours_say_does_not_show_in_a_bit(sizes: tuple[int, ...]) -> None:
    """The size of a batch may show in the last digits of bf16; its words never do."""
    outcomes = []
    for seed in (1, 2):
        driver = Driver(toy_decoder(), layout())
        slots, out = [driver.stream(SINKS) for _ in sizes], []
        for turn in range(12):
            blocks = [random_tokens(n, 100 * turn + at) for at, n in enumerate(sizes)]
            for at in (1, 2):
                blocks[at] = random_tokens(sizes[at], seed=1000 * seed + 10 * turn + at)
            rows = [Row(slot, block) for slot, block in zip(slots, blocks, strict=True)]
            out.append(driver.run(rows))
        outcomes.append([torch.cat(logits) for logits in zip(*out, strict=True)])
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert not torch.equal(outcomes[0][1], outcomes[1][1])


def test_cache_memory_is_the_formula_and_never_grows() -> None:
    driver = Driver(toy_decoder(), layout(), slots=2, branches=3)
    per_stream = bytes_per_stream(
        driver.model.shape, driver.layout, torch.float32, slots=2, branches=3
    )
    before = driver.cache.nbytes
    assert before == 2 * per_stream
    storages = [t.data_ptr() for t in driver.cache.keys + driver.cache.branch_keys]
    driver.feed(driver.stream(SINKS), random_tokens(300, seed=13), random.Random(3))
    assert driver.cache.nbytes == before
    assert storages == [t.data_ptr() for t in driver.cache.keys + driver.cache.branch_keys]


def test_slots_and_regions_run_out_with_a_clear_error_and_come_back() -> None:
    driver = Driver(toy_decoder(), layout(), slots=1, branches=1)
    slot = driver.stream(SINKS)
    with pytest.raises(CapacityError, match="slots"):
        driver.cache.allocate()
    branch = driver.cache.fork(slot)
    with pytest.raises(CapacityError, match="branch regions"):
        driver.cache.fork(slot)
    with pytest.raises(RuntimeError, match="1 open branches"):
        driver.cache.release(slot)
    driver.cache.drop(branch)
    driver.cache.release(slot)
    driver.cache.check_integrity()
    assert driver.cache.free_slots == driver.cache.free_regions == 1


def test_models_that_cannot_be_run_exactly_are_refused() -> None:
    linear = toy_model("qwen3").config
    linear.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match="layers of linear_attention"):
        check_supported(linear)
    nameless = toy_model("qwen3").config
    nameless.layer_types, nameless.sliding_window = ["sliding_attention"] * 2, None
    with pytest.raises(ModelError, match="does not say how long"):
        check_supported(nameless)
    learned = toy_model().config
    learned.model_type = "gpt2"
    with pytest.raises(ModelError, match="gpt2"):
        check_supported(learned)
    with pytest.raises(ModelError, match="trained for 4096"):
        toy_decoder().new_cache(layout(window=4096), slots=1, branches=1)


@pytest.mark.parametrize("arch", ["mistral", "phi3"])
def test_a_model_s_own_sliding_window_may_be_as_long_as_all_that_a_query_sees(arch: str) -> None:
    shape = layout()  # sinks 5, window 24, branch 24
    model = toy_decoder(arch, sliding_window=53)
    driver = Driver(model, shape)
    slot, reference = driver.stream(SINKS), StreamReference(toy_model(arch), SINKS, window=24)
    tokens = random_tokens(70, seed=3)
    assert_same_logits(driver.feed(slot, tokens, random.Random(1)), reference.ingest(tokens))
    branch, fork = driver.cache.fork(slot), reference.fork()
    own = random_tokens(20, seed=5)
    assert_same_logits(driver.append(branch, own), fork.append(own))
    with pytest.raises(ModelError, match=r"= 53 tokens, but layers of toy-.* see only 52 tokens"):
        Driver(toy_decoder(arch, sliding_window=52), shape)


def _broken_at_call(number: int) -> Callable[..., Tensor]:
    count, whole = itertools.count(1), Norm.__call__

    def norm(self: Norm, x: Tensor) -> Tensor:
        if next(count) == number:
            raise ZeroDivisionError
        return whole(self, x)

    return norm


def test_half_done_forward_appends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device fault in the middle of a step: the same step can simply be run again."""
    driver = Driver(toy_decoder(), layout())
    slot, reference = driver.stream(SINKS), StreamReference(toy_model(), SINKS, window=24)
    tokens = random_tokens(60, seed=14)
    driver.feed(slot, tokens, random.Random(4))
    reference.ingest(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(Norm, "__call__", _broken_at_call(5))  # two layers have four, the last is one
        with pytest.raises(ZeroDivisionError):
            driver.run([Row(slot, [1, 2, 3])])
    assert slot.length == len(SINKS) + 60
    assert_same_logits(driver.run([Row(slot, [4, 5])])[0], reference.ingest([4, 5]))
