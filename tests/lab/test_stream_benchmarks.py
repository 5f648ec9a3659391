"""What the benchmarks of one stream compute: their numbers against known ones and the reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner

from operators.errors import ConfigError
from pipelines.lab.benchmarks import perplexity
from pipelines.lab.benchmarks.command import app
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.memory import growth, last_over_first
from pipelines.lab.benchmarks.rerotating import RerotatingStream
from pipelines.lab.benchmarks.stats import bootstrap_mean, slope, tenths
from pipelines.lab.benchmarks.toy import toy_decoder, toy_network
from pipelines.lab.conformance.reference import StreamReference
from tests.engine import assert_same_logits, random_tokens
from tests.engine import toy_decoder as one_layer_decoder
from tests.lab.test_benchmarks import quick


def test_a_restored_stream_answers_like_the_original() -> None:
    result = quick("restore")
    assert result["identical"] is True
    assert result["tokens_compared"] >= 200


def test_memory_is_the_formula_and_what_is_held_stays_bounded() -> None:
    result = quick("memory")
    assert result["bytes_per_stream"] == result["bytes_formula"]
    assert result["most_after"]["index_tokens"] <= result["window"]
    assert result["most_after"]["open_offsets"] == result["most_after"]["queued"] == 0


def test_the_length_can_be_chosen() -> None:
    assert quick("perplexity", "--tokens", "1200")["tokens"] == 1200


def test_growth_compares_the_last_tenth_with_the_second() -> None:
    rss = [1.0] * 2 + [100.0, 102.0] + [500.0] * 14 + [109.0, 111.0]
    assert growth(rss) == pytest.approx(110 / 101 - 1)
    assert last_over_first([2.0, 3.0] + [9.0] * 16 + [10.0, 15.0]) == pytest.approx(6 / 3)


@pytest.mark.parametrize("block", [16, 50])
def test_reading_a_book_scores_every_token_as_the_reference_does(block: int) -> None:
    """Whatever the blocks; with the text's own first tokens as sinks."""
    text = random_tokens(150, seed=3)
    run = Run("toy", say=lambda line: None)
    got = perplexity.read(run, toy_decoder(), [], text, sinks=4, window=24, block=block)
    reference = StreamReference(toy_network(), text[:4], window=24)
    logits = torch.cat((reference.sink_logits, reference.ingest(text[4:-1])))
    want = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    assert torch.allclose(got[1:], want.double(), atol=1e-3)


def test_both_sides_see_equally_many_tokens_at_every_place() -> None:
    """By changing one token after the other: which ones matter to the token at a place? With one
    layer nothing is seen through another token's eyes."""

    class Exact(Run):
        def stock(self, dtype: str = "bf16") -> PreTrainedModel:
            return toy_network()

    run, window = Exact("toy", say=lambda line: None), 12
    text, places = random_tokens(60, seed=8), [17, 18, 30, 47, 59]

    def ours(tokens: list[int]) -> torch.Tensor:
        model = one_layer_decoder(layers=1)
        return perplexity.read(run, model, [], tokens, sinks=4, window=window, block=5)[places]

    def anew(tokens: list[int]) -> torch.Tensor:
        return perplexity.recompute(run, tokens, places, seen=4 + window, batch=2)

    for side in (ours, anew):
        plain = side(text)
        matters = []
        for at in range(max(places)):
            other = [*text[:at], (text[at] + 1) % 256, *text[at + 1 :]]
            matters.append(side(other) != plain)
        seen = torch.stack(matters)
        for column, place in enumerate(places):
            found = seen[:place, column].nonzero().flatten().tolist()
            pinned = range(4) if side is ours else range(place - window - 5, place - window - 1)
            assert found == [*pinned, *range(place - window - 1, place)]


def test_windows_recomputed_together_give_what_each_gives() -> None:
    text, places = random_tokens(80, seed=9), list(range(25, 80, 5))
    run = Run("toy", say=lambda line: None)
    together = perplexity.recompute(run, text, places, seen=20, batch=4)
    alone = perplexity.recompute(run, text, places, seen=20, batch=1)
    assert torch.allclose(together, alone, atol=0.05)  # bf16
    assert not torch.allclose(together, together.flip(0), atol=0.05)


def test_the_long_run_needs_a_book() -> None:
    done = CliRunner().invoke(app, ["perplexity", "--long", "--threads", "1"])
    assert done.exit_code == 2
    assert "--text" in done.output


def test_a_book_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 50)
    assert quick("perplexity", "--text", str(tmp_path / "book.txt"))["tokens"] == 1600


@pytest.mark.parametrize("asked", [("--tokens", "1700"), ("--long",)])
def test_a_book_that_is_too_short_is_said_to_be(asked: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 50)
    command = ["perplexity", "--quick", "--text", str(tmp_path / "book.txt"), *asked]
    done = CliRunner().invoke(app, [*command, "--threads", "1"])
    assert done.exit_code == 2
    assert "book.txt has 1,600 tokens" in " ".join(done.output.split())


def test_places_can_be_chosen_and_must_fit() -> None:
    assert quick("perplexity", "--places", "40")["samples"] == 40
    with pytest.raises(ConfigError, match="at most 99"):
        perplexity.sample_places(200, seen=100, count=100)
    assert perplexity.sample_places(200, seen=100, count=99) == list(range(101, 200))


def test_without_sinks_it_is_window_attention() -> None:
    """The paper's baseline: dense attention, each token sees the last W before it and itself."""
    text = random_tokens(90, seed=6)
    run = Run("toy", say=lambda line: None)
    got = perplexity.read(run, toy_decoder(), [], text, sinks=0, window=16, block=8)
    at = torch.arange(len(text))
    seen = (at[None] <= at[:, None]) & (at[None] >= at[:, None] - 16)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    logits = toy_network()(torch.tensor([text]), attention_mask=mask[None, None]).logits[0, :-1]
    want = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    assert torch.allclose(got[1:], want.double(), atol=1e-3)


def test_recompute_sees_the_last_tokens_alone() -> None:
    text = random_tokens(60, seed=4)
    run = Run("toy", say=lambda line: None)
    nll = perplexity.recompute(run, text, [40], seen=20)
    network = toy_network().to(torch.bfloat16)
    logits = network(torch.tensor([text[19:40]])).logits[0, -1].float()
    assert float(nll[0]) == pytest.approx(-float(logits.log_softmax(-1)[text[40]]), abs=1e-2)


def test_sampled_places_are_spread_and_have_a_full_window_behind_them() -> None:
    places = perplexity.sample_places(1000, seen=100, count=10)
    assert len(set(places)) == 10
    assert (places[0], places[-1]) == (101, 999)


def test_ratios_against_recompute_are_of_the_same_tokens() -> None:
    """Ours is 1 % better at every sampled place, and much worse elsewhere."""
    places = list(range(10, 40, 2))
    anew = torch.arange(len(places), dtype=torch.float64)
    ours = torch.full((50,), 9.0, dtype=torch.float64)
    ours[places] = anew + math.log(0.99)
    found = perplexity.compared({"4": ours}, anew, places)
    assert found["ppl_ratio_recompute"] == 0.99
    assert found["ppl_ratio_interval"] == [0.99, 0.99]
    assert found["drift"] == 1.0


def test_the_rerotating_cache_does_the_same_work_as_ours() -> None:
    """Equal logits, so that the comparison is one of speed alone."""
    text = random_tokens(120, seed=5)
    stream = RerotatingStream(toy_network(), sinks=4, window=24)
    got = torch.stack([stream.append(text[:28]), *(stream.append([t]) for t in text[28:])])
    reference = StreamReference(toy_network(), text[:4], window=24)
    assert_same_logits(got, reference.ingest(text[4:])[23:])


def test_bootstrap_interval_of_the_mean() -> None:
    """For normal values it is the textbook interval, mean ± 1.96 sd / √n; for equal ones a point."""
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap_mean([3.0, 3.0, 3.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="two values"):
        bootstrap_mean([1.0])


def test_tenths_and_slope() -> None:
    assert tenths([float(i) for i in range(20)]) == [i + 0.5 for i in range(0, 20, 2)]
    assert slope([0.0, 1.0, 2.0], [5.0, 7.0, 9.0]) == pytest.approx(2.0)
