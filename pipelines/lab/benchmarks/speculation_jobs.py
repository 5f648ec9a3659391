"""The answers that speculation is measured on, each at its place in a real meeting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from operators.decoding.acceptance import Costs
from operators.events import Segment
from pipelines.dev.demo.plan import meeting_files
from pipelines.lab.benchmarks.desk import Desk, Make, Place, Tasks
from pipelines.wire.codec import read_transcript


@dataclass(frozen=True)
class Sizes:
    """Tokens, and how often things are done."""

    window: int = 512
    answer: int = 64
    ledger: int = 200
    """Notes are written until they have outgrown this: then a compaction is due."""
    most_updates: int = 12
    translations: int = 2
    rounds: int = 3
    lengths: tuple[int, ...] = (4,)
    drafters: tuple[str, ...] = ()
    """Run with drafts of these lengths, besides the draft model."""
    utterances: int = 2
    growing: tuple[int, ...] = tuple(range(6, 25, 3))
    """Words heard so far of an utterance that is translated while it grows. A recogniser's partial
    results come every few words."""


QUICK = Sizes(
    window=256,
    answer=12,
    ledger=40,
    most_updates=2,
    translations=1,
    rounds=1,
    lengths=(4,),
    utterances=1,
    growing=(3, 5),
    drafters=("ngram", "previous"),
)
LONG = dataclasses.replace(
    Sizes(),
    answer=96,
    rounds=3,
    translations=3,
    lengths=tuple(range(1, 17)),
    drafters=("ngram", "previous", "combined"),
)


@dataclass(frozen=True)
class Job:
    """An answer that can be asked for again and again: made at ``place`` of the stream."""

    task: str
    place: Place
    make: Make


def jobs(desk: Desk, sizes: Sizes, costs: Costs) -> Iterator[Job]:
    """Follow the meeting, writing real summaries on the way; yields what is asked for where."""
    meeting = [s for s in read_transcript(meeting_files()[0]) if len(s.text.split()) > 3]
    heard = iter(meeting)
    session = desk.open("meeting")
    config = dataclasses.replace(desk.config, drafter="auto")
    tasks, scheduler = desk.tasks(config), desk.scheduler(config, costs)

    desk.listen(session, heard, sizes.window)
    yield Job("first summary", desk.place(session), Tasks.update)
    place = desk.place(session)
    for segment in utterances(meeting, sizes.translations):
        yield Job("translation", place, partial(Tasks.translate, text=segment.text))
    for segment in utterances(meeting, sizes.utterances, max(sizes.growing)):
        yield from _growing(desk, sizes, place, segment, costs)
    for _ in range(sizes.most_updates):
        desk.summarise(scheduler, tasks, session)
        desk.listen(session, heard, sizes.window // 3)
        if tasks.update(session).task == "compaction":
            break
        update = Job("update", desk.place(session), Tasks.update)
    yield update
    yield Job("compaction", desk.place(session), Tasks.update)


def utterances(meeting: Sequence[Segment], count: int, words: int = 18) -> list[Segment]:
    """The shortest segments of at least so many words."""
    enough = [s for s in meeting if len(s.text.split()) >= words]
    return sorted(enough, key=lambda s: len(s.text.split()))[:count]


def _growing(
    desk: Desk, sizes: Sizes, place: Place, segment: Segment, costs: Costs
) -> Iterator[Job]:
    """An utterance translated again and again while it grows."""
    tasks, scheduler = desk.tasks(desk.config), desk.scheduler(desk.config, costs)
    words, previous = segment.text.split(), ""
    for count in sizes.growing:
        make = partial(Tasks.translate, text=" ".join(words[:count]), previous=previous)
        yield Job("retranslation", place, make)
        at = desk.at(place, {})
        (answered,) = desk.run(scheduler, [(at, make(tasks, at))])
        previous = desk.model.tokenizer.decode(answered.generation.output)
