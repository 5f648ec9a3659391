"""Drawing streams in a terminal: transcript tail, ledger and translations side by side (rich).

Only drawing: what is shown comes from ``pipelines.cli.following``. Texts are shown literally, with
control characters replaced, so nothing in a transcript can steer the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.panel import Panel
from rich.text import Text

from operators.events import (
    AnswerEvent,
    AnyEvent,
    LedgerItem,
    ResultEvent,
    Segment,
    SummaryEvent,
    TranslationEvent,
)
from pipelines.cli.following import StreamView

MARKS = {"topic": "•", "decision": "✓", "action_item": "→", "open_question": "?"}
MIN_ROWS = 7
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")


def clean(text: str) -> str:
    """Control characters as spaces: no escape sequence of a transcript reaches the terminal."""
    return text.translate(_CONTROL)


@dataclass(frozen=True)
class Status:
    """Numbers of the head line; None is shown as a dash (not measured yet)."""

    title: str = "longstream"
    note: str = ""
    tokens_per_second: float | None = None
    acceptance: float | None = None
    mean_accepted_length: float | None = None
    kv_bytes_per_stream: float | None = None
    behind: int | None = None
    seconds: float | None = None

    def line(self) -> str:
        """All numbers in one line, as plain text."""
        parts = [
            f"{_number(self.tokens_per_second, '.1f')} tok/s",
            f"drafts accepted {_number(self.acceptance, '.0%')}",
            f"{_number(self.mean_accepted_length, '.2f')} tok/verify",
            f"KV {size(self.kv_bytes_per_stream)}/stream",
            f"lag {_number(self.behind, 'd')} segments",
        ]
        return " · ".join(parts) + (f" · {self.seconds:.0f} s" if self.seconds is not None else "")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def size(count: float | None) -> str:
    """Bytes for people: "14.7 MB" (powers of ten)."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class Bottom:
    """The last lines of ``entries`` that fit the place; a line at the top says what is hidden."""

    def __init__(self, entries: Sequence[Text], empty: str) -> None:
        self._entries = entries
        self._empty = empty

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or 1000
        if not self._entries:
            yield Text(self._empty, style="dim")
            return
        lines: list[Text] = []
        hidden = 0
        for place in range(len(self._entries) - 1, -1, -1):
            wrapped = list(self._entries[place].wrap(console, options.max_width))
            room = height - len(lines)
            if len(wrapped) > room - (1 if place else 0):
                hidden = place + 1
                if room > 1:  # the end of the entry that does not fit whole
                    lines = wrapped[-(room - 1) :] + lines
                break
            lines = wrapped + lines
        if hidden:
            yield Text(f"… {hidden} earlier", style="dim")
        yield from lines


def segment_text(segment: Segment) -> Text:
    who = segment.speaker and (segment.speaker.name or segment.speaker.id)
    text = Text(f"{clean(who)}: " if who else "", style="cyan")
    return text.append(clean(segment.text), style="default")


def item_text(item: LedgerItem) -> Text:
    style = "strike dim" if item.state == "superseded" else "default"
    extra = ", ".join(part for part in (item.owner, item.due) if part)
    text = Text(f"{MARKS.get(item.kind, '•')} ", style="bold yellow").append(
        clean(item.text) + (f" ({clean(extra)})" if extra else ""), style=style
    )
    return text.append(" [done]") if item.state == "done" else text


def translation_text(event: TranslationEvent) -> Text:
    text = Text(f"{event.target_lang} ", style="bold green").append(
        clean(event.committed), style="default"
    )
    return text.append(clean(event.tail), style="dim italic") if event.tail else text


def answer_text(event: AnswerEvent) -> Text:
    """The question (or its kind), and the answer; how many places of the stream bear it out."""
    text = Text(f"{clean(event.question) or event.kind} ", style="bold magenta")
    if event.refused:
        return text.append("– nothing said about it", style="dim italic")
    text.append(clean(event.text), style="default")
    return text.append(f" ({len(event.evidence)} places)", style="dim")


def _stream_row(view: StreamView) -> Layout:
    """One stream: three panels side by side."""
    summary = view.summary
    ledger = [item_text(item) for item in summary.items] if summary else []
    if summary and not ledger and summary.text:
        ledger = [Text(clean(summary.text))]
    ledger += [answer_text(event) for event in view.answers]
    about = "ledger"
    if summary:
        about = f"ledger r{summary.revision} · covers {summary.covers.to_seq + 1}"
        about += " · final" if summary.status == "final" else ""
    evicted = summary.kv.evicted_total if summary else 0
    row = Layout(name=view.stream_id)
    row.split_row(
        _cell(
            f"{clean(view.stream_id)} · {view.segments} seg.",
            Bottom([segment_text(s) for s in view.tail], "nothing said yet"),
            "cyan",
        ),
        _cell(about, Bottom(ledger, "no summary yet"), "yellow", f"{evicted} tokens evicted"),
        _cell(
            f"translations · {view.translated}",
            Bottom([translation_text(e) for e in view.translations], "none yet"),
            "green",
        ),
    )
    return row


def _cell(title: str, body: RenderableType, style: str, subtitle: str | None = None) -> Panel:
    return Panel(
        body,
        title=Text(title, style=f"bold {style}"),
        subtitle=Text(subtitle, style="dim") if subtitle else None,
        title_align="left",
        subtitle_align="right",
        border_style=style,
        padding=(0, 1),
    )


def draw(
    views: Sequence[StreamView], status: Status, height: int, log: Sequence[str] = ()
) -> Layout:
    """The whole screen, ``height`` lines high: two head lines, then a row per stream.

    As long as there is no stream, the end of ``log`` is shown instead.

    Streams that do not fit are counted in the head line; those furthest behind are shown first.
    """
    fit = max(1, (height - 2) // MIN_ROWS)
    shown = list(views)
    if len(shown) > fit:
        busiest = {v.stream_id for v in sorted(shown, key=lambda v: -v.behind)[:fit]}
        shown = [view for view in shown if view.stream_id in busiest]
    more = len(views) - len(shown)
    note = clean(status.note) + (f" · {more} more streams not shown" if more else "")
    head = Group(
        Text(f"{status.title}  ", style="bold", no_wrap=True, overflow="ellipsis").append(
            note, style="dim"
        ),
        Text(status.line(), no_wrap=True, overflow="ellipsis"),
    )
    screen = Layout()
    rows = [_stream_row(view) for view in shown] or [
        Layout(Bottom([Text(clean(line), style="dim") for line in log], "waiting …"))
    ]
    screen.split_column(Layout(head, size=2), *rows)
    return screen


def plain_segment(segment: Segment) -> str:
    return f"[{segment.stream_id}] {segment_text(segment).plain}"


def plain_event(event: AnyEvent) -> Iterable[str]:
    """Lines for a terminal that cannot be redrawn, or a pipe."""
    if isinstance(event, TranslationEvent):
        yield f"[{event.stream_id}] {translation_text(event).plain}"
        return
    if isinstance(event, AnswerEvent):
        yield f"[{event.stream_id}] asked: {answer_text(event).plain}"
        return
    if isinstance(event, ResultEvent):
        yield f"[{event.stream_id}] {clean(event.task)}: {clean(event.text)}"
        return
    yield summary_line(event)
    changed = [item for item in event.items if item.last_changed_revision == event.revision]
    for item in changed:
        yield f"[{event.stream_id}]   {item_text(item).plain}"
    if not event.items and event.text:
        yield f"[{event.stream_id}]   {clean(event.text)}"


def summary_line(event: SummaryEvent) -> str:
    return (
        f"[{event.stream_id}] summary {event.epoch}.{event.revision} ({event.status}, "
        f"{event.trigger}): {len(event.items)} items, covers segments to {event.covers.to_seq}, "
        f"{event.kv.evicted_total} tokens evicted"
    )
