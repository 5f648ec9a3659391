"""Any order of feeding, forking, drafting, rejecting, evicting, offloading, saving and restoring equals
the slow reference, which knows none of these.

Every logit any rule gets to see is held against the reference, in fp32 within 1e-3 and with the same
most likely token. What a verify block accepts is held against the reference's own greedy text.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from transformers import PreTrainedModel

from operators.cache.batch import Row
from operators.decoding.drafters import Draft
from operators.decoding.generation import Generation
from operators.engine.session import Session
from operators.engine.task_run import TaskRun
from operators.model.loader import DecoderModel
from pipelines.lab.conformance.reference import BranchReference, StreamReference
from tests.engine import SINKS, assert_same_logits, random_tokens, run_of, toy_decoder
from tests.toy import toy_model
from tests.world import WINDOW, World

BRANCHES, DRAFTS = 3, 5
FED = ("a", "b")
NAMES = (*FED, "quiet")
"""The last one is never fed by a rule: nothing may change a bit of it, wherever it lies."""


@functools.cache
def model(device: str) -> DecoderModel:
    return toy_decoder(device=device)


@functools.cache
def plain_model() -> PreTrainedModel:
    return toy_model()


@dataclass
class Stream:
    """A stream in the engine and in the reference. ``saved``: a snapshot, and the reference then."""

    session: Session
    reference: StreamReference
    saved: tuple[bytes, StreamReference] | None = None


@dataclass(eq=False)
class Answer:
    """A branch in the engine and in the reference."""

    stream: Stream
    generation: Generation
    reference: BranchReference
    run: TaskRun


@dataclass
class Verify:
    """A verify block, with what the reference says about the part of it that stands."""

    answer: Answer
    row: Row
    logits: Tensor
    tokens: list[int]


class CacheMachine(RuleBasedStateMachine):
    device = "cpu"

    @initialize(
        offset=st.sampled_from([0, 4_000_000]),
        slots=st.integers(1, 3),
        host_streams=st.integers(0, 2),
    )
    def begin(self, offset: int, slots: int, host_streams: int) -> None:
        self.seed = self.turn = 0
        self.answers: list[Answer] = []
        self.world = self.new_world(slots, host_streams)
        self.streams = {}
        for name in NAMES:
            start = offset if name == "a" else 0
            reference = StreamReference(plain_model(), SINKS, window=WINDOW, offset=start)
            self.streams[name] = Stream(self.world.new_session(name), reference)
        if offset:  # as if so many tokens had gone by; what stands for them leaves the window here
            assert self.resident(self.streams["a"])
            slot = self.streams["a"].session.slot
            slot.length += offset
            slot.origin = slot.length
            self.evict("a")
        self.run_through("quiet", WINDOW + 1)
        self.untouched = self.kv("quiet")

    def new_world(self, slots: int, host_streams: int) -> World:
        return World(model(self.device), slots=slots, branches=BRANCHES, host_streams=host_streams)

    # --- helpers -------------------------------------------------------------------------------

    def tokens(self, count: int) -> list[int]:
        self.seed += 1
        return random_tokens(count, seed=self.seed)

    def kv(self, name: str) -> Tensor:
        return self.world.residency.memory(self.streams[name].session).kv

    def resident(self, stream: Stream) -> bool:
        """Into a slot, out of which the one goes that was not used for longest; False if all answer."""
        self.turn += 1
        stream.session.last_used = self.turn
        return stream.session.slot is not None or self.world.residency.make_resident(stream.session)

    def block(self, stream: Stream, count: int) -> tuple[Row, Tensor] | None:
        """Tokens to be fed, and the reference's logits."""
        assert stream.session.slot is not None
        count = min(count, self.world.cache.ingest_room(stream.session.slot))
        if not count:
            return None
        tokens = self.tokens(count)
        return Row(stream.session.slot, tokens), stream.reference.ingest(tokens)

    def run_through(self, name: str, count: int) -> None:
        """Feed as many tokens in blocks, or as many as open branches allow."""
        stream = self.streams[name]
        while count > 0 and self.resident(stream):
            fed = self.block(stream, count)
            if fed is None:
                return
            assert_same_logits(self.world.driver.run([fed[0]])[0], fed[1])
            count -= len(fed[0].tokens)

    def prefill(self, answer: Answer, budget: int) -> None:
        generation = answer.generation
        row = generation.prompt_row(budget)
        last = row.num_logits > 0
        got = self.world.driver.run([row])[0]
        assert_same_logits(got, answer.reference.append(row.tokens))
        generation.prompt_done(len(row.tokens), got[-1:] if last else None)

    def draft(self, answer: Answer, right: int, wrong: int) -> Verify | None:
        """A verify block whose first drafts are the reference's greedy text, and the rest is not."""
        generation, cache = answer.generation, self.world.cache
        while generation.prefilling:
            self.prefill(answer, DRAFTS)
        assert generation.branch is not None
        if not cache.branch_room(generation.branch):
            return None
        right = min(right, generation.draft_room(cache))
        wrong = min(wrong, generation.draft_room(cache) - right)
        logits, tokens = [], [generation.pending]
        for _ in range(right + 1):
            logits.append(answer.reference.append(tokens[-1:])[0])
            tokens.append(int(logits[-1].argmax()))
        junk = self.tokens(wrong)
        if junk and junk[0] == tokens[-1]:
            junk[0] = (junk[0] + 1) % 256
        row = generation.verify_row(Draft([*tokens[1:-1], *junk], "test", "test"))
        return Verify(answer, row, torch.stack(logits), tokens[1:])

    def judge(self, verify: Verify, got: Tensor) -> None:
        """Right drafts are committed, wrong ones rolled back: the reference never had those."""
        answer, generation = verify.answer, verify.answer.generation
        assert_same_logits(got[: len(verify.logits)], verify.logits)
        accepted, tokens = generation.verified(got)
        assert accepted == len(verify.tokens) - 1
        if generation.finish_reason:
            assert tokens == verify.tokens[: len(tokens)]
            self.close(answer)
        else:
            assert tokens == verify.tokens
            assert generation.branch.length == len(answer.reference)

    def close(self, answer: Answer) -> None:
        self.answers.remove(answer)
        answer.run.close(self.world.cache)
        answer.stream.session.runs.remove(answer.run)

    def close_all_of(self, stream: Stream) -> None:
        for answer in [a for a in self.answers if a.stream is stream]:
            self.close(answer)

    # --- rules: the stream -----------------------------------------------------------------------

    @rule(name=st.sampled_from(FED), count=st.integers(1, 8))
    def feed(self, name: str, count: int) -> None:
        stream = self.streams[name]
        if self.resident(stream):
            fed = self.block(stream, count)
            if fed is not None:
                assert_same_logits(self.world.driver.run([fed[0]])[0], fed[1])

    @rule(name=st.sampled_from(FED))
    def evict(self, name: str) -> None:
        """All the window held is gone afterwards, unless a branch still sees it."""
        self.run_through(name, WINDOW + 1)

    # --- rules: branches -------------------------------------------------------------------------

    @precondition(lambda self: len(self.answers) < BRANCHES)
    @rule(name=st.sampled_from(FED), prompt=st.integers(1, 6))
    def fork(self, name: str, prompt: int) -> None:
        stream = self.streams[name]
        if self.resident(stream):
            generation = Generation("test", self.tokens(prompt), 100, frozenset())
            generation.start(self.world.cache.fork(stream.session.slot))
            run = run_of(generation)
            stream.session.runs.append(run)
            self.answers.append(Answer(stream, generation, stream.reference.fork(), run))

    @precondition(lambda self: any(a.generation.prefilling for a in self.answers))
    @rule(budget=st.integers(1, 4))
    def prompt(self, budget: int) -> None:
        self.prefill(next(a for a in self.answers if a.generation.prefilling), budget)

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9), right=st.integers(0, DRAFTS), wrong=st.integers(0, DRAFTS))
    def verify(self, which: int, right: int, wrong: int) -> None:
        verify = self.draft(self.answers[which % len(self.answers)], right, wrong)
        if verify is not None:
            self.judge(verify, self.world.driver.run([verify.row])[0])

    @precondition(lambda self: self.answers)
    @rule(counts=st.lists(st.integers(0, 3), min_size=2 * BRANCHES, max_size=2 * BRANCHES))
    def all_at_once(self, counts: list[int]) -> None:
        """Every branch verifies and every stream in a slot listens, in one forward."""
        drafted = [self.draft(a, *counts[2 * i : 2 * i + 2]) for i, a in enumerate(self.answers)]
        verifies = [verify for verify in drafted if verify is not None]
        here = [self.streams[n] for n in FED if self.streams[n].session.slot is not None]
        fed = [block for stream in here if (block := self.block(stream, 1 + counts[0]))]
        rows = [*(verify.row for verify in verifies), *(row for row, _ in fed)]
        if rows:
            got = self.world.driver.run(rows)
            for verify, logits in zip(verifies, got, strict=False):
                self.judge(verify, logits)
            for (_, want), logits in zip(fed, got[len(verifies) :], strict=True):
                assert_same_logits(logits, want)

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        self.close(self.answers[which % len(self.answers)])

    # --- rules: memory that moves ------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def park(self, name: str) -> None:
        """To host memory, and from there to the store if that is full."""
        session = self.streams[name].session
        if session.slot is not None and session.idle:
            self.world.residency.evict(session)

    @rule(name=st.sampled_from(NAMES))
    def snapshot(self, name: str) -> None:
        stream = self.streams[name]
        if stream.session.idle:
            data = self.world.archive.save(stream.session)
            stream.saved = (data, copy.copy(stream.reference))

    @precondition(lambda self: any(s.saved for s in self.streams.values()))
    @rule(name=st.sampled_from(NAMES))
    def restore(self, name: str) -> None:
        """Back to the snapshot, in the same cache; the slot may be another one."""
        stream = self.streams[name]
        if stream.saved is not None:
            data, reference = stream.saved
            self.close_all_of(stream)
            self.world.residency.drop(stream.session)
            stream.session = self.world.restored(name, data)
            stream.reference = copy.copy(reference)

    @rule(slots=st.integers(1, 3), host_streams=st.integers(0, 2))
    def move(self, slots: int, host_streams: int) -> None:
        """Every stream into a new cache, by way of a snapshot."""
        elsewhere = self.new_world(slots, host_streams)
        for name, stream in self.streams.items():
            self.close_all_of(stream)
            data = self.world.archive.save(stream.session)
            stream.session = elsewhere.restored(name, data)
        self.world = elsewhere

    # --- always ------------------------------------------------------------------------------------

    @invariant()
    def all_is_where_it_belongs(self) -> None:
        if not hasattr(self, "untouched"):
            return
        self.world.cache.check_integrity()
        offload = self.world.residency.offload
        assert offload.on_disk == len(self.world.store.files)
        assert offload.in_host <= self.world.config.host_streams
        for stream in self.streams.values():
            assert stream.session.frontier == stream.reference.frontier
        assert self.kv("quiet").equal(self.untouched)

    def teardown(self) -> None:
        """Whatever moved last goes on as the reference does."""
        if hasattr(self, "untouched"):
            for answer in list(self.answers):
                self.close(answer)
            for name in NAMES:
                self.run_through(name, 3)


class CudaCacheMachine(CacheMachine):
    device = "cuda"


STEPS = settings(max_examples=30, stateful_step_count=30, deadline=None)
CacheMachine.TestCase.settings = CudaCacheMachine.TestCase.settings = STEPS
on_a_busy_machine = pytest.mark.timeout(1800)
TestCacheMachine = on_a_busy_machine(CacheMachine.TestCase)
TestCacheMachineOnCuda = pytest.mark.cuda(CudaCacheMachine.TestCase)
