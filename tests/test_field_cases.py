"""Cases from people who do this job: input as they had it (small), and what is right. One test a case;
each stands for its kind, of which the tests beside the code have more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from operators.engine.known_segments import KnownSegments
from operators.errors import SegmentError
from operators.events import Evidence, Segment
from operators.tasks.grounding import Draft, Known, Turn, checked, problem_of
from pipelines.wire.codec import decode_segment
from pipelines.wire.transcripts import read_transcript
from tests.operators.test_chat_template import DATED, NO_SYSTEM, framed
from tests.operators.test_minutes import run as summarise
from tests.operators.test_minutes import scripted, view
from tests.operators.test_model_failures import (
    test_the_unfinished_character_of_an_answer_that_was_cut_is_left_out as cut_answer,
)
from tests.pipelines.test_inputs import OTTER, YOUTUBE, ZOOM

ROOT = Path(__file__).parents[1]
CASES: dict[str, Callable[..., None]] = {}


def case(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def note(test: Callable[..., None]) -> Callable[..., None]:
        CASES[name] = test
        return test

    return note


def taken(value: Any, key: str = "m1") -> Segment:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_segment(key.encode(), raw, None, partition=0, offset=0, max_text_bytes=9999)


def of_file(folder: Path, name: str, text: str, **options: Any) -> list[Segment]:
    path = folder / name
    path.write_text(text)
    return list(read_transcript(path, **options))


def note(said: str, written: str, speaker: str = "Ana") -> tuple[bool, Counter[str], str]:
    """Whether a note becomes an item, why its sentence was refused, and what stands at last."""
    turn = Turn(speaker, said, 20, [Evidence("s")])
    draft = Draft(turn, "decision", 1.0, text=written)
    draft.problem = problem_of(draft, Known((speaker,)))
    refused: Counter[str] = Counter()
    return checked(draft, refused), refused, draft.text


@case("F01")
def subtitles_are_no_speech(tmp_path: Path) -> None:
    first, second = of_file(tmp_path, "zoom.vtt", ZOOM)
    assert (first.speaker and first.speaker.name, first.start_ms) == ("Ana Ruiz", 9835)
    assert (second.text, second.end_ms) == ("I will call them.", 16000)


@case("F02")
def rolling_captions_come_once(tmp_path: Path) -> None:
    words = " ".join(s.text for s in of_file(tmp_path, "y.vtt", YOUTUBE))
    assert words == "we ship it on monday at nine"


@case("F04")
def a_bad_line_costs_that_line(tmp_path: Path) -> None:
    bad: list[SegmentError] = []
    text = '{"text":"Ana opens."}\nnot json at all\n{"text":"It moves to Friday."}\n'
    found = of_file(tmp_path, "x.jsonl", text, on_bad=bad.append)
    assert [s.text for s in found] == ["Ana opens.", "It moves to Friday."]
    assert "line 2" in str(bad[0])


@case("F05")
def names_and_times_on_a_line_of_their_own(tmp_path: Path) -> None:
    found = of_file(tmp_path, "otter.txt", OTTER)
    told = [(s.speaker and s.speaker.name, s.start_ms) for s in found]
    assert told == [("Ana Ruiz", 49_000), ("Ben Ode", 69_000)]


@case("F06")
def events_of_recognisers_are_segments() -> None:
    deepgram = {
        "type": "Results", "start": 17.0, "duration": 1.6, "is_final": True, "speech_final": True,
        "channel": {"alternatives": [{"transcript": "We ship on Friday.", "confidence": 0.99}]},
    }  # fmt: skip
    aws = {"Transcript": {"Results": [{"ResultId": "r1", "StartTime": 1.2, "EndTime": 2.3,
           "IsPartial": False, "Alternatives": [{"Transcript": "We ship Friday."}]}]}}  # fmt: skip
    assert (taken(deepgram).text, taken(deepgram).start_ms) == ("We ship on Friday.", 17_000)
    assert (taken(aws).text, taken(aws).start_ms) == ("We ship Friday.", 1200)


@case("F07")
def drafts_are_drafts() -> None:
    parts = [("The rev", False), ("The review moves", False), ("The review moves to ten.", True)]
    made = [taken({"segment_id": "s", "text": t, "completed": done}) for t, done in parts]
    assert [segment.is_final for segment in made] == [False, False, True]


@case("F08")
def numbers_as_labels_never_cost_the_words() -> None:
    for fields in ({"speaker": 0}, {"speaker": {"id": 1}}, {"segment_id": 17}, {"start_ms": 1.5}):
        assert taken({"text": "We ship on Friday.", **fields}).text == "We ship on Friday."
    assert taken({"text": "x", "segment_id": 17}).segment_id == "17"


@case("F10")
def ids_that_begin_again_are_new_speech() -> None:
    known = KnownSegments()
    first = Segment(stream_id="m", segment_id="turn-0", text="We ship on Friday.", start_ms=1_000)
    known.take("turn-0", first)
    later = Segment(stream_id="m", segment_id="turn-0", text="It is off.", start_ms=900_000)
    named, relation = known.named(later)
    assert (relation, named.segment_id) == ("new", "turn-0@2")


@case("F11")
def speech_may_begin_with_a_brace() -> None:
    for text in ("{inaudible} so we agreed on Friday", "{\\an8}We agreed on Friday."):
        assert taken(text.encode()).text == text


@case("K01")
def frames_of_a_schema_registry_are_taken_off() -> None:
    body = b'{"stream_id":"m1","text":"We ship on Friday."}'
    for number in (12, 200):
        assert taken(b"\x00" + number.to_bytes(4) + body).text == "We ship on Friday."


@case("T01")
def scripts_without_spaces_give_notes() -> None:
    for said, written in (
        ("我们把评审会议改到星期五十点。", "评审会议改到星期五十点。"),
        ("会議は金曜日の十時に移そう。", "会議は金曜日の十時に移す。"),
    ):
        assert note(said, written) == (True, Counter(), written)


@case("T03")
def an_unfinished_character_is_left_out() -> None:
    cut_answer("length")


@case("T04")
def a_template_without_a_system_role() -> None:
    assert "You take minutes." in framed(NO_SYSTEM)[0]


@case("E04")
def a_template_that_writes_the_date() -> None:
    assert framed(DATED) == framed(DATED)
    assert "2024" in framed(DATED)[0]


@case("Q06")
def notes_in_another_script_give_way_to_the_words() -> None:
    said = "评审改到星期五上午，供应商晚了。"
    kept, refused, text = note(said, "The team moved the review to Friday.")
    assert (kept, refused, text) == (True, Counter(other_language=1), said)


@case("Q07")
def an_update_that_came_to_nothing_says_so() -> None:
    line = (
        "Well, the review, I think we said that it moves to Friday at ten and not to Monday then."
    )
    event = summarise(view([line]), scripted({line: "C"}, {line: "Nobody came."}))
    assert sum(event.refused.values()) == 1


@case("Q08")
def numbers_nobody_said_are_refused() -> None:
    said = "Sales in Spain rose by 9 percent, although deliveries were late."
    _, refused, text = note(said, "Ana reported that sales in Spain fell by 4 percent.")
    assert refused == Counter(number_added=1)
    assert "4" not in text


@case("M02")
def a_worker_fewer_is_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "dashboards/prometheus/alerts.yml").read_text())
    names = {r.get("alert") for group in rules["groups"] for r in group["rules"]}
    assert {"WorkerDown", "WorkersMissing"} <= names


@case("T02")
def sentences_end_by_the_scripts_own_marks() -> None:
    languages = pytest.importorskip("operators.languages")
    said = (
        "我们今天讨论三件事。第一，评审改到星期五上午十点。第二，供应商要晚两天，所以测试往后推。"
    )
    pieces = languages.split(said, 30, len)
    assert "".join(pieces) == said
    assert all(piece.endswith("。") for piece in pieces)


@case("Q03")
def tags_are_compared_as_languages() -> None:
    languages = pytest.importorskip("operators.languages")
    assert all(languages.same("fr", tag) for tag in ("fr-FR", "FR", "fr_CA"))
    assert languages.known("pt-BR")


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name: str, tmp_path: Path) -> None:
    test = CASES[name]
    test(tmp_path) if test.__code__.co_argcount else test()
