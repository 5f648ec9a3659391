"""The engine on a model that is given text: same rules, with a scripted model in the server's place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.config import OperatorConfig
from operators.errors import ConfigError, DeviceError, SegmentError
from operators.events import Question, Segment, StreamSettings, SummaryEvent
from operators.model.served import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    ServedModel,
    TextAnswer,
    TextRequest,
    TextTokenizer,
    conversation,
)
from operators.observer import Observer
from operators.served_operator import ServedOperator
from operators.state import Emission
from operators.stream import Stream
from operators.stream_operator import StreamOperator
from operators.tasks.base import Outcome, Steps, StreamView, Task
from operators.tasks.selection import SORTS
from tests.engine import toy_decoder

CONFIG = OperatorConfig(
    window=96,
    update_tokens=32,
    summary_method="lines",
    summary_tokens=32,
    ledger_tokens=64,
    branch_tokens=1024,
    branches=2,
    targets=("fr",),
)
SAID = [
    ("Ana", "Good morning, the review moves to Friday at ten."),
    ("Ben", "I will call the supplier before Wednesday."),
    ("Ana", "Who pays for the labels?"),
    ("Ben", "Sales pays for the labels, that is decided."),
]
NOTES = "TOPIC: Ana moves the review to Friday.\nACTION (Ben): call the supplier before Wednesday."


@dataclass
class Scripted:
    """Answers at once, or when ``hold`` ends."""

    say: Callable[[TextRequest], str] = lambda request: NOTES
    name: str = "scripted"
    identity: str = "scripted"
    context: int | None = None
    asked: list[TextRequest] = field(default_factory=list)
    held: list[tuple[TextRequest, Future[TextAnswer]]] = field(default_factory=list)
    hold: bool = False
    fail: list[Exception] = field(default_factory=list)

    def submit(self, request: TextRequest) -> Future[TextAnswer]:
        self.asked.append(request)
        future: Future[TextAnswer] = Future()
        if self.hold:
            self.held.append((request, future))
        elif self.fail:
            future.set_exception(self.fail.pop(0))
        else:
            future.set_result(self.answer(request))
        return future

    def answer(self, request: TextRequest) -> TextAnswer:
        if request.choices:
            n = len(request.choices)
            return TextAnswer(weights=(1 / n,) * n, prompt_tokens=5)
        return TextAnswer(self.say(request), prompt_tokens=5, output_tokens=3)

    def measure(self, observer: Observer) -> None:
        pass

    def close(self) -> None:
        pass


def operator(text: Scripted, *tasks: Task, **changes: object) -> ServedOperator:
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **changes})
    return ServedOperator(ServedModel(text), config, tasks=tasks)


class Asks(Task):
    """Asks about the window after every segment."""

    name = "asks"

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        return True

    def run(self, view: StreamView, occasion: object) -> Steps:
        yield [self.tools.ask("When is it?", max_tokens=8)]
        return Outcome()


def feed(stream: Stream, rounds: int = 1) -> list[object]:
    found: list[object] = []
    for _ in range(rounds):
        for speaker, text in SAID:
            stream.feed(text, speaker=speaker)
            found += stream.results()
    return found


# --- text as tokens ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    tokenizer = TextTokenizer()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text.encode("utf-8", "replace").decode()
    assert all(token > 0 for token in tokens)


def test_a_prompt_becomes_turns_and_the_opening_of_the_answer() -> None:
    tokenizer = TextTokenizer()
    before, after = tokenizer.chat("Be brief.", "Heard:\n{window}")
    prompt = [*before, *tokenizer.encode("Ana: hello\n"), *tokenizer.encode("Sum up."), *after]
    messages, opening = conversation([*prompt, *tokenizer.encode("TOPIC:")])
    assert messages == (
        Message("system", "Be brief."),
        Message("user", "Heard:\nAna: hello\nSum up."),
    )
    assert opening == "TOPIC:"
    assert before[0] == SYSTEM
    assert USER in before
    assert after == [ASSISTANT]


def test_a_prompt_cut_at_its_beginning_is_the_users() -> None:
    tokenizer = TextTokenizer()
    messages, _ = conversation([*tokenizer.encode("rest of a turn"), ASSISTANT])
    assert messages == (Message("user", "rest of a turn"),)


# --- the same rules ------------------------------------------------------------------------------


def test_coverage_and_revisions_are_the_local_engines() -> None:
    """Neither model writes a note that can be read; what is covered when, by which revision, from which
    input, must be equal. The byte tokenizer counts about four times the text tokenizer's tokens."""
    sizes = {"targets": (), "summary_tokens": 8}
    served = operator(Scripted(lambda request: "nothing to note"), **sizes)
    larger = {**CONFIG.to_dict(), **sizes, "window": 400, "update_tokens": 130}
    local = StreamOperator(
        toy_decoder(max_position_embeddings=4096), OperatorConfig.from_dict(larger)
    )

    def essence(stream: Stream) -> list[tuple[object, ...]]:
        events = [e for e in feed(stream, 2) if isinstance(e, SummaryEvent)]
        last = stream.close()
        assert last is not None
        return [(e.event_id, e.covers, e.source, e.trigger, e.status) for e in (*events, last)]

    found = essence(served.open("m"))
    assert len(found) >= 3
    assert found == essence(local.open("m"))


def test_notes_have_evidence_and_cover_what_was_heard() -> None:
    stream = operator(Scripted()).open("m")
    summary = next(e for e in feed(stream) if isinstance(e, SummaryEvent))
    assert [item.kind for item in summary.items] == ["topic", "action_item"]
    assert summary.items[1].owner == "Ben"
    assert all(item.evidence for item in summary.items)
    assert summary.covers.to_segment_id == "2"
    assert summary.model.name == "scripted"


def test_selected_minutes_weigh_words_after_examples() -> None:
    def say(request: TextRequest) -> str:
        return "The supplier is called before Wednesday."

    class Letters(Scripted):
        def answer(self, request: TextRequest) -> TextAnswer:
            if not request.choices:
                return super().answer(request)
            assert [choice.strip() for choice in request.choices] == list(SORTS)
            roles = [message.role for message in request.messages]
            assert roles == ["system", *["user", "assistant"] * 16, "user"]
            asks = "supplier" in request.messages[-1].text
            weights = (0.05, 0.05, 0.05, 0.8, 0.05) if asks else (0.6, 0.1, 0.1, 0.1, 0.1)
            return TextAnswer(weights=weights)

    stream = operator(Letters(say), summary_method="select", targets=()).open("m")
    summary = next(e for e in feed(stream) if isinstance(e, SummaryEvent))
    assert [(item.kind, item.text) for item in summary.items] == [("action_item", say(None))]  # type: ignore[arg-type]


def test_an_answer_sees_the_window_as_of_its_fork() -> None:
    text = Scripted(hold=True)
    op = operator(text, targets=(), branches=1)
    op.open("m")
    op.feed(Segment(stream_id="m", text=SAID[0][1]), 0)
    while op.has_work():
        op.step()
    for name in ("first", "second"):
        op.ask(Question(stream_id="m", text=SAID[0][1], question_id=name))
    op.feed(Segment(stream_id="m", text=SAID[1][1]), 1)
    while op.has_work():
        op.step()
        if text.held:
            request, future = text.held.pop()
            future.set_result(text.answer(request))
    assert len(text.asked) == 2  # one after the other: one branch
    assert all(SAID[0][1] in request.messages[-1].text for request in text.asked)
    assert all(SAID[1][1] not in request.messages[-1].text for request in text.asked)


def test_asks_that_begin_alike_are_under_way_together() -> None:
    """Sharing a prompt's beginning is a matter of branches; a server does it by itself."""
    text = Scripted(hold=True)
    op = operator(text, targets=("fr", "de", "es"), branches=3)
    op.open("m")
    op.feed(Segment(stream_id="m", text=SAID[0][1]), 0)
    for _ in range(4):
        op.step()
    assert len(text.held) == 3


def test_requests_under_way_are_bounded_by_the_branches() -> None:
    text = Scripted(hold=True)
    op = operator(text, branches=2, targets=("fr", "de", "es"))
    for name in ("a", "b", "c"):
        op.open(name)
        op.feed(Segment(stream_id=name, text=SAID[0][1]), 0)
    for _ in range(4):
        op.step()
    assert len(text.held) == 2


def test_prompts_share_their_beginning() -> None:
    """The window's text begins at another place only once in a quarter of a window."""
    text = Scripted()
    stream = operator(text, Asks(), window=256, update_tokens=256, targets=()).open("m")
    for speaker, said in SAID * 16:
        stream.feed(said, speaker=speaker)
        list(stream.results())
    shown = [r.messages[-1].text for r in text.asked if "When is it?" in r.messages[-1].text]
    beginnings = [prompt[:120] for prompt in shown]
    moved = sum(a != b for a, b in itertools.pairwise(beginnings))
    total = 16 * sum(len(TextTokenizer().encode(f"{who}: {said}\n")) for who, said in SAID)
    assert 2 <= moved <= total / 64 + 1
    assert all(len(TextTokenizer().encode(prompt)) < 256 + 160 for prompt in shown)


def test_uncovered_text_is_always_shown() -> None:
    text = Scripted()
    stream = operator(text, window=96, update_tokens=90, targets=()).open("m")
    feed(stream, 4)
    updates = [r.messages[-1].text for r in text.asked]
    for request in updates:
        since = request.partition('begins with "')[2].partition('"')[0]
        assert since
        assert since in request.partition("Write two")[0]


def test_a_dropped_stream_gives_its_requests_up() -> None:
    text = Scripted(hold=True)
    op = operator(text)
    op.open("m")
    op.feed(Segment(stream_id="m", text=SAID[0][1]), 0)
    while not text.held:
        op.step()
    (_, future), *_ = text.held
    op.drop("m")
    assert future.cancelled()
    op.cache.check_integrity()


# --- moving --------------------------------------------------------------------------------------


def test_a_snapshot_and_a_state_continue_the_stream() -> None:
    whole, first, second = Scripted(), Scripted(), Scripted()
    ours = operator(whole).open("m")
    feed(ours, 2)
    begun = operator(first).open("m")
    feed(begun, 1)
    resumed = operator(second).open("m", snapshot=begun.snapshot())
    feed(resumed, 1)
    assert [r.messages for r in first.asked + second.asked] == [r.messages for r in whole.asked]


def test_another_models_snapshot_is_refused() -> None:
    stream = operator(Scripted()).open("m")
    feed(stream)
    with pytest.raises(Exception, match="another model"):
        operator(Scripted(identity="other")).open("m", snapshot=stream.snapshot())


# --- what fails ----------------------------------------------------------------------------------


def steps(op: ServedOperator) -> list[Emission]:
    found: list[Emission] = []
    for _ in range(50):
        if op.has_work():
            found += op.step()
    return found


def test_a_refused_translation_is_a_failure_with_its_cause_and_the_stream_goes_on() -> None:
    text = Scripted(fail=[SegmentError("context_too_small", "the server's context is too small")])
    op = operator(text)
    op.open("m")
    op.feed(Segment(stream_id="m", text=SAID[0][1]), 0)
    op.feed(Segment(stream_id="m", text=SAID[1][1]), 1)
    found = steps(op)
    (failure,) = [f for emission in found for f in emission.failed]
    assert (failure.ticket, failure.reason) == (0, "context_too_small")
    assert "server's context" in failure.message
    assert [ticket for emission in found for ticket in emission.done] == [1]


def test_a_refused_update_leaves_coverage_and_says_why() -> None:
    text = Scripted(fail=[SegmentError("server_refused", "no")])
    stream = operator(text, targets=()).open("m")
    events = [e for e in feed(stream, 2) if isinstance(e, SummaryEvent)]
    assert events[0].degraded[:2] == ("update_failed", "server_refused")
    assert events[0].revision == 1


def test_a_server_that_is_away_loses_nothing() -> None:
    text = Scripted(fail=[DeviceError("server x: connection refused")])
    op = operator(text)
    op.open("m")
    op.feed(Segment(stream_id="m", text=SAID[0][1]), 0)
    with pytest.raises(DeviceError, match="connection refused"):
        steps(op)
    assert [ticket for emission in steps(op) for ticket in emission.done] == [0]


def test_a_context_that_is_too_small_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="takes 200 tokens"):
        operator(Scripted(context=200))


def test_a_draft_model_is_the_servers_business() -> None:
    with pytest.raises(ConfigError, match="draft_model"):
        operator(Scripted(), draft_model="smollm2-135m")
    with pytest.raises(ConfigError, match="draft_head"):
        operator(Scripted(), draft_head="head.safetensors")
