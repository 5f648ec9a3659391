"""What is remembered: facts planted into transcripts, looked for in the summaries and asked about."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from operators.stream import Stream
from pipelines.lab.eval import plants
from pipelines.lab.eval import summary_sides as sides
from pipelines.lab.eval.engine import Engine
from pipelines.lab.eval.grounding import Note, share
from pipelines.lab.eval.plants import Fact, Planted
from pipelines.lab.eval.summaries import LAST_WINDOW, OURS, Job, averaged, headline, summarised
from pipelines.lab.eval.summary_meters import Reply, Summarised, meter
from pipelines.lab.eval.summary_sides import Say


def right(reply: Reply, fact: Fact | None) -> bool:
    """Whether a reply has what its fact says; without one, where nothing answers it, it must refuse."""
    if fact is None:
        return reply.refused
    return not reply.refused and plants.answers(fact, reply.text)


def run(engine: Engine, planted: Sequence[Planted], job: Job, say: Say) -> dict[str, Any]:
    """All figures; ``facts``: every fact of every meeting and what each side has of it."""
    by_name = {p.meeting.name: p for p in planted}
    made = summarised(engine, job, say, lambda meeting: _ours(engine, by_name[meeting.name], say))
    measured = {
        name: [meter(found[m.name], m, m.checkpoints(job.checkpoints)) for m in job.meetings]
        for name, found in made.items()
    }
    looked = {
        name: [row for p in planted for row in _look(p, found[p.meeting.name].last.notes)]
        for name, found in made.items()
    }
    over = {name: averaged(measured[name]) | _remembered(looked[name]) for name in made}
    own_figures, window = over.get(OURS, {}), over.get(LAST_WINDOW, {})
    asked = {
        p.meeting.name: [
            (reply, fact)
            for reply in made[OURS][p.meeting.name].replies
            for fact in [_asked(p).get(reply.question)]
        ]
        for p in planted
        if OURS in made
    }
    told = [(right(reply, fact), fact) for found in asked.values() for reply, fact in found]
    return {
        "retention": own_figures.get("retention"),
        "retention_lastwindow": window.get("retention"),
        "supersession": own_figures.get("supersession"),
        "owner": own_figures.get("owner"),
        "due": own_figures.get("due"),
        **headline(over),
        "answered": _rounded(share([good for good, fact in told if fact is not None])),
        "refused": _rounded(share([good for good, fact in told if fact is None])),
        "weights": engine.weights,
        "sides": over,
        "by_position": {name: by_position(rows) for name, rows in looked.items()},
        "facts": looked,
        "replies": {
            name: [
                {"question": r.question, "text": r.text, "right": right(r, f), "refused": r.refused}
                for r, f in found
            ]
            for name, found in asked.items()
        },
        "texts": {
            name: {meeting: run.last.text for meeting, run in found.items()}
            for name, found in made.items()
        },
    }


def _ours(engine: Engine, planted: Planted, say: Say) -> Summarised:
    """The product on one meeting; its questions are asked before the stream ends, and what they cost
    is not counted."""
    made, meeting = Summarised(), planted.meeting
    began = time.perf_counter()
    with engine.operator() as (operator, spent):
        stream = operator.open(meeting.name)
        sides.listen(stream, meeting, made, say)
        asked_at, before = time.perf_counter(), (spent.prefilled, spent.generated)
        made.replies = _ask(stream, planted, say)
        asking = time.perf_counter() - asked_at
        after = (spent.prefilled, spent.generated)
        stream.close()
        sides.collect(stream, made, meeting.lines[-1].seq)
    made.seconds = time.perf_counter() - began - asking
    made.prefilled = spent.prefilled - (after[0] - before[0])
    made.generated = spent.generated - (after[1] - before[1])
    return made


def _asked(planted: Planted) -> dict[str, Fact | None]:
    """The questions, and the fact that answers each; None where nothing does."""
    questions: dict[str, Fact | None] = {f.question: f for f in planted.sheet.facts}
    return questions | dict.fromkeys(planted.sheet.unanswerable)


def _ask(stream: Stream, planted: Planted, say: Say) -> list[Reply]:
    replies = []
    for text in _asked(planted):
        say(f"ours {planted.meeting.name}: {text}")
        answer = stream.ask(text)
        replies.append(Reply(text, answer.text, answer.refused))
    return replies


def _look(planted: Planted, notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Every fact of a meeting and what the notes have of it."""
    return [
        {
            "meeting": planted.meeting.name,
            "fact": fact.id,
            "kind": fact.kind,
            "position": round(planted.position[fact.id], 3),
            "kept": plants.kept(fact, notes),
            "superseded": plants.superseded(fact, notes),
            "owner": plants.owner_right(fact, notes),
            "due": plants.due_right(fact, notes),
        }
        for fact in planted.sheet.facts
        if fact.id in planted.position
    ]


def _remembered(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    def over(name: str) -> float | None:
        return _rounded(share([bool(row[name]) for row in rows if row[name] is not None]))

    return {
        "retention": over("kept"),
        "supersession": over("superseded"),
        "owner": over("owner"),
        "due": over("due"),
    }


def by_position(rows: Sequence[Mapping[str, Any]], parts: int = 4) -> list[float | None]:
    """Retention in equal stretches of the transcript, from its beginning on."""

    def inside(row: Mapping[str, Any], part: int) -> bool:
        return min(parts - 1, int(row["position"] * parts)) == part

    return [
        _rounded(share([row["kept"] for row in rows if inside(row, part)])) for part in range(parts)
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
