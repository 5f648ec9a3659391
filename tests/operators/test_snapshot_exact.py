"""Exact under every way to decode: restored in a new process, a stream goes on token for token with a
draft model, with sampling, and from the store of idle streams; no damage to a file goes unnoticed."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.cache import batch
from operators.engine.snapshot import StreamMemory, from_bytes
from operators.errors import SnapshotError
from operators.state import Emission
from operators.stream_operator import StreamOperator
from tests.engine import toys
from tests.operators.test_offload import MemoryStore, make
from tests.operators.test_stream_operator import drain, speech

ROOT = Path(__file__).parents[2]
SPEECH = speech("a", 20)
BEFORE = 10
KINDS: dict[str, dict[str, object]] = {
    "draft model": {"draft": True},
    "sampling": {"temperature": 0.9, "top_p": 0.95, "sampling_seed": 3},
    "sampling, coupled drafts": {"draft": True, "temperature": 0.9},
    "sampling, rejected drafts": {
        "draft": True,
        "temperature": 1.0,
        "sampling_acceptance": "rejection",
    },
    "out of the store": {"slots": 1, "host_streams": 0},
    "bf16": {"dtype": "bf16"},
    "bf16, draft model, out of the store": {
        "dtype": "bf16",
        "draft": True,
        "slots": 1,
        "host_streams": 0,
    },
}


def operator(kind: str) -> StreamOperator:
    return make(MemoryStore(), **KINDS[kind])  # type: ignore[arg-type]


def go_on(operator: StreamOperator) -> list[list[object]]:
    """Feed the rest; what comes of it, with what the model really wrote."""
    for at, segment in enumerate(SPEECH[BEFORE:], start=BEFORE):
        operator.feed(segment, at)
    return [wrote(emission) for emission in drain(operator) if emission.events]


def wrote(emission: Emission) -> list[object]:
    event = emission.events[-1]
    return [event.revision, event.covers.to_seq, emission.state.last_output["summary"]]


def until_quiet(kind: str) -> StreamOperator:
    made = operator(kind)
    made.open("a")
    for at, segment in enumerate(SPEECH[:BEFORE]):
        made.feed(segment, at)
    drain(made)
    if kind.endswith("out of the store"):
        made._residency.evict(made._sessions["a"])
        assert made._residency.offload.is_on_disk("a")
    return made


def main() -> None:
    """Run by the test below in a process of its own."""
    folder, there = Path(sys.argv[1]), {}
    torch.set_num_threads(1)  # as there
    batch.GROUP_TOKENS = int(sys.argv[3])  # attended in the same blocks as there
    with toys(device=sys.argv[2]):
        for number, kind in enumerate(KINDS):
            made = operator(kind)
            made.open("a", snapshot=(folder / f"{number}").read_bytes())
            there[kind] = go_on(made)
    print(json.dumps(there))


def test_a_new_process_goes_on_token_for_token_however_it_decodes(
    device: str, tmp_path: Path
) -> None:
    here = {}
    for number, kind in enumerate(KINDS):
        made = until_quiet(kind)
        assert made._sessions["a"].evicted_total > 0
        (tmp_path / f"{number}").write_bytes(made.snapshot("a"))
        here[kind] = go_on(made)
        assert len(here[kind]) > 5
    texts = {kind: str(found) for kind, found in here.items()}
    assert texts["draft model"] == texts["out of the store"]  # both greedy
    others = [text for kind, text in texts.items() if kind not in ("out of the store", "bf16")]
    assert len(set(others)) == len(KINDS) - 2
    arguments = [str(tmp_path), device, str(batch.GROUP_TOKENS)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.operators.test_snapshot_exact", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


@functools.cache
def whole() -> tuple[bytes, dict[str, str]]:
    made = until_quiet("draft model")
    return made.snapshot("a"), made._archive.identity


def test_a_snapshot_holds_all_that_belongs_to_the_stream() -> None:
    """By name, so that none of it is lost by accident."""
    made = until_quiet("draft model")
    session = made._sessions["a"]
    memory, kv, draft = from_bytes(*whole())
    assert set(memory.identity) == {
        "layout version",
        "model",
        "tokenizer",
        "pinned prefix",
        "dtype_prefill",
        "dtype_decode",
        "sinks",
        "window",
        "slack",
    }
    assert memory.length == session.frontier
    assert memory.state.cursor == BEFORE - 1
    assert memory.state.items == session.ledger.items
    assert memory.index == session.index.tokens
    assert memory.draft_arms["summary"] == session.draft_controls["summary"].memory
    assert [part.info.offset for part in memory.window] == [
        part.info.offset for part in session.window
    ]
    assert memory.draft is not None
    assert draft is not None
    assert kv.shape[3] == made.cache.layout.slot_tokens


def test_other_settings_are_not_hidden() -> None:
    """The memory is good with them, but the answers are no longer what they would have been."""
    snapshot = until_quiet("sampling").snapshot("a")
    for changes in ({}, {"sampling_seed": 4}):
        other = make(None, **{**KINDS["sampling"], **changes})  # type: ignore[arg-type]
        other.open("a", snapshot=snapshot)
        for at, segment in enumerate(SPEECH[BEFORE:], start=BEFORE):
            other.feed(segment, at)
        first = next(event for emission in drain(other) for event in emission.events)
        assert ("settings_changed" in first.degraded) == bool(changes)


def test_another_draft_models_memory_is_left_aside() -> None:
    snapshot, _ = whole()
    plain = make(None)
    plain.open("a", snapshot=snapshot)
    assert plain._residency.offload.get("a").draft is None
    assert go_on(plain) == go_on(until_quiet("draft model"))


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
@example(cut=0.0)
def test_a_file_cut_anywhere_is_refused(cut: float) -> None:
    data, identity = whole()
    with pytest.raises(SnapshotError):
        from_bytes(data[: int(cut * len(data))], identity)


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), head=st.booleans())
def test_a_bit_flipped_anywhere_is_refused_or_means_the_same(
    place: float, bit: int, head: bool
) -> None:
    """Half of the flips fall into the header, which is small beside the tensors."""
    data, identity = whole()
    size = 8 + int.from_bytes(data[:8], "little") if head else len(data)
    flipped = bytearray(data)
    flipped[int(place * size)] ^= 1 << bit
    try:
        found = from_bytes(bytes(flipped), identity)
    except SnapshotError:
        return
    assert same(found, from_bytes(data, identity))


def same(one: tuple, other: tuple) -> bool:  # type: ignore[type-arg]
    memories: list[StreamMemory] = [one[0], other[0]]
    texts = [msgspec.json.encode(memory) for memory in memories]
    return texts[0] == texts[1] and one[1].equal(other[1]) and one[2].equal(other[2])


if __name__ == "__main__":
    main()
