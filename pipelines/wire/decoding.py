"""Records of the input topic to segments. Nothing here talks to a broker.

Input is judged, never trusted: whatever the bytes, :meth:`RecordDecoder.decode` either returns segments
the engine can take or raises ``SegmentError`` with one of :data:`~pipelines.wire.segments.REASONS`. The
worker and ``longstream decode`` use the same function.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from operators.errors import ConfigError, SegmentError
from operators.events import Segment
from pipelines.config.fields import Settings
from pipelines.wire import adapters
from pipelines.wire.adapters import Adapter
from pipelines.wire.dead_letters import Headers
from pipelines.wire.framing import InputFormat, schema_number, unpack, utf8
from pipelines.wire.partitioning import check_partition
from pipelines.wire.schema_registry import Schemas
from pipelines.wire.segments import read_segment

NO_SCHEMAS = Schemas()
MAX_MEMORIES = 4096
"""Streams of which an adapter remembers something at once."""
OWN = "longstream"
"""The name of our own schema among the adapters."""


class Decoded(NamedTuple):
    """What a record holds: usually one segment; none for an event without words."""

    segments: tuple[Segment, ...]
    dropped: tuple[str, ...] = ()
    """Fields (of :data:`~pipelines.wire.segments.FIELDS`) of which something had to be left out."""
    adapter: str = OWN


class RecordDecoder:
    """Decodes the records of one partition (or file), in order.

    It remembers what adapters have to, per stream, so one that starts again at an earlier record needs
    a new decoder. ``input_adapter``: a name, ``auto`` (by content type, else detected), or
    ``longstream`` for our own schema alone. Raises ConfigError for an unknown one.
    """

    def __init__(
        self,
        *,
        max_text_bytes: int,
        input_format: InputFormat = "auto",
        input_adapter: str = "auto",
        schemas: Schemas = NO_SCHEMAS,
    ) -> None:
        if input_adapter not in ("auto", OWN, *adapters.ADAPTERS):
            raise ConfigError(unknown_adapter(input_adapter))
        self._format: InputFormat = input_format
        self._adapter, self._schemas, self._max_text_bytes = input_adapter, schemas, max_text_bytes
        self._memories: OrderedDict[str, adapters.Memory] = OrderedDict()

    def decode(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = None,
        *,
        partition: int,
        offset: int,
        partitions: int | None = None,
    ) -> Decoded:
        """One input record. ``partitions``: how many the topic has; a record without a key is then
        accepted only where its stream belongs.

        ``segment_id`` defaults to ``"partition-offset"``, which a replay reproduces; ``seq`` stays None
        for the engine to count. Control characters in text and labels become spaces; all else is kept.
        Raises SegmentError and nothing else.
        """
        if value is None:
            raise SegmentError(
                "null_value",
                "the value is null; end a stream with type session_end, not a tombstone",
            )
        name = utf8(key, "key") if key else None
        found = unpack(value, headers, self._format, self._schemas)
        if isinstance(found, str):
            if not found.strip():
                raise SegmentError("missing_text", "the value is empty")
            found = {"text": found}
        decoded = self.read(found, name, f"{partition}-{offset}", headers)
        if not key and partitions is not None:
            for segment in decoded.segments:
                check_partition(segment.stream_id, partition, partitions)
        return decoded

    def read(
        self,
        event: Mapping[str, Any],
        key: str | None,
        default_id: str,
        headers: Headers = None,
        *,
        stream: str | None = None,
        fallback: str | None = None,
    ) -> Decoded:
        """An object as segments: an event of a provider, or a segment of our own schema.

        ``stream`` wins over the stream the object names, ``fallback`` stands where it names none.
        Raises SegmentError.
        """
        adapter = self._choose(event, headers)
        if adapter is None:
            reading = self._segment(_in_stream(event, stream, fallback), key, default_id)
            return Decoded((reading.segment,), reading.dropped)
        segments: list[Segment] = []
        dropped: dict[str, None] = {}
        events = self._events(adapter, event, key, default_id)
        for number, fields in enumerate(events):
            if key:  # what the provider calls the stream is another name than ours
                fields.pop("stream_id", None)
            own_id = default_id if len(events) == 1 or not default_id else f"{default_id}-{number}"
            reading = self._segment(_in_stream(fields, stream, fallback), key, own_id)
            segments.append(reading.segment)
            dropped |= dict.fromkeys(reading.dropped)
        return Decoded(tuple(segments), tuple(dropped), adapter.name)

    def _segment(self, fields: Mapping[str, Any], key: str | None, default_id: str) -> Any:
        return read_segment(
            fields, key=key, default_id=default_id, max_text_bytes=self._max_text_bytes
        )

    def _choose(self, event: Mapping[str, Any], headers: Headers) -> Adapter | None:
        if self._adapter == OWN or event.keys() == {"text"}:
            return None
        if self._adapter != "auto":
            return self._named(event)
        named = adapters.of_content_type(headers)
        return named or _detect(event)

    def _named(self, event: Mapping[str, Any]) -> Adapter | None:
        """The adapter of the setting; our own schema is still understood where it names itself."""
        adapter = adapters.ADAPTERS[self._adapter]
        if "schema" in event:
            return None
        if _detect(event, [adapter]) is None:
            raise SegmentError(
                "unknown_event", f"this is no event of {adapter.title} that is known"
            )
        return adapter

    def _events(
        self, adapter: Adapter, event: Mapping[str, Any], key: str | None, place: str
    ) -> list[adapters.Fields]:
        memory = self._memory(key or "")
        memory["at"] = place
        try:
            return adapter.read(event, memory)
        except SegmentError:
            raise
        except Exception as error:  # its fields are of other types than the provider documents
            raise SegmentError(
                "unknown_event",
                f"an event of {adapter.title}, but not as documented ({type(error).__name__})",
            ) from None

    def _memory(self, stream: str) -> adapters.Memory:
        memory = self._memories.setdefault(stream, {})
        self._memories.move_to_end(stream)
        while len(self._memories) > MAX_MEMORIES:
            self._memories.popitem(last=False)
        return memory


def _in_stream(
    fields: Mapping[str, Any], stream: str | None, fallback: str | None
) -> Mapping[str, Any]:
    name = stream or fields.get("stream_id") or fallback
    return fields if name is None else {**fields, "stream_id": name}


def _detect(event: Mapping[str, Any], among: Iterable[Adapter] | None = None) -> Adapter | None:
    try:
        if among is None:
            return adapters.detect(event)
        return next((adapter for adapter in among if adapter.detect(event)), None)
    except Exception:  # of no provider's form
        return None


def single(decoded: Decoded) -> Segment | None:
    """The one segment of a record, as the engine takes them; None if it holds no words.

    Beside final text drafts are left out, and of several drafts the last counts: they come again.
    Raises SegmentError("several_segments") for several final texts in one record.
    """
    finals = [segment for segment in decoded.segments if segment.is_final]
    if len(finals) > 1:
        raise SegmentError(
            "several_segments",
            f"the record holds {len(finals)} final segments of {decoded.adapter}; a record carries one: "
            "`longstream convert` makes one record of each",
        )
    return next(iter(finals or decoded.segments[::-1]), None)


def unknown_adapter(name: str) -> str:
    return f"input_adapter {name!r}: one of auto, {OWN}, {', '.join(adapters.ADAPTERS)}"


def schemas_of(settings: Settings) -> Schemas:
    """Where Avro schemas come from. Raises ConfigError."""
    password = settings.input_schema_registry_password
    login = None
    if settings.input_schema_registry_username and password:
        login = (settings.input_schema_registry_username, password.get_secret_value())
    return Schemas(
        settings.input_schema_registry,
        settings.input_schema_file,
        login,
        settings.input_schema_registry_cafile,
    )


def decoder_of(settings: Settings, schemas: Schemas) -> RecordDecoder:
    """A new decoder as the settings want it. Raises ConfigError."""
    return RecordDecoder(
        max_text_bytes=settings.operator.max_text_bytes,
        input_format=settings.input_format,
        input_adapter=settings.input_adapter,
        schemas=schemas,
    )


async def prepare(schemas: Schemas, value: bytes | None) -> None:
    """Fetch the schema a record needs, if it is not known yet. Never raises."""
    number = schema_number(value)
    if number is not None and schemas.missing(number):
        await schemas.fetch(number)


def decode_segment(
    key: bytes | None,
    value: bytes | None,
    headers: Headers = None,
    *,
    partition: int,
    offset: int,
    max_text_bytes: int,
) -> Segment:
    """The one segment of a record, without settings or memory: for viewers and tests.

    Raises SegmentError, also for an event that holds no words, or several final texts.
    """
    decoder = RecordDecoder(max_text_bytes=max_text_bytes)
    decoded = decoder.decode(key, value, headers, partition=partition, offset=offset)
    if (segment := single(decoded)) is None:
        raise SegmentError("unknown_event", "an event that holds no words")
    return segment
