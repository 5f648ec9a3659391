"""A server with OpenAI's HTTP interface (vLLM, TensorRT-LLM, SGLang, llama.cpp, Ollama …) as the model.

One thread with an event loop sends the requests. What goes wrong is of two kinds:

* *trouble*, which may pass (no connection, no answer in time, 429, 5xx, an answer that makes no sense or
  is another model's): tried again ``attempts`` times with growing pauses; a server that says how long to
  wait (Retry-After) is left alone for so long by all requests. Then DeviceError: nothing is lost, the
  caller decides how long to go on;
* a *refusal* of this request (400, 413, 422): SegmentError at once, the others go on.

Only the configured address is called: no redirect is followed, no proxy of the environment used. The
key is in no message.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import datetime
import email.utils
import json
import math
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import httpx

from operators.errors import ConfigError, DeviceError, LongstreamError, ModelError, SegmentError
from operators.model.served import TextAnswer, TextRequest
from operators.observer import Observer
from pipelines.served import forms
from pipelines.served.forms import Limit
from pipelines.served.settings import ServerSettings

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 20.0
LONGEST_RETRY_AFTER_S = 120.0
CONNECT_S = 10.0
SAY_EVERY_S = 5.0
"""Trouble is told at most so often."""
MAX_LINE_BYTES, MAX_ANSWER_BYTES = 1 << 20, 16 << 20
TOP_LOGPROBS = 20
"""As many as OpenAI's interface allows."""
UNLISTED = 1e-4
"""Weight of a choice that is not among the most likely tokens."""
CHOSEN = 0.9
"""Weight of the choice a server made that gives no probabilities."""


@dataclass(frozen=True)
class Kind:
    """What one kind of server takes beyond OpenAI's interface. ``going_on``: fields with which it goes
    on with a begun answer, None if it does not. ``counting``: fields with which a stream of events says
    its token counts before its end, which is often cut off."""

    going_on: dict[str, Any] | None = None
    counting: dict[str, Any] = field(default_factory=dict)


_COUNTED = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
KINDS = {
    "vllm": Kind({"continue_final_message": True, "add_generation_prompt": False}, _COUNTED),
    "sglang": Kind({"continue_final_message": True}, _COUNTED),
    "llamacpp": Kind({}, {"timings_per_token": True}),  # nosec B105
    "library": Kind({}),  # Ollama
}
"""By ``owned_by`` of their models."""


class Trouble(Exception):
    """An attempt that failed and may be repeated. ``reason``: a word for metrics."""

    def __init__(self, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after


@dataclass
class Abilities:
    """What was found out about the server when it was first asked."""

    model: str
    names: frozenset[str]
    """Names its answers may bear."""
    owner: str = ""
    kind: Kind = field(default_factory=Kind)
    logprobs: bool = False
    schema: bool = False
    """It takes a JSON schema for the answer."""


@dataclass
class _Reading:
    """One answer as it comes."""

    request: TextRequest
    began: float
    text: str = ""
    limit: Limit | None = None
    deltas: int = 0
    first_at: float = 0.0
    finish: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)


class OpenAIServer:
    """A :class:`operators.model.served.TextModel`. ``connect`` before use; ``say``: for progress."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        concurrency: int,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._settings, self._say = settings, say
        self.name = settings.model
        self.context: int | None = None
        self.identity = f"{settings.base} {settings.model}"
        self._notes: deque[tuple[str, str, float, dict[str, str]]] = deque(maxlen=4096)
        self._pause_until, self._said_at = 0.0, -math.inf
        self._troubles: set[str] = set()
        self._able = Abilities(settings.model, frozenset())
        verify: ssl.SSLContext | bool = True
        if settings.cafile:
            verify = ssl.create_default_context(cafile=settings.cafile)
        headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
        self._client = httpx.AsyncClient(
            base_url=settings.base,
            headers=headers,
            verify=verify,
            timeout=httpx.Timeout(settings.timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=30.0),
            follow_redirects=False,
            trust_env=False,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def connect(self) -> None:
        """Find out which model is there and what the server can do. Raises ConfigError or ModelError
        for what no waiting mends, else DeviceError."""
        asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()

    def submit(self, request: TextRequest) -> Future[TextAnswer]:
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def measure(self, observer: Observer) -> None:
        while self._notes:
            kind, name, value, labels = self._notes.popleft()
            (observer.gauge if kind == "gauge" else observer.count)(name, value, **labels)

    def close(self) -> None:
        """May be called twice; at the end of the process it is called in any case."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    # --- what the server is --------------------------------------------------------------------

    async def _connect(self) -> None:
        found = await self._patiently(self._models)
        self._able = _abilities(self._settings, found)
        self.name = self._able.model
        self.identity = f"{self._settings.base} {self.name}"
        self.context = _context(found[self.name])
        for name in ("logprobs", "schema"):
            with contextlib.suppress(SegmentError, DeviceError):  # then it has not
                setattr(self._able, name, await self._patiently(getattr(self, f"_has_{name}")))
        how = "logprobs" if self._able.logprobs else "a schema" if self._able.schema else "text"
        begun = "continued" if self._able.kind.going_on is not None else "asked for in words"
        self._say(
            f"server {self._settings.host}: {self.name}, context {self.context or 'unknown'}, "
            f"choices by {how}, begun answers are {begun}"
        )

    async def _models(self) -> dict[str, dict[str, Any]]:
        async with self._client.stream("GET", "/models") as response:
            content = await _bounded(response)
        if response.status_code != 200:
            _refuse(response.status_code, response.headers, b"", self._settings, starting=True)
        found = {}
        for entry in _items(_json(content).get("data")):
            for name in (entry.get("id"), *_strings(entry.get("aliases"))):
                if isinstance(name, str):
                    found[name] = entry
        return found

    async def _has_logprobs(self) -> bool:
        request = TextRequest((), "", 1, choices=("A", "B"))
        return (await self._weighed(request, _probe(self._able.model) | _LOGPROBS)) is not None

    async def _has_schema(self) -> bool:
        body = _probe(self._able.model) | {"max_tokens": 16, **_schema(("A", "B"))}
        try:
            return _chosen(_content(await self._post(body))) in ("A", "B")
        except Trouble:
            return False

    # --- answers ---------------------------------------------------------------------------------

    async def _answer(self, request: TextRequest) -> TextAnswer:
        one = self._choice if request.choices else self._text
        return await self._patiently(lambda: one(request))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt's result. Raises SegmentError or ConfigError at once, DeviceError in the end."""
        problem: Trouble | None = None
        for number in range(self._settings.attempts):
            await self._pause(number, problem)
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    result = await attempt()
            except Trouble as trouble:
                problem = trouble
            except TimeoutError:
                problem = Trouble("timeout", f"no answer in {self._settings.timeout_s:.0f} s")
            except httpx.TimeoutException as error:
                problem = Trouble("timeout", type(error).__name__)
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = Trouble("connection", f"{type(error).__name__}: {error}")
            except LongstreamError as error:
                self._note("count", "server_requests", result="refused")
                raise error
            else:
                self._note("count", "server_requests", result="answered")
                self._well()
                return result
            self._note("count", "server_requests", result=problem.reason)
            self._ill(problem)
        assert problem is not None
        raise DeviceError(
            f"server {self._settings.host}: {problem.reason}: {problem}, after "
            f"{self._settings.attempts} attempts"
        )

    async def _pause(self, number: int, problem: Trouble | None) -> None:
        """Wait before the attempt of this number, and as long as the server wants to be left alone."""
        if problem is not None and problem.retry_after:
            self._pause_until = max(self._pause_until, time.monotonic() + problem.retry_after)
        elif number:
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number)
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  # nosec B311
        while (left := self._pause_until - time.monotonic()) > 0:  # noqa: ASYNC110 (it may grow)
            await asyncio.sleep(left)

    def _ill(self, problem: Trouble) -> None:
        self._troubles.add(problem.reason)
        self._note("gauge", "server_trouble", 1.0, reason=problem.reason)
        if time.monotonic() - self._said_at >= SAY_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"server {self._settings.host}: {problem.reason}: {problem}")

    def _well(self) -> None:
        for reason in self._troubles:
            self._note("gauge", "server_trouble", 0.0, reason=reason)
        self._troubles.clear()

    def _note(self, kind: str, name: str, value: float = 1.0, **labels: str) -> None:
        self._notes.append((kind, name, value, labels))

    async def _text(self, request: TextRequest) -> TextAnswer:
        usual = {"stream": True, "stream_options": {"include_usage": True}}
        body = self._body(request) | usual | self._able.kind.counting
        limit = Limit(request.form) if request.form is not None else None
        reading = _Reading(request, time.monotonic(), limit=limit)
        async with self._client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                content = await _bounded(response)
                _refuse(response.status_code, response.headers, content, self._settings)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                found = _json(await _bounded(response))
                self._check_model(found)
                _extend(reading, _content(found))
                reading.finish = reading.finish or _finish(found)
                reading.usage = _mapping(found.get("usage"))
            else:
                async for event in _events(response):
                    if self._take(reading, event):
                        break  # leaving closes the connection, which ends the answer at the server
        if not reading.finish:
            raise Trouble("dropped", "the answer was cut off")
        return _made(reading)

    def _take(self, reading: _Reading, event: dict[str, Any]) -> bool:
        """Note one event of the answer; whether it is complete."""
        if "error" in event:
            raise Trouble("server_error", _error_kind(event) or "an error within an answer")
        self._check_model(event)
        reading.usage = _mapping(event.get("usage")) or reading.usage
        reading.timings = _mapping(event.get("timings")) or reading.timings
        for choice in _items(event.get("choices"))[:1]:
            piece = _mapping(choice.get("delta")).get("content") or ""
            if not isinstance(piece, str):
                raise Trouble("garbage", "an answer that is no text")
            if piece:
                reading.deltas += 1
                reading.first_at = reading.first_at or time.monotonic()
            if _extend(reading, piece):
                return True
            if choice.get("finish_reason"):
                reading.finish = "length" if choice["finish_reason"] == "length" else "stop"
        return False

    async def _choice(self, request: TextRequest) -> TextAnswer:
        began = time.monotonic()
        body = self._body(request) | {"max_tokens": 1}
        if self._able.logprobs:
            weights, usage = await self._weighed(request, body | _LOGPROBS) or ((), {})
            if weights:
                return _weighed_answer(weights, usage, began)
        extra = {"max_tokens": 24}
        if self._able.schema:
            extra |= _schema(request.choices)
        found = await self._post(body | extra)
        said = _content(found)
        picked = _chosen(said) if self._able.schema else said.strip()
        weights = _weights_of(picked, request.choices)
        return _weighed_answer(weights, _mapping(found.get("usage")), began)

    async def _weighed(
        self, request: TextRequest, body: dict[str, Any]
    ) -> tuple[tuple[float, ...], Mapping[str, Any]] | None:
        """The choices' probabilities as the first token (empty where none of them is likely), and the
        usage; None where the server gives no probabilities."""
        found = await self._post(body)
        listed = [
            (entry["token"], float(entry["logprob"]))
            for choice in _items(found.get("choices"))[:1]
            for token in _items(_mapping(choice.get("logprobs")).get("content"))[:1]
            for entry in _items(token.get("top_logprobs"))
            if isinstance(entry.get("token"), str) and isinstance(entry.get("logprob"), int | float)
        ]
        if not listed:
            return None
        wanted = [choice.strip() for choice in request.choices]
        raw = [
            math.fsum(math.exp(min(0.0, lp)) for token, lp in listed if _begins(name, token))
            for name in wanted
        ]
        usage = _mapping(found.get("usage"))
        if not any(raw) and request.messages:
            return (), usage  # none of them is likely: the server is made to choose
        raw = [max(value, UNLISTED) for value in raw]
        return tuple(value / math.fsum(raw) for value in raw), usage

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        async with self._client.stream("POST", "/chat/completions", json=body) as response:
            content = await _bounded(response)
            if response.status_code != 200:
                _refuse(response.status_code, response.headers, content, self._settings)
        found = _json(content)
        self._check_model(found)
        return found

    def _body(self, request: TextRequest) -> dict[str, Any]:
        messages = [{"role": role, "content": text} for role, text in request.messages]
        opening = request.opening.strip()
        body: dict[str, Any] = {"model": self._able.model, "max_tokens": request.max_tokens}
        if opening and self._able.kind.going_on is not None:
            messages.append({"role": "assistant", "content": opening})
            body |= self._able.kind.going_on
        elif opening and messages:
            last = messages[-1]
            messages[-1] = last | {"content": f"{last['content']}\nBegin with: {opening}"}
        sampling = request.sampling
        body |= {"messages": messages, "temperature": sampling.temperature}
        if request.form is not None:
            body |= forms.fields(request.form, self._able.owner)
        if sampling.temperature:
            body |= {"top_p": sampling.top_p, "seed": sampling.seed}
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        return body | self._settings.extra

    def _check_model(self, found: Mapping[str, Any]) -> None:
        """Raises Trouble when another model answered than was asked."""
        name = found.get("model")
        if not isinstance(name, str) or not name or name in self._able.names:
            return
        if not name.startswith(self._able.model):  # "name-2026-01-01" for "name"
            raise Trouble("wrong_model", f"asked {self._able.model}, and {name[:80]!r} answered")


# --- reading what comes ------------------------------------------------------------------------


_LOGPROBS = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def _probe(model: str) -> dict[str, Any]:
    content = "Answer with one letter, A or B."
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0.0}


def _schema(choices: tuple[str, ...]) -> dict[str, Any]:
    """The answer as a JSON object with one of the choices."""
    letters = [choice.strip() for choice in choices]
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": letters}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    named = {"name": "choice", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _abilities(settings: ServerSettings, found: Mapping[str, dict[str, Any]]) -> Abilities:
    """Raises ModelError when the model is not there, or it is not said which of several."""
    listed = ", ".join(sorted(found)[:8]) or "none"
    model = settings.model
    ids = {str(entry.get("id")) for entry in found.values()}
    if not model and len(ids) == 1:
        model = ids.pop()
    if not model:
        raise ModelError(f"server {settings.host} has several models, set server_model: {listed}")
    if model not in found:
        raise ModelError(f"server {settings.host} has no model {model!r}; it has: {listed}")
    entry = found[model]
    names = {model, entry.get("id"), entry.get("root"), *_strings(entry.get("aliases"))}
    owner = str(entry.get("owned_by"))
    kind = KINDS.get(owner, Kind())
    if settings.openings != "auto":
        going_on = (kind.going_on or {}) if settings.openings == "continue" else None
        kind = replace(kind, going_on=going_on)
    return Abilities(model, frozenset(n for n in names if isinstance(n, str)), owner, kind)


def _context(entry: Mapping[str, Any]) -> int | None:
    meta = _mapping(entry.get("meta"))
    for value in (entry.get("max_model_len"), meta.get("n_ctx"), entry.get("context_length")):
        if isinstance(value, int) and value > 0:
            return value
    return None


def _extend(reading: _Reading, piece: str) -> bool:
    """Add a stretch of answer, letter by letter until the answer is complete: a server that drafts
    sends several tokens at once. A repeated opening is left out."""
    request, limit = reading.request, reading.limit
    opening = request.opening.strip()
    for letter in piece:
        before, reading.text = reading.text, reading.text + letter
        said = reading.text.lstrip()
        if not said or (opening and opening.startswith(said)):
            continue  # so far it is nothing, or the opening again
        text = _without(opening, reading.text)
        if limit is not None and text.lstrip() and not limit.take(letter):
            reading.text, reading.finish = before, "stop"
            return True
        if request.ends(text) or (limit is not None and limit.complete):
            reading.finish = "stop"
            return True
    if len(reading.text) > 64 * request.max_tokens + 1024:
        reading.finish = "length"  # the server does not keep to max_tokens
        return True
    return False


def _without(opening: str, text: str) -> str:
    said = text.lstrip()
    return said[len(opening) :] if opening and said.startswith(opening) else text


def _made(reading: _Reading) -> TextAnswer:
    now = time.monotonic()
    usage, timings = reading.usage, reading.timings
    return TextAnswer(
        text=_without(reading.request.opening.strip(), reading.text),
        finish_reason=reading.finish,
        prompt_tokens=_count(usage, "prompt_tokens")
        or _count(timings, "prompt_n") + _count(timings, "cache_n"),
        output_tokens=_count(usage, "completion_tokens")
        or _count(timings, "predicted_n")
        or reading.deltas,
        drafted=_count(timings, "draft_n"),
        accepted=_count(timings, "draft_n_accepted"),
        first_token_s=(reading.first_at or now) - reading.began,
        seconds=now - reading.began,
    )


def _weighed_answer(
    weights: tuple[float, ...], usage: Mapping[str, Any], began: float
) -> TextAnswer:
    took = time.monotonic() - began
    prompt, output = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return TextAnswer(
        weights=weights,
        prompt_tokens=prompt,
        output_tokens=output,
        first_token_s=took,
        seconds=took,
    )


def _begins(name: str, token: str) -> bool:
    """Whether the answer of this name can begin with the token."""
    return bool(token.strip()) and name.startswith(token.strip())


def _weights_of(said: str, choices: tuple[str, ...]) -> tuple[float, ...]:
    """Where only the chosen one is known; all alike where nothing was chosen."""
    names = [choice.strip() for choice in choices]
    at = next((n for n, name in enumerate(names) if said.startswith(name)), None)
    if at is None:
        return (1 / len(names),) * len(names)
    rest = (1 - CHOSEN) / max(1, len(names) - 1)
    return tuple(CHOSEN if n == at else rest for n in range(len(names)))


def _chosen(content: str) -> str:
    try:
        found = json.loads(content)
    except ValueError:
        return content.strip()
    return str(found.get("answer", "")) if isinstance(found, dict) else ""


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of events. Raises Trouble for anything else."""
    waiting, total = b"", 0
    async for data in response.aiter_bytes():
        waiting, total = waiting + data, total + len(data)
        *lines, waiting = waiting.split(b"\n")
        if len(waiting) > MAX_LINE_BYTES or total > MAX_ANSWER_BYTES:
            raise Trouble("garbage", "an answer without end")
        for line in lines:
            name, colon, value = line.strip().partition(b":")
            if not colon or name != b"data":
                if line.strip() and name not in (b"", b"event", b"id", b"retry"):
                    raise Trouble("garbage", "the answer is no stream of events")
                continue
            if value.strip() == b"[DONE]":
                return
            yield _json(value)


async def _bounded(response: httpx.Response) -> bytes:
    content = b""
    async for data in response.aiter_bytes():
        content += data
        if len(content) > MAX_LINE_BYTES:
            raise Trouble("garbage", "an answer without end")
    return content


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Trouble("garbage", "the answer is no JSON") from None
    if not isinstance(found, dict):
        raise Trouble("garbage", "the answer is no JSON object")
    return found


def _content(found: Mapping[str, Any]) -> str:
    for choice in _items(found.get("choices"))[:1]:
        content = _mapping(choice.get("message")).get("content")
        if isinstance(content, str):
            return content
    raise Trouble("garbage", "the answer has no text")


def _finish(found: Mapping[str, Any]) -> str:
    reasons = [choice.get("finish_reason") for choice in _items(found.get("choices"))]
    return "length" if reasons[:1] == ["length"] else "stop"


def _items(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _strings(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) and value >= 0 else 0


# --- what is refused -----------------------------------------------------------------------------


def _refuse(
    status: int,
    headers: httpx.Headers,
    content: bytes,
    settings: ServerSettings,
    *,
    starting: bool = False,
) -> NoReturn:
    """Raise what a status other than 200 means."""
    if status in (401, 403):
        message = f"server {settings.host} does not take the key (server_key_file): {status}"
        raise ConfigError(message)
    if 300 <= status < 400:
        raise ConfigError(
            f"server {settings.host} redirects elsewhere, which is not followed: set server_url to "
            "the final address"
        )
    if starting and status == 404:
        raise ConfigError(f"no OpenAI interface at {settings.base} (404 for /models)")
    try:
        found = _json(content)
    except Trouble:
        found = {}
    if status in (400, 413, 422):
        said = _error_text(found, settings)
        reason = "context_too_small" if "context" in said.lower() else "server_refused"
        raise SegmentError(reason, f"server {settings.host} refused a prompt ({status}): {said}")
    reason = "rate_limited" if status == 429 else "server_error"
    raise Trouble(reason, f"status {status} {_error_kind(found)}".strip(), retry_after(headers))


def _error_kind(found: Mapping[str, Any]) -> str:
    """The server's word for an error. Not its sentence, which may repeat the prompt: this is logged."""
    kind = _mapping(found.get("error", found)).get("type")
    return kind if isinstance(kind, str) and len(kind) <= 60 and kind.isprintable() else ""


def _error_text(found: Mapping[str, Any], settings: ServerSettings) -> str:
    """The server's own words, short, without the key."""
    error = found.get("error", found)
    said = error.get("message") if isinstance(error, dict) else error
    text = " ".join(str(said or "").split())[:200]
    return text.replace(settings.key, "***") if settings.key else text


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: a number, or a date. 0 if it does not say."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return 0.0
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        seconds = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
    if not math.isfinite(seconds):
        return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)
