"""The gateway's answers: one method per endpoint. See :mod:`pipelines.gateway.openapi` for the document.

Path parameters arrive percent-encoded (:class:`~pipelines.gateway.gate.Gate`), so a stream's id may hold
a slash.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from operators.errors import LongstreamError, SegmentError
from operators.events import Segment, Speaker, SummaryEvent, TranslationEvent
from operators.render import render
from pipelines.config.fields import Settings
from pipelines.forgetting import NoWorker, forget_stream
from pipelines.gateway import shapes
from pipelines.gateway.access import Access, Caller, Refused
from pipelines.gateway.events import Changes, EventStream
from pipelines.gateway.feed import Feed
from pipelines.gateway.limits import Full, Places, Record
from pipelines.gateway.sender import Sender, Stored, Unavailable
from pipelines.gateway.views import (
    Cursor,
    Line,
    StreamView,
    Views,
    changed_items,
    now_ms,
    parse_revision,
)
from pipelines.wire.captions import cues_of, translated, write_captions
from pipelines.wire.codec import SEGMENT_SCHEMA, encode_segment
from pipelines.wire.dead_letters import Header
from pipelines.wire.documents import (
    minutes_markdown,
    transcript_markdown,
    translation_markdown,
)
from pipelines.wire.questions import QUESTION_SCHEMA, encode_question, read_question
from pipelines.wire.segments import read_segment

MAX_BATCH = 100
MAX_LISTED = 1000
TAIL_LINES = 300
TAIL_UNITS = 150
FORGET_SECONDS = 30.0
MAX_WAIT = 60
EDITS = ("update", "done", "withdraw", "reopen")
QUESTION_HEADERS: list[Header] = [
    ("content-type", b"application/json"),
    ("schema", QUESTION_SCHEMA.encode()),
]
WRITABLE = ("segment", "session_start", "session_update", "session_end", "speaker_revision")
HEADERS = [("content-type", b"application/json"), ("schema", SEGMENT_SCHEMA.encode())]
MARKDOWN = "text/markdown; charset=utf-8"
EXPORTS = {
    "md": MARKDOWN,
    "json": "application/json",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


class Api:
    """Handlers. ``views`` are only read here; what is written goes to Kafka and comes back from it."""

    def __init__(
        self,
        settings: Settings,
        views: Views,
        changes: Changes,
        feed: Feed,
        sender: Sender,
        record: Record,
    ) -> None:
        self._settings, self._views, self._changes = settings, views, changes
        self._feed, self._sender, self._record = feed, sender, record
        self.access = Access(settings)
        self.readers = Places(settings.gateway_max_readers)
        self._forgetting = Places(2)
        self._waiters = Places(settings.gateway_max_requests)

    # --- reading -------------------------------------------------------------------------------

    async def streams(self, request: Request) -> Response:
        """GET /v1/streams"""
        limit = _count(request, "limit", 200, MAX_LISTED)
        caller = _caller(request)
        found: list[shapes.StreamInfo] = []
        more = False
        for view in self._views:
            if caller.sees(view.tenant):
                if len(found) == limit:
                    more = True
                    break
                found.append(self._info(view))
        return _tagged(request, shapes.StreamList(found, more))

    async def stream(self, request: Request) -> Response:
        """GET /v1/streams/{id}: all that a page needs."""
        view = self._seen(request)
        return _json(
            shapes.Stream(
                info=self._info(view),
                cursor=str(view.cursor),
                summary=_summary(view.summary, None) if view.summary else None,
                transcript=_transcript(view, None, TAIL_LINES),
                translations=[
                    _translation(view, language, None, TAIL_UNITS)
                    for language in sorted(view.translations)
                ],
                answers=list(view.answers.values()),
                activity=view.activity(),
            )
        )

    async def summary(self, request: Request) -> Response:
        """GET /v1/streams/{id}/summary"""
        view = self._seen(request)
        event = view.summary
        if event is None:
            raise Refused(404, "the stream has no notes yet")
        since = _since(request)
        tag = f'"{view.revision}"'
        if _markdown(request):
            return _text(request, _notes(view, event), MARKDOWN, tag)
        return _tagged(request, _summary(event, since), tag)

    async def transcript(self, request: Request) -> Response:
        """GET /v1/streams/{id}/transcript"""
        view = self._seen(request)
        since = _count(request, "since", -1, 2**62)
        tag = f'"{view.cursor.segments + 1}"'
        if _markdown(request):
            lines = [_segment(view, line) for line in view.lines.values() if line.offset > since]
            return _text(request, transcript_markdown(lines, _title(view)), MARKDOWN, tag)
        return _tagged(request, _transcript(view, since, None), tag)

    async def translation(self, request: Request) -> Response:
        """GET /v1/streams/{id}/translations/{lang}"""
        view = self._seen(request)
        language = _param(request, "lang")
        units = view.translations.get(language)
        if units is None:
            raise Refused(404, "the stream has no translation into this language")
        since = _since(request)
        answer = _translation(view, language, since, None)
        tag = f'"{answer.revision}"'
        if _markdown(request):
            title = f"{_title(view)} ({language})"
            return _text(request, translation_markdown(units.values(), title), MARKDOWN, tag)
        return _tagged(request, answer, tag)

    async def export(self, request: Request) -> Response:
        """GET /v1/streams/{id}/export?format=md|json|srt|vtt[&lang=…]"""
        view = self._seen(request)
        kind = request.query_params.get("format", "md")
        if kind not in EXPORTS:
            raise Refused(400, f"format: one of {', '.join(EXPORTS)}")
        language = request.query_params.get("lang")
        if language is not None and language not in view.translations:
            raise Refused(404, "the stream has no translation into this language")
        name = urllib.parse.quote(f"{view.stream_id}.{kind}", safe="")
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{name}"}
        if kind == "json":
            return _json(self._export_json(view), headers=headers)
        lines = [_segment(view, line) for line in view.lines.values()]
        if kind == "md":
            text = minutes_markdown(view.summary, lines, _title(view), view.settings)
            if language is not None:
                text = translation_markdown(view.translations[language].values(), _title(view))
        else:
            texts = None
            if language is not None:
                texts = translated(view.translations[language].values(), language)
            text = write_captions(cues_of(lines, texts), kind)
        return Response(text, media_type=EXPORTS[kind], headers=headers)

    def _export_json(self, view: StreamView) -> shapes.Stream:
        return shapes.Stream(
            info=self._info(view),
            cursor=str(view.cursor),
            summary=_summary(view.summary, None) if view.summary else None,
            transcript=_transcript(view, None, None),
            translations=[_translation(view, name, None, None) for name in view.translations],
            answers=list(view.answers.values()),
            activity=view.activity(),
        )

    async def events(self, request: Request) -> Any:
        """GET /v1/streams/{id}/events"""
        view = self._seen(request)
        said = request.headers.get("last-event-id") or request.query_params.get("after")
        cursor = Cursor.parse(said) if said else None
        if said and cursor is None:
            raise Refused(400, "after: no cursor that the gateway gave")
        if self.readers.used >= self.readers.limit:
            raise Full
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return EventStream(
            view, self._views, self._changes, self.readers, cursor, headers, self._record
        )

    # --- writing -------------------------------------------------------------------------------

    async def add_segments(self, request: Request) -> Response:
        """POST /v1/streams/{id}/segments: one segment, or {"segments": [...]}."""
        stream_id, caller = _param(request, "stream_id"), _writer(request)
        body = _object(await request.body())
        given = body.get("segments", [body])
        if "segments" in body and len(body) > 1:
            raise Refused(400, "segments stands alone")
        if not isinstance(given, list) or not 0 < len(given) <= MAX_BATCH:
            raise Refused(400, f"segments: a list of 1 to {MAX_BATCH}")
        taken = await self._write(stream_id, caller, given)
        return _json(shapes.TakenList(taken) if "segments" in body else taken[0], 201)

    async def _write(
        self,
        stream_id: str,
        caller: Caller,
        given: list[Any],
        types: tuple[str, ...] = WRITABLE,
    ) -> list[shapes.Taken]:
        """Check all, write what is new, in order. Raises Refused, Unavailable."""
        segments = [self._checked(stream_id, caller, fields, types) for fields in given]
        view = self._views.get(stream_id)
        if view is not None and not caller.sees(view.tenant):
            raise Refused(404, "no such stream")
        known = {at for at, segment in enumerate(segments) if view and _known(view, segment)}
        new = [encode_segment(s) for at, s in enumerate(segments) if at not in known]
        stored = await self._store(stream_id, new)
        places = iter(stored)
        return [
            shapes.Taken(segment_id=segment.segment_id, known=True)
            if at in known
            else _taken(segment, next(places))
            for at, segment in enumerate(segments)
        ]

    async def _store(self, stream_id: str, values: Iterable[bytes]) -> list[Stored]:
        records: list[Any] = [(value, list(HEADERS)) for value in values]
        if not records:
            return []
        stored = await self._sender.send(self._settings.topic_segments, stream_id, records)
        self._record("gateway_segments", len(stored))
        return stored

    def _checked(
        self, stream_id: str, caller: Caller, fields: Any, types: tuple[str, ...]
    ) -> Segment:
        """The segment as the worker will read it. Raises Refused."""
        if not isinstance(fields, dict):
            raise Refused(400, "a segment is a JSON object")
        if fields.get("type", "segment") not in types:
            raise Refused(400, f"type: one of {', '.join(types)}")
        if fields.get("speaker") is not None and not isinstance(fields["speaker"], dict | str):
            raise Refused(400, "speaker: an object with id and name, or a name")
        try:
            reading = read_segment(
                fields,
                key=stream_id,
                default_id=uuid.uuid4().hex,
                max_text_bytes=self._settings.operator.max_text_bytes,
            )
            tenant = caller.writes_as(reading.segment.tenant)
        except SegmentError as error:
            status = 413 if error.reason == "text_too_large" else 400
            raise Refused(status, str(error)) from None
        except PermissionError as error:
            raise Refused(403, str(error)) from None
        if reading.dropped:
            raise Refused(400, f"these fields cannot be used: {', '.join(reading.dropped)}")
        at = reading.segment.emitted_at_ms
        at = now_ms() if at is None else at
        return msgspec.structs.replace(reading.segment, tenant=tenant, emitted_at_ms=at)

    async def segments_socket(self, socket: WebSocket) -> None:
        """WS /v1/streams/{id}/segments: a segment a message, each answered when Kafka has it."""
        caller = socket.state.caller
        stream_id = urllib.parse.unquote(socket.path_params["stream_id"])
        await socket.accept()
        try:
            while True:
                text = await socket.receive_text()
                try:
                    taken = await self._write(stream_id, caller, [_object(text.encode())])
                    await socket.send_text(msgspec.json.encode(taken[0]).decode())
                except (Refused, Unavailable) as error:
                    status = error.status if isinstance(error, Refused) else 503
                    problem = shapes.Problem("refused", status, str(error))
                    await socket.send_text(msgspec.json.encode(problem).decode())
        except WebSocketDisconnect:
            return

    async def forget(self, request: Request) -> Response:
        """DELETE /v1/streams/{id}"""
        _writer(request)
        view = self._seen(request)
        with self._forgetting.one():
            try:
                report = await asyncio.to_thread(
                    forget_stream, self._settings, view.stream_id, FORGET_SECONDS
                )
            except NoWorker as error:
                return _json(shapes.Forgotten(view.stream_id, {"worker": str(error)}), 202)
            except (LongstreamError, OSError) as error:
                raise Unavailable(str(error)) from error
        return _json(shapes.Forgotten(view.stream_id, report))

    async def add_question(self, request: Request) -> Response:
        """POST /v1/streams/{id}/questions: 202 when Kafka has it, 200 with the answer if it came within
        ``wait`` seconds or had come before."""
        _writer(request)
        view = self._seen(request)
        wait = _count(request, "wait", 0, MAX_WAIT)
        fields = _object(await request.body())
        try:
            question = read_question(fields, view.stream_id, uuid.uuid4().hex)
        except SegmentError as error:
            raise Refused(400, str(error)) from None
        if len(question.text) > self._settings.operator.max_question:
            raise Refused(413, f"a question has {self._settings.operator.max_question} characters")
        if question.asked_at_ms is None:
            question = msgspec.structs.replace(question, asked_at_ms=now_ms())
        name = question.question_id
        if name not in view.answers:
            with self._waiters.one():
                value = (encode_question(question), list(QUESTION_HEADERS))
                await self._sender.send(self._settings.topic_questions, view.stream_id, [value])
                self._record("gateway_questions", 1)
                await self._answered(view, name, wait)
        elif wait:
            with self._waiters.one():
                await self._answered(view, name, wait)
        asked = view.answers.get(name) or shapes.Asked(
            question_id=name,
            kind=question.kind,
            question=question.text,
            asked_at_ms=question.asked_at_ms,
        )
        return _json(asked, 200 if asked.answered else 202)

    async def _answered(self, view: StreamView, name: str, seconds: int) -> None:
        """Return when the answer is there, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            changed = self._changes.next(view.stream_id)
            asked = view.answers.get(name)
            if asked is not None and asked.answered:
                changed.cancel()
                return
            await asyncio.wait({changed}, timeout=left)
            changed.cancel()

    async def answers(self, request: Request) -> Response:
        """GET /v1/streams/{id}/answers"""
        return _tagged(request, shapes.Answers(list(self._seen(request).answers.values())))

    async def answer(self, request: Request) -> Response:
        """GET /v1/streams/{id}/answers/{question}"""
        asked = self._seen(request).answers.get(_param(request, "question"))
        if asked is None:
            raise Refused(404, "no such question")
        return _tagged(request, asked)

    async def edit(self, request: Request) -> Response:
        """PATCH /v1/streams/{id}/items/{item}: a person corrects a note, marks it done, withdraws it or
        opens it again. It is a record of the stream like any other, and answered when Kafka has it."""
        view, caller = self._seen(request), _writer(request)
        fields = _object(await request.body())
        name = _param(request, "item")
        items = view.summary.items if view.summary else ()
        if all(item.id != name for item in items):
            raise Refused(404, "no such note")
        if fields.get("op") not in EDITS:
            raise Refused(400, f"op: one of {', '.join(EDITS)}")
        return await self._edit(view, caller, fields, name)

    async def add_item(self, request: Request) -> Response:
        """POST /v1/streams/{id}/items: a note that a person writes."""
        view, caller = self._seen(request), _writer(request)
        fields = {**_object(await request.body()), "op": "add"}
        if not str(fields.get("text") or "").strip():
            raise Refused(400, "text: what the note says")
        return await self._edit(view, caller, fields, None)

    async def _edit(
        self, view: StreamView, caller: Caller, fields: dict[str, Any], item: str | None
    ) -> Response:
        unknown = fields.keys() - {"op", "kind", "text", "owner", "due", "by", "edit_id"}
        if unknown:
            raise Refused(400, "edit: op, kind, text, owner, due, by and edit_id")
        edit = {k: fields[k] for k in ("op", "kind", "text", "owner", "due") if k in fields}
        given: dict[str, Any] = {
            "type": "edit",
            "segment_id": fields.get("edit_id"),
            "speaker": fields.get("by"),
            "edit": {**edit, "item": item},
        }
        (taken,) = await self._write(view.stream_id, caller, [given], ("edit",))
        return _json(taken, 202)

    # --- the gateway itself ----------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._feed.caught_up.is_set() and self._feed.away is None
        return _json({"ready": ready}, 200 if ready else 503)

    def _seen(self, request: Request) -> StreamView:
        """The stream of the path, if the caller may see it. Raises Refused."""
        view = self._views.get(_param(request, "stream_id"))
        if view is None or not _caller(request).sees(view.tenant):
            raise Refused(404, "no such stream")
        return view

    def _info(self, view: StreamView) -> shapes.StreamInfo:
        uncovered = view.uncovered()
        since = uncovered[0].at_ms if uncovered else None
        late = since is not None and now_ms() - since > self._settings.gateway_behind_s * 1000
        summary = view.summary
        return shapes.StreamInfo(
            stream_id=view.stream_id,
            title=view.settings.title,
            ended=view.ended,
            revision=view.revision,
            languages=sorted(view.translations),
            segments=len(view.lines),
            last_segment_at_ms=view.last_segment_ms,
            last_result_at_ms=view.last_event_ms,
            uncovered_segments=len(uncovered),
            uncovered_since_ms=since,
            lag_ms=summary.covers.lag_ms if summary else None,
            behind=late,
        )


# --- what is asked -------------------------------------------------------------------------------


def _caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


def _writer(request: Request) -> Caller:
    caller = _caller(request)
    if not caller.may_write:
        raise Refused(403, "this token may read only")
    return caller


def _param(request: Request, name: str) -> str:
    return urllib.parse.unquote(request.path_params[name])


def _count(request: Request, name: str, default: int, most: int) -> int:
    said = request.query_params.get(name)
    if said is None:
        return default
    if not (said.isascii() and said.isdecimal() and len(said) < 20 and int(said) <= most):
        raise Refused(400, f"{name}: a whole number, {most} at most")
    return int(said)


def _since(request: Request) -> tuple[int, int] | None:
    said = request.query_params.get("since")
    if said is None:
        return None
    found = parse_revision(said) if said.isascii() else None
    if found is None:
        raise Refused(400, "since: a revision, such as 0.17")
    return found


def _markdown(request: Request) -> bool:
    said = request.query_params.get("format")
    if said not in (None, "md", "json"):
        raise Refused(400, "format: json or md")
    return said == "md" or (said is None and "text/markdown" in request.headers.get("accept", ""))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is no JSON object")
    return found


def _known(view: StreamView, segment: Segment) -> bool:
    """Kafka has it: the same words under the same id."""
    line = view.lines.get(segment.segment_id)
    return (
        segment.type == "segment"
        and segment.is_final
        and line is not None
        and line.text == segment.text
        and line.revision >= segment.revision
    )


def _taken(segment: Segment, place: Stored) -> shapes.Taken:
    return shapes.Taken(
        segment_id=segment.segment_id, partition=place.partition, offset=place.offset
    )


# --- what is answered ----------------------------------------------------------------------------


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _tagged(request: Request, value: Any, tag: str | None = None) -> Response:
    """JSON with an ETag; 304 for a caller that has it. Without ``tag`` it is the body's digest."""
    body = msgspec.json.encode(value)
    tag = tag or f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    return _answer(request, body, "application/json", tag)


def _text(request: Request, text: str, media: str, tag: str) -> Response:
    return _answer(request, text.encode(), media, f'{tag[:-1]}-md"')


def _answer(request: Request, body: bytes, media: str, tag: str) -> Response:
    headers = {"etag": tag, "vary": "Accept"}
    asked = [part.strip() for part in request.headers.get("if-none-match", "").split(",")]
    if tag in asked or f"W/{tag}" in asked:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media)


def _title(view: StreamView) -> str:
    return view.settings.title or view.stream_id


def _notes(view: StreamView, event: SummaryEvent) -> str:
    """The notes in the style that the stream asks for."""
    settings = msgspec.structs.replace(view.settings, title=_title(view))
    return render(event, settings, "markdown")


def _summary(event: SummaryEvent, since: tuple[int, int] | None) -> shapes.Summary:
    items = event.items if since is None else changed_items(event, since)
    return shapes.Summary(
        stream_id=event.stream_id,
        epoch=event.epoch,
        revision=event.revision,
        status=event.status,
        text=event.text,
        items=list(items),
        since=None if since is None else f"{since[0]}.{since[1]}",
        item_ids=[item.id for item in event.items],
        covers=event.covers,
        trigger=event.trigger,
        model=event.model,
        usage=event.usage,
        degraded=list(event.degraded),
        emitted_at_ms=event.emitted_at_ms,
    )


def _transcript(view: StreamView, since: int | None, last: int | None) -> shapes.Transcript:
    lines = [line for line in view.lines.values() if since is None or line.offset > since]
    cut = last is not None and len(lines) > last
    return shapes.Transcript(
        stream_id=view.stream_id,
        revision=view.cursor.segments,
        segments=lines[-last:] if last is not None else lines,
        drafts=list(view.drafts.values()),
        truncated=view.truncated or cut,
    )


def unit_of(event: TranslationEvent) -> shapes.Unit:
    """A translation as it is shown."""
    return shapes.Unit(
        unit_id=event.unit_id,
        revision=f"{event.epoch}.{event.revision}",
        committed=event.committed,
        tail=event.tail,
        is_final=event.is_final,
        source_segment_ids=list(event.source_segment_ids),
        source_lang=event.source_lang,
    )


def _translation(
    view: StreamView, language: str, since: tuple[int, int] | None, last: int | None
) -> shapes.Translation:
    events = list(view.translations[language].values())
    newest = max((event.epoch, event.revision) for event in events)
    wanted = [e for e in events if since is None or (e.epoch, e.revision) > since]
    return shapes.Translation(
        stream_id=view.stream_id,
        language=language,
        revision=f"{newest[0]}.{newest[1]}",
        units=[unit_of(event) for event in (wanted[-last:] if last is not None else wanted)],
    )


def _segment(view: StreamView, line: Line) -> Segment:
    """A line as the segment it was, for the renderings."""
    return Segment(
        stream_id=view.stream_id,
        segment_id=line.segment_id,
        text=line.text,
        speaker=Speaker(name=line.speaker) if line.speaker else None,
        start_ms=line.start_ms,
        end_ms=line.end_ms,
        language=line.language,
    )
