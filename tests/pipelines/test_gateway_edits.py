"""What a person does to notes through the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pipelines.test_gateway import one


@pytest.mark.parametrize("op", ["done", "withdraw", "reopen"])
def test_a_person_changes_a_notes_state(op: str) -> None:
    _, client, kept = one()
    answer = client.patch("/v1/streams/s/items/n1", json={"op": op, "by": "Ana", "edit_id": "e1"})
    assert answer.status_code == 202
    (sent,) = kept.segments()
    assert (sent.type, sent.segment_id) == ("edit", "e1")
    assert sent.edit is not None
    assert (sent.edit.op, sent.edit.item) == (op, "n1")
    assert sent.speaker is not None
    assert sent.speaker.name == "Ana"


def test_a_person_corrects_and_adds_notes() -> None:
    _, client, kept = one()
    change = {"op": "update", "text": "Ship on Monday", "owner": "Bo", "due": ""}
    assert client.patch("/v1/streams/s/items/n0", json=change).status_code == 202
    assert (
        client.post("/v1/streams/s/items", json={"text": "New", "kind": "topic"}).status_code == 202
    )
    update, added = (segment.edit for segment in kept.segments())
    assert update is not None
    assert (update.text, update.owner, update.due) == ("Ship on Monday", "Bo", "")
    assert added is not None
    assert (added.op, added.text, added.kind, added.item) == ("add", "New", "topic", "")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("items/none", {"op": "done"}, 404),
        ("items/n1", {"op": "add"}, 400),
        ("items/n1", {"op": "done", "speaker": {}}, 400),
        ("items/n1", {"op": "update", "text": 7.5e300}, 400),
    ],
)
def test_edits_that_cannot_be_done(path: str, body: dict[str, Any], status: int) -> None:
    _, client, kept = one()
    assert client.patch(f"/v1/streams/s/{path}", json=body).status_code == status
    assert kept.records == []
