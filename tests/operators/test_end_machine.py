"""Questions, translations, ends, drops and reopenings of streams in any order, while another one talks.

Nothing of it may show in the other stream's text, nothing may fail, and what was asked is answered: an
end waits for what is open on its stream, and a slot with an open branch is never given away.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operators.engine.requests import PendingTranslation
from operators.errors import SegmentError
from operators.events import Question, Segment
from operators.state import Emission, SessionState
from tests.operators.test_operator_machine import alone, events_of, make, talk, told
from tests.operators.test_stream_operator import CONFIG, drain

NAMES = ("a", "b")
WITNESS = "c"
PROMPTS = {**CONFIG.prompts, "answer": "{excerpts}{question}"}


class EndMachine(RuleBasedStateMachine):
    """``a`` and ``b`` are asked, ended, dropped; ``c`` only talks."""

    @initialize(slots=st.integers(1, 2), branches=st.integers(1, 3))
    def begin(self, slots: int, branches: int) -> None:
        self.operator = make("cpu", slots=slots, branches=branches, prompts=PROMPTS)
        self.tickets = dict.fromkeys((*NAMES, WITNESS), -1)
        self.owed: dict[str, set[str]] = {name: set() for name in NAMES}
        self.given: dict[str, set[int]] = {name: set() for name in NAMES}
        self.pending: dict[str, list[PendingTranslation]] = {name: [] for name in NAMES}
        self.states: dict[str, SessionState] = {}
        self.said: set[tuple[object, ...]] = set()
        self.asked = 0
        for name in self.tickets:
            self.operator.open(name)

    def note(self, emissions: list[Emission]) -> None:
        for emission in emissions:
            name = emission.stream_id
            if name == WITNESS:
                self.said |= told([emission])
                continue
            self.states[name] = emission.state
            self.given[name].difference_update(emission.done)
            for answer in emission.answers:
                self.owed[name].remove(answer.question_id)

    @rule(name=st.sampled_from((*NAMES, WITNESS)), count=st.integers(1, 3))
    def feed(self, name: str, count: int) -> None:
        for _ in range(count):
            if name == WITNESS and self.tickets[name] + 1 >= len(talk(name)):
                return
            self.tickets[name] += 1
            ticket = self.tickets[name]
            said = talk(name)[ticket % len(talk(name))]
            if said.type != "segment" or name == WITNESS:
                segment = said
            else:
                segment = Segment(stream_id=name, segment_id=f"s{ticket}", text=said.text)
            self.operator.feed(segment, ticket)
            if name != WITNESS:
                self.given[name].add(ticket)

    @rule(name=st.sampled_from(NAMES))
    def ask(self, name: str) -> None:
        self.asked += 1
        with suppress(SegmentError):  # it has ended, or is about to
            self.operator.ask(Question(stream_id=name, text="When?", question_id=f"q{self.asked}"))
            self.owed[name].add(f"q{self.asked}")

    @rule(name=st.sampled_from(NAMES))
    def translate(self, name: str) -> None:
        with suppress(SegmentError):
            self.pending[name].append(self.operator.translate(name, "See you.", "fr"))

    @rule(name=st.sampled_from(NAMES), by_keeper=st.booleans())
    def end(self, name: str, by_keeper: bool) -> None:
        if by_keeper:
            self.operator.end(name)
            return
        self.tickets[name] += 1
        end = Segment(stream_id=name, type="session_end")
        self.operator.feed(end, self.tickets[name])
        self.given[name].add(self.tickets[name])

    @rule(name=st.sampled_from(NAMES), again=st.booleans())
    def drop(self, name: str, again: bool) -> None:
        """And reopen, anew or from the newest state; what was under way is nobody's any more."""
        self.operator.drop(name)
        self.operator.open(name, self.states.get(name) if again else None)
        self.tickets[name] = max(self.tickets[name], self.operator.cursor(name))
        self.owed[name].clear()
        self.given[name].clear()
        self.pending[name].clear()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.note(self.operator.step())

    @invariant()
    def no_branch_outlives_its_stream(self) -> None:
        if not hasattr(self, "operator"):
            return
        self.operator.cache.check_integrity()
        for session in self.operator._sessions.values():
            if session.slot is None:
                assert not session.running
            if session.ended:  # only questions are about what has ended
                assert {run.task.name for run in session.runs} <= {"answer"}

    def teardown(self) -> None:
        if not hasattr(self, "operator"):
            return
        self.feed(WITNESS, len(talk(WITNESS)))
        self.note(drain(self.operator))
        assert events_of(self.said) == events_of(alone("cpu", WITNESS))
        assert not any(self.owed.values()), "every question was answered"
        assert not any(self.given.values()), "every segment was done"
        for pending in self.pending.values():
            assert all(p.text is not None or p.failed for p in pending)
        self.operator.cache.check_integrity()
        self.operator.close()
        assert self.operator.cache.free_slots == self.operator.config.slots
        assert self.operator.cache.free_regions == self.operator.config.branches


EndMachine.TestCase.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)
TestEndMachine = EndMachine.TestCase
