"""Streams without a slot: in host memory, in a store, and back, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.cache.offload import Offload, OffloadedKv
from operators.config import OperatorConfig
from operators.engine.session import Session
from operators.engine.update_policy import UpdatePolicy
from operators.errors import SnapshotError
from operators.events import SummaryEvent
from operators.state import Emission
from operators.stream_operator import StreamOperator
from pipelines.storage.idle import idle_store
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, Clock, drain, essence, speech

NAMES = ("a", "b", "c", "d")


class MemoryStore:
    """A store in a dictionary, which can be made to fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken = False

    def put(self, name: str, data: bytes) -> None:
        if self.broken:
            raise OSError("no space left")
        self.files[name] = data

    def get(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def delete(self, name: str) -> None:
        if self.broken:
            raise OSError("read only")
        self.files.pop(name, None)


def make(
    store: object = None, *, draft: bool = False, dtype: str = "", **changes: object
) -> StreamOperator:
    changes = {"targets": (), "update_tokens": 40, **changes}
    if draft:
        changes = {"drafter": "draft", "draft_model": "small", **changes}
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **changes})
    small = toy_decoder(seed=1, layers=1, dtype=dtype) if draft else None
    model = toy_decoder(dtype=dtype)
    return StreamOperator(model, config, clock=Clock(), store=store, draft=small)  # type: ignore[arg-type]


def in_turn(operator: StreamOperator, count: int = 12) -> list[Emission]:
    """Every stream says a segment, is worked off, and waits until all others have spoken."""
    emissions: list[Emission] = []
    talks = {name: speech(name, count) for name in NAMES}
    for name in NAMES:
        operator.open(name)
    for at in range(count + 1):
        for talk in talks.values():
            operator.feed(talk[at], at)
            emissions += drain(operator)
    return emissions


def told(emissions: list[Emission]) -> list[object]:
    """Every event with what the model really wrote for it, by stream."""
    found = [
        (m.stream_id, [essence(e) for e in m.events], m.state.last_output.get("summary"))
        for m in emissions
        if m.events
    ]
    assert len({answer for _, _, answer in found}) > len(found) // 2
    return sorted(found, key=lambda one: one[0])


@pytest.mark.usefixtures("device", "dtype")
@pytest.mark.parametrize("draft", [False, True], ids=["plain", "draft model"])
def test_streams_that_went_to_the_store_say_what_they_would_have_said(draft: bool) -> None:
    """One slot, one place in host memory, four streams."""
    store = MemoryStore()
    roomy = in_turn(make(draft=draft))
    tight = in_turn(make(store, draft=draft, slots=1, host_streams=1))
    assert told(tight) == told(roomy)
    assert store.files == {}  # ended streams leave nothing behind


@pytest.mark.usefixtures("device")
def test_rejection_sampling_needs_the_draft_models_memory_too() -> None:
    """There the drafts have a say in the text: it stays the same only if both memories come back."""
    sampled = {"temperature": 1.0, "sampling_acceptance": "rejection"}
    roomy = in_turn(make(draft=True, **sampled), 8)
    tight = in_turn(make(MemoryStore(), draft=True, slots=1, host_streams=0, **sampled), 8)
    assert told(tight) == told(roomy)


@pytest.mark.usefixtures("device", "dtype")
@pytest.mark.parametrize("url", ["folder", "memory://idle"])
def test_kv_comes_back_bit_for_bit(url: str, tmp_path: Path) -> None:
    store = idle_store(str(tmp_path) if url == "folder" else url)
    operator = make(store, slots=1, host_streams=0)
    operator.open("a")
    for at, segment in enumerate(speech("a", 20)[:-1]):
        operator.feed(segment, at)
    drain(operator)
    session = operator._sessions["a"]
    assert session.slot is not None
    before = operator.cache.export(session.slot)
    snapshot = operator.snapshot("a")
    operator._residency.evict(session)
    assert operator._residency.offload.is_on_disk("a")
    assert operator.snapshot("a") == snapshot
    assert operator._residency.make_resident(session)
    assert session.slot is not None
    assert torch.equal(operator.cache.export(session.slot), before)


def test_the_least_recently_used_streams_move_first() -> None:
    store = MemoryStore()
    operator = make(store, slots=1, host_streams=2)
    for at, name in enumerate(NAMES):
        operator.open(name)
        operator.feed(speech(name, 1)[0], at)
        drain(operator)

    def where() -> list[str]:
        sessions = [operator._sessions[name] for name in NAMES]
        on_disk = operator._residency.offload.is_on_disk
        return ["slot" if s.slot else "store" if on_disk(s.stream_id) else "host" for s in sessions]

    assert where() == ["store", "host", "host", "slot"]
    assert (operator._residency.offload.in_host, operator._residency.offload.on_disk) == (2, 1)
    operator.feed(speech("a", 2)[1], 10)
    drain(operator)
    assert where() == ["slot", "store", "host", "host"]
    assert len(store.files) == 1
    operator.close()
    assert store.files == {}
    assert (operator._residency.offload.in_host, operator._residency.offload.on_disk) == (0, 0)


@pytest.mark.parametrize("fault", ["gone", "torn", "another"])
def test_what_the_store_lost_is_run_again_from_its_text(fault: str) -> None:
    """Nothing is lost but exactness, and every event says so."""
    store = MemoryStore()
    operator = make(store, slots=1, host_streams=0)
    talk = speech("a", 20)
    operator.open("a")
    for at, segment in enumerate(talk[:12]):
        operator.feed(segment, at)
    before = drain(operator)
    operator.open("b")
    operator.feed(speech("b", 1)[0], 0)
    drain(operator)
    (name,) = store.files
    if fault == "gone":
        store.files.clear()
    elif fault == "torn":
        store.files[name] = store.files[name][:-1]
    else:
        store.files[name] = b"somebody else's"
    for at, segment in enumerate(talk[12:], start=12):
        operator.feed(segment, at)
    after = [e for e in drain(operator) if e.stream_id == "a"]
    assert {e.kv.restored for m in after for e in m.events} == {"replay"}
    assert after[-1].events[-1].covers.to_seq == 19
    revisions = [e.revision for m in (*before, *after) for e in m.events]
    assert revisions == list(range(1, len(revisions) + 1))
    assert [t for m in after for t in m.done] == list(range(12, 21))


def test_a_full_store_keeps_streams_in_host_memory() -> None:
    store = MemoryStore()
    store.broken = True
    assert told(in_turn(make(store, slots=1, host_streams=0), 6)) == told(in_turn(make(), 6))


def test_streams_without_work_cost_a_step_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = make(slots=1)
    for at in range(50):
        operator.open(f"idle {at}")
    operator.open("a")
    operator.feed(speech("a", 1)[0], 0)
    looked_at: set[str] = set()
    start_due = UpdatePolicy.start_due

    def watched(self: UpdatePolicy, session: Session) -> None:
        looked_at.add(session.stream_id)
        start_due(self, session)

    monkeypatch.setattr(UpdatePolicy, "start_due", watched)
    drain(operator)
    assert looked_at == {"a"}


def test_without_a_store_host_memory_holds_them_all() -> None:
    operator = make(slots=1, host_streams=0)
    for at, name in enumerate(NAMES):
        operator.open(name)
        operator.feed(speech(name, 1)[0], at)
        drain(operator)
    assert operator._residency.offload.in_host == 3


def test_host_memory_is_bounded_without_a_store_too() -> None:
    """It held every idle stream of the worker for ever."""
    free = in_turn(make(slots=1, host_bytes=0), count=6)
    operator = make(slots=1, host_bytes=1)
    bounded = in_turn(operator, count=6)
    assert operator._residency.offload.in_host == 0
    assert operator._residency.offload.losses > 0
    done = [[ticket for e in ran for ticket in e.done] for ran in (free, bounded)]
    assert sorted(done[0]) == sorted(done[1]), "every segment is still done"
    restored = {e.kv.restored for em in bounded for e in em.events if isinstance(e, SummaryEvent)}
    assert "replay" in restored


def test_bytes_in_host_memory_are_counted() -> None:
    kept = OffloadedKv(torch.zeros(10), 10)
    offload = Offload(8, None, max_bytes=100)
    for name in "abc":
        offload.put(name, kept)
    assert (offload.nbytes, offload.in_host, offload.losses) == (80, 2, 1)
    with pytest.raises(SnapshotError, match="let go"):
        offload.get("a")
    for name in "abc":
        offload.drop(name)
    assert offload.nbytes == 0
    assert offload.get("a") is None
