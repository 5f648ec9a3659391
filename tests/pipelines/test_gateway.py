"""The gateway's answers, on views filled by hand: no broker, no socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.websockets import WebSocketDisconnect

from operators.errors import ConfigError
from operators.events import AnswerEvent, Segment, Source
from pipelines.config.fields import Settings
from pipelines.gateway.access import Access, read_tokens
from pipelines.gateway.limits import Rate
from pipelines.gateway.views import MAX_LOG, Cursor, Views
from pipelines.wire.questions import decode_question
from tests.pipelines.gateway import (
    client_of,
    filled,
    item,
    made,
    segment,
    summary,
    translation,
)

TOKEN = "a-token-of-tenant-one"


def one(**settings: Any) -> tuple[Any, Any, Any]:
    gateway, kept = made(**settings)
    filled(gateway)
    return gateway, client_of(gateway), kept


def test_the_list_says_what_is_behind() -> None:
    _, client, _ = one()
    (found,) = client.get("/v1/streams").json()["streams"]
    assert found["stream_id"] == "s"
    assert (found["revision"], found["languages"], found["segments"]) == ("0.2", ["fr"], 3)
    assert (found["uncovered_segments"], found["uncovered_since_ms"]) == (1, 4000)
    assert found["behind"]  # 4000 ms after 1970 is long ago


def test_revisions_are_etags_and_since_gives_what_changed() -> None:
    _, client, _ = one()
    answer = client.get("/v1/streams/s/summary")
    assert answer.headers["etag"] == '"0.2"'
    assert [i["id"] for i in answer.json()["items"]] == ["n0", "n1"]
    again = client.get("/v1/streams/s/summary", headers={"if-none-match": '"0.2"'})
    assert (again.status_code, again.content) == (304, b"")
    changed = client.get("/v1/streams/s/summary?since=0.1").json()
    assert [i["id"] for i in changed["items"]] == ["n1"]
    assert changed["item_ids"] == ["n0", "n1"]
    assert client.get("/v1/streams/s/summary?since=x").status_code == 400
    said = client.get("/v1/streams/s/transcript?since=11").json()
    assert [line["text"] for line in said["segments"]] == ["And who pays?"]
    assert said["revision"] == 12
    units = client.get("/v1/streams/s/translations/fr?since=0.1").json()["units"]
    assert [unit["unit_id"] for unit in units] == ["s-1"]
    assert client.get("/v1/streams/s/translations/de").status_code == 404


def test_markdown_by_format_or_accept_shows_no_markup() -> None:
    _, client, _ = one()
    notes = client.get("/v1/streams/s/summary", headers={"accept": "text/markdown"}).text
    assert "Bo writes the notes" in notes
    assert notes.startswith("# s")
    said = client.get("/v1/streams/s/transcript?format=md")
    assert said.headers["content-type"].startswith("text/markdown")
    assert r"\<script\>" in said.text
    assert "<script>" not in said.text


@pytest.mark.parametrize("kind", ["md", "json", "srt", "vtt"])
def test_exports(kind: str) -> None:
    _, client, _ = one()
    answer = client.get(f"/v1/streams/s/export?format={kind}")
    assert answer.status_code == 200
    assert f"s.{kind}" in answer.headers["content-disposition"]
    assert "ship on Friday" in answer.text
    if kind in ("srt", "vtt"):
        french = client.get(f"/v1/streams/s/export?format={kind}&lang=fr").text
        assert "Nous livrons vendredi." in french
        assert "00:00:00" in french


def test_a_segment_is_answered_when_kafka_has_it_and_written_once() -> None:
    gateway, client, kept = one()
    given = {"segment_id": "x", "text": "hello", "speaker": {"name": "Eve"}}
    answer = client.post("/v1/streams/s/segments", json=given)
    assert (answer.status_code, answer.json()["segment_id"]) == (201, "x")
    (sent,) = kept.segments()
    assert (sent.stream_id, sent.text, sent.segment_id) == ("s", "hello", "x")
    gateway.views.take("segments", 20, 5000, sent)
    again = client.post("/v1/streams/s/segments", json=given).json()
    assert again["known"]
    assert len(kept.records) == 1
    other = client.post("/v1/streams/s/segments", json={**given, "text": "hallo"}).json()
    assert not other["known"]


def test_a_batch_is_written_whole_or_not_at_all() -> None:
    _, client, kept = one()
    bad = {"segments": [{"text": "one"}, {"text": "two", "revision": "many"}]}
    assert client.post("/v1/streams/new/segments", json=bad).status_code == 400
    assert kept.records == []
    good = {"segments": [{"text": "one"}, {"type": "session_end"}]}
    assert client.post("/v1/streams/new/segments", json=good).status_code == 201
    assert [s.type for s in kept.segments()] == ["segment", "session_end"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"nonsense", 400),
        (b"[1]", 400),
        (b'{"type":"forget","text":"x"}', 400),
        (b'{"type":"segment"}', 400),
        (b'{"stream_id":"other","text":"x"}', 400),
        (json.dumps({"text": "x" * 70_000}).encode(), 413),
        (json.dumps({"text": "x" * 300_000}).encode(), 413),
    ],
)
def test_what_cannot_be_taken_is_refused(body: bytes, status: int) -> None:
    _, client, kept = one(operator={"max_text_bytes": 60_000})
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/streams/s/segments", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert kept.records == []


def test_without_kafka_nothing_is_promised() -> None:
    _, client, kept = one()
    kept.broken = True
    assert client.post("/v1/streams/s/segments", json={"text": "x"}).status_code == 503


def test_a_socket_answers_each_segment_and_goes_on_after_a_bad_one() -> None:
    _, client, kept = one()
    with client.websocket_connect("ws://localhost/v1/streams/a%2Fb/segments") as socket:
        socket.send_text('{"text":"one","segment_id":"1"}')
        assert socket.receive_json()["segment_id"] == "1"
        socket.send_text("nonsense")
        assert socket.receive_json()["status"] == 400
        socket.send_text('{"text":"two","segment_id":"2"}')
        assert socket.receive_json()["segment_id"] == "2"
    assert [s.stream_id for s in kept.segments()] == ["a/b", "a/b"]


def test_another_sites_page_may_change_nothing() -> None:
    _, client, kept = one()
    evil = {"origin": "https://evil.example"}
    assert (
        client.post("/v1/streams/s/segments", json={"text": "x"}, headers=evil).status_code == 403
    )
    assert client.delete("/v1/streams/s", headers=evil).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("ws://localhost/v1/streams/s/segments", headers=evil),
    ):
        pass
    plain = {"content-type": "text/plain"}
    body = b'{"text":"x"}'
    assert client.post("/v1/streams/s/segments", content=body, headers=plain).status_code == 415
    assert client.get("/v1/streams", headers={"host": "evil.example"}).status_code == 421
    assert "access-control-allow-origin" not in client.get("/v1/streams", headers=evil).headers
    assert kept.records == []


def test_cors_is_for_listed_origins_only() -> None:
    _, client, _ = one(gateway_origins="https://app.example")
    own = {"origin": "https://app.example"}
    assert (
        client.get("/v1/streams", headers=own).headers["access-control-allow-origin"]
        == own["origin"]
    )
    assert client.options("/v1/streams/s/segments", headers=own).status_code == 204
    assert client.post("/v1/streams/s/segments", json={"text": "x"}, headers=own).status_code == 201


def test_open_means_loopback() -> None:
    with pytest.raises(ConfigError, match="can be reached by others"):
        Access(Settings(gateway_host="0.0.0.0"))
    Access(Settings(gateway_host="::1"))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(
        f"# people\n{TOKEN} one\na-token-that-reads-only one read\nall-the-tenants-ever *\n"
    )
    return path


def test_a_token_sees_its_tenants_streams_only(tokens: Path) -> None:
    gateway, kept = made(tokens)
    gateway.views.take("segments", 1, 1, segment(0, "ours", tenant="one"))
    gateway.views.take("segments", 2, 2, segment(0, "theirs", stream_id="t", tenant="two"))
    gateway.views.take("segments", 3, 3, segment(0, "nobody's", stream_id="u"))
    client = client_of(gateway)
    assert client.get("/v1/streams").status_code == 401
    mine = {"authorization": f"Bearer {TOKEN}"}
    listed = client.get("/v1/streams", headers=mine).json()["streams"]
    assert [found["stream_id"] for found in listed] == ["s"]
    for path in ("t", "u", "none"):  # all look the same
        answer = client.get(f"/v1/streams/{path}/transcript", headers=mine)
        assert (answer.status_code, answer.json()["detail"]) == (404, "no such stream")
    assert (
        client.post("/v1/streams/t/segments", json={"text": "x"}, headers=mine).status_code == 404
    )
    assert client.delete("/v1/streams/t", headers=mine).status_code == 404
    assert client.get("/v1/streams/t/events", headers=mine).status_code == 404
    asked = {"text": "x", "tenant": "two"}
    assert client.post("/v1/streams/new/segments", json=asked, headers=mine).status_code == 403
    client.post("/v1/streams/new/segments", json={"text": "x"}, headers=mine)
    assert kept.segments()[-1].tenant == "one"
    everyone = {"authorization": "bearer all-the-tenants-ever"}
    assert len(client.get("/v1/streams", headers=everyone).json()["streams"]) == 3
    reader = {"authorization": "Bearer a-token-that-reads-only"}
    assert client.get("/v1/streams/s", headers=reader).status_code == 200
    assert (
        client.post("/v1/streams/s/segments", json={"text": "x"}, headers=reader).status_code == 403
    )


def test_a_proxys_header_is_believed_from_the_proxy_alone() -> None:
    settings = {"gateway_tenant_header": "X-Tenants", "gateway_proxies": "10.0.0.1"}
    gateway, _ = made(**settings)
    gateway.views.take("segments", 1, 1, segment(0, "ours", tenant="one"))
    header = {"x-tenants": "zero, one, *"}
    near = client_of(gateway, client=("10.0.0.1", 50000))
    assert near.get("/v1/streams/s", headers=header).status_code == 200
    assert near.get("/v1/streams", headers={"x-tenants": "*"}).status_code == 401
    far = client_of(gateway, client=("10.0.0.2", 50000))
    assert far.get("/v1/streams/s", headers=header).status_code == 401


def test_tokens_may_be_digests_and_a_bad_line_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("sha256:" + "0" * 64 + " one\n")
    assert list(read_tokens(path)) == ["0" * 64]
    path.write_text("secret-secret-secret one write\n")
    with pytest.raises(ConfigError) as caught:
        read_tokens(path)
    assert "secret-secret" not in str(caught.value)


def test_who_asks_too_often_waits() -> None:
    now = [0.0]
    rate = Rate(2, clock=lambda: now[0])
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, 0]
    assert rate.take("a") == 0.5
    assert rate.take("b") == 0
    now[0] = 0.5
    assert rate.take("a") == 0
    gateway, client, _ = one(gateway_requests_per_s=1)
    gateway.app._rate = Rate(1, clock=lambda: 0.0)
    assert [client.get("/v1/streams").status_code for _ in range(3)] == [200, 200, 429]


def test_a_name_with_a_slash_is_a_stream() -> None:
    gateway, client, _ = one()
    gateway.views.take("segments", 30, 1, segment(0, "x", stream_id="rooms/1?é"))
    answer = client.get("/v1/streams/rooms%2F1%3F%C3%A9/transcript")
    assert answer.json()["stream_id"] == "rooms/1?é"


def test_headers_of_every_answer() -> None:
    _, client, _ = one()
    for path in ("/", "/v1/streams", "/v1/streams/none", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_fault_of_ours_is_logged_without_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    gateway, client, _ = one()
    gateway.views._views = None
    client = client_of(gateway, raise_server_exceptions=False)
    assert client.get("/v1/streams/a-secret-name").status_code == 500
    assert "AttributeError in " in caplog.text
    assert "a-secret-name" not in caplog.text
    assert "Traceback" not in caplog.text


def test_before_kafka_is_read_nothing_is_answered() -> None:
    gateway, client, _ = one()
    gateway.feed.caught_up.clear()
    assert client.get("/v1/streams").status_code == 503
    assert client.get("/ready").status_code == 503
    assert client.get("/live").status_code == 200


# --- views ---------------------------------------------------------------------------------------


def views(**settings: Any) -> Views:
    return Views(Settings(**settings))


def test_revisions_only_grow_and_corrections_replace() -> None:
    held = views()
    held.take("summaries", 2, 1, summary(2))
    held.take("summaries", 1, 1, summary(1))
    view = held.get("s")
    assert view is not None
    assert view.revision == "0.2"
    held.take("segments", 1, 1, segment(0, "helo"))
    held.take("segments", 2, 2, segment(0, "hello", revision=1))
    held.take("segments", 3, 3, segment(0, "helo", revision=0))
    assert [(line.text, line.corrected) for line in view.lines.values()] == [("hello", True)]


def test_a_draft_is_shown_until_its_final() -> None:
    held = views()
    held.take("segments", 1, 1, segment(0, "hel", is_final=False))
    view = held.get("s")
    assert view is not None
    assert list(view.drafts) == ["s-0"]
    held.take("segments", 2, 2, segment(0, "hello"))
    assert (list(view.drafts), list(view.lines)) == ([], ["s-0"])
    held.take("segments", 3, 3, segment(0, "hel", is_final=False))
    assert list(view.drafts) == []


def test_a_new_life_begins_a_new_transcript() -> None:
    held = views()
    held.take("segments", 1, 1, segment(0, "old"))
    held.take("segments", 2, 2, Segment(stream_id="s", type="session_end"))
    held.take("segments", 3, 3, segment(1, "new"))
    view = held.get("s")
    assert view is not None
    assert ([line.text for line in view.lines.values()], view.ended) == (["new"], False)


def test_a_forgotten_stream_is_gone_at_once() -> None:
    held = views()
    held.take("segments", 1, 1, segment(0, "x"))
    held.take("segments", 2, 2, Segment(stream_id="s", type="forget"))
    assert held.get("s") is None
    assert held.bytes == 0


def test_the_next_lifes_results_may_be_read_before_its_segments() -> None:
    """At the start the topics are read side by side, in any order."""
    held = views()
    source = Source(first_offset=20, last_offset=25)
    held.take("summaries", 9, 1, summary(1, epoch=1, source=source))
    held.take("translations", 9, 1, translation(5, "neuf", source=source))
    held.take("segments", 10, 1, segment(0, "old"))
    held.take("segments", 11, 2, Segment(stream_id="s", type="session_end"))
    held.take("segments", 20, 3, segment(5, "new"))
    view = held.get("s")
    assert view is not None
    assert list(view.translations["fr"]) == ["s-5"]
    held.take("segments", 12, 2, Segment(stream_id="s", type="forget"))
    view = held.get("s")
    assert view is not None
    assert (view.revision, list(view.lines)) == ("1.1", [])
    held.take("segments", 30, 2, Segment(stream_id="s", type="forget"))
    assert held.get("s") is None
    assert held.bytes == 0


def test_memory_is_bounded() -> None:
    held = views(gateway_max_segments=10, gateway_max_streams=3, gateway_max_mib=8)
    for number in range(50):
        held.take("segments", number, 1, segment(number, "x"))
        held.take("translations", number, 1, translation(number, "y"))
    view = held.get("s")
    assert view is not None
    assert (len(view.lines), len(view.translations["fr"]), view.truncated) == (10, 10, True)
    for number in range(10):
        held.take("segments", number, 1, segment(0, "x", stream_id=f"t{number}"))
    assert [v.stream_id for v in held] == ["t9", "t8", "t7"]
    for number in range(3):
        for part in range(1000):
            text = "x" * 5000
            held.take("segments", part, 1, segment(part, text, stream_id=f"u{number}"))
    assert held.bytes < (8 << 20) + 6000
    for stream in list(held):
        held.remove(stream.stream_id)
    assert held.bytes == 0


def test_a_cursor_says_what_was_missed_on_any_gateway() -> None:
    first, second = views(), views()
    said = [("segments", n, segment(n, f"text {n}")) for n in range(4)]
    notes = [("summaries", n, summary(n + 1, item(n, "x"))) for n in range(2)]
    for source, offset, value in [*said[:2], notes[0], *said[2:], notes[1]]:
        first.take(source, offset, 1, value)
    for source, offset, value in [notes[0], *said, notes[1]]:  # topics are read in another order
        second.take(source, offset, 1, value)
    one, other = first.get("s"), second.get("s")
    assert one is not None
    assert other is not None
    at = Cursor.parse("2-1-0-0-0")  # two segments and one summary seen
    assert at is not None
    places = {(entry.source, entry.offset) for entry in other.log.after(at) or []}
    assert places == {(0, 2), (0, 3), (1, 1)}
    assert one.log.after(one.cursor) == []
    assert other.log.after(one.cursor) == []


def test_a_cursor_from_before_what_is_held_is_told_to_start_anew() -> None:
    held = views()
    floor = Cursor(segments=99)
    held.take("segments", 100, 1, segment(0, "x"), floor)
    view = held.get("s")
    assert view is not None
    assert view.log.after(Cursor(segments=50)) is None
    assert view.log.after(floor) is not None
    for number in range(MAX_LOG + 5):
        held.take("segments", 101 + number, 1, segment(number + 1, "x"))
    assert view.log.after(floor) is None
    assert view.log.after(view.cursor) == []


@pytest.mark.parametrize("text", ["", "1", "1-2-3-4-x", "1-2-3-4-5-6", "-1-2-3-4-5", "9" * 30])
def test_no_cursor(text: str) -> None:
    assert Cursor.parse(text) is None


# --- questions and edits -------------------------------------------------------------------------


def answered(name: str, text: str = "On Friday.") -> AnswerEvent:
    return AnswerEvent(stream_id="s", epoch=0, revision=1, question_id=name, text=text)


def test_a_question_is_asked_once_and_its_answer_kept() -> None:
    gateway, client, kept = one()
    asked = {"question_id": "q1", "text": "When do we ship?"}
    answer = client.post("/v1/streams/s/questions", json=asked)
    assert (answer.status_code, answer.json()["answered"]) == (202, False)
    ((topic, stream, value),) = kept.records
    assert (topic, stream) == (gateway.settings.topic_questions, "s")
    question = decode_question(b"s", value, partition=0, offset=0)
    assert (question.question_id, question.text) == ("q1", "When do we ship?")
    gateway.views.take("questions", 1, 1, question)
    gateway.views.take("answers", 1, 2, answered("q1"))
    gateway.views.take("answers", 2, 3, answered("q1", "repeated"))
    again = client.post("/v1/streams/s/questions", json=asked)
    assert (again.status_code, again.json()["answer"]["text"]) == (200, "On Friday.")
    assert len(kept.records) == 1
    listed = client.get("/v1/streams/s/answers").json()["answers"]
    assert [(a["question"], a["answered"]) for a in listed] == [("When do we ship?", True)]
    assert client.get("/v1/streams/s/answers/q1").json()["answered"]
    assert client.get("/v1/streams/s/answers/q2").status_code == 404


def test_questions_that_cannot_be_asked() -> None:
    gateway, client, kept = one()
    for body, status in (
        ({"text": " "}, 400),
        ({"kind": "gossip"}, 400),
        ({"text": "x" * 99_999}, 413),
    ):
        assert client.post("/v1/streams/s/questions", json=body).status_code == status
    assert client.post("/v1/streams/none/questions", json={"text": "x"}).status_code == 404
    gateway.views.take(
        "answers", 1, 1, AnswerEvent(stream_id="none", epoch=0, revision=0, question_id="q")
    )
    assert gateway.views.get("none") is None
    assert kept.records == []


def numbers(client: Any, **headers: str) -> dict[tuple[str, ...], float]:
    """(series, its label values by the labels' names…) -> value, of the gateway's own metrics."""
    page = client.get("/metrics", headers=headers)
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name.removeprefix("longstream_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_requests_questions_and_segments_are_counted() -> None:
    _, client, _ = one()
    client.get("/v1/streams/s/summary")
    client.get("/v1/streams/nobody")
    client.request("BREW", "/v1/streams")
    client.post("/v1/streams/s/segments", json={"segment_id": "n", "text": "More."})
    client.post("/v1/streams/s/segments", json={"segments": [{"text": "a"}, {"text": "b"}]})
    client.post("/v1/streams/s/questions", json={"text": "Who pays?"})
    seen = numbers(client)
    assert seen["gateway_requests_total", "200", "GET"] == 1
    assert seen["gateway_requests_total", "404", "GET"] == 1
    assert seen["gateway_requests_total", "405", "other"] == 1
    assert seen["gateway_requests_total", "201", "POST"] == 2
    assert seen["gateway_segments_total",] == 3
    assert seen["gateway_questions_total",] == 1
    assert (seen["gateway_streams",], seen["gateway_ready",]) == (1, 1)
    assert seen["gateway_readers_limit",] == Settings().gateway_max_readers
    assert seen["gateway_readers_dropped_total", "behind"] == 0


def test_the_numbers_name_no_stream_and_want_a_token_of_all_tenants(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN} one\na-token-of-everyone *\n")
    gateway, _ = made(tokens=tokens)
    gateway.views.take("segments", 1, 1, segment(1, "x", stream_id="secret-name", tenant="one"))
    client = client_of(gateway)
    assert client.get("/metrics").status_code == 401
    some = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert some.status_code == 403
    client.get("/v1/streams/secret-name", headers={"authorization": f"Bearer {TOKEN}"})
    all_tenants = {"authorization": "Bearer a-token-of-everyone"}
    assert numbers(client, **all_tenants)["gateway_requests_total", "401", "GET"] == 1
    assert "secret-name" not in client.get("/metrics", headers=all_tenants).text
