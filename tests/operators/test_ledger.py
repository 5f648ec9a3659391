"""The ledger: what a model's answer becomes, what is refused, and that it stays bounded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from operators.events import Evidence, ItemChange, LedgerItem
from operators.languages import split
from operators.tasks import ledger
from operators.tasks.ledger import (
    MAX_ITEM_CHARS,
    add_notes,
    archive,
    changes_of,
    copied,
    merge_notes,
    parse_notes,
    published,
    render,
)
from operators.text import lines_erased, normalized_erasure, repeated_trigram_share

SAID = [
    (
        Evidence("s1", speaker="Ana"),
        "I think the remote should have a rubber case, people drop it.",
    ),
    (
        Evidence("s2", speaker="Bo"),
        "Agreed, then we order rubber samples from the supplier on Monday.",
    ),
    (Evidence("s3", speaker="Ana"), "Does anybody know what the battery costs?"),
]


def item(number: int, text: str) -> LedgerItem:
    return LedgerItem(id=f"i{number}", kind="topic", text=text, evidence=(Evidence(f"s{number}"),))


def test_lines_of_all_kinds_are_read_and_others_dropped() -> None:
    answer = """Sure, here are the notes:
- TOPIC: The remote may get a rubber case.
2. **DECISION:** They order rubber samples.
ACTION (Bo): Bo orders samples on Monday.
QUESTION: None
Something without a label."""
    notes = parse_notes(answer, limit=9)
    assert [n.kind for n in notes] == ["topic", "decision", "action_item"]
    assert notes[1].text == "They order rubber samples."
    assert notes[2].owner == "Bo"
    assert len(parse_notes(answer, limit=2)) == 2


def test_loops_and_endless_lines_do_not_become_items() -> None:
    loop = "TOPIC: " + "the button is red and " * 9
    long = "TOPIC: " + " ".join(f"word{i}" for i in range(200))
    notes = parse_notes(f"{loop}\n{long}", limit=9)
    assert len(notes) == 1
    assert len(notes[0].text) <= MAX_ITEM_CHARS


def test_new_notes_get_evidence_ids_and_revision() -> None:
    notes = parse_notes("DECISION: They order rubber samples from a supplier.", 4)
    update = add_notes((), notes, SAID, revision=3, next_id=7)
    (only,) = update.items
    assert (only.id, only.kind, only.last_changed_revision) == ("i7", "decision", 3)
    assert "s2" in [e.segment_id for e in only.evidence]


def test_what_the_ledger_already_says_is_not_added_again() -> None:
    have = (item(1, "The remote gets a rubber case because people drop it."),)
    notes = parse_notes("TOPIC: People drop the remote, so a rubber case.", 4)
    update = add_notes(have, notes, SAID, revision=2, next_id=2)
    assert (update.items, update.added, update.duplicate) == (have, 0, 1)


def test_a_sentence_told_again_with_another_end_is_refused() -> None:
    said = [
        (
            Evidence("s1"),
            "Members participating in person can watch the proceedings on the TV; when they have "
            "finished presenting their petitions they will be able to sit down.",
        )
    ]
    first = "TOPIC: Members participating in person will be able to watch the proceedings on TV."
    again = (
        "ACTION: Members will be able to watch the proceedings on TV once they have finished "
        "presenting their petitions."
    )
    update = add_notes((), parse_notes(f"{first}\n{again}", 4), said, revision=1, next_id=1)
    assert (update.added, update.duplicate) == (1, 1)
    alone = add_notes((), parse_notes(again, 4), said, revision=1, next_id=1)
    assert alone.added == 1


def test_what_nobody_said_is_refused() -> None:
    notes = parse_notes("TOPIC: Parliament debated fisheries and climate subsidies.", 4)
    update = add_notes((), notes, SAID, revision=1, next_id=1)
    assert (update.items, update.ungrounded) == ((), 1)


def test_copied_transcript_does_not_pass_as_summary() -> None:
    verbatim = "I think the remote should have a rubber case, people drop it."
    assert copied(verbatim, SAID[0][1])
    update = add_notes((), parse_notes(f"TOPIC: {verbatim}", 4), SAID, revision=1, next_id=1)
    assert (update.items, update.copied) == ((), 1)
    assert not copied("Ana wants rubber around the remote.", SAID[0][1])


def test_old_items_stay_as_they_were() -> None:
    have = (item(1, "Something entirely different was decided."),)
    update = add_notes(
        have, parse_notes("TOPIC: Battery costs are unknown.", 4), SAID, revision=9, next_id=2
    )
    assert update.items[0] is have[0]
    assert update.added == 1


def test_compaction_merges_topics_and_keeps_the_rest() -> None:
    items = (
        item(1, "The remote gets a rubber case."),
        replace(item(2, "Rubber samples are ordered on Monday."), kind="decision"),
        item(3, "People drop the remote from 2 metres."),
        item(4, "The newest item stays."),
    )
    notes = parse_notes("TOPIC: People drop the remote from 2 metres, so it gets a rubber case.", 9)
    merged = merge_notes(items, 3, notes, revision=5, next_id=9)
    assert [i.id for i in merged] == ["i9", "i2", "i4"]
    assert [e.segment_id for e in merged[0].evidence] == ["s1", "s3"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "TOPIC: Parliament debated fisheries and climate subsidies.",  # not grounded
        "TOPIC: People drop the remote, so it gets a rubber case.",  # a number is lost
        "\n".join(f"TOPIC: rubber case remote number{i} people drop" for i in range(9)),  # longer
    ],
)
def test_a_failed_compaction_changes_nothing(answer: str) -> None:
    items = (
        item(1, "The remote gets a rubber case."),
        item(2, "People drop the remote from 2 metres."),
        item(3, "The newest item stays."),
    )
    assert merge_notes(items, 2, parse_notes(answer, 9), revision=5, next_id=9) == items


def test_rendering_reads_back() -> None:
    items = (item(1, "The remote gets a rubber case."),)
    assert render(items) == "TOPIC: The remote gets a rubber case."
    assert parse_notes(render(items), 4)[0].text == items[0].text
    assert render(()) == "(none)"


def test_text_measures() -> None:
    assert repeated_trigram_share("one two three four") == 0
    assert repeated_trigram_share("a b c a b c a b c") == pytest.approx(4 / 7)
    assert normalized_erasure("the red button", "the red remote is here") == (1, 1 / 5)
    assert normalized_erasure("", "new") == (0, 0.0)


def test_a_note_put_in_between_takes_nothing_back() -> None:
    before = "Decisions\n- The review is on Friday.\nActions\n- Ben calls."
    after = "Decisions\n- The review is on Friday.\n- We buy it.\nActions\n- Ben calls. (done)"
    assert lines_erased(before, after) == (2, 2 / 13)
    deleted, share = lines_erased("决定\n- 评审改到星期五上午。", "决定\n- 谁付标签的钱？")
    assert deleted > 5  # a line without spaces is more than one word
    assert share > 1
    assert lines_erased("", "new") == (0, 0.0)


@pytest.mark.parametrize(
    "text", ["One. Two is longer! Three?", "word " * 60, "x" * 300, "短い。文章。"]
)
def test_split_text_keeps_every_character_and_the_limit(text: str) -> None:
    pieces = split(text.strip(), 20, len)
    assert all(0 < len(p) <= 20 for p in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_notes_run_together_on_one_line_are_told_apart() -> None:
    notes = parse_notes(
        "TOPIC: Ana showed the new case. ACTION (Ben): send the samples. QUESTION: Who pays for it?",
        4,
    )
    assert [(n.kind, n.text) for n in notes] == [
        ("topic", "Ana showed the new case."),
        ("action_item", "send the samples."),
        ("open_question", "Who pays for it?"),
    ]


# --- what an event shows and says ------------------------------------------------------------------


def test_a_text_shows_what_is_decided_or_open_before_topics() -> None:
    items = (
        replace(item(1, "An early topic."), importance=0.9),
        replace(item(2, "A later topic."), importance=0.9),
        replace(item(3, "A minor topic."), importance=0.2),
        replace(item(4, "A decision."), kind="decision", importance=0.1),
        replace(item(5, "A former decision."), kind="decision", state="superseded"),
        replace(item(6, "A task."), kind="action_item", state="done", importance=0.5),
    )
    more = (replace(item(7, "A question?"), kind="open_question", importance=0.3),)
    assert [i.id for i in published(items, 12)] == ["i1", "i2", "i3", "i4", "i6"]
    assert [i.id for i in published(items, 9)] == ["i1", "i2", "i4", "i6"], "a third are topics"
    assert [i.id for i in published(items, 3)] == ["i1", "i4"]
    assert [i.id for i in published(items, 2)] == ["i1", "i4"]
    assert [i.id for i in published(items, 1)] == ["i4"]
    assert [i.id for i in published(items + more, 3)] == ["i1", "i4", "i7"]
    assert [i.id for i in published(items[:3], 1)] == ["i1"]


def test_questions_do_not_crowd_out_what_is_to_be_done() -> None:
    """A committee asked twelve questions that were surer than Oskar's task, which no text showed."""
    asked = tuple(
        replace(item(n, f"Who pays {n}?"), kind="open_question", importance=0.9) for n in range(12)
    )
    task = replace(item(20, "Oskar calls."), kind="action_item", importance=0.5)
    some = published((*asked, task), 12)
    assert task in some
    assert len(some) == 12, "what room is left is for questions"
    tasks = tuple(replace(item(n, f"Do {n}."), kind="action_item") for n in range(30, 50))
    kinds = Counter(i.kind for i in published((*asked, *tasks), 12))
    assert kinds == {"open_question": 3, "action_item": 9}


def test_a_topic_that_is_shown_stays_until_one_is_clearly_weightier_or_it_is_old() -> None:
    def shown(*weights: float) -> list[str]:
        topics = (replace(item(n, f"Topic {n}."), importance=w) for n, w in enumerate(weights))
        return [i.id for i in published(tuple(topics), 6)]

    assert shown(0.5, 0.6, 0.7) == ["i0", "i1"]
    assert shown(0.5, 0.6, 0.85) == ["i1", "i2"]
    assert shown(0.6, 0.6, *[0.5] * 15) == ["i0", "i1"]
    assert shown(0.6, 0.6, *[0.5] * 45)[-1] != "i1", "all that came since would have no place"


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 12))
def test_one_more_topic_takes_at_most_one_place(weights: list[float], most: int) -> None:
    topics = tuple(replace(item(n, f"Topic {n}."), importance=w) for n, w in enumerate(weights))
    before, after = ({i.id for i in published(found, most)} for found in (topics[:-1], topics))
    assert len(before - after) <= 1
    assert len(after) == min(len(weights), max(1, most // 3))


def test_changes_tell_every_operation_once() -> None:
    task = replace(item(4, "Ben calls."), kind="action_item")
    before = (item(1, "Tuesday."), item(2, "Ana asks."), item(3, "Old."), task, item(5, "Same."))
    after = (
        replace(before[0], state="superseded"),
        replace(before[1], state="withdrawn", by="person"),
        replace(task, state="done"),
        replace(before[4], last_changed_revision=7),
        replace(item(6, "Thursday."), supersedes="i1"),
        item(7, "New."),
    )
    assert list(changes_of(before, after)) == [
        ItemChange("remove", "i3"),
        ItemChange("withdraw", "i2"),
        ItemChange("done", "i4"),
        ItemChange("update", "i6", "i1"),
        ItemChange("add", "i7"),
    ]
    reopened = (replace(task, owner="Ana"), replace(after[1], state="open"))
    assert [c.op for c in changes_of((task, after[1]), reopened)] == ["update", "update"]


def test_the_archive_forgets_its_oldest_items_first() -> None:
    old, gone = (item(1, "a" * 60), item(2, "b" * 60)), (item(3, "c" * 60),)
    assert archive(old, gone, 200) == ((*old, *gone), False)
    assert archive(old, gone, 120) == ((old[1], *gone), True)
    assert archive(old, gone, 0) == ((), True)
    assert archive((), (), 0) == ((), False)


def test_what_goes_first_when_the_ledger_is_full() -> None:
    def item(name: str, kind: str, state: str = "open", weight: float = 0.5) -> LedgerItem:
        return LedgerItem(
            id=name, kind=kind, text=(name * 100)[:100], state=state, importance=weight
        )  # type: ignore[arg-type]

    items = (
        item("old", "decision", "superseded"), item("a1", "action_item", "done"),
        item("t1", "topic", weight=0.9), item("t2", "topic", weight=0.6),
        item("d1", "decision"), item("a2", "action_item"), item("q", "open_question"),
    )  # fmt: skip
    kept = []
    for limit in (700, 600, 500, 400, 300, 100):
        left, gone = ledger.trim(items, limit)
        assert {*left, *gone} == {*items}
        kept.append([i.id for i in left])
    assert kept == [
        ["old", "a1", "t1", "t2", "d1", "a2", "q"],
        ["a1", "t1", "t2", "d1", "a2", "q"],
        ["t1", "t2", "d1", "a2", "q"],
        ["t2", "d1", "a2", "q"],
        ["d1", "a2", "q"],
        ["d1", "a2", "q"],
    ]


def test_a_full_ledger_first_gives_up_topics_that_another_says_too() -> None:
    said = (
        "The yard in Bergen has 4 docks, Oskar said.",
        "Oskar said that the yard in Bergen has 4 docks, all of them in use.",
        "Oskar said that the yard in Bergen has 5 docks.",
        "Priya reported on the contract with Hartmann.",
    )
    items = tuple(item(n, words) for n, words in enumerate(said))
    items = tuple(replace(i, evidence=(Evidence(f"s{n}"),)) for n, i in enumerate(items))
    left, gone = ledger.trim(items, sum(map(len, said)) - 1)
    assert [item.id for item in gone] == ["i0"]
    assert [e.segment_id for e in left[0].evidence] == ["s0", "s1"]
    assert left[1:] == items[2:], "another number is another thing"
