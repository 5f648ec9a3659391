"""A server as the model: what it is asked, and what becomes of everything that can go wrong with it."""

from __future__ import annotations

import datetime
import email.utils
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operators.config import OperatorConfig
from operators.errors import ConfigError, DeviceError, ModelError, SegmentError
from operators.events import Segment, SummaryEvent, TranslationEvent
from operators.model.served import Form, Message, TextAnswer, TextRequest
from operators.observer import Observer
from operators.state import Failure
from operators.stream import Stream
from pipelines.config.load import load_settings
from pipelines.local import load_operator
from pipelines.served import forms, openai
from pipelines.served.openai import OpenAIServer, retry_after
from pipelines.served.options import server_settings
from pipelines.served.settings import ServerSettings
from tests import served
from tests.certificates import self_signed
from tests.served import Body, Script, running, scripted

KEY = "sk-very-secret"
HELLO = (Message("system", "Be brief."), Message("user", "Say hello."))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def told() -> list[str]:
    return []


class Client:
    """Connects to a scripted server, and closes what it has opened."""

    def __init__(self, told: list[str]) -> None:
        self.told = told
        self.opened: list[OpenAIServer] = []

    def __call__(self, script: Script, **settings: Any) -> OpenAIServer:
        wanted = ServerSettings(**{"url": script.url, "attempts": 3, "timeout_s": 5, **settings})
        client = OpenAIServer(wanted, concurrency=4, say=self.told.append)
        self.opened.append(client)
        client.connect()
        script.seen.clear()
        return client


@pytest.fixture
def connect(told: list[str]) -> Iterator[Client]:
    client = Client(told)
    yield client
    for opened in client.opened:
        opened.close()


def ask(client: OpenAIServer, **fields: Any) -> TextAnswer:
    wanted = {"messages": HELLO, "opening": "", "max_tokens": 32, **fields}
    return client.submit(TextRequest(**wanted)).result(150)


# --- what is asked, and what comes back ------------------------------------------------------------


def test_an_answer_is_streamed_and_ends_where_the_task_says(connect: Client) -> None:
    with running(scripted(lambda body: 'Bonjour, Ana." And then much more.')) as script:
        answer = ask(connect(script), ends=lambda text: text.endswith('"'))
    assert answer.text == 'Bonjour, Ana."'
    assert answer.finish_reason == "stop"


def test_tokens_are_the_servers_count(connect: Client) -> None:
    with running(scripted(lambda body: "one two three")) as script:
        answer = ask(connect(script))
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 3)


@pytest.mark.parametrize("repeats", [True, False])
def test_an_opening_is_continued_and_no_part_of_the_answer(connect: Client, repeats: bool) -> None:
    words = ("TOPIC:" if repeats else "") + " Ana reports."
    with running(scripted(lambda body: words)) as script:
        answer = ask(connect(script), opening="TOPIC:")
        (body,) = script.asked
    assert body["messages"][-1] == {"role": "assistant", "content": "TOPIC:"}
    assert body["continue_final_message"] is True
    assert answer.text == " Ana reports."


def test_a_server_that_continues_nothing_is_asked_in_words(connect: Client) -> None:
    entry = {"owned_by": "somebody"}
    with running(scripted(lambda body: "TOPIC: Ana", entry=entry)) as script:
        answer = ask(connect(script), opening="TOPIC:")
        (body,) = script.asked
    assert body["messages"][-1]["role"] == "user"
    assert body["messages"][-1]["content"].endswith("Begin with: TOPIC:")
    assert "continue_final_message" not in body
    assert answer.text == " Ana"


def test_settings_of_sampling_and_further_fields_are_sent(connect: Client) -> None:
    config = OperatorConfig(temperature=0.7, top_p=0.9, top_k=5, sampling_seed=3)
    with running(scripted()) as script:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        ask(connect(script, extra=extra), sampling=config.sampling("summary"))
        (body,) = script.asked
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "seed")}
    assert sent == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_choices_are_weighed_by_logprobs(connect: Client) -> None:
    with running(scripted(lambda body: "BAC")) as script:
        weights = ask(connect(script), choices=("A", "B", "C", "D")).weights
        (body,) = script.asked
    assert (body["max_tokens"], body["logprobs"]) == (1, True)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] > weights[0] > weights[2] > weights[3] > 0


def test_words_are_weighed_by_the_tokens_they_may_begin_with(connect: Client) -> None:
    """A server's tokens are not ours: "decision" may begin with "d" or with "dec"."""
    with running(scripted(lambda body: "dcx")) as script:
        weights = ask(connect(script), choices=("chat", "decision", "question")).weights
    assert weights[1] > weights[0] > weights[2] > 0


def test_without_logprobs_the_server_chooses_by_a_schema(connect: Client) -> None:
    with running(scripted(lambda body: "BAC", logprobs=False)) as script:
        client = connect(script)
        weights = ask(client, choices=("A", "B", "C")).weights
        (body,) = script.asked
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["A", "B", "C"]
    assert max(weights) == weights[1] > 0.5


def test_unlikely_choices_are_chosen_by_a_schema_too(connect: Client) -> None:
    def say(body: Body) -> str:
        return "BC" if body.get("response_format") or len(body["messages"]) == 1 else "xyz"

    with running(scripted(say)) as script:
        client = connect(script)
        assert max(weights := ask(client, choices=("A", "B")).weights) == weights[1]


def test_without_either_the_words_are_read(connect: Client) -> None:
    with running(scripted(lambda body: "B, it is", logprobs=False, schema=False)) as script:
        client = connect(script)
        weights = ask(client, choices=("A", "B")).weights
        assert "response_format" not in script.asked[0]
    assert weights == (pytest.approx(0.1), pytest.approx(0.9))


def test_an_answer_ends_before_what_its_form_does_not_allow(connect: Client) -> None:
    with running(scripted(lambda body: "12345 and more")) as script:
        answer = ask(connect(script), form=Form("regex", "[0-9]+"))
        (body,) = script.asked
    assert answer.text == "12345"
    assert body["structured_outputs"] == {"regex": "[0-9]+"}


@pytest.mark.parametrize(
    ("pattern", "grammar"),
    [
        (r"[^\n]{1,400}\n?", r'root ::= [^\n]{1,400} "\n"?'),
        (r"(a|b\.c)+", 'root ::= ( "a" | "b" "." "c" )+'),
        (r"\w+", ""),
        ("^a$", ""),
    ],
)
def test_regular_expressions_as_llamacpps_grammar(pattern: str, grammar: str) -> None:
    assert forms.gbnf(pattern) == grammar


def test_a_schema_goes_to_every_server() -> None:
    for owner in ("vllm", "llamacpp", "somebody"):
        sent = forms.fields(Form("json", '{"type": "object"}'), owner)
        assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}


# --- which server ----------------------------------------------------------------------------------


def test_the_only_model_is_taken_and_its_context_known(connect: Client, told: list[str]) -> None:
    with running(scripted(entry={"max_model_len": 2048})) as script:
        client = connect(script)
    assert (client.name, client.context) == ("scripted", 2048)
    assert "choices by logprobs" in told[-1]


def test_another_model_than_the_servers_is_refused(connect: Client) -> None:
    with running(scripted()) as script, pytest.raises(ModelError, match="it has: scripted"):
        connect(script, model="another")


def test_a_dated_name_is_the_same_model(connect: Client) -> None:
    with running(scripted(model="gpt", entry={"id": "gpt"})) as script:
        client = connect(script, model="gpt")
        client._check_model({"model": "gpt-2026-01-01"})
        with pytest.raises(openai.Trouble):
            client._check_model({"model": "llama"})


def test_an_address_without_the_interface_is_a_setting(connect: Client) -> None:
    script = scripted()
    script.get = lambda exchange: exchange.reply(404, b"no")
    with running(script), pytest.raises(ConfigError, match="no OpenAI interface"):
        connect(script)


# --- trouble -------------------------------------------------------------------------------------

TROUBLES = {
    "rate_limited": served.busy,
    "server_error": served.broken,
    "connection": served.hangs_up,
    "dropped": served.cut_off,
    "garbage": served.garbage,
    "wrong_model": served.wrong_model,
}


@pytest.mark.parametrize("reason", TROUBLES)
def test_trouble_is_survived(connect: Client, reason: str) -> None:
    with running(scripted(lambda body: "Hello.")) as script:
        client = connect(script)
        script.next.extend([TROUBLES[reason]] * 2)
        assert ask(client).text == "Hello."
        assert len(script.asked) == 3


@pytest.mark.parametrize("reason", TROUBLES)
def test_trouble_without_end_ends_with_its_cause(
    connect: Client, reason: str, told: list[str]
) -> None:
    with running(scripted()) as script:
        client = connect(script)
        script.next.extend([TROUBLES[reason]] * 3)
        with pytest.raises(DeviceError, match=f"{reason}: .* after 3 attempts"):
            ask(client)
        assert len(script.asked) == 3
        seen = Seen()
        client.measure(seen)
    assert seen.counted[f"server_requests {reason}"] == 3
    assert seen.gauged[f"server_trouble {reason}"] == 1
    assert reason in told[-1]


def test_trouble_that_has_passed_is_no_trouble(connect: Client) -> None:
    with running(scripted()) as script:
        client = connect(script)
        script.next.append(served.broken)
        ask(client)
        client.measure(seen := Seen())
    assert seen.gauged == {"server_trouble server_error": 0}


class Seen(Observer):
    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        self.gauged: dict[str, float] = {}

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        key = " ".join([name, *labels.values()])
        self.counted[key] = self.counted.get(key, 0) + value

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauged[" ".join([name, *labels.values()])] = value


def test_a_server_that_says_nothing_is_given_up(connect: Client) -> None:
    late = threading.Event()
    with running(scripted()) as script:
        client = connect(script, timeout_s=0.3, attempts=2)
        script.next.extend([served.silent(late)] * 2)
        with pytest.raises(DeviceError, match=r"timeout: no answer in 0 s, after 2 attempts"):
            ask(client)
        late.set()


def test_an_answer_without_end_is_garbage(connect: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "MAX_LINE_BYTES", 2000)
    with running(scripted()) as script:
        client = connect(script)
        script.next.extend([lambda exchange: exchange.stream([b"x" * 5000])] * 3)
        with pytest.raises(DeviceError, match="garbage"):
            ask(client)


def test_a_server_that_ignores_max_tokens_is_cut_off(connect: Client) -> None:
    with running(scripted(lambda body: "word " * 2000)) as script:
        answer = ask(connect(script), max_tokens=4)
    assert answer.finish_reason == "length"
    assert len(answer.text) < 1500


def test_all_requests_wait_as_long_as_the_server_says(
    connect: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = openai.asyncio.sleep

    async def counted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(min(seconds, 0.01))

    with running(scripted()) as script:
        client = connect(script)
        monkeypatch.setattr(openai.asyncio, "sleep", counted)
        clock = SimpleNamespace(monotonic=lambda: 30.0 * len(waits))
        monkeypatch.setattr(openai, "time", clock)
        limit = lambda exchange: exchange.reply(429, {}, retry_after="60")  # noqa: E731
        script.next.append(limit)
        ask(client)
    assert waits == [60.0, 30.0]


def test_retry_after_is_seconds_or_a_date() -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert retry_after({"retry-after": "7"}) == 7
    assert 80 < retry_after({"retry-after": email.utils.format_datetime(later)}) <= 90
    assert retry_after({"retry-after": "99999"}) == openai.LONGEST_RETRY_AFTER_S
    assert [retry_after({"retry-after": bad}) for bad in ("", "soon", "-3", "nan")] == [0, 0, 0, 0]


def test_a_refused_prompt_is_refused_at_once(connect: Client) -> None:
    with running(scripted()) as script:
        client = connect(script)
        script.next.append(served.too_long)
        with pytest.raises(SegmentError, match="available context size") as caught:
            ask(client)
        assert len(script.asked) == 1
        assert ask(client).text == "Words."
    assert caught.value.reason == "context_too_small"


# --- secrets and addresses -------------------------------------------------------------------------


def test_the_key_is_sent_and_never_told(
    connect: Client, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    leak = {"error": {"message": f"the key {KEY} is fine, the rest is not"}}
    with running(scripted()) as script:
        client = connect(script, key=KEY)
        script.next.append(lambda exchange: exchange.reply(400, leak))
        with pytest.raises(SegmentError) as refused:
            ask(client)
        script.next.extend([lambda exchange: exchange.reply(500, leak)] * 3)
        with pytest.raises(DeviceError) as away:
            ask(client)
        script.next.append(lambda exchange: exchange.reply(401, leak))
        with pytest.raises(ConfigError, match="does not take the key") as unknown:
            ask(client)
        assert set(script.keys) == {f"Bearer {KEY}"}
    texts = [*told, caplog.text, repr(client._settings), *map(str, (refused, away, unknown))]
    texts += [str(found.value) for found in (refused, away, unknown)]
    assert not [text for text in texts if KEY in text]


def test_a_redirect_is_not_followed(connect: Client) -> None:
    with running(scripted()) as other, running(scripted()) as script:
        client = connect(script, key=KEY)
        elsewhere = f"{other.url}/v1/chat/completions"
        script.next.append(lambda exchange: exchange.reply(307, {}, location=elsewhere))
        with pytest.raises(ConfigError, match="redirects elsewhere"):
            ask(client)
        assert other.seen == []


def test_no_proxy_of_the_environment_is_used(
    connect: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with running(scripted()) as script:
        assert ask(connect(script)).text == "Words."


def test_certificates_are_checked(connect: Client, tmp_path: Path) -> None:
    context, cert = self_signed(tmp_path)
    with running(scripted(), context) as script:
        with pytest.raises(DeviceError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(script, key=KEY, attempts=1)
        assert script.seen == []
        assert ask(connect(script, key=KEY, cafile=str(cert))).text == "Words."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "ftp://host"}, "expected http"),
        ({"url": "https://me:pass@host"}, "no login"),
        ({"url": "http://example.org", "key": KEY}, "https only"),
        ({"url": "https://host", "cafile": "/no/such.pem"}, "no such file"),
    ],
)
def test_addresses_that_cannot_be_right(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**settings)


def test_the_address_has_v1_unless_it_has_a_path() -> None:
    bases = [ServerSettings(url=u).base for u in ("http://h:1", "http://h/", "https://h/api/v2/")]
    assert bases == ["http://h:1/v1", "http://h/v1", "https://h/api/v2"]


def test_settings_come_from_environment_and_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("LONGSTREAM_BACKEND", "openai")
    monkeypatch.setenv("LONGSTREAM_SERVER_URL", "https://models.example.org")
    monkeypatch.setenv("LONGSTREAM_SERVER_KEY_FILE", str(file))
    monkeypatch.setenv("LONGSTREAM_SERVER_EXTRA", '{"priority": 1}')
    found = server_settings(settings := load_settings())
    assert found is not None
    assert (found.key, found.extra) == (KEY, {"priority": 1})
    assert KEY not in repr(settings)
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "openai"}, "needs server_url"),
        ({"server_url": "http://localhost:1"}, "are for backend openai"),
        ({"backend": "vllm"}, "backend='vllm'"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(**given)


# --- the operator ----------------------------------------------------------------------------------

SAID = ["The review moves to Friday at ten.", "Who pays for the labels?"]


def operator(script: Script, attempts: int = 3, timeout_s: float = 30, **settings: Any) -> Any:
    sizes = {"window": 128, "update_tokens": 64, "branch_tokens": 900, "targets": ("fr",)}
    return load_operator(
        "",
        backend="openai",
        server=ServerSettings(url=script.url, attempts=attempts, timeout_s=timeout_s),
        **{"summary_method": "lines", "summary_tokens": 24, **sizes, **settings},
    )


def outputs(stream: Stream) -> list[str]:
    found = []
    for text in SAID:
        stream.feed(text, speaker="Ana")
        found += [_said(event) for event in stream.results()]
    return [*found, _said(stream.close())]


def _said(event: Any) -> str:
    if isinstance(event, Failure):
        return f"failed: {event.reason}"
    assert isinstance(event, TranslationEvent | SummaryEvent)
    return (
        event.committed if isinstance(event, TranslationEvent) else f"{event.status} {event.text}"
    )


def test_a_text_the_server_cannot_take_is_a_dead_letter_with_the_cause() -> None:
    with running(scripted(lambda body: "Bonjour.")) as script:
        op = operator(script)
        stream = op.open("m")
        script.next.append(served.too_long)
        found = outputs(stream)
        op.close()
    assert found[:2] == ["failed: context_too_small", "Bonjour."]


def test_a_server_away_is_a_device_error_and_nothing_is_lost() -> None:
    with running(scripted(lambda body: "Bonjour.")) as script:
        op = operator(script)
        stream = op.open("m")
        script.next.extend([served.broken] * 3)
        stream.feed(SAID[0])
        with pytest.raises(DeviceError, match="server_error"):
            list(stream.results())
        assert [_said(event) for event in stream.results()] == ["Bonjour."]
        op.close()


def test_several_streams_are_asked_at_once_within_the_bound() -> None:
    start, waiting = threading.Barrier(2), [1, 2]

    def say(body: Body) -> str:
        if len(body["messages"]) > 1 and waiting:
            waiting.pop()
            start.wait(10)  # passes only when two are under way together
        return "Bonjour."

    with running(scripted(say)) as script:
        op = operator(script, branches=2)
        for name in "abcd":
            op.open(name)
            op.feed(Segment(stream_id=name, text=SAID[0]), 0)
        while op.has_work():
            op.step()
        op.close()
        assert script.busiest == 2


# --- a real server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llamacpp() -> str:
    pytest.importorskip("xllamacpp")
    from pipelines import models
    from pipelines.lab.llamacpp_server import serve

    return serve(models.gguf_file("smollm2-135m"), parallel=2, context=2048)


def test_a_server_that_cannot_start_says_so(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from pipelines.lab.llamacpp_server import serve

    (tmp_path / "no.gguf").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="ended with"):
        serve(tmp_path / "no.gguf")


@pytest.mark.model
def test_a_real_server_behind_a_bad_proxy_gives_what_it_gives_alone(llamacpp: str) -> None:
    """A translation and the notes of a short stream: every kind of trouble comes and goes, and not a
    word changes."""

    def outputs(op: Any) -> list[str]:
        stream = op.open("m")
        stream.feed(SAID[0], speaker="Ana")
        return [*map(_said, stream.results()), _said(stream.close())]

    with running(served.proxy(llamacpp)) as script:
        op = operator(script, summary_tokens=12, timeout_s=120, attempts=7)
        calm = outputs(op)
        script.next.extend(TROUBLES.values())
        assert outputs(op) == calm
        assert not script.next
        op.close()
    assert calm[0]
    assert calm[1].startswith("final ")


@pytest.mark.model
def test_a_real_server_weighs_letters_and_keeps_to_a_form(llamacpp: str, connect: Client) -> None:
    client = connect(
        Script(lambda exchange: None, lambda exchange: None, url=llamacpp), timeout_s=120
    )
    assert client._able.logprobs
    assert (client._able.kind.going_on, client.context) == ({}, 2048)
    question = (Message("user", "Which letter comes first in the alphabet? Answer A or B."),)
    weights = ask(client, messages=question, choices=("A", "B", "Z")).weights
    assert sum(weights) == pytest.approx(1)
    assert min(weights) < max(weights)
    digits = Form("regex", "[0-9]{3}")
    assert ask(client, messages=question, form=digits).text.isdecimal()


@pytest.mark.model
def test_a_real_servers_refusal_of_a_long_prompt_is_known(llamacpp: str, connect: Client) -> None:
    with running(served.proxy(llamacpp)) as script:
        client = connect(script, timeout_s=120)
        with pytest.raises(SegmentError) as caught:
            ask(client, messages=(Message("user", "word " * 3000),))
    assert caught.value.reason == "context_too_small"
