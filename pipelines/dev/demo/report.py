"""The end of a demo run: verdict, closing table, the JSON line, and the run verbatim as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from operators.events import SummaryEvent
from pipelines.cli.screen import MARKS, clean, size
from pipelines.dev.demo.tally import MAX_REPEATED_TRIGRAMS, StreamTally, Tally, share
from pipelines.dev.demo.worker import Measured


@dataclass(frozen=True)
class RunFacts:
    """What the clock and the programs said about a run. Seconds since the demo was started."""

    broker: str
    model: str
    wall_seconds: float
    working_seconds: float
    """From the first segment sent to the last result read."""
    first_summary_seconds: float | None
    measured: Measured
    failure: str | None = None
    """Why the run was given up, None if it went to its end."""


def result(tally: Tally, facts: RunFacts) -> dict[str, Any]:
    """The JSON object of the last line. A number that was not measured is null, never guessed."""
    rows = tally.rows()
    generated = facts.measured.generated
    rate = generated / facts.working_seconds if generated and facts.working_seconds > 0 else None
    repeated = share(_pooled([row.trigrams for row in rows]))
    return {
        "segments_in": sum(row.segments for row in rows),
        "segments_covered": sum(row.covered for row in rows),
        "summaries_out": sum(row.summaries for row in rows),
        "translations_out": sum(row.translations for row in rows),
        "answers_out": len(tally.answers),
        "dead_letters": tally.dead_letters,
        "streams": len(rows),
        "tokens_per_second": _rounded(rate, 2),
        "mean_accepted_length": _rounded(facts.measured.mean_accepted_length, 3),
        "kv_bytes_per_stream": _rounded(facts.measured.kv_bytes_per_stream, 0),
        "evicted_tokens": sum(row.evicted for row in rows),
        "broker": facts.broker,
        "model": facts.model,
        "wall_seconds": round(facts.wall_seconds, 1),
        "first_summary_seconds": _rounded(facts.first_summary_seconds, 1),
        "repeated_trigram_share": _rounded(repeated, 4),
    }


def problems(tally: Tally, facts: RunFacts) -> list[str]:
    """Sentences about everything that went wrong; an empty list is success."""
    found = [facts.failure] if facts.failure else []
    rows = tally.rows()
    if not rows:
        found.append("no segment was sent")
    for row in rows:
        found.extend(row.problems)
    if orphans := tally.dead_letters - sum(row.dead_letters for row in rows):
        found.append(f"{orphans} dead letters belong to no segment that was sent")
    for name, value in (
        ("tokens generated", facts.measured.generated),
        ("KV bytes per stream", facts.measured.kv_bytes_per_stream),
    ):
        if value is None:
            found.append(f"the worker's metrics did not give {name}")
    return found


def remarks(tally: Tally, facts: RunFacts, first_summary_limit: float) -> list[str]:
    """What is no failure of the machinery but should not be overlooked: looping text, slowness."""
    found = [
        f"{row.stream_id}: {_percent(row.trigrams)} of the ledger's trigrams are repeated"
        f" (should be below {MAX_REPEATED_TRIGRAMS:.0%})"
        for row in tally.rows()
        if (share(row.trigrams) or 0) > MAX_REPEATED_TRIGRAMS
    ]
    found += [f"{row.stream_id}: the ledger is empty" for row in tally.rows() if not row.items]
    reasons = Counter(r for events in tally.events.values() for e in events for r in e.degraded)
    found += [f"{count} events are marked degraded: {why}" for why, count in reasons.items()]
    first = facts.first_summary_seconds
    if first is not None and first > first_summary_limit:
        found.append(f"the first summary took {first:.0f} s")
    return found


def _pooled(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else int(value)


def _percent(pair: tuple[int, int]) -> str:
    value = share(pair)
    return "–" if value is None else f"{value:.1%}"


COLUMNS = (
    "stream",
    "segments",
    "covered",
    "updates",
    "items",
    "translated",
    "repeated trigrams",
    "found in source",
    "tokens evicted",
)


def cells(row: StreamTally) -> list[str]:
    """One row of the closing table, in the order of :data:`COLUMNS`."""
    return [
        clean(row.stream_id),
        str(row.segments),
        str(row.covered),
        str(row.summaries),
        str(row.items),
        str(row.translations),
        _percent(row.trigrams),
        _percent(row.grounded),
        str(row.evicted),
    ]


def closing_table(tally: Tally) -> Table:
    """Fits 100 columns. "repeated trigrams" and "found in source" (words) are of the ledger."""
    table = Table(title="What went in and what came out", title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(COLUMNS):
        heading = name.replace(" ", "\n", 1)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in tally.rows():
        table.add_row(*cells(row))
    return table


def json_line(tally: Tally, facts: RunFacts) -> str:
    return json.dumps(result(tally, facts), ensure_ascii=False)


# --- the run verbatim ------------------------------------------------------------------------


def markdown(tally: Tally, facts: RunFacts, settings: dict[str, str]) -> str:
    """The whole run: every ledger revision and every translation, as they were read back."""
    lines = ["# One run of the demo, verbatim", ""]
    lines += [f"- model: {facts.model}", f"- broker: {facts.broker}"]
    lines += [f"- KV cache: {size(facts.measured.kv_bytes_per_stream)} per stream"]
    lines += [f"- {name}={value}" for name, value in sorted(settings.items())]
    for stream_id in tally.sent:
        lines += ["", f"## {clean(stream_id)}", "", "### Ledger, revision by revision", ""]
        for event in tally.summaries(stream_id):
            lines += _revision(event)
        lines += _answers(tally, stream_id)
        lines += ["### Transcript with translations", ""]
        lines += _dialogue(tally, stream_id)
    lines += ["", "## Closing table", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(cells(row)) for row in tally.rows()]
    lines += ["", "```json", json_line(tally, facts), "```"]
    if found := problems(tally, facts):
        lines += ["", "Problems:", "", *[f"- {_md(problem)}" for problem in found]]
    return "\n".join(lines) + "\n"


def _revision(event: SummaryEvent) -> list[str]:
    usage = event.usage
    head = (
        f"**Revision {event.epoch}.{event.revision}** ({event.status}, {event.trigger}; covers "
        f"segments to {event.covers.to_seq}; {usage.output_tokens} tokens, {usage.accepted} of "
        f"{usage.drafted} drafted accepted; {event.kv.evicted_total} tokens evicted so far"
    )
    head += f"; degraded: {', '.join(event.degraded)})" if event.degraded else ")"
    items = []
    for item in event.items:
        extra = ", ".join(part for part in (item.owner, item.due) if part)
        new = " *(new or changed)*" if item.last_changed_revision == event.revision else ""
        state = "" if item.state == "open" else f" [{item.state}]"
        text = _md(item.text) + (f" ({_md(extra)})" if extra else "")
        items.append(f"- {MARKS.get(item.kind, '•')} {item.kind}: {text}{state}{new}")
    if not items:
        items = [_md(event.text) or "(empty)"]
    return [head, "", *items, ""]


def _answers(tally: Tally, stream_id: str) -> list[str]:
    answers = [event for event in tally.answers.values() if event.stream_id == stream_id]
    lines = ["### Asked", ""] if answers else []
    for event in answers:
        said = "\n  ".join(_md(line) for line in event.text.splitlines()) or "*(refused)*"
        lines += [f"- **{_md(event.question or event.kind)}** {said}", ""]
    return lines


def _dialogue(tally: Tally, stream_id: str) -> list[str]:
    translated: dict[str, list[str]] = {}
    for event in tally.translations(stream_id):
        for segment_id in event.source_segment_ids:
            line = f"    - {event.target_lang}: {_md(event.committed + event.tail)}"
            if line not in (seen := translated.setdefault(segment_id, [])):
                seen.append(line)
    lines = []
    for segment in tally.segments(stream_id):
        who = segment.speaker.name if segment.speaker and segment.speaker.name else "?"
        lines.append(f"- **{_md(who)}**: {_md(segment.text)}")
        lines += sorted(translated.get(segment.segment_id, []))
    return lines


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _md(text: str) -> str:
    """On one line, with what Markdown and HTML would eat made literal."""
    text = " ".join(clean(text).split())
    for mark in ("\\", "*", "_", "`", "<", "["):
        text = text.replace(mark, "\\" + mark)
    return text
