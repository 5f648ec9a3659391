"""A model that gives nothing, or half a character: what is known stays, and it is said and counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from operators.cache.batch import Row
from operators.decoding.generation import Generation
from operators.engine.task_run import TaskRun
from operators.engine.task_runner import view_of
from operators.events import AnswerEvent, LedgerItem, Segment, StreamSettings, TranslationEvent
from operators.observer import Observer
from operators.state import SessionState
from operators.stream_operator import StreamOperator
from operators.tasks.base import Asked, Spoken, Steps, StreamView, Task
from tests.engine import OneAnswer, ToyTokenizer, toy_decoder
from tests.operators.test_stream_operator import CONFIG

EOS = ToyTokenizer.eos_id


class Reasons(Observer):
    def __init__(self) -> None:
        self.failed: dict[tuple[str, str], float] = {}

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        if name == "failed_runs":
            key = labels["task"], labels["reason"]
            self.failed[key] = self.failed.get(key, 0) + value


def silent(**changes: Any) -> tuple[StreamOperator, Reasons]:
    """An operator whose model ends every answer at once."""
    prompts = {**CONFIG.prompts, "answer": "{excerpts}{question}"}
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": (), "prompts": prompts, **changes})
    seen = Reasons()
    operator = StreamOperator(toy_decoder(), config, observer=seen)
    forward = operator.model.forward

    def ending(role: Any, cache: Any, rows: list[Row]) -> torch.Tensor:
        logits = forward(role, cache, rows).clone()
        logits[..., EOS] = 1e6
        return logits

    operator.model.forward = ending  # type: ignore[method-assign]
    return operator, seen


def test_an_empty_update_keeps_ledger_and_coverage_until_no_later_one_can_make_good() -> None:
    """It counted as a good one: coverage moved on over text of which nothing was ever written."""
    operator, seen = silent(update_tokens=20)
    stream = operator.open("a")
    stream.feed("We ship on Friday, says Ana.")
    assert list(stream.results()) == []
    state = operator._sessions["a"].state()
    assert state.covered_seq == -1
    assert set(state.degraded) == {"update_failed", "empty_answer"}
    assert seen.failed == {("summary", "empty_answer"): 1}
    final = stream.close()
    assert final is not None
    assert final.status == "final"
    assert "empty_answer" in final.degraded
    assert final.items == ()


def test_empty_updates_do_not_stop_a_stream() -> None:
    operator, seen = silent(update_tokens=40)
    stream = operator.open("a")
    for number in range(12):
        stream.feed(f"Sentence number {number} of many.")
    events = list(stream.results())
    assert events, "text that leaves the window is given up, which the event says"
    assert all("empty_answer" in event.degraded for event in events)  # type: ignore[union-attr]
    assert seen.failed[("summary", "empty_answer")] > len(events)


def test_an_empty_translation_and_an_empty_answer_say_so() -> None:
    operator, seen = silent(targets=("fr",), update_tokens=96)
    stream = operator.open("a")
    stream.feed("We ship on Friday.")
    (event,) = [e for e in stream.results() if isinstance(e, TranslationEvent)]
    assert event.committed == ""
    assert event.degraded == ("empty",)
    answer: AnswerEvent = stream.ask("Do we ship on Friday?")
    assert answer.text == "We ship on Friday.", "what was found stands in for it"
    assert answer.degraded == ("quoted", "empty_answer")
    assert seen.failed == {("translation:fr", "empty_answer"): 1, ("answer", "empty_answer"): 1}


def test_flags_of_an_update_that_failed_do_not_replace_others() -> None:
    operator, _ = silent(update_tokens=20)
    operator.open("a")
    operator._sessions["a"].degraded = ("segment_lost",)
    operator.feed(Segment(stream_id="a", segment_id="s", text="We ship on Friday, says Ana."), 0)
    while operator.has_work():
        operator.step()
    assert operator._sessions["a"].degraded[0] == "segment_lost"


@pytest.mark.parametrize("reason", ["length", "repetition"])
def test_the_unfinished_character_of_an_answer_that_was_cut_is_left_out(reason: str) -> None:
    """It was published as a replacement character, in text that never changes again."""
    tokenizer = ToyTokenizer()
    run = TaskRun(OneAnswer(), Asked(None), decode=tokenizer.decode)
    whole = tokenizer.encode("Bonjour à tous 🎉")
    for cut in (1, 2, 3):
        made = Generation("x", [1], 99, frozenset({EOS}), output=whole[:-cut], finish_reason=reason)
        assert run._answer(made).text == "Bonjour à tous "
    complete = Generation("x", [1], 99, frozenset({EOS}), output=whole, finish_reason=reason)
    assert run._answer(complete).text == "Bonjour à tous 🎉"


def test_the_first_draft_from_the_previous_update_begins_where_the_answer_begins() -> None:
    """The opening is part of the prompt; with it in front every first draft was wrong."""
    prompts = {**CONFIG.prompts, "summary": "{ledger} {limit}{answer}TOPIC:"}
    config = CONFIG.from_dict({**CONFIG.to_dict(), "prompts": prompts, "targets": ()})
    operator = StreamOperator(toy_decoder(), config)
    task = operator._policy._summary
    operator.open("a")
    session = operator._sessions["a"]
    session.last_output["summary"] = "TOPIC: Ana opens."
    ask = task._update(view_of(session, task), (), 1)
    assert ToyTokenizer().decode(ask.previous) == " Ana opens."


def test_a_reopened_stream_gives_its_summary_without_new_text() -> None:
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": ()})
    first = StreamOperator(toy_decoder(), config)
    stream = first.open("a")
    assert stream.summarize() is None
    stream.feed("We ship on Friday.")
    made = stream.summarize()
    assert made is not None
    again = StreamOperator(toy_decoder(), config).open("a", first._sessions["a"].state())
    found = again.summarize()
    assert found is not None, "it was None: nothing had been published by this process"
    same = ("revision", "epoch", "event_id", "items", "text", "covers")
    assert [getattr(found, n) for n in same] == [getattr(made, n) for n in same]


def test_an_empty_compaction_keeps_the_notes() -> None:
    """It dropped the older half of them."""
    operator, _ = silent(update_tokens=20, ledger_tokens=8)
    notes = tuple(
        LedgerItem(id=f"i{n}", kind="topic", text=f"Ana said thing number {n}.") for n in range(6)
    )
    stream = operator.open("a", SessionState(stream_id="a", items=notes, next_item=7))
    stream.feed("We ship on Friday, says Ana.")
    final = stream.close()
    assert final is not None
    assert final.items == notes


def test_a_ledger_larger_than_todays_settings_is_worked_with() -> None:
    """A restored ledger above the budget raised in the middle of a step, again at every restart."""
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": (), "ledger_tokens": 40})
    operator = StreamOperator(toy_decoder(), config)
    notes = tuple(
        LedgerItem(id=f"i{n}", kind="decision", text=f"Thing number {n} was decided. " * 9)
        for n in range(12)
    )
    stream = operator.open("a", SessionState(stream_id="a", items=notes, next_item=13))
    stream.feed("We ship on Friday, says Ana, and Ben will call the supplier before that.")
    stream.feed("We ship on Friday, says Ana, and Ben will call the supplier before that.")
    final = stream.close()
    assert final is not None
    assert final.covers.to_seq == 1


class Broken(Task):
    """Fails at what it is answered."""

    name = "broken"

    def wants(self, segment: Segment, settings: StreamSettings) -> bool:
        return True

    def run(self, view: StreamView, occasion: Spoken) -> Steps:
        yield [self.tools.ask("What was said?", max_tokens=2)] * 2
        raise LookupError("the task's own fault")


def test_an_operator_closes_after_a_task_has_failed_and_hides_nothing() -> None:
    """The branch that held the run's place was forgotten, and closing ended in "slot 0 has 1 open
    branches" instead of the task's own error."""
    config = CONFIG.from_dict({**CONFIG.to_dict(), "targets": ()})
    operator = StreamOperator(toy_decoder(), config, tasks=[Broken()])
    stream = operator.open("a")
    stream.feed("We ship on Friday.")
    with pytest.raises(LookupError):
        list(stream.results())
    operator.close()
    operator.cache.check_integrity()
    assert operator.cache.free_slots == config.slots
