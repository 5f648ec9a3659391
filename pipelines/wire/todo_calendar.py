"""Action items as an iCalendar file (RFC 5545) of to-dos, with a due date where the words give one.

icalendar writes the file, dateparser reads dates in many languages; both come with the extra ``export``.
"""

from __future__ import annotations

import datetime
from typing import Any

from operators.errors import ConfigError
from operators.events import LedgerItem, SummaryEvent

GONE = ("superseded", "withdrawn")
WEEK = datetime.timedelta(days=7)


def write_calendar(summary: SummaryEvent, said_on: datetime.date, language: str | None) -> str:
    """The open and finished action items as VTODOs. ``said_on``: the day that "tomorrow" counts from;
    ``language``: of the notes, None if it is not known. Raises ConfigError without the extra."""
    try:
        import icalendar
    except ImportError:
        raise ConfigError("ics needs pip install 'longstream[export]'") from None
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//longstream//minutes//EN")
    calendar.add("version", "2.0")
    stamp = datetime.datetime.fromtimestamp(summary.emitted_at_ms / 1000, datetime.UTC)
    for item in summary.items:
        if item.kind == "action_item" and item.state not in GONE:
            calendar.add_component(_todo(icalendar, summary, item, stamp, said_on, language))
    text: str = calendar.to_ical().decode()
    return text


def _todo(
    icalendar: Any,
    summary: SummaryEvent,
    item: LedgerItem,
    stamp: datetime.datetime,
    said_on: datetime.date,
    language: str | None,
) -> Any:
    todo = icalendar.Todo()
    todo.add("uid", f"{summary.stream_id}/{summary.epoch}/{item.id}@longstream")
    todo.add("dtstamp", stamp)
    todo.add("summary", f"{item.owner}: {item.text}" if item.owner else item.text)
    todo.add("status", "COMPLETED" if item.state == "done" else "NEEDS-ACTION")
    if due := due_date(item.due, said_on, language):
        todo.add("due", due)
    if item.due:
        todo.add("description", item.due)
    return todo


def due_date(
    words: str | None, said_on: datetime.date, language: str | None = None
) -> datetime.date | None:
    """The day that words such as "Friday", "明天" or "2026-12-24" mean; None where they give no day.

    A wrong date is worse than none: what is taken either names a day of the calendar that is not past,
    or moves with the day it is said on ("three", read as March, does not).
    """
    if not words:
        return None
    named = _parse(words, said_on, language, REQUIRE_PARTS=["day"])
    if named is not None and named >= said_on:
        return named
    one, other = _parse(words, said_on, language), _parse(words, said_on + WEEK, language)
    return one if one is not None and other is not None and other - one == WEEK else None


def _parse(
    words: str, base: datetime.date, language: str | None, **settings: Any
) -> datetime.date | None:
    try:
        import dateparser
    except ImportError:
        raise ConfigError("due dates need pip install 'longstream[export]'") from None
    at = datetime.datetime.combine(base, datetime.time())
    found = dateparser.parse(
        words,
        languages=[language] if language else None,
        settings={"RELATIVE_BASE": at, "PREFER_DATES_FROM": "future", **settings},
    )
    return found.date() if found else None
