"""Any order of feeding, forking, drafting, rejecting, dropping, saving and restoring equals the slow
reference, which knows none of these."""

from __future__ import annotations

import functools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operators.model import DecoderModel
from operators.plan import Row
from tests.engine import SINKS, Driver, assert_same_logits, layout, random_tokens, toy_decoder
from tests.reference import StreamReference
from tests.toy import toy_model

SLOTS, BRANCHES = 3, 3


@functools.cache
def model(device: str) -> DecoderModel:
    return toy_decoder(device=device)


class CacheMachine(RuleBasedStateMachine):
    """One stream and its branches, beside a second stream that must never notice."""

    device = "cpu"

    @initialize(offset=st.sampled_from([0, 4_000_000]))
    def begin(self, offset: int) -> None:
        self.seed = 0
        self.driver = Driver(model(self.device), layout(), slots=SLOTS, branches=BRANCHES)
        self.slot = self.driver.stream(SINKS, offset)
        self.reference = StreamReference(toy_model(), SINKS, window=24, offset=offset)
        self.other = self.driver.stream(SINKS)
        self.quiet = self.driver.cache.export(self.other)
        self.branches: list = []

    def tokens(self, count: int) -> list[int]:
        self.seed += 1
        return random_tokens(count, seed=self.seed)

    @rule(count=st.integers(1, 8))
    def feed(self, count: int) -> None:
        room = self.driver.cache.ingest_room(self.slot)
        if room:
            block = self.tokens(min(count, room))
            got = self.driver.run([Row(self.slot, block)])[0]
            assert_same_logits(got, self.reference.ingest(block))

    @precondition(lambda self: len(self.branches) < BRANCHES)
    @rule()
    def fork(self) -> None:
        self.branches.append((self.driver.cache.fork(self.slot), self.reference.fork()))

    @precondition(lambda self: self.branches)
    @rule(which=st.integers(0, 9), count=st.integers(1, 5))
    def append(self, which: int, count: int) -> None:
        branch, reference = self.branches[which % len(self.branches)]
        room = self.driver.cache.branch_room(branch)
        if room:
            block = self.tokens(min(count, room))
            assert_same_logits(self.driver.append(branch, block), reference.append(block))

    @precondition(lambda self: self.branches)
    @rule(which=st.integers(0, 9), drafts=st.integers(1, 6), accepted=st.integers(0, 6))
    def verify(self, which: int, drafts: int, accepted: int) -> None:
        """Drafts go in as a block, only the first few of them stand."""
        branch, reference = self.branches[which % len(self.branches)]
        drafts = min(drafts, self.driver.cache.branch_room(branch))
        if drafts:
            block, stands = self.tokens(drafts), min(accepted, drafts)
            got = self.driver.append(branch, block)
            branch.length -= drafts - stands
            if stands:
                assert_same_logits(got[:stands], reference.append(block[:stands]))

    @precondition(lambda self: len(self.branches) > 1)
    @rule(counts=st.lists(st.integers(1, 4), min_size=3, max_size=3))
    def all_at_once(self, counts: list[int]) -> None:
        """The branches and the stream itself in one forward."""
        rows, want = [], []
        for (branch, reference), count in zip(self.branches, counts, strict=False):
            room = self.driver.cache.branch_room(branch)
            if room:
                block = self.tokens(min(count, room))
                rows.append(Row(self.slot, block, branch))
                want.append(reference.append(block))
        if self.driver.cache.ingest_room(self.slot):
            block = self.tokens(1)
            rows.append(Row(self.slot, block))
            want.append(self.reference.ingest(block))
        if rows:
            for got, expected in zip(self.driver.run(rows), want, strict=True):
                assert_same_logits(got, expected)

    @precondition(lambda self: self.branches)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        branch, _ = self.branches.pop(which % len(self.branches))
        self.driver.cache.drop(branch)

    @precondition(lambda self: not self.branches)
    @rule()
    def save_and_restore(self) -> None:
        """To host memory and into whatever slot is free; somebody else may have used it."""
        cache, old = self.driver.cache, self.slot
        kept = cache.export(old)
        cache.release(old)
        used = cache.allocate()
        self.driver.run([Row(used, self.tokens(3))])
        self.slot = cache.allocate()
        cache.restore(self.slot, kept, old.length)
        self.slot.origin = old.origin
        cache.release(used)

    @invariant()
    def nothing_else_moved(self) -> None:
        if hasattr(self, "driver"):
            self.driver.cache.check_integrity()
            assert self.driver.cache.export(self.other).equal(self.quiet)


class CudaCacheMachine(CacheMachine):
    device = "cuda"


STEPS = settings(max_examples=20, stateful_step_count=30, deadline=None)
CacheMachine.TestCase.settings = CudaCacheMachine.TestCase.settings = STEPS
TestCacheMachine = CacheMachine.TestCase
TestCacheMachineOnCuda = pytest.mark.cuda(CudaCacheMachine.TestCase)
