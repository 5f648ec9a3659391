"""Did every segment arrive, and is the text any good? Counted from what was sent and consumed.

Nothing here knows how the worker works: the inputs are the records the broker acknowledged, the
events read back from the output topics, and the dead letters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from operators.events import (
    AnswerEvent,
    Event,
    Question,
    Segment,
    SummaryEvent,
    TranslationEvent,
    task_of,
)
from pipelines.cli.replaying import Sent

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MAX_REPEATED_TRIGRAMS = 0.05


def words(text: str) -> list[str]:
    """Lower-case words; punctuation apart."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def repeated_trigrams(texts: Iterable[str]) -> tuple[int, int]:
    """(trigrams seen before, all trigrams) over ``texts``; no trigram crosses from text to text."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        parts = words(text)
        for place in range(len(parts) - 2):
            seen.add(tuple(parts[place : place + 3]))
            total += 1
    return total - len(seen), total


def found_words(texts: Iterable[str], source: Iterable[str]) -> tuple[int, int]:
    """(words of ``texts`` that occur in ``source``, all words of ``texts``)."""
    known = {word for text in source for word in words(text)}
    written = [word for text in texts for word in words(text)]
    return sum(word in known for word in written), len(written)


def share(part_and_all: tuple[int, int]) -> float | None:
    """The first number as a share of the second, None where there is nothing to share."""
    part, whole = part_and_all
    return part / whole if whole else None


@dataclass
class StreamTally:
    """One row of the closing table. Counts are of segments, events, items, units or tokens."""

    stream_id: str
    segments: int = 0
    covered: int = 0
    dead_letters: int = 0
    summaries: int = 0
    finished: bool = False
    items: int = 0
    translations: int = 0
    untranslated: int = 0
    evicted: int = 0
    trigrams: tuple[int, int] = (0, 0)
    grounded: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)


class Tally:
    """Everything sent and everything read back of one run. Keeps all of it: for runs that end."""

    def __init__(self, targets: Sequence[str] = (), exactly_once: bool = True) -> None:
        self.targets = tuple(targets)
        self._exactly_once = exactly_once
        self.sent: dict[str, dict[int, Sent]] = defaultdict(dict)
        self._at: dict[tuple[int, int], tuple[str, int]] = {}
        self.events: dict[str, list[Event]] = defaultdict(list)
        self._dead: dict[str, set[int]] = defaultdict(set)
        self.dead_letters = 0
        self.questions: dict[str, Question] = {}
        self.answers: dict[str, AnswerEvent] = {}
        """By the question's id."""

    def take_question(self, question: Question) -> None:
        """A question that is put to the worker."""
        self.questions[question.question_id] = question

    def take_answer(self, event: AnswerEvent) -> None:
        self.answers[event.question_id] = event

    @property
    def unanswered(self) -> list[Question]:
        return [q for name, q in self.questions.items() if name not in self.answers]

    def take_sent(self, sent: Sent) -> None:
        """A record the broker acknowledged; only final segments count as input."""
        segment = sent.segment
        if segment.type != "segment" or not segment.is_final:
            return
        known = self.sent[segment.stream_id]
        seq = segment.seq if segment.seq is not None else len(known)
        known[seq] = sent
        self._at[sent.partition, sent.offset] = (segment.stream_id, seq)

    def take_event(self, event: Event) -> None:
        """An event read from the full log (not from the compacted topic, which repeats it)."""
        self.events[event.stream_id].append(event)

    def take_dead_letter(self, partition: int, offset: int) -> None:
        """A dead letter, by the place its input had."""
        self.dead_letters += 1
        if (where := self._at.get((partition, offset))) is not None:
            self._dead[where[0]].add(where[1])

    def summaries(self, stream_id: str) -> list[SummaryEvent]:
        """In order of (epoch, revision), each once."""
        found = {
            (event.epoch, event.revision): event
            for event in self.events[stream_id]
            if isinstance(event, SummaryEvent)
        }
        return [found[key] for key in sorted(found)]

    def translations(self, stream_id: str) -> list[TranslationEvent]:
        return [e for e in self.events[stream_id] if isinstance(e, TranslationEvent) and e.is_final]

    def segments(self, stream_id: str) -> list[Segment]:
        return [self.sent[stream_id][seq].segment for seq in sorted(self.sent[stream_id])]

    def complete(self) -> bool:
        """Every stream has its closing summary, every segment its translations, every question its
        answer."""
        rows = [] if self.unanswered else self.rows()
        return bool(rows) and all(row.finished and row.untranslated == 0 for row in rows)

    def finished(self) -> bool:
        """Every stream has its closing summary."""
        return bool(self.sent) and all(self._last(stream, True) for stream in self.sent)

    def rows(self) -> list[StreamTally]:
        return [self._row(stream_id) for stream_id in self.sent]

    def _last(self, stream_id: str, final: bool) -> SummaryEvent | None:
        found = [e for e in self.summaries(stream_id) if e.status == "final" or not final]
        return found[-1] if found else None

    def _row(self, stream_id: str) -> StreamTally:
        """Coverage counts from the closing summary; without one, from the last there is."""
        closing = self._last(stream_id, final=True)
        last = self._last(stream_id, final=False)
        best = closing or last
        to_seq = best.covers.to_seq if best else -1
        dead = self._dead[stream_id]
        texts = [item.text for item in last.items] if last else []
        source = self.segments(stream_id)
        spoken = [s.text for s in source] + [s.speaker.name or "" for s in source if s.speaker]
        row = StreamTally(
            stream_id,
            segments=len(self.sent[stream_id]),
            covered=sum(seq <= to_seq and seq not in dead for seq in self.sent[stream_id]),
            dead_letters=len(dead),
            summaries=len(self.summaries(stream_id)),
            finished=closing is not None,
            items=len(texts),
            translations=len({e.event_id for e in self.translations(stream_id)}),
            untranslated=self._untranslated(stream_id),
            evicted=max((e.kv.evicted_total for e in self.summaries(stream_id)), default=0),
            trigrams=repeated_trigrams(texts),
            grounded=found_words(texts, spoken),
        )
        row.problems = [*_losses(row), *self._revision_problems(stream_id)]
        row.problems += [
            f"{stream_id}: the question {q.text or q.kind!r} was not answered"
            for q in self.unanswered
            if q.stream_id == stream_id
        ]
        return row

    def _untranslated(self, stream_id: str) -> int:
        """Pairs of segment and target language without a final translation."""
        done = {
            (segment_id, event.target_lang)
            for event in self.translations(stream_id)
            if event.is_final
            for segment_id in event.source_segment_ids
        }
        dead = self._dead[stream_id]
        return sum(
            (sent.segment.segment_id, lang) not in done
            for seq, sent in self.sent[stream_id].items()
            if seq not in dead
            for lang in self.targets
        )

    def _revision_problems(self, stream_id: str) -> list[str]:
        """Gaps in the revisions, revisions read twice, one revision with two contents."""
        contents: dict[tuple[str, int, int], list[tuple[object, ...]]] = defaultdict(list)
        for event in self.events[stream_id]:
            content: tuple[object, ...]
            if isinstance(event, SummaryEvent):
                content = (event.text, event.items, event.covers.to_seq)
            elif isinstance(event, TranslationEvent):
                content = (event.unit_id, event.committed, event.tail)
            else:
                content = (event.text, event.data)
            contents[task_of(event), event.epoch, event.revision].append(content)
        problems = []
        for (task, epoch, revision), found in sorted(contents.items()):
            name = f"{stream_id}: {task} revision {epoch}.{revision}"
            if any(content != found[0] for content in found):
                problems.append(f"{name} has two contents")
            elif len(found) > 1 and self._exactly_once:
                problems.append(f"{name} was read {len(found)} times")
        for (task, epoch), count in Counter(key[:2] for key in contents).items():
            numbers = [key[2] for key in contents if key[:2] == (task, epoch)]
            missing = max(numbers) - min(min(numbers), 1) + 1 - count
            if missing:
                problems.append(f"{stream_id}: {missing} revisions of {task} are missing")
        return problems


def _losses(row: StreamTally) -> list[str]:
    """Sentences about what is wrong with one stream; none when all is well."""
    name, problems = row.stream_id, []
    if not row.finished:
        problems.append(f"{name}: no closing summary was read (session_end not answered)")
    if uncovered := row.segments - row.covered - row.dead_letters:
        problems.append(f"{name}: {uncovered} of {row.segments} segments are not covered")
    if row.dead_letters:
        problems.append(f"{name}: {row.dead_letters} segments ended as dead letters")
    if row.untranslated:
        problems.append(f"{name}: {row.untranslated} translations of segments are missing")
    if row.evicted == 0:
        problems.append(f"{name}: nothing was evicted; use more segments or a smaller window")
    return problems
