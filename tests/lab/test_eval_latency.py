"""Latency and stability of simultaneous translations: small cases by hand, a real one as published."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from pipelines.lab.eval.latency import (
    Cut,
    Span,
    Timed,
    erased,
    laal,
    lags,
    resegment,
    retractions,
    without_queueing,
    yaal,
)
from pipelines.lab.eval.translation_meters import corpus_bleu, corpus_chrf

DATA = Path(__file__).parent / "data" / "streaming_mt"


def test_laal_of_words_that_keep_pace() -> None:
    assert laal([1000, 2000, 3000, 4000], 4000, 4) == pytest.approx(1000)


def test_laal_of_one_block_at_the_end() -> None:
    assert laal([4000] * 4, 4000, 4) == pytest.approx(4000)  # only the first word counts


def test_laal_does_not_reward_a_long_output() -> None:
    assert laal([1000, 2000], 4000, 4) == pytest.approx((1000 + 1000) / 2)
    assert laal([1000] * 8, 4000, 4) == pytest.approx(1000 - 500 * 3.5)


def test_laal_of_what_comes_after_the_end_or_not_at_all() -> None:
    assert laal([5000, 5000], 4000, 2) == 5000
    assert laal([], 4000, 2) is None


def test_yaal_counts_words_after_the_segment_but_not_after_the_talk() -> None:
    assert yaal([1000, 5000], 4000, 2, remaining=9000) == pytest.approx((1000 + 3000) / 2)
    assert yaal([1000, 5000], 4000, 2, remaining=5000) == pytest.approx(1000)
    assert yaal([6000], 4000, 1, remaining=5000) is None


def test_output_is_cut_where_its_reference_is() -> None:
    spans = [Span(0, 1000, "the cat sleeps"), Span(1000, 3000, "a dog barks loudly")]
    words = ["the", "cats", "sleep", "a", "dog", "bark", "loud"]
    cuts = resegment(spans, [Timed(w, 100.0 * i, 200.0 * i) for i, w in enumerate(words)])
    assert [cut.text for cut in cuts] == ["the cats sleep", "a dog bark loud"]
    assert cuts[1].unaware == (-700, -600, -500, -400)
    assert (cuts[1].length, cuts[1].remaining) == (2000, 2000)


def test_output_in_a_script_without_spaces_is_cut_too() -> None:
    spans = [Span(0, 1000, "猫 在 睡觉"), Span(1000, 2000, "狗 在 叫")]
    words = [Timed(w, 0, 0) for w in ("猫", "睡觉", "狗", "叫")]
    assert [cut.text for cut in resegment(spans, words)] == ["猫 睡觉", "狗 叫"]


def test_no_output_leaves_empty_segments() -> None:
    assert [cut.words for cut in resegment([Span(0, 1, "a"), Span(1, 2, "b")], [])] == [(), ()]


def test_lags_are_means_over_segments_with_output() -> None:
    cut = Cut("a b", ("a", "b"), (1000, 2000), (1500, 2500), 2000, 9000)
    found = lags([cut, Cut("c", (), (), (), 1000, 9000)])
    assert found == pytest.approx(
        {"yaal_ms": 1000, "laal_ms": 1000, "yaal_aware_ms": 1500, "laal_aware_ms": 1500}
    )


def test_erased_words_over_the_length_of_the_last_version() -> None:
    assert erased(["a b", "a c d", "a c d e"]) == (1, pytest.approx(1 / 4))
    assert erased(["会议", "会谈中"]) == (1, pytest.approx(1 / 3))
    assert erased([]) == (0, 0.0)


def test_a_retraction_is_committed_text_that_changes() -> None:
    assert retractions(["", "a", "a b", "a b c"]) == 0
    assert retractions(["a b", "a c", "a"]) == 2


def test_published_scores_of_a_real_system_are_reproduced() -> None:
    """OmniSTEval's own figures for its example. It splits words as Moses does, for which a regular
    expression stands here: within half a percent."""
    spans: dict[str, list[Span]] = defaultdict(list)
    for row in _rows("acl6060_dev.en-de.references.jsonl"):
        spans[row["doc"]].append(Span(row["start_ms"], row["end_ms"], row["ref"]))
    cuts: list[Cut] = []
    for row in _rows("acl6060_dev.en-de.baseline_words.jsonl"):
        timed = zip(row["words"], row["delay_ms"], row["elapsed_ms"], strict=True)
        cuts += resegment(spans[row["doc"]], without_queueing([Timed(*t) for t in timed]))
    outputs, references = [cut.text for cut in cuts], [cut.reference for cut in cuts]
    assert corpus_bleu(outputs, references, "de") == pytest.approx(22.6566, rel=0.005)
    assert corpus_chrf(outputs, references) == pytest.approx(52.5444, rel=0.005)
    assert lags(cuts) == pytest.approx(
        {
            "yaal_ms": 2934.0779,
            "laal_ms": 3073.3884,
            "yaal_aware_ms": 5873.8065,
            "laal_aware_ms": 6144.2184,
        },
        rel=0.005,
    )


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]
