"""The reference is checked against stock `transformers` forwards, which know nothing of streams."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.lab.conformance.reference import StreamReference
from tests.toy import ARCHITECTURES, ByteTokenizer, toy_model

torch.set_num_threads(1)

SINKS = [3, 141, 59, 26]
S = len(SINKS)
W = 12
FAR = 4_000_000
TOLERANCE = 1e-4


def random_tokens(n: int, seed: int = 1, vocab: int = ByteTokenizer.vocab_size) -> list[int]:
    return torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_forward(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Logits [n, vocab] of an ordinary causal forward."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@dataclass
class Row:
    """One token of a masked forward: RoPE position, and the rows it sees (itself included)."""

    token: int
    position: int
    sees: list[int]


class MaskedForward:
    """Streaming attention out of one stock forward, by mask and position ids alone.

    RoPE is relative, so transcript rows may keep absolute positions. What is not relative is the
    distance to the sinks, which stops growing: every query gets a copy of the sinks of its own,
    shifted to the right distance. A copy sees only itself, so its keys and values are those of the
    sinks at any layer.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, token: int, position: int, sink_distance: int, sees: list[int]) -> int:
        """Add a query and its sink copy, `sink_distance` = query to sink 0; returns its row."""
        copy = len(self.rows)
        for i, sink in enumerate(SINKS):
            own = list(range(copy, copy + i + 1))
            self.rows.append(Row(sink, position - sink_distance + i, own))
        row = len(self.rows)
        self.rows.append(Row(token, position, [*range(copy, row), *sees, row]))
        return row

    def logits(self, model: PreTrainedModel, wanted: list[int]) -> Tensor:
        n = len(self.rows)
        mask = torch.full((1, 1, n, n), torch.finfo(torch.float32).min)
        for i, row in enumerate(self.rows):
            mask[0, 0, i, row.sees] = 0.0
        lowest = min(row.position for row in self.rows)
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([[row.token for row in self.rows]]),
                position_ids=torch.tensor([[row.position - lowest for row in self.rows]]),
                attention_mask=mask,
                use_cache=False,
            )
        return output.logits[0, wanted]


def add_stream(forward: MaskedForward, tokens: list[int], offset: int = 0) -> list[int]:
    """Transcript rows: each sees the W before it and asks the sinks from min(t, S + W)."""
    rows: list[int] = []
    for k, token in enumerate(tokens):
        t = S + offset + k
        rows.append(forward.add(token, t, min(t, S + W), rows[max(0, k - W) :]))
    return rows


def add_branch(
    forward: MaskedForward, transcript: list[int], tokens: list[int], offset: int = 0
) -> list[int]:
    """Branch rows behind `transcript` rows: all see the W before the fork, and their own."""
    f = S + offset + len(transcript)
    rows: list[int] = []
    for j, token in enumerate(tokens):
        sees = transcript[-W:] + rows
        rows.append(forward.add(token, f + j, min(f, S + W) + j, sees))
    return rows


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_before_eviction_it_is_the_plain_causal_forward(arch: str) -> None:
    model = toy_model(arch)
    tokens = random_tokens(60)
    stream = StreamReference(model, SINKS, window=len(tokens))
    logits = torch.cat([stream.sink_logits, stream.ingest(tokens)])
    expected = plain_forward(model, SINKS + tokens)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rope_is_the_plain_causal_forward(rope: dict[str, object]) -> None:
    model = toy_model(rope_parameters={"rope_theta": 10_000.0, **rope})
    tokens = random_tokens(40)
    stream = StreamReference(model, SINKS, window=len(tokens))
    expected = plain_forward(model, SINKS + tokens)[S:]
    torch.testing.assert_close(stream.ingest(tokens), expected, atol=TOLERANCE, rtol=0)


def test_one_layer_after_wrap_is_a_forward_over_the_kept_tokens() -> None:
    """With one layer, keys and values are functions of their tokens, so recomputing is exact."""
    model = toy_model(layers=1)
    tokens = random_tokens(3 * W)
    logits = StreamReference(model, SINKS, W).ingest(tokens)
    for k in range(W, len(tokens)):
        kept = SINKS + tokens[k - W : k + 1]
        expected = plain_forward(model, kept)[-1]
        torch.testing.assert_close(logits[k], expected, atol=TOLERANCE, rtol=0)


def test_two_layers_after_wrap_carry_evicted_context() -> None:
    """What a snapshot has to hold: recomputing from the kept tokens is not the stream."""
    model = toy_model(layers=2)
    tokens = random_tokens(3 * W)
    logits = StreamReference(model, SINKS, W).ingest(tokens)[-1]
    recomputed = plain_forward(model, SINKS + tokens[-W - 1 :])[-1]
    assert (logits - recomputed).abs().max() > 0.01


@pytest.mark.parametrize("offset", [0, 5, 3 * W])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_stream_is_the_masked_forward_at_every_layer(arch: str, offset: int) -> None:
    model = toy_model(arch, layers=3)
    tokens = random_tokens(4 * W)
    forward = MaskedForward()
    rows = add_stream(forward, tokens, offset)
    expected = forward.logits(model, rows)
    logits = StreamReference(model, SINKS, W, offset=offset).ingest(tokens)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("offset", [0, 3 * W])
@pytest.mark.parametrize("before", [0, 1, W - 3, W, 3 * W])
def test_branch_is_the_masked_forward_at_every_layer(before: int, offset: int) -> None:
    """Forks at an empty, filling, just full and wrapped window; the branch is longer than W."""
    model = toy_model(layers=3)
    tokens, own = random_tokens(before), random_tokens(W + 5, seed=2)
    forward = MaskedForward()
    rows = add_branch(forward, add_stream(forward, tokens, offset), own, offset)
    expected = forward.logits(model, rows)
    stream = StreamReference(model, SINKS, W, offset=offset)
    stream.ingest(tokens)
    torch.testing.assert_close(stream.fork().append(own), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("arch", ["mistral", "phi3"])
def test_without_sinks_it_is_the_library_s_own_sliding_window(arch: str) -> None:
    tokens = random_tokens(4 * W)
    native = toy_model(arch, layers=3, sliding_window=W + 1)  # the library counts the query too
    logits = StreamReference(toy_model(arch, layers=3), [], W).ingest(tokens)
    torch.testing.assert_close(logits, plain_forward(native, tokens), atol=TOLERANCE, rtol=0)


def test_fork_then_append_is_ingest_while_nothing_is_evicted() -> None:
    model = toy_model()
    stream = StreamReference(model, SINKS, window=30)
    stream.ingest(random_tokens(18))
    tail = random_tokens(12, seed=2)
    branched = stream.fork().append(tail)
    torch.testing.assert_close(branched, stream.ingest(tail), atol=0, rtol=0)


def test_a_branch_leaves_no_trace() -> None:
    model = toy_model()
    tokens = random_tokens(4 * W)
    untouched = StreamReference(model, SINKS, W).ingest(tokens)
    stream = StreamReference(model, SINKS, W)
    pieces = []
    for start in range(0, len(tokens), 8):
        pieces.append(stream.ingest(tokens[start : start + 8]))
        branch = stream.fork()
        branch.append(random_tokens(5, seed=start))
        branch.rollback(2)
    torch.testing.assert_close(torch.cat(pieces), untouched, atol=0, rtol=0)


def test_open_branches_keep_their_view_while_ingest_goes_on() -> None:
    model = toy_model()
    stream = StreamReference(model, SINKS, W)
    stream.ingest(random_tokens(2 * W))
    first, alone = stream.fork(), stream.fork()
    own = random_tokens(6, seed=2)
    expected = alone.append(own)
    pieces = [first.append(own[:2])]
    stream.ingest(random_tokens(2 * W, seed=3))  # the whole window of `first` leaves the stream
    second = stream.fork()
    later = second.append(own)
    pieces.append(first.append(own[2:]))
    torch.testing.assert_close(torch.cat(pieces), expected, atol=0, rtol=0)
    assert (later - expected).abs().max() > 0.01  # another fork is another view


def test_rollback_forgets_exactly_the_last_tokens() -> None:
    stream = StreamReference(toy_model(), SINKS, W)
    stream.ingest(random_tokens(2 * W))
    own, junk = random_tokens(8, seed=2), random_tokens(5, seed=3)
    expected = stream.fork().append(own)
    branch = stream.fork()
    branch.append(own[:3] + junk)
    branch.rollback(len(junk))
    assert len(branch) == 3
    torch.testing.assert_close(branch.append(own[3:]), expected[3:], atol=0, rtol=0)
    with pytest.raises(ValueError, match="roll back 9 of 8"):
        branch.rollback(9)


def test_all_offsets_past_the_window_are_the_same_stream() -> None:
    model = toy_model()
    tokens = random_tokens(3 * W)
    near = StreamReference(model, SINKS, W, offset=W)
    far = StreamReference(model, SINKS, W, offset=FAR)
    torch.testing.assert_close(far.ingest(tokens), near.ingest(tokens), atol=0, rtol=0)
    assert far.frontier == S + FAR + len(tokens)
    own = random_tokens(5, seed=2)
    torch.testing.assert_close(far.fork().append(own), near.fork().append(own), atol=0, rtol=0)


def test_offset_is_forgotten_once_one_layer_is_saturated() -> None:
    """What sets an offset apart is how the window filled; one layer keeps nothing of that."""
    model = toy_model(layers=1)
    tokens = random_tokens(3 * W)
    start = StreamReference(model, SINKS, W).ingest(tokens)
    far = StreamReference(model, SINKS, W, offset=FAR).ingest(tokens)
    torch.testing.assert_close(far[W:], start[W:], atol=0, rtol=0)
    assert (far[:W] - start[:W]).abs().max() > 0.01


def test_float64_agrees_with_float32() -> None:
    model = toy_model()
    tokens = random_tokens(3 * W)
    single = StreamReference(model, SINKS, W).ingest(tokens)
    double = StreamReference(model, SINKS, W, dtype=torch.float64).ingest(tokens)
    assert double.dtype == torch.float64
    assert model.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=TOLERANCE, rtol=0)


def test_greedy_is_argmax_of_the_branch_s_own_logits() -> None:
    stream = StreamReference(toy_model(), SINKS, W)
    stream.ingest(random_tokens(2 * W))
    prompt = random_tokens(4, seed=2)
    output = stream.fork().greedy(prompt, 10)
    logits = stream.fork().append(prompt + output)
    assert output == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    stop = output[4]
    cut = output[: output.index(stop) + 1]
    assert stream.fork().greedy(prompt, 10, eos_id=stop) == cut


def test_memory_of_the_reference_does_not_grow() -> None:
    stream = StreamReference(toy_model(), SINKS, W)
    stream.ingest(random_tokens(5 * W))
    assert len(stream._transcript) == W


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "at least 1"),
        ({"offset": -1}, "negative"),
        ({"sliding_window": 8}, "sliding window"),
        ({"rope": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "length"),
    ],
)
def test_settings_it_does_not_cover_are_refused(change: dict, message: str) -> None:
    model = toy_model("mistral", sliding_window=change.get("sliding_window"))
    if "rope" in change:
        model = toy_model(rope_parameters=change["rope"])
    with pytest.raises(ValueError, match=message):
        StreamReference(model, SINKS, change.get("window", W), offset=change.get("offset", 0))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_toy_models_are_not_degenerate(arch: str) -> None:
    """The most likely token depends on context, and greedy text is not one token repeated."""
    model = toy_model(arch)
    last = 7
    best = {
        int(plain_forward(model, [*random_tokens(30, s), last])[-1].argmax()) for s in range(20)
    }
    assert len(best) >= 4
    stream = StreamReference(model, SINKS, W)
    stream.ingest(random_tokens(2 * W))
    assert len(set(stream.fork().greedy([last], 30))) >= 4


def test_toy_models_are_reproducible_and_leave_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = toy_model(seed=5), toy_model(seed=5), toy_model(seed=6)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [m.lm_head.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_byte_tokenizer_is_lossless() -> None:
    tokenizer = ByteTokenizer()
    text = "Réunion à 9 h — 会議 🎙️\n\t\x00"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode([0xC3]) == "\ufffd"
    with pytest.raises(ValueError, match="258"):
        tokenizer.decode([258])
