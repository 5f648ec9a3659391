"""Who summarises: the product, and other ways of using the same model within bounded memory.

Plain sides are written against :class:`~pipelines.lab.eval.backends.Backend`: another engine is
another backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from operators.events import LedgerItem, Segment, Speaker, SummaryEvent
from operators.state import Failure
from operators.stream import Stream
from pipelines.lab.eval.backends import Backend
from pipelines.lab.eval.grounding import Note
from pipelines.lab.eval.meetings import Line, Meeting, spoken
from pipelines.lab.eval.summary_meters import Revision, Summarised
from pipelines.lab.eval.words import sentences, units

ASK = (
    "Write the minutes of this conversation so far: topics, decisions, tasks with their owners and "
    "dates, open questions. Be short and factual."
)
PLAIN = "{text}\n\n" + ASK
REFINE = (
    "Minutes so far:\n{summary}\n\nThe conversation went on:\n{text}\n\n"
    "Rewrite the minutes so that they cover everything up to here: topics, decisions, tasks with "
    "their owners and dates, open questions. Be short and factual."
)
HEARD_AT_ONCE = 4
"""Lines fed before results are read; a revision counts as there after the last of them."""


@dataclass(frozen=True)
class Bounds:
    """Tokens: ``window`` of the product and of the plain sides; ``answer`` of a plain summary;
    ``context`` of the truncated side."""

    window: int = 1024
    answer: int = 256
    context: int = 4096


Say = Callable[[str], None]
Side = Callable[[Meeting, Sequence[int]], Summarised]
"""A meeting and the lines at which its summary is looked at → all revisions."""


# --- the product ---------------------------------------------------------------------------------


def listen(stream: Stream, meeting: Meeting, made: Summarised, say: Say) -> None:
    """Feed a whole meeting and keep every summary; the stream stays open. Mutates ``made``."""
    for line in meeting.lines:
        stream.feed_segment(segment(stream.id, line, meeting.language))
        if (line.seq + 1) % HEARD_AT_ONCE and line is not meeting.lines[-1]:
            continue
        say(f"ours {meeting.name}: line {line.seq + 1} of {len(meeting.lines)}")
        collect(stream, made, line.seq)


def collect(stream: Stream, made: Summarised, seq: int) -> None:
    """Read what has come; everything counts as published after line ``seq``. Mutates ``made``."""
    for event in stream.results():
        if isinstance(event, SummaryEvent):
            notes = tuple(note(item) for item in event.items)
            made.revisions.append(Revision(seq, event.text, notes))
            made.degraded += event.degraded
        elif isinstance(event, Failure):
            made.degraded.append(f"failed: {event.reason}")


def segment(stream_id: str, line: Line, language: str) -> Segment:
    return Segment(
        stream_id=stream_id,
        segment_id=str(line.seq),
        seq=line.seq,
        text=line.text,
        speaker=Speaker(name=line.speaker) if line.speaker else None,
        start_ms=line.start_ms,
        end_ms=line.end_ms,
        language=language,
    )


def note(item: LedgerItem) -> Note:
    """A ledger item as the meters know it."""
    return Note(
        text=item.text,
        kind=item.kind,
        owner=item.owner,
        due=item.due,
        state=item.state,
        evidence=tuple(_line_of(e.segment_id) for e in item.evidence),
    )


def _line_of(segment_id: str) -> int:
    return int(segment_id) if segment_id.isdecimal() else -1


# --- the same model without the product ------------------------------------------------------------


def last_window(backend: Backend, bounds: Bounds, say: Say) -> Side:
    """At each checkpoint a summary of what a window holds, and of nothing else."""

    def side(meeting: Meeting, checkpoints: Sequence[int]) -> Summarised:
        made = Summarised()
        for seq in checkpoints:
            say(f"last window {meeting.name}: line {seq + 1} of {len(meeting.lines)}")
            text = _tail(backend, meeting, seq, bounds.window)
            _write(backend, made, seq, PLAIN.format(text=text), bounds)
        return made

    return side


def refine(backend: Backend, bounds: Bounds, say: Say) -> Side:
    """The summary is rewritten once per window of new text, from itself and that window."""

    def side(meeting: Meeting, checkpoints: Sequence[int]) -> Summarised:
        made = Summarised()
        for lines in _windows(backend, meeting, bounds.window):
            say(f"refine {meeting.name}: line {lines[-1].seq + 1} of {len(meeting.lines)}")
            text = "\n".join(spoken(line) for line in lines)
            before = made.last.text
            prompt = REFINE.format(summary=before, text=text) if before else PLAIN.format(text=text)
            _write(backend, made, lines[-1].seq, prompt, bounds)
        return made

    return side


def truncated(backend: Backend, bounds: Bounds, say: Say) -> Side:
    """The whole transcript so far, cut off at the end of the context."""

    def side(meeting: Meeting, checkpoints: Sequence[int]) -> Summarised:
        made, before = Summarised(), ""
        for seq in checkpoints:
            say(f"truncated {meeting.name}: line {seq + 1} of {len(meeting.lines)}")
            text = _head(backend, meeting, seq, bounds.context - bounds.answer - 96)
            if text != before:
                _write(backend, made, seq, PLAIN.format(text=text), bounds)
            before = text
        return made

    return side


def lead(count: int = 150) -> Side:
    """The first sentences, ``count`` words of them: no model at all."""

    def side(meeting: Meeting, checkpoints: Sequence[int]) -> Summarised:
        made = Summarised()
        for seq in checkpoints:
            picked: list[str] = []
            said = (s for line in meeting.lines[: seq + 1] for s in sentences(line.text))
            while sum(len(units(s)) for s in picked) < count and (sentence := next(said, "")):
                picked.append(sentence)
            made.revisions.append(Revision(seq, "\n".join(picked), _plain_notes("\n".join(picked))))
        return made

    return side


def _write(backend: Backend, made: Summarised, seq: int, prompt: str, bounds: Bounds) -> None:
    began = time.perf_counter()
    reply = backend.reply(prompt, bounds.answer)
    made.revisions.append(Revision(seq, reply.text, _plain_notes(reply.text)))
    made.prefilled += reply.prefilled
    made.generated += reply.generated
    made.seconds += time.perf_counter() - began


def _plain_notes(text: str) -> tuple[Note, ...]:
    return tuple(Note(line.strip()) for line in text.splitlines() if line.strip())


def _tail(backend: Backend, meeting: Meeting, seq: int, tokens: int) -> str:
    picked: list[str] = []
    for line in reversed(meeting.lines[: seq + 1]):
        tokens -= backend.count(spoken(line)) + 1
        if tokens < 0 and picked:
            break
        picked.append(spoken(line))
    return "\n".join(reversed(picked))


def _head(backend: Backend, meeting: Meeting, seq: int, tokens: int) -> str:
    picked: list[str] = []
    for line in meeting.lines[: seq + 1]:
        tokens -= backend.count(spoken(line)) + 1
        if tokens < 0 and picked:
            break
        picked.append(spoken(line))
    return "\n".join(picked)


def _windows(backend: Backend, meeting: Meeting, tokens: int) -> list[list[Line]]:
    """The transcript in stretches of at most so many tokens (a longer line is one of its own)."""
    found: list[list[Line]] = [[]]
    room = tokens
    for line in meeting.lines:
        size = backend.count(spoken(line)) + 1
        if size > room and found[-1]:
            found.append([])
            room = tokens
        found[-1].append(line)
        room -= size
    return found
