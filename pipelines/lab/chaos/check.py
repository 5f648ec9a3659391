"""The checker: all records of all topics from their start, and what is wrong with them.

It shares nothing with what wrote them but the wire schema: it parses the JSON itself, counts streams'
segments and epochs itself from the input topic, and believes no state. What it looks for:

* **lost**: a segment that was acknowledged to its speaker but is not in the input topic; that no
  translation or no summary reflects, though its input is committed; that a summary's range skipped;
  whose place (``covers.to_seq``) is not the one the input gives it; a revision number never seen.
* **reordered**: after dropping repeated events, a revision, or a translated segment, behind a later
  one; a latest summary that is not the last.
* **conflicting**: one (stream, task, epoch, revision) with two contents.
* **duplicates, read committed**: records beyond the first of a revision in the topic.
* **duplicates after dedupe**: what is still there twice for a reader that drops event ids it has seen:
  a revision, or a segment translated in two revisions.

Answers are results too: a question that is committed has one (else it is lost), with one content and
under one event id.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EXAMPLES = 20
FRAME_BYTES = 5
"""Before the JSON of some input records."""
STREAMS_ERRORS = "__streams.errors."


class Record(NamedTuple):
    """A record as it lies in a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    at: float = 0.0
    """When it was written (Unix seconds)."""


class Topics(NamedTuple):
    """Which topic is which."""

    segments: str
    summaries: str
    latest: str
    translations: str
    dlq: str
    questions: str = ""
    answers: str = ""


class Place(NamedTuple):
    """Where a segment or session end lies in the input topic."""

    partition: int
    offset: int


class Said(NamedTuple):
    """A segment as the input topic has it: the ``seq``-th of its stream's epoch."""

    place: Place
    segment_id: str
    text: str
    seq: int


class Revision(NamedTuple):
    """What may exist once only. Ordered by epoch and number within a stream's task."""

    stream: str
    task: str
    epoch: int
    number: int


class Result(NamedTuple):
    """A summary or translation: its revision and its parsed JSON."""

    revision: Revision
    event: dict[str, Any]

    @property
    def content(self) -> str:
        return json.dumps(self.event, sort_keys=True)


@dataclass
class Findings:
    """What was counted. ``examples`` says the first of each kind in words."""

    segments: int = 0
    questions: int = 0
    lost: int = 0
    reordered: int = 0
    conflicting_revisions: int = 0
    duplicates_after_dedupe: int = 0
    duplicates_read_committed: int = 0
    unfinished: int = 0
    """Segments not reflected whose input is not committed either: still to be done, not lost."""
    dead_letters: int = 0
    summarised_again: int = 0
    """Segments in the range of more than one summary: known to happen after a restore, no fault."""
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, count: int, sentence: str) -> None:
        """Add ``count`` to a number and keep the sentence."""
        setattr(self, kind, getattr(self, kind) + count)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {sentence}")


def check(
    records: Iterable[Record],
    topics: Topics,
    *,
    targets: Sequence[str] = (),
    committed: Mapping[tuple[str, int], int] | None = None,
    acknowledged: Collection[tuple[str, str]] = (),
    asked: Collection[str] = (),
    idle_s: float = math.inf,
) -> Findings:
    """Compare what went in with what came out.

    ``records``: every topic as a read_committed reader sees it, each partition in offset order, and each
    stream's in the order of time where it moved. ``targets``: the languages every segment must be
    translated into. ``committed``: the group's offset per input topic and partition; None: all is
    committed. ``acknowledged``: (stream, segment_id) of what the speakers were told is stored;
    ``asked``: ids of such questions. ``idle_s``: a stream may be ended by the workers after so long a
    silence. Raises ValueError for a result that is not JSON of our schema.
    """
    by_topic: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_topic[record.topic].append(record)
    found = Findings()
    summaries = [result_of(r) for r in by_topic[topics.summaries]]
    said = read_input(by_topic[topics.segments], last_covered(summaries), idle_s)
    _check_acknowledged(found, said, acknowledged)
    refused = _refused(by_topic[topics.dlq], topics.segments)
    waiting = _Waiting(topics.segments, committed)
    found.dead_letters = len(by_topic[topics.dlq])
    written = summaries + [result_of(r) for r in by_topic[topics.translations]]
    latest = [result_of(r) for r in by_topic[topics.latest] if r.value is not None]
    answers = [result_of(r) for r in by_topic[topics.answers]]
    known = [answer for answer in answers if answer.revision.number]
    _check_repeats(found, written + known)
    _check_contents(found, [*written, *latest, *known])
    kept = _deduped(written)
    _check_order(found, kept + _deduped(known))
    _check_latest(found, kept, latest)
    _check_reflected(found, said, kept, targets, refused, waiting)
    refused = _refused(by_topic[topics.dlq], topics.questions)
    waiting = _Waiting(topics.questions, committed)
    _check_answered(found, by_topic[topics.questions], answers, refused, waiting, asked)
    return found


class _Waiting(NamedTuple):
    """What of an input topic is not committed: still to be done, not lost."""

    topic: str
    committed: Mapping[tuple[str, int], int] | None

    def has(self, place: Place) -> bool:
        done = self.committed
        return done is not None and place.offset >= done.get((self.topic, place.partition), 0)


# --- parsing -----------------------------------------------------------------------------------


def last_covered(summaries: Iterable[Result]) -> set[tuple[str, str]]:
    """(stream, segment_id) up to which a final summary covers its epoch."""
    finals = (result.event for result in summaries if result.event.get("status") == "final")
    return {(event["stream_id"], event["covers"]["to_segment_id"]) for event in finals}


def read_input(
    records: Iterable[Record], last: Collection[tuple[str, str]] = (), idle_s: float = math.inf
) -> dict[tuple[str, int], list[Said]]:
    """The segments of every (stream, epoch) in order, without what a speaker sent twice.

    An epoch ends with its ``session_end``; the next segment of the stream begins another. So does one
    after a silence of ``idle_s`` behind one of the ``last`` segments: the workers ended the stream.
    """
    said: dict[tuple[str, int], list[Said]] = {}
    epochs: dict[str, int] = {}
    ended: set[str] = set()
    heard: dict[str, tuple[str, float]] = {}
    for record in records:
        value = record.value or b"{}"
        event = json.loads(value[FRAME_BYTES:] if value[:1] == b"\x00" else value)
        stream = event["stream_id"]
        epochs.setdefault(stream, 0)
        if event.get("type") == "session_end":
            ended.add(stream)
            continue
        if event.get("type", "segment") != "segment":
            continue
        before, at = heard.get(stream, ("", record.at))
        if (stream, before) in last and record.at - at >= idle_s:
            ended.add(stream)
        heard[stream] = event["segment_id"], record.at
        if stream in ended:
            ended.discard(stream)
            epochs[stream] += 1
        epoch = said.setdefault((stream, epochs[stream]), [])
        if all(event["segment_id"] != earlier.segment_id for earlier in epoch):
            place = Place(record.partition, record.offset)
            epoch.append(Said(place, event["segment_id"], event["text"], len(epoch)))
    return said


def result_of(record: Record) -> Result:
    """Parse a summary, translation or answer. Raises ValueError saying which record is none."""
    try:
        event = json.loads(record.value or b"")
        schema = event["schema"]
        if schema == "insight.summary.v1":
            task = "summary"
        elif schema == "insight.translation.v1":
            task = f"translation:{event['target_lang']}"
        elif schema == "insight.answer.v1":
            task = "answer"
        else:
            raise ValueError(f"schema {schema}")
        revision = Revision(event["stream_id"], task, event["epoch"], event["revision"])
        return Result(revision, event)
    except (ValueError, KeyError, TypeError) as error:
        where = f"{record.topic}[{record.partition}] offset {record.offset}"
        raise ValueError(f"{where} is not a result: {error}") from error


def _refused(letters: Iterable[Record], segments: str) -> set[Place]:
    """Where the dead letters' originals lie."""
    places = set()
    for letter in letters:
        headers = {name: (value or b"").decode() for name, value in letter.headers}
        if headers.get(f"{STREAMS_ERRORS}topic") == segments:
            partition = int(headers[f"{STREAMS_ERRORS}partition"])
            places.add(Place(partition, int(headers[f"{STREAMS_ERRORS}offset"])))
    return places


# --- one revision, one content, in order ---------------------------------------------------------


def _check_repeats(found: Findings, written: Sequence[Result]) -> None:
    seen: set[Revision] = set()
    for result in written:
        if result.revision in seen:
            found.note("duplicates_read_committed", 1, f"{_name(result.revision)} again")
        seen.add(result.revision)


def _check_contents(found: Findings, written: Iterable[Result]) -> None:
    contents: dict[Revision, set[str]] = defaultdict(set)
    for result in written:
        contents[result.revision].add(result.content)
    for revision, different in contents.items():
        if len(different) > 1:
            sentence = f"{_name(revision)} has {len(different)} contents"
            found.note("conflicting_revisions", 1, sentence)


def _deduped(written: Iterable[Result]) -> list[Result]:
    """What a reader keeps that drops event ids it has seen."""
    seen: set[str] = set()
    kept = []
    for result in written:
        event_id = result.event.get("event_id") or repr(result.revision)
        if event_id not in seen:
            seen.add(event_id)
            kept.append(result)
    return kept


def _check_order(found: Findings, kept: Iterable[Result]) -> None:
    highest: dict[tuple[str, str], Revision] = {}
    numbers: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for result in kept:
        revision = result.revision
        task = revision[:2]
        before = highest.get(task)
        if revision.number in numbers[revision[:3]]:
            found.note("duplicates_after_dedupe", 1, f"{_name(revision)} under two event ids")
        elif before is not None and revision < before:
            found.note("reordered", 1, f"{_name(revision)} behind {_name(before)}")
        highest[task] = max(before, revision) if before else revision
        numbers[revision[:3]].add(revision.number)
    for (stream, name, epoch), present in numbers.items():
        for missing in sorted(set(range(1, max(present) + 1)) - present):
            sentence = f"{_name(Revision(stream, name, epoch, missing))} was never written"
            found.note("lost", 1, sentence)


def _check_latest(found: Findings, kept: Iterable[Result], latest: Iterable[Result]) -> None:
    newest: dict[str, Revision] = {}
    for result in kept:
        if result.revision.task == "summary":
            stream = result.revision.stream
            newest[stream] = max(newest.get(stream, result.revision), result.revision)
    last = {result.revision.stream: result.revision for result in latest}
    for stream, revision in newest.items():
        if last.get(stream) != revision:
            shown = _name(last[stream]) if stream in last else "nothing"
            found.note("reordered", 1, f"the latest topic ends with {shown}, not {_name(revision)}")


# --- every segment -------------------------------------------------------------------------------


def _check_acknowledged(
    found: Findings,
    said: Mapping[tuple[str, int], Sequence[Said]],
    acknowledged: Collection[tuple[str, str]],
) -> None:
    stored = {(stream, one.segment_id) for (stream, _), all_ in said.items() for one in all_}
    found.segments = sum(map(len, said.values()))
    for stream, segment_id in acknowledged:
        if (stream, segment_id) not in stored:
            found.note("lost", 1, f"{segment_id} was acknowledged but is not in the input topic")


def _check_reflected(
    found: Findings,
    said: Mapping[tuple[str, int], Sequence[Said]],
    kept: Iterable[Result],
    targets: Sequence[str],
    refused: set[Place],
    waiting: _Waiting,
) -> None:
    results: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for result in kept:
        stream, task, epoch, _ = result.revision
        results[stream, epoch, task].append(result.event)
    for (stream, epoch), segments in said.items():
        covered = _covered(found, segments, results[stream, epoch, "summary"], refused)
        reflected = covered
        for target in targets:
            events = results[stream, epoch, f"translation:{target}"]
            reflected = reflected & _translated(found, segments, events)
        for one in segments:
            if one.segment_id in reflected or one.place in refused:
                continue
            if waiting.has(one.place):
                found.unfinished += 1
            else:
                by = "summary" if one.segment_id not in covered else "translation"
                found.note("lost", 1, f"{one.segment_id} (epoch {epoch}) is in no {by}")


def _covered(
    found: Findings,
    segments: Sequence[Said],
    summaries: Sequence[dict[str, Any]],
    refused: set[Place],
) -> set[str]:
    """Ids of the segments that a summary claims, after checking its claims against the input.

    A claim is ``covers`` (the last segment seen) and ``source`` (the offsets that were new).
    """
    taken = [one for one in segments if one.place not in refused]
    places = {one.segment_id: seq for seq, one in enumerate(taken)}
    covered: set[str] = set()
    for event in summaries:
        claim, first = event["covers"], event["source"]["first_offset"]
        name = f"{event['stream_id']} summary {event['epoch']}.{event['revision']}"
        seq = places.get(claim["to_segment_id"], -1)
        if seq != claim["to_seq"]:
            sentence = (
                f"{name} says {claim['to_segment_id']} is segment {claim['to_seq']}, not {seq}"
            )
            found.note("lost", 1, sentence)
        for one in taken[: seq + 1]:
            fresh = one.segment_id not in covered
            if fresh and one.place.offset < first:
                found.note("lost", 1, f"{name} skipped {one.segment_id}")
            elif not fresh and one.place.offset >= first >= 0:
                found.summarised_again += 1
            covered.add(one.segment_id)
    return covered


def _translated(
    found: Findings, segments: Sequence[Said], events: Sequence[dict[str, Any]]
) -> set[str]:
    """Ids of the segments with a translation of their very text, each once and in order."""
    by_id = {one.segment_id: one for one in segments}
    done: set[str] = set()
    last = -1
    for event in events:
        name = f"{event['unit_id']} in revision {event['epoch']}.{event['revision']}"
        one = by_id.get(event["unit_id"])
        if one is None or one.text != event["source_text"]:
            found.note("conflicting_revisions", 1, f"{name} was never said")
        elif one.segment_id in done:
            found.note("duplicates_after_dedupe", 1, f"{name} was translated before")
        elif one.seq < last:
            found.note("reordered", 1, f"{name} was translated behind a later segment")
        done.add(event["unit_id"])
        last = max(last, one.seq if one else -1)
    return done


def _check_answered(
    found: Findings,
    questions: Iterable[Record],
    answers: Iterable[Result],
    refused: set[Place],
    waiting: _Waiting,
    asked: Collection[str],
) -> None:
    places = {
        json.loads(record.value or b"")["question_id"]: Place(record.partition, record.offset)
        for record in questions
    }
    found.questions = len(places)
    contents: dict[str, list[str]] = defaultdict(list)
    ids: dict[str, set[str]] = defaultdict(set)
    for answer in answers:
        name = answer.event["question_id"]
        contents[name].append(answer.content)
        ids[name].add(answer.event["event_id"])
    for name in asked:
        if name not in places:
            found.note("lost", 1, f"{name} was acknowledged but is not in the topic of questions")
    for name, place in places.items():
        if not contents[name] and place not in refused:
            if waiting.has(place):
                found.unfinished += 1
            else:
                found.note("lost", 1, f"{name} has no answer")
        if len(set(contents[name])) > 1:
            found.note("conflicting_revisions", 1, f"{name} has {len(contents[name])} answers")
        if len(ids[name]) > 1:
            found.note("duplicates_after_dedupe", 1, f"{name} was answered under two event ids")
    _check_ids(found, ids)


def _check_ids(found: Findings, ids: Mapping[str, Collection[str]]) -> None:
    """Answers to two questions must not share an id: who drops ids he has seen would miss one."""
    owners: dict[str, str] = {}
    for name, given in ids.items():
        for event_id in given:
            if owners.setdefault(event_id, name) != name:
                sentence = f"{name} is answered under the event id of {owners[event_id]}"
                found.note("conflicting_revisions", 1, sentence)


def _name(revision: Revision) -> str:
    return f"{revision.stream} {revision.task} {revision.epoch}.{revision.number}"


def differences(found: Findings, delivery: str) -> Iterator[str]:
    """What the delivery mode promises and the findings break."""
    promised = ["lost", "reordered", "duplicates_after_dedupe", "unfinished"]
    if delivery == "exactly_once":
        promised += ["conflicting_revisions", "duplicates_read_committed"]
    for name in promised:
        if count := getattr(found, name):
            yield f"{name} = {count}"
