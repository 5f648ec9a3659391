"""Constraints: answers keep to their grammar, copy no long runs, and are the same with any drafts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from operators.cache.kv_cache import Branch
from operators.config import OperatorConfig
from operators.decoding.constraints import Constraint, Grammar, Grammars, NoCopy
from operators.decoding.drafters import Draft
from operators.decoding.generation import Generation
from operators.decoding.sampling import Sampler
from operators.errors import ConfigError
from operators.events import ResultEvent
from operators.stream_operator import StreamOperator
from operators.tasks.base import Ask, Outcome, Progress, Steps, StreamView, Task
from operators.text import longest_copy
from tests.engine import ToyTokenizer, toy_decoder

TOKENIZER = ToyTokenizer()
VOCAB = TOKENIZER.vocab_size
GRAMMARS = Grammars(TOKENIZER, VOCAB)
SCHEMA = {
    "type": "object",
    "properties": {"done": {"type": "boolean"}, "n": {"type": "integer", "maximum": 99}},
    "required": ["done", "n"],
    "additionalProperties": False,
}
FORMS = [
    Grammar.regex(r"(yes|no|perhaps), [0-9]{2,4} ?euro"),
    Grammar.one_line(24),
    Grammar.schema(SCHEMA),
    Grammar.part_of("before Wednesday at noon, or never"),
]


def logits_after(output: Sequence[int], seed: int) -> Tensor:
    """A model's stand-in: logits that depend on the whole output."""
    generator = torch.Generator().manual_seed(hash((seed, *output)) % 2**31)
    scores = torch.randn(VOCAB, generator=generator)
    scores[32:127] += 2.0
    return scores


def decode(
    constraints: Sequence[Constraint],
    seed: int,
    drafts: random.Random | None = None,
    hot: bool = False,
) -> list[int]:
    """An answer of the stand-in, with random drafts or none. Half of the drafts are what it would
    choose without constraints, so that some are accepted and some are illegal."""
    generation = Generation("t", [1], 40, TOKENIZER.eos_ids, constraints=constraints)
    if hot:
        sampling = OperatorConfig(temperature=1.0, sampling_seed=seed).sampling("t")
        object.__setattr__(generation.decoding, "sampler", Sampler(sampling))
    generation.branch = cast(Branch, SimpleNamespace(length=0, stream=None))
    generation.prompt_done(1, logits_after([], seed)[None])
    while not generation.finish_reason:
        guess: list[int] = []
        for _ in range(drafts.randint(0, 4) if drafts else 0):
            scores = logits_after([*generation.output, *guess], seed)
            for constraint in constraints if drafts and drafts.random() < 0.8 else ():
                scores = constraint.apply(scores, [*generation.output, *guess])
            guess.append(int(scores.argmax()))
        generation.verify_row(Draft(tuple(guess)))
        rows = [
            logits_after([*generation.output, *guess[:at]], seed) for at in range(len(guess) + 1)
        ]
        generation.verified(torch.stack(rows))
    return generation.output


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.kind)
@pytest.mark.parametrize("hot", [False, True])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_drafts_give_the_text_of_none(form: Grammar, hot: bool, seed: int) -> None:
    plain = decode([GRAMMARS.mask(form)], seed, hot=hot)
    assert decode([GRAMMARS.mask(form)], seed, random.Random(seed), hot) == plain


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_answers_match_their_grammar(seed: int) -> None:
    text = [TOKENIZER.decode(decode([GRAMMARS.mask(form)], seed)) for form in FORMS]
    assert re.fullmatch(r"(yes|no|perhaps), [0-9]{2,4} ?euro", text[0])
    assert "\n" not in text[1].rstrip("\n")
    if len(text[2].encode()) < 40:  # else cut by the limit of tokens
        assert json.loads(text[2])["n"] <= 99
    assert text[3] == "-" or text[3] in "before Wednesday at noon, or never"


def test_a_complete_answer_ends_without_another_forward() -> None:
    mask = GRAMMARS.mask(Grammar.regex("ab"))
    assert decode([mask], 1) == list(b"ab")
    assert mask.complete(list(b"ab"))
    assert not mask.complete(list(b"a"))


def test_a_broken_grammar_is_refused() -> None:
    with pytest.raises(ConfigError, match="a grammar cannot be used"):
        GRAMMARS.mask(Grammar.regex("(unclosed"))


@pytest.mark.parametrize(
    "source",
    [
        "so we said that the budget of the whole house is large",
        "我们决定把会议改到星期五上午十点举行",
    ],
)
def test_no_run_of_the_source_gets_too_long(source: str) -> None:
    """A stand-in that only wants to repeat its source is stopped before the fifth unit."""
    tokens = TOKENIZER.encode(source)
    mask = NoCopy(TOKENIZER, [source], 5)
    output: list[int] = []
    for at in range(len(tokens)):
        scores = torch.zeros(VOCAB)
        scores[tokens[at]] = 9.0
        output.append(int(mask.apply(scores, output).argmax()))
    assert longest_copy(TOKENIZER.decode(output), source) <= 5
    assert output[:8] == tokens[:8]


def test_numbers_and_names_may_be_copied() -> None:
    source = "one two three four 40000"
    mask = NoCopy(TOKENIZER, [source], 5)
    before = TOKENIZER.encode("one two three four ")
    assert torch.isfinite(mask.apply(torch.zeros(VOCAB), before)).all()
    named = NoCopy(TOKENIZER, ["one two three four Ana"], 5, free=["Ana"])
    assert torch.isfinite(named.apply(torch.zeros(VOCAB), before)).all()
    plain = NoCopy(TOKENIZER, ["one two three four Ana"], 5)
    assert not torch.isfinite(plain.apply(torch.zeros(VOCAB), before)).all()


def test_the_end_of_an_ordinal_may_be_copied() -> None:
    mask = NoCopy(TOKENIZER, ["one two three four 21st"], 5)
    before = TOKENIZER.encode("one two three four 21")
    assert torch.isfinite(mask.apply(torch.zeros(VOCAB), before)).all()


def test_a_copy_may_not_go_on_without_its_space() -> None:
    """A tokenizer that has most words twice, with a space before them and without."""

    class Words(ToyTokenizer):
        table = ("one", " two", " three", " four", " five", "five", " else")

        def encode(self, text: str) -> list[int]:
            found = []
            while text:
                word = max((w for w in self.table if text.startswith(w)), key=len, default=text[0])
                found += [self.table.index(word)] if word in self.table else []
                text = text[len(word) :]
            return found

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(self.table[i] for i in ids)

    words = Words()
    mask = NoCopy(words, ["one two three four five"], 5)
    allowed = mask.apply(torch.zeros(len(words.table)), words.encode("one two three four"))
    assert [w for w, ok in zip(words.table, torch.isfinite(allowed), strict=True) if not ok] == [
        " five",
        "five",
    ]


def test_the_first_run_may_be_shorter_than_the_others() -> None:
    mask = NoCopy(TOKENIZER, ["one two three four five"], 5, first=3)
    for words, free in (("one two ", False), ("well one two ", True), ("One two ", True)):
        allowed = mask.apply(torch.zeros(VOCAB), TOKENIZER.encode(words))
        assert bool(torch.isfinite(allowed).all()) == free, words


class Verdict(Task):
    """A user's task whose answer has a form."""

    name = "verdict"

    def due(self, progress: Progress) -> Any:
        return "tokens" if progress.tokens >= 16 else None

    def run(self, view: StreamView, occasion: Any) -> Steps:
        form = Grammar.regex("(good|bad)[0-9]{1,12}")
        ask: Ask = self.tools.ask("?", max_tokens=12, grammar=form)
        (answer,) = yield [ask]
        return Outcome(events=(self.tools.result(self.name, view, answer),))


@pytest.mark.parametrize("drafter", ["none", "ngram"])
def test_a_task_brings_its_grammar(drafter: str) -> None:
    config = OperatorConfig(
        window=64,
        slack=16,
        branch_tokens=256,
        drafter=drafter,
        update_tokens=64,
        prompts={"system": "s"},
    )
    operator = StreamOperator(toy_decoder(), config, clock=lambda: 0.0, tasks=[Verdict()])
    stream = operator.open("a")
    for _ in range(6):
        stream.feed("good bad good123 bad12 ")
    stream.close()
    texts = [e.text for e in stream.results() if isinstance(e, ResultEvent)]
    operator.close()
    assert texts
    assert all(re.fullmatch("(good|bad)[0-9]{1,12}", text) for text in texts)
