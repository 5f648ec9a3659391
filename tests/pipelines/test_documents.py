"""Transcripts and notes as Markdown: what was said stays text in them."""

from __future__ import annotations

from operators.events import LedgerItem, Segment, Speaker, StreamSettings, SummaryEvent
from pipelines.wire.documents import escaped, minutes_markdown, transcript_markdown


def item(text: str, kind: str = "decision", **fields: object) -> LedgerItem:
    return LedgerItem(id="n1", kind=kind, text=text, **fields)  # type: ignore[arg-type]


def said(text: str, start: int | None = None, end: int | None = None, name: str = "") -> Segment:
    speaker = Speaker(name=name) if name else None
    return Segment(stream_id="s", text=text, start_ms=start, end_ms=end, speaker=speaker)


def test_notes_and_transcript_are_one_document() -> None:
    event = SummaryEvent(stream_id="s", epoch=0, revision=3, items=(item("We use *Kafka*"),))
    settings = StreamSettings(title="Weekly <b>")
    text = minutes_markdown(event, [said("hello", 62_000, name="Ana")], "s", settings)
    assert text.startswith("# Weekly ")
    assert "<b>" not in text.replace("\\<b", "")
    assert text.index("Kafka") < text.index("## Transcript") < text.index("**01:02 Ana** hello")


def test_no_note_is_markup() -> None:
    assert escaped("<script>x</script>\n# no *bold* [a](b)") == (
        r"\<script\>x\</script\> \# no \*bold\* \[a\](b)"
    )
    assert escaped("1. no list") == r"1\. no list"
    assert escaped("- no list") == r"\- no list"
    text = transcript_markdown([said("<b>hi</b>", 1000, name="*Eve*")], "T")
    assert r"**00:01 \*Eve\*** \<b\>hi\</b\>" in text


def test_a_stream_without_notes_has_a_document_too() -> None:
    text = minutes_markdown(None, [said("hello")], "T")
    assert text.startswith("# T")
    assert "## Transcript" in text
