"""The demo's arithmetic on event logs made by hand: what is counted, and what makes it fail."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from operators.errors import ConfigError
from operators.events import (
    AnswerEvent,
    Covers,
    KvInfo,
    LedgerItem,
    Question,
    Segment,
    SummaryEvent,
    TranslationEvent,
    event_id,
)
from pipelines.cli.following import Follower, Seen, StreamView
from pipelines.cli.replaying import Sent
from pipelines.cli.screen import Status, draw, plain_event
from pipelines.config.load import load_settings
from pipelines.dev.demo.plan import DEMO, meeting_files, transcripts, with_choices
from pipelines.dev.demo.report import RunFacts, json_line, markdown, problems, remarks, result
from pipelines.dev.demo.run import DemoRun
from pipelines.dev.demo.tally import Tally, found_words, repeated_trigrams, share, words
from pipelines.dev.demo.worker import Measured, parse_metrics

TEXT = ("we meet on monday", "the budget is ten euros", "anna writes the report")


def item(text: str, number: int = 1, revision: int = 1) -> LedgerItem:
    return LedgerItem(id=f"a{number}", kind="topic", text=text, last_changed_revision=revision)


def summary(revision: int, to_seq: int, *, final=False, evicted=10, stream="s", text="budget ten"):
    return SummaryEvent(
        stream_id=stream,
        epoch=0,
        revision=revision,
        event_id=event_id(stream, "summary", 0, revision),
        status="final" if final else "partial",
        items=(item(text, revision=revision),),
        covers=Covers(to_seq=to_seq, to_segment_id=f"{stream}-{to_seq}"),
        kv=KvInfo(evicted_total=evicted),
    )


def translation(seq: int, lang: str = "fr", *, stream="s", revision=None, text="bonjour"):
    revision = seq + 1 if revision is None else revision
    return TranslationEvent(
        stream_id=stream,
        epoch=0,
        revision=revision,
        event_id=event_id(stream, f"translation:{lang}", 0, revision),
        target_lang=lang,
        unit_id=f"{stream}-{seq}",
        committed=text,
        source_segment_ids=(f"{stream}-{seq}",),
    )


def good_log() -> list:
    return [
        summary(1, 0, evicted=0),
        *[translation(seq, lang) for seq in range(3) for lang in ("fr", "de")],
        summary(2, 2, final=True, evicted=7),
    ]


def tally_of(events, stream="s", exactly_once=True) -> Tally:
    tally = Tally(("fr", "de"), exactly_once)
    for seq, text in enumerate(TEXT):
        segment = Segment(stream_id=stream, seq=seq, segment_id=f"{stream}-{seq}", text=text)
        tally.take_sent(Sent(segment, partition=1, offset=100 + seq))
    tally.take_sent(Sent(Segment(stream_id=stream, type="session_end"), 1, 103))
    for event in events:
        tally.take_event(event)
    return tally


FACTS = RunFacts(
    broker="Kafka",
    model="toy",
    wall_seconds=61.23,
    working_seconds=50.0,
    first_summary_seconds=12.34,
    measured=Measured(600, drafts=100, draft_tokens=400, accepted=150, kv_bytes_per_stream=4096),
)


# --- a run where all is well ---------------------------------------------------------------------


def test_a_good_run_has_no_problems_and_these_numbers():
    tally = tally_of(good_log())
    assert tally.complete()
    assert problems(tally, FACTS) == []
    assert json.loads(json_line(tally, FACTS)) == {
        "segments_in": 3,
        "segments_covered": 3,
        "summaries_out": 2,
        "translations_out": 6,
        "answers_out": 0,
        "dead_letters": 0,
        "streams": 1,
        "tokens_per_second": 12.0,
        "mean_accepted_length": 2.5,
        "kv_bytes_per_stream": 4096,
        "evicted_tokens": 7,
        "broker": "Kafka",
        "model": "toy",
        "wall_seconds": 61.2,
        "first_summary_seconds": 12.3,
        "repeated_trigram_share": None,
    }


def test_the_json_is_one_line():
    assert "\n" not in json_line(tally_of(good_log()), FACTS)


def test_results_in_another_order_count_the_same():
    assert result(tally_of(good_log()[::-1]), FACTS) == result(tally_of(good_log()), FACTS)


def test_a_question_wants_its_answer():
    tally = tally_of(good_log())
    tally.take_question(Question(stream_id="s", question_id="q", text="Who pays?"))
    assert not tally.complete()
    assert problems(tally, FACTS) == ["s: the question 'Who pays?' was not answered"]
    answer = AnswerEvent(
        stream_id="s", epoch=0, revision=1, question_id="q", question="Who pays?", text="Ana\x1b."
    )
    tally.take_answer(answer)
    assert tally.complete()
    assert problems(tally, FACTS) == []
    assert result(tally, FACTS)["answers_out"] == 1
    assert "**Who pays?** Ana" in markdown(tally, FACTS, {})
    assert list(plain_event(answer)) == ["[s] asked: Who pays? Ana . (0 places)"]
    follower = Follower()
    follower.take_event(summary(1, 1))
    follower.take_event(answer)
    screen = Console(width=120, file=io.StringIO())
    screen.print(draw(list(follower.views.values()), Status(), 20), height=20)
    assert "Who pays?" in screen.file.getvalue()


# --- planted faults, each of which must fail the run ---------------------------------------------


def test_an_uncovered_segment_fails():
    tally = tally_of([*good_log()[:-1], summary(2, 1, final=True)])
    assert result(tally, FACTS)["segments_covered"] == 2
    assert problems(tally, FACTS) == ["s: 1 of 3 segments are not covered"]


def test_coverage_is_that_of_the_closing_summary():
    """A later revision that covers less must not be hidden by an earlier one that claimed more."""
    tally = tally_of([summary(1, 2), *good_log()[1:-1], summary(2, 0, final=True)])
    assert result(tally, FACTS)["segments_covered"] == 1


def test_a_stream_without_any_result_fails():
    found = problems(tally_of([]), FACTS)
    assert "s: no closing summary was read (session_end not answered)" in found
    assert "s: 3 of 3 segments are not covered" in found


def test_a_missing_closing_summary_fails():
    tally = tally_of([*good_log()[:-1], summary(2, 2)])
    assert not tally.finished()
    assert problems(tally, FACTS) == ["s: no closing summary was read (session_end not answered)"]


def test_a_lost_translation_fails():
    log = good_log()
    log.remove(translation(2, "de"))
    tally = tally_of(log)
    assert not tally.complete()
    assert problems(tally, FACTS) == ["s: 1 translations of segments are missing"]


def test_nothing_evicted_fails():
    tally = tally_of([*good_log()[1:-1], summary(1, 2, final=True, evicted=0)])
    assert problems(tally, FACTS) == [
        "s: nothing was evicted; use more segments or a smaller window"
    ]


def test_a_dead_letter_fails_and_is_not_counted_as_covered():
    tally = tally_of(good_log())
    tally.take_dead_letter(partition=1, offset=101)
    assert result(tally, FACTS)["segments_covered"] == 2
    assert result(tally, FACTS)["dead_letters"] == 1
    assert problems(tally, FACTS) == ["s: 1 segments ended as dead letters"]


def test_a_dead_letter_of_nobody_fails():
    tally = tally_of(good_log())
    tally.take_dead_letter(partition=0, offset=101)
    assert problems(tally, FACTS) == ["1 dead letters belong to no segment that was sent"]


def test_a_gap_in_the_revisions_fails():
    tally = tally_of([*good_log()[:-1], summary(3, 2, final=True)])
    assert problems(tally, FACTS) == ["s: 1 revisions of summary are missing"]


def test_one_revision_with_two_contents_fails():
    tally = tally_of([*good_log(), translation(0, "fr", text="salut")])
    assert problems(tally, FACTS) == ["s: translation:fr revision 0.1 has two contents"]


def test_a_revision_read_twice_fails_unless_the_broker_has_no_transactions():
    log = [*good_log(), summary(1, 0, evicted=0)]
    assert problems(tally_of(log), FACTS) == ["s: summary revision 0.1 was read 2 times"]
    assert problems(tally_of(log, exactly_once=False), FACTS) == []
    assert result(tally_of(log), FACTS)["summaries_out"] == 2


def test_one_bad_stream_among_good_ones_fails():
    tally = tally_of(good_log())
    for seq, text in enumerate(TEXT):
        segment = Segment(stream_id="t", seq=seq, segment_id=f"t-{seq}", text=text)
        tally.take_sent(Sent(segment, partition=2, offset=seq))
    for event in good_log()[1:-1]:
        lang = event.target_lang
        tally.take_event(translation(event.revision - 1, lang, stream="t"))
    tally.take_event(summary(1, 2, stream="t", final=True, evicted=0))
    assert [p.split(":")[0] for p in problems(tally, FACTS)] == ["t"]


def test_a_run_given_up_or_without_input_or_metrics_fails():
    tally = tally_of(good_log())
    assert problems(tally, replace(FACTS, failure="stalled")) == ["stalled"]
    assert problems(Tally(), FACTS) == ["no segment was sent"]
    assert len(problems(tally, replace(FACTS, measured=Measured()))) == 2


def test_what_was_not_measured_is_null():
    numbers = result(tally_of(good_log()), replace(FACTS, measured=Measured()))
    for name in ("tokens_per_second", "mean_accepted_length", "kv_bytes_per_stream"):
        assert numbers[name] is None


def test_looping_text_is_remarked_on():
    looping = summary(2, 2, final=True, text="the plan is good and the plan is good")
    tally = tally_of([*good_log()[:-1], looping])
    assert problems(tally, FACTS) == []
    assert remarks(tally, FACTS, 120) == [
        "s: 28.6% of the ledger's trigrams are repeated (should be below 5%)"
    ]
    assert remarks(tally_of(good_log()), FACTS, 12) == ["the first summary took 12 s"]


def test_an_empty_ledger_and_degraded_events_are_remarked_on():
    closing = SummaryEvent(
        stream_id="s",
        epoch=0,
        revision=2,
        status="final",
        covers=Covers(to_seq=2),
        kv=KvInfo(evicted_total=7),
        degraded=("late",),
    )
    tally = tally_of([*good_log()[:-1], closing])
    assert problems(tally, FACTS) == []
    assert remarks(tally, FACTS, 120) == [
        "s: the ledger is empty",
        "1 events are marked degraded: late",
    ]


# --- the meters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["one two"], (0, 0)),
        (["one two three four"], (0, 2)),
        (["a b c a b c"], (1, 4)),
        (["A b, c!", "a B c."], (1, 2)),
        (["a b", "c a b c"], (0, 2)),
    ],
)
def test_repeated_trigrams(texts, expected):
    assert repeated_trigrams(texts) == expected


def test_words_keep_apostrophes_and_letters_of_all_languages():
    assert words("It’s Łódź—don't_stop, 2012-13") == ["it's", "łódź", "don't", "stop", "2012", "13"]


def test_found_words():
    assert found_words(["the budget grows"], ["The budget is ten"]) == (2, 3)
    assert share((0, 0)) is None


def test_metrics_page():
    page = """# TYPE longstream_generation_tokens counter
longstream_generation_tokens_total{task="summary"} 30
longstream_generation_tokens_total{task="translation"} 70
# TYPE longstream_spec_decode_drafts counter
longstream_spec_decode_drafts_total 10
# TYPE longstream_spec_decode_draft_tokens counter
longstream_spec_decode_draft_tokens_total 40
# TYPE longstream_spec_decode_accepted_tokens counter
longstream_spec_decode_accepted_tokens_total{drafter="ngram"} 5
# TYPE longstream_kv_bytes gauge
longstream_kv_bytes 3000
# TYPE longstream_kv_slots gauge
longstream_kv_slots 3
"""
    measured = parse_metrics(page)
    assert (measured.generated, measured.kv_bytes_per_stream) == (100, 1000)
    assert measured.acceptance == 0.125
    assert measured.mean_accepted_length == 1.5
    assert measured.processed == 100
    assert parse_metrics("") == Measured()
    assert Measured().mean_accepted_length is None
    assert Measured(generated=5.0).mean_accepted_length == 1.0


def test_a_run_is_given_up_for_want_of_progress_and_not_of_time():
    run = DemoRun(DEMO, load_settings(), Tally(), Console(), started=0.0)

    class Worker:
        tokens = 0.0

        def measure(self):
            return Measured(generated=self.tokens, processed=self.tokens)

    worker = Worker()
    run.sending = run.last_result = 1.0
    for minute in range(1, 600):  # ten hours without a result, and a token every minute
        worker.tokens += 1
        run._measure(worker, minute * 60.0)
        assert run._given_up(minute * 60.0 + 30.0) is None
    assert run._given_up(minute * 60.0 + DEMO.stall_seconds) is None
    assert "did no work" in run._given_up(minute * 60.0 + DEMO.stall_seconds + 1)


# --- the run verbatim ----------------------------------------------------------------------------


def test_the_markdown_holds_every_revision_and_translation():
    text = markdown(tally_of(good_log()), FACTS, {"WINDOW": "512"})
    assert text.count("**Revision 0.") == 2
    assert text.count("- fr: bonjour") == 3
    assert all(said in text for said in TEXT)
    assert json_line(tally_of(good_log()), FACTS) in text


def test_the_markdown_is_not_steered_by_what_was_said():
    tally = tally_of([*good_log()[:-1], summary(2, 2, final=True, text="<script> *x* \x1b[2J")])
    text = markdown(tally, FACTS, {})
    assert "\\<script> \\*x\\*" in text
    assert "\x1b" not in text


# --- what is replayed ----------------------------------------------------------------------------


def test_three_meetings_come_with_the_package():
    files = meeting_files()
    assert len(files) >= 3
    assert all(file.stat().st_size < 120_000 for file in files)
    for part in transcripts(DEMO):
        assert [s.seq for s in part] == list(range(len(part)))
        assert len({s.segment_id for s in part}) == len(part)
        assert all(s.text.strip() and s.is_final and s.speaker and s.speaker.name for s in part)


def test_the_default_run_says_more_than_its_window_holds():
    """A token is rarely longer than a word, so the words alone must nearly fill the window."""
    for part in transcripts(DEMO):
        assert sum(len(s.text.split()) for s in part) >= 0.95 * DEMO.window


def test_more_streams_than_meetings_get_ids_of_their_own():
    parts = transcripts(with_choices(DEMO, streams=5, segments=3))
    assert len({part[0].stream_id for part in parts}) == 5
    assert len({s.segment_id for part in parts for s in part}) == 15


def test_choices():
    plan = with_choices(DEMO, segments=7, model=None, targets=())
    assert (plan.segments, plan.model, plan.targets) == (7, DEMO.model, ())
    with pytest.raises(ConfigError, match="STREAMS"):
        with_choices(DEMO, streams=0)


# --- following a stream --------------------------------------------------------------------------


def test_the_highest_revision_is_shown():
    follower = Follower(["s"])
    assert follower.take_event(summary(2, 5))
    assert follower.take_event(summary(1, 3)) is None
    assert follower.take_event(replace_epoch(summary(1, 1), 1))
    assert follower.views["s"].summary.epoch == 1


def replace_epoch(event: SummaryEvent, epoch: int) -> SummaryEvent:
    return SummaryEvent(
        stream_id=event.stream_id,
        epoch=epoch,
        revision=event.revision,
        event_id=event_id(event.stream_id, "summary", epoch, event.revision),
        covers=event.covers,
    )


def test_a_seen_event_is_dropped():
    follower = Follower(["s"])
    assert follower.take_event(translation(0))
    assert follower.take_event(translation(0)) is None
    assert len(follower.views["s"].translations) == 1


def test_a_new_revision_replaces_the_translation_of_its_unit():
    follower = Follower(["s"])
    follower.take_event(translation(0, revision=1, text="bon"))
    follower.take_event(translation(0, revision=3, text="bonjour"))
    assert follower.take_event(translation(0, revision=2, text="old")) is None
    assert [t.committed for t in follower.views["s"].translations] == ["bonjour"]


def test_other_streams_are_left_aside():
    follower = Follower(["s"])
    assert follower.take_event(summary(1, 1, stream="other")) is None
    assert set(follower.views) == {"s"}


def test_lag_is_segments_seen_and_not_covered():
    view = StreamView("s")
    for seq in range(5):
        view.take_segment(Segment(stream_id="s", seq=seq, text="x"))
    assert view.behind == 5
    view.take_summary(summary(1, 2))
    assert view.behind == 2


def test_what_is_remembered_is_bounded():
    seen = Seen(2)
    assert [seen.add(x) for x in ("a", "b", "a", "c", "b")] == [True, True, False, True, True]
    view = StreamView("s")
    for seq in range(500):
        view.take_segment(Segment(stream_id="s", seq=seq, text="x"))
        view.take_translation(translation(seq))
    assert len(view.tail) == len(view.translations) == 60


# --- the screen ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "streams"), [(100, 30, 3), (80, 24, 5), (200, 60, 1)])
def test_the_screen_fills_the_terminal_and_no_more(width, height, streams):
    views = []
    for number in range(streams):
        view = StreamView(f"s{number}")
        for seq in range(30):
            said = Segment(stream_id="s", seq=seq, text=f"word {seq} " * 9 + "\x1b[2Jend")
            view.take_segment(said)
            view.take_translation(translation(seq, text="mot " * 9))
        view.take_summary(summary(1, 2, text="[bold]decided\x07 " * 30))
        views.append(view)
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=False)
    console.print(draw(views, Status(note="x" * 300, kv_bytes_per_stream=14_680_064), height))
    output = console.file.getvalue()
    lines = output.rstrip("\n").split("\n")
    assert len(lines) == height
    assert max(cell_len(line) for line in lines) <= width
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "14.7 MB" in output
    assert "[bold]decided" in output
    assert "[2Jend" in output


def test_streams_that_do_not_fit_are_counted():
    views = [StreamView(f"s{number}") for number in range(5)]
    views[4].take_segment(Segment(stream_id="s4", seq=0, text="behind"))
    console = Console(width=100, height=16, file=io.StringIO())
    console.print(draw(views, Status(note="demo"), 16))
    output = console.file.getvalue()
    assert "3 more streams not shown" in output
    assert "behind" in output
