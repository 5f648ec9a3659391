"""A store that hangs, or is slow, has a bounded share of the model's time."""

from __future__ import annotations

import threading

import pytest

from operators.state import Emission
from pipelines.storage.bounded import MAX_WAITING, REST_FACTOR, SLOW_SECONDS, BoundedStore
from pipelines.storage.snapshots import Snapshots
from tests.operators.test_stream_operator import Clock, make
from tests.pipelines.test_snapshot_store import SPEECH, work

REST = REST_FACTOR * SLOW_SECONDS


class FakeStore:
    """Files in memory. It waits for ``gate``; a call takes ``seconds`` of the clock."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.clock, self.seconds = Clock(), 0.0
        self.fault: OSError | None = None
        self.bounded = BoundedStore(self, 0.3, self.clock)  # type: ignore[arg-type]

    def _take(self, call: str) -> None:
        self.asked.append(call)
        assert self.gate.wait(30)
        self.clock.now += self.seconds
        if self.fault is not None:
            raise self.fault

    def put(self, name: str, data: bytes) -> None:
        self._take(f"put {name}")
        self.files[name] = data

    def get(self, name: str) -> bytes:
        self._take(f"get {name}")
        return self.files[name]

    def delete(self, name: str) -> None:
        self._take(f"delete {name}")
        self.files.pop(name, None)

    def clear(self, folder: str) -> None:
        self._take(f"clear {folder}")

    def erase(self, stream_id: str) -> None:
        self._take(f"erase {stream_id}")


def test_calls_go_through_and_errors_come_back() -> None:
    store = FakeStore()
    store.bounded.put("a", b"1")
    assert store.bounded.get("a") == b"1"
    store.bounded.delete("a")
    store.bounded.clear("x")
    store.fault = FileNotFoundError("gone")
    with pytest.raises(FileNotFoundError):
        store.bounded.get("a")
    store.fault = None
    store.bounded.put("b", b"2")  # what failed quickly costs nobody anything
    assert store.files == {"b": b"2"}


def test_a_store_that_hangs_is_waited_for_once() -> None:
    store = FakeStore()
    store.gate.clear()
    with pytest.raises(OSError, match=r"has not answered in 0\.3 s"):
        store.bounded.put("a", b"1")
    for _ in range(3):
        with pytest.raises(OSError, match="left alone for 5 s"):
            store.bounded.get("a")
    assert store.asked == ["put a"]
    store.gate.set()
    store.clock.now = REST
    store.bounded.put("b", b"2")
    assert store.files == {"b": b"2"}, "what came late was taken back: no state names it"
    assert store.asked == ["put a", "delete a", "put b"]


def test_what_was_given_up_before_its_turn_is_not_done() -> None:
    store = FakeStore()
    store.gate.clear()
    for turn, name in enumerate(("a", "b")):
        store.clock.now = turn * REST
        with pytest.raises(OSError, match="has not answered"):
            store.bounded.put(name, b"1")
    store.gate.set()
    store.clock.now = 3 * REST
    store.bounded.put("c", b"3")
    assert store.asked == ["put a", "delete a", "put c"]


def test_a_slow_store_is_spared_new_files_but_read() -> None:
    store = FakeStore()
    store.seconds = 2 * SLOW_SECONDS
    store.bounded.put("a", b"1")
    store.seconds = 0
    with pytest.raises(OSError, match="was slow; it is left alone for 10 s"):
        store.bounded.put("b", b"2")
    assert store.bounded.get("a") == b"1"
    store.clock.now += 2 * REST
    store.bounded.put("b", b"2")
    store.seconds, store.fault = 2 * SLOW_SECONDS, OSError("too many retries")
    with pytest.raises(OSError, match="too many retries"):
        store.bounded.get("a")
    store.seconds, store.fault = 0, None
    with pytest.raises(OSError, match="left alone"):
        store.bounded.get("a")


def test_an_erasure_waits_for_its_turn_and_nobody_for_it() -> None:
    store, told = FakeStore(), threading.Event()
    answers: list[BaseException | None] = []

    def then(error: BaseException | None) -> None:
        answers.append(error)
        told.set()

    store.gate.clear()
    store.bounded.erase("anna", then)
    assert not answers
    store.gate.set()
    assert told.wait(10)
    assert answers == [None]


def test_calls_that_wait_are_bounded() -> None:
    store, answers = FakeStore(), list[BaseException | None]()
    store.gate.clear()
    for _ in range(MAX_WAITING + 5):
        store.bounded.erase("anna", answers.append)
    refused = list(answers)
    store.gate.set()
    assert 4 <= len(refused) <= 5  # one is out of the queue already, or not yet
    assert all("calls wait for the store" in str(error) for error in refused)


def test_a_stream_goes_on_beside_a_store_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    store, operator = FakeStore(), make(targets=())
    operator.open("a")
    store.gate.clear()
    emissions: list[Emission] = work(operator, Snapshots(store.bounded, 0, Clock()), SPEECH[:6], 0)
    store.gate.set()
    assert [t for m in emissions for t in m.done] == list(range(6))
    assert emissions[-1].state.snapshot is None
    assert store.asked[0].startswith("put ")
    assert "has not answered" in caplog.text
