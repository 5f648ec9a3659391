"""What is committed of a translation while its source still grows never changes, and the final begins
with it: for every policy, on generated talks and on the log of a real meeting."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.cache.attention import Watch
from operators.cache.batch import Row
from operators.commit import Held, Hypothesis, committed, policy
from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.events import Segment, TranslationEvent
from operators.stream_operator import StreamOperator
from operators.tasks.alignment import measure, span_of
from operators.tasks.prompts import Prompts
from tests.engine import ToyTokenizer, layout, toy_decoder
from tests.operators.scripted import Scripted
from tests.operators.test_stream_operator import Clock, drain
from tests.operators.test_translation import PROMPTS, asked

LOG = Path(__file__).parents[1] / "data" / "vexa_session_35.jsonl"
POLICIES = ["finals", "local-agreement-2", "local-agreement-3", "wait-2", "alignatt-3"]
HEADS = {"fr": {0: (0, 1), 1: (3,)}}


def fickle(prompt: str) -> str:
    """A translator that changes its mind with every word it hears."""
    text = asked(prompt)[2]
    rng = random.Random(len(text.split()) // 3)
    return " ".join(w[::-1] if rng.random() < 0.8 else w.upper() for w in text.split()) + "."


def make(rule: str, **changes: object) -> StreamOperator:
    config = OperatorConfig.from_dict(
        {
            "window": 700,
            "slack": 64,
            "branch_tokens": 900,
            "slots": 1,
            "branches": 2,
            "update_tokens": 700,
            "targets": ("fr",),
            "translation_unit_tokens": 60,
            "translate_partials": True,
            "translation_policy": rule,
            "summary_method": "lines",
            "summary_tokens": 8,
            "ledger_tokens": 80,
            "prompts": {**PROMPTS, "summary": "{limit}", "compact": "{ledger}{limit}"},
            **changes,
        }
    )
    operator = StreamOperator(Continuing(fickle), config, clock=Clock(), heads=HEADS)
    operator.open("a")
    return operator


class Continuing(Scripted):
    """Goes on behind an answer that was begun for it: with what its own answer has from there on."""

    def script(self, prompt: str) -> str:
        request, _, begun = prompt.partition("\n>")
        whole = self._answer(request + "\n>") if "Into" in request else ""
        return whole[len(begun) :] if begun else whole


def told(
    operator: StreamOperator, segments: list[Segment], rng: random.Random
) -> list[TranslationEvent]:
    made = []
    for ticket, segment in enumerate(segments):
        operator.feed(segment, ticket)
        for _ in range(rng.choice([0, 2, 60])):
            made += [e for m in operator.step() for e in m.events] if operator.has_work() else []
    made += [e for m in drain(operator) for e in m.events]
    return [e for e in made if isinstance(e, TranslationEvent)]


def check(made: list[TranslationEvent], rule: str) -> None:
    units = defaultdict(list)
    for event in made:
        units[event.unit_id].append(event)
    for events in units.values():
        for before, after in itertools.pairwise(events):
            assert after.committed.startswith(before.committed)
            assert not before.is_final
        assert all(e.policy in (rule, "final", "retranslation", "not_speech") for e in events)


WORDS = st.lists(st.sampled_from(["we", "move", "the", "button,", "again.", "now"]), max_size=14)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hypotheses=st.lists(WORDS, min_size=1, max_size=5),
    rule=st.sampled_from(POLICIES[1:]),
    seed=st.integers(0, 9),
)
def test_committed_never_changes(hypotheses: list[list[str]], rule: str, seed: int) -> None:
    """Also when the recogniser takes back what it said."""
    texts = [" ".join(words) for words in hypotheses] + ["so we move the red button again now."]
    segments = [
        Segment(
            stream_id="a",
            segment_id="u",
            text=text,
            revision=n,
            is_final=n == len(texts) - 1,
            language="en",
        )
        for n, text in enumerate(texts)
    ]
    made = told(make(rule), segments, random.Random(seed))
    check(made, rule)
    assert made[-1].is_final


@pytest.mark.parametrize("rule", POLICIES[1:])
@pytest.mark.parametrize("frame", ["En français :\n\n{}", 'En français :\n"{}"', '"{}"', "„{}“"])
def test_a_line_that_announces_the_translation_is_not_committed(rule: str, frame: str) -> None:
    """It was committed with the first words, and what is committed cannot be mended."""
    operator = make(rule)

    def announcing(prompt: str) -> str:
        request, _, begun = prompt.partition("\n>")
        translation = asked(request)[2].upper()
        return translation[len(begun) :] if begun else frame.format(translation)

    operator.model.script = announcing  # type: ignore[attr-defined]
    texts = ["we move", "we move the", "we move the button", "we move the button again."]
    segments = [
        Segment(
            stream_id="a",
            segment_id="u",
            language="en",
            text=text,
            revision=n,
            is_final=n == len(texts) - 1,
        )
        for n, text in enumerate(texts)
    ]
    made = []
    for segment in segments:
        made += told(operator, [segment], random.Random(0))
    assert made[-1].committed == "WE MOVE THE BUTTON AGAIN."
    check(made, rule)
    assert not [e for e in made if "fran" in e.committed + e.tail]
    assert not [e for e in made if e.committed.startswith(('"', "„"))]
    if not rule.startswith("alignatt"):  # random heads look anywhere
        assert made[-2].committed


def test_a_first_line_that_may_announce_is_shown_and_not_committed() -> None:
    operator = make("wait-1")
    operator.model._answer = lambda prompt: "Il a dit :"  # type: ignore[attr-defined]
    partial = Segment(
        stream_id="a", segment_id="u", text="so he said", is_final=False, language="en"
    )
    (event,) = told(operator, [partial], random.Random(0))
    assert (event.committed, event.tail) == ("", "Il a dit :")


def real_log() -> list[Segment]:
    rows = [json.loads(line) for line in LOG.read_text("utf-8").splitlines()]
    return [
        Segment(
            stream_id="a",
            segment_id=str(row["seq"]),
            revision=row["rev"],
            text=row["text"],
            is_final=row["is_final"],
            language="en",
        )
        for row in rows
    ]


@pytest.mark.parametrize("rule", POLICIES)
def test_committed_never_changes_in_a_real_meeting(rule: str) -> None:
    segments = real_log()[:16]
    made = told(make(rule), segments, random.Random(3))
    check(made, rule)
    early = [e for e in made if e.policy == rule and e.committed and e.tail]
    assert bool(early) == (rule != "finals") or rule.startswith("alignatt")


def decode(tokens: tuple[int, ...]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def text_committed(rule: str, text: str, *, before: tuple[str, ...] = (), **given: object) -> str:
    held = Held(before=tuple(tuple(t.encode()) for t in before))
    made = Hypothesis("a b c d e f", 6, tuple(text.encode()), **given)  # type: ignore[arg-type]
    return decode(committed(policy(rule), held, made, decode))  # type: ignore[arg-type]


def test_each_policy_commits_what_it_says() -> None:
    assert text_committed("finals", "un deux trois") == ""
    assert (
        text_committed("local-agreement-2", "un deux trois", before=("un deux quatre",))
        == "un deux"
    )
    assert text_committed("local-agreement-3", "un deux trois", before=("un deux",)) == ""
    assert text_committed("wait-4", "un deux trois quatre") == "un deux"
    places = (0, 0, 1, 1, 1, 1, 1, 5, 5)
    assert text_committed("alignatt-2", "un deux x", alignment=places) == "un deux"
    assert text_committed("alignatt-2", "un deux x") == "", "nothing is known of its attention"


def test_a_word_or_a_last_mark_is_never_cut_in_two() -> None:
    assert text_committed("local-agreement-2", "un deuxième", before=("un deux",)) == "un"
    assert text_committed("local-agreement-2", "fini.", before=("fini.",)) == ""
    assert text_committed("local-agreement-2", "他说停吧", before=("他说停啊",)) == "他说停"


def test_a_policy_nobody_knows_is_refused() -> None:
    for name in ("wait", "local-agreement-1", "alignatt-x", "sometimes"):
        with pytest.raises(ConfigError, match="translation_policy"):
            policy(name)
    with pytest.raises(ConfigError, match="translate_partials"):
        OperatorConfig(translation_policy="wait-3")


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 5], [2, 6, 1]])
def test_watched_attention_is_that_of_the_tokens_whatever_the_blocks(sizes: list[int]) -> None:
    model = toy_decoder()
    cache = model.new_cache(layout(branch=40), slots=1, branches=1)
    slot = cache.allocate()
    branch = cache.fork(slot, alone=True)
    tokens = [7, 50, 99, 3, 180, 22, 61, 12, 90]
    every = {layer: (0, 1, 2, 3) for layer in range(2)}
    found, at = [], 0
    for size in sizes:
        watch = Watch(every, 0, len(tokens))
        block = tokens[at : at + size]
        model.forward("decode", cache, [Row(slot, block, branch, num_logits=size, watch=watch)])
        found.append(torch.stack([watch.found[layer] for layer in range(2)]))
        at += size
    weights = torch.cat(found, dim=2)
    assert weights.shape == (2, 4, 9, 9)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
    assert weights.triu(1).abs().max() == 0, "no token looks ahead"
    if len(sizes) == 9:
        assert watch.places() == [int(weights[:, :, 8].mean(dim=(0, 1)).argmax())]


def test_heads_are_measured_on_the_models_own_translations() -> None:
    found = measure(
        toy_decoder(), Prompts(ToyTokenizer(), {"translate": "{language} {text}"}), "fr"
    )
    assert sum(map(len, found.values())) <= 6
    assert span_of([1, 2, 3, 4, 5], [3, 4, 9]) == (2, 5)
    assert span_of([1, 2], [7, 8]) is None
