"""A stream restored from its snapshot goes on token for token; what is no snapshot is refused."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load, save

from operators.cache import batch
from operators.errors import CapacityError, SnapshotError
from operators.events import Segment
from operators.model.loader import DecoderModel
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from tests.engine import ToyTokenizer, toys
from tests.operators.test_stream_operator import CONFIG, Clock, drain, make, speech
from tests.toy import toy_model

ROOT = Path(__file__).parents[2]
SPEECH = speech("a", 30)
BEFORE, BETWEEN = SPEECH[:12], SPEECH[12:14]


def feed(operator: StreamOperator, segments: list[Segment], ticket: int) -> list[Emission]:
    for at, segment in enumerate(segments, start=ticket):
        operator.feed(segment, at)
    return drain(operator)


def until_quiet() -> StreamOperator:
    """An operator whose stream has wrapped around its window and done all it was given."""
    operator = make()
    operator.open("a")
    feed(operator, BEFORE, 0)
    assert operator._sessions["a"].evicted_total > 0
    return operator


@functools.cache
def a_snapshot() -> bytes:
    return until_quiet().snapshot("a")


def told(emissions: list[Emission]) -> list[object]:
    """Every event in full, but for how the stream was restored and what drafting cost."""
    found = []
    for emission in emissions:
        for event in emission.events:
            plain = msgspec.to_builtins(event)
            plain.pop("usage")
            plain.get("kv", {}).pop("restored", None)
            found.append(plain)
    return found


def restored(emissions: list[Emission]) -> set[str]:
    return {e.kv.restored for m in emissions for e in m.events if hasattr(e, "kv")}


def main() -> None:
    """Run by the test below in a process of its own: restore, go on, print the events."""
    torch.set_num_threads(1)  # as there
    batch.GROUP_TOKENS = int(sys.argv[4])  # attended in the same blocks as there
    with toys(device=sys.argv[2], dtype=sys.argv[3]):
        operator = make()
    operator.open("a", snapshot=Path(sys.argv[1]).read_bytes())
    after = feed(operator, SPEECH[12:], 12)
    assert restored(after) == {"snapshot"}
    print(json.dumps(told(after)))


def test_a_new_process_goes_on_token_for_token(device: str, dtype: str, tmp_path: Path) -> None:
    operator = until_quiet()
    file = tmp_path / "a.safetensors"
    file.write_bytes(operator.snapshot("a"))
    arguments = [str(file), device, dtype, str(batch.GROUP_TOKENS)]
    there = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.operators.test_snapshot", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert there.returncode == 0, there.stderr
    here = told(feed(operator, SPEECH[12:], 12))
    assert len(here) > 30  # translations into two languages, updates, the final revision
    assert json.loads(there.stdout) == json.loads(json.dumps(here))


@pytest.mark.usefixtures("device")
def test_what_was_said_after_the_snapshot_is_run_again_behind_it() -> None:
    """The state is newer than the snapshot by a few segments: still exact."""
    operator = until_quiet()
    snapshot = operator.snapshot("a")
    state = feed(operator, BETWEEN, 12)[-1].state
    other = make()
    other.open("a", state, snapshot)
    after = feed(other, SPEECH[14:], 14)
    assert restored(after) == {"snapshot"}
    assert told(after) == told(feed(operator, SPEECH[14:], 14))


@pytest.mark.usefixtures("device", "dtype")
def test_the_memory_comes_back_to_the_last_bit_and_taking_it_changes_nothing() -> None:
    operator, other = until_quiet(), make()
    first = operator.snapshot("a")
    other.open("a", snapshot=first)
    assert other.snapshot("a") == first == operator.snapshot("a")
    stream = operator._sessions["a"]
    assert stream.slot is not None
    assert torch.equal(load(first)["kv"], operator.cache.export(stream.slot))
    operator._residency.evict(stream)
    assert operator.snapshot("a") == first


def test_what_was_covered_after_the_snapshot_is_not_covered_again() -> None:
    """An update by time, and no word since: the state is ahead of the snapshot by that alone."""
    operator, other = (make(update_interval_s=10.0) for _ in range(2))
    operator.open("a")
    feed(operator, BEFORE, 0)
    session, said = operator._sessions["a"], 12
    while not session.uncovered_tokens:
        feed(operator, SPEECH[said : said + 1], said)
        said += 1
    snapshot = operator.snapshot("a")
    operator._clock.now = 10.0  # type: ignore[attr-defined]
    (update,) = drain(operator)
    assert update.state.uncovered_tokens == 0
    other.open("a", update.state, snapshot)
    assert other._sessions["a"].uncovered_tokens == 0
    after = feed(other, SPEECH[said:40], said)
    assert restored(after) == {"snapshot"}
    assert told(after) == told(feed(operator, SPEECH[said:40], said))


def test_a_state_the_snapshot_does_not_reach_is_replayed_from_its_text() -> None:
    operator = until_quiet()
    snapshot = operator.snapshot("a")
    far = feed(operator, SPEECH[12:28], 12)[-1].state
    other = make()
    other.open("a", far, snapshot)
    assert restored(feed(other, SPEECH[28:], 28)) == {"replay"}


def test_a_snapshot_newer_than_the_state_is_not_used() -> None:
    """It would hold words whose segments are going to be fed again."""
    operator = until_quiet()
    old: SessionState = drain_state(operator)
    feed(operator, BETWEEN, 12)
    other = make()
    other.open("a", old, operator.snapshot("a"))
    assert restored(feed(other, SPEECH[12:], 12)) == {"replay"}


def drain_state(operator: StreamOperator) -> SessionState:
    return operator._sessions["a"].state()


def test_segments_already_taken_are_still_known() -> None:
    other = make()
    other.open("a", snapshot=a_snapshot())
    (emission,) = feed(other, [BEFORE[5]], 12)
    assert (emission.events, emission.done) == ([], [12])


def test_a_busy_stream_has_no_snapshot() -> None:
    operator = until_quiet()
    operator.feed(SPEECH[12], 12)
    with pytest.raises(CapacityError, match="step"):
        operator.snapshot("a")


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"window": 128}, "window"), ({"slack": 16}, "slack"), ({"prompts": {}}, "pinned prefix")],
)
def test_another_operators_snapshot_is_refused_and_says_why(changes: dict, what: str) -> None:
    snapshot = a_snapshot()
    other = make(**changes, branch_tokens=1500)
    with pytest.raises(SnapshotError, match=f"another {what}"):
        other.open("a", snapshot=snapshot)


def test_another_models_snapshot_is_refused() -> None:
    network = toy_model()
    network.model.norm.weight.data[0] += 1
    changed = DecoderModel(network, ToyTokenizer(), name="toy-llama")
    other = StreamOperator(changed, CONFIG, clock=Clock())
    with pytest.raises(SnapshotError, match="another model"):
        other.open("a", snapshot=a_snapshot())


def test_torn_and_altered_files_are_noticed() -> None:
    whole = a_snapshot()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    other = make()
    for bad in (
        b"",
        whole[:7],
        whole[:5000],
        whole[:-1],
        bytes(flipped),
        save({"kv": torch.ones(2)}),
    ):
        with pytest.raises(SnapshotError):
            other.open("a", snapshot=bytes(bad))
    assert other._sessions == {}


if __name__ == "__main__":
    main()
