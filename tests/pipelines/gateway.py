"""A gateway whose views are filled by hand, and whose sender keeps what it is given."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from operators.events import (
    Covers,
    Evidence,
    LedgerItem,
    Segment,
    Speaker,
    SummaryEvent,
    TranslationEvent,
    Usage,
)
from pipelines.config.fields import Settings
from pipelines.gateway.app import Gateway
from pipelines.gateway.sender import Stored, Unavailable
from pipelines.wire.codec import decode_segment


class KeptRecords:
    """Stands for the sender; ``broken`` makes it fail."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, bytes]] = []
        self.broken = False

    async def send(self, topic: str, stream_id: str, values: list[Any]) -> list[Stored]:
        if self.broken:
            raise Unavailable("Kafka has not taken it (away); send it again")
        found = []
        for value, _ in values:
            found.append(Stored(0, len(self.records)))
            self.records.append((topic, stream_id, value))
        return found

    def segments(self) -> list[Segment]:
        return [
            decode_segment(None, value, partition=0, offset=0, max_text_bytes=1 << 20)
            for _, _, value in self.records
        ]

    async def close(self) -> None:
        pass


def made(tokens: Path | None = None, **settings: Any) -> tuple[Gateway, KeptRecords]:
    """A gateway that has read all there was; it never connects to Kafka."""
    gateway = Gateway(Settings(gateway_tokens_file=tokens, **settings))
    kept = KeptRecords()
    gateway.api._sender = kept  # type: ignore[assignment]
    gateway.feed.run = asyncio.Event().wait  # type: ignore[method-assign,assignment]
    gateway.feed.caught_up.set()
    gateway.feed.away = None
    return gateway, kept


def client_of(gateway: Gateway, **options: Any) -> TestClient:
    """Without the lifespan, which would connect."""
    return TestClient(gateway.app, base_url="http://localhost", **options)


def segment(number: int, text: str, **fields: Any) -> Segment:
    fields = {"stream_id": "s", "segment_id": f"s-{number}", "seq": number, **fields}
    if isinstance(name := fields.pop("speaker", None), str):
        fields["speaker"] = Speaker(name=name)
    return Segment(text=text, start_ms=number * 1000, end_ms=number * 1000 + 900, **fields)


def item(number: int, text: str, kind: str = "decision", **fields: Any) -> LedgerItem:
    fields.setdefault("evidence", (Evidence(f"s-{number}", number * 1000, None, "Ana"),))
    return LedgerItem(id=f"n{number}", kind=kind, text=text, **fields)  # type: ignore[arg-type]


def summary(revision: int, *items: LedgerItem, to: int = 0, **fields: Any) -> SummaryEvent:
    fields = {"stream_id": "s", "epoch": 0, **fields}
    return SummaryEvent(
        revision=revision,
        items=items,
        event_id=f"e{fields['epoch']}-{revision}",
        covers=Covers(to_seq=to, to_segment_id=f"s-{to}", to_ms=to * 1000),
        usage=Usage(output_tokens=20, drafted=10, accepted=6),
        emitted_at_ms=1_700_000_000_000 + revision * 10_000,
        **fields,
    )


def translation(number: int, text: str, lang: str = "fr", **fields: Any) -> TranslationEvent:
    fields = {"stream_id": "s", "epoch": 0, "revision": number + 1, **fields}
    return TranslationEvent(
        target_lang=lang,
        unit_id=f"s-{number}",
        committed=text,
        source_segment_ids=(f"s-{number}",),
        emitted_at_ms=1_700_000_000_000 + number * 10_000,
        **fields,
    )


def filled(gateway: Gateway) -> None:
    """One meeting: three segments, notes over two of them, two translations."""
    views = gateway.views
    views.take("segments", 10, 1000, segment(0, "We will ship on Friday.", speaker="Ana"))
    views.take("segments", 11, 2000, segment(1, "<script>alert(1)</script>", speaker="Bo"))
    views.take("translations", 5, 2500, translation(0, "Nous livrons vendredi."))
    views.take("summaries", 7, 3000, summary(1, item(0, "Ship on Friday"), to=0))
    changed = item(1, "Bo writes the notes", "action_item", owner="Bo", last_changed_revision=2)
    views.take("summaries", 8, 3500, summary(2, item(0, "Ship on Friday"), changed, to=1))
    views.take("segments", 12, 4000, segment(2, "And who pays?", speaker="Ana"))
    views.take("translations", 6, 4500, translation(1, "<script>alert(1)</script>"))
