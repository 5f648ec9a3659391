"""What it costs to translate an utterance anew whenever more of it was heard.

Every partial text is translated three times from the same place: *fresh*; with the translation of the
text before it as a *draft*, which changes the time and not the text; and as the product does it live,
behind what is *committed* of it (local agreement of two), with the rest of the last translation as a
draft. The sides take turns, so that a busy machine meets all alike. Times are of the whole answer, its
prompt included. An utterance's first partial has nothing before it and does not count.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from operators.commit import NOTHING_HELD, Held, Hypothesis, committed, policy
from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs, DraftControl
from operators.model.loader import DecoderModel
from pipelines.dev.demo.plan import meeting_files
from pipelines.device.calibration import VERIFY, cost_curve
from pipelines.lab.benchmarks.desk import Desk
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.speculation_jobs import utterances
from pipelines.wire.codec import read_transcript

MODEL = "qwen2.5-coder-1.5b"
POLICY = policy("local-agreement-2")
SIDES = FRESH, DRAFT, COMMITTED = "fresh", "draft", "committed"
GROWTH = 3
"""Words between two partials of the headline; a recogniser says what it has about once a second."""
TOY_COSTS = Costs(CostCurve(((1, 1.0), (64, 1.1))))


@dataclass(frozen=True)
class Sizes:
    utterances: int = 4
    words: int = 18
    growth: tuple[int, ...] = (GROWTH,)


QUICK = Sizes(utterances=1, words=6)
LONG = Sizes(utterances=12, growth=(GROWTH, 1))


@dataclass(frozen=True)
class Measured:
    """One partial text on one side."""

    seconds: float
    verifies: int
    tokens: tuple[int, ...]


def run(run: Run) -> Result:
    """``retranslation_speedup``: whole time of fresh translations over that of those with a draft;
    ``committed_speedup``: over that of those behind committed words. ``by_growth``: words between two
    partials → the same, and forwards of the answers. ``same_text``: share of drafted translations that
    are the fresh ones, token for token (in fp32 all; else near ties may fall otherwise)."""
    sizes = QUICK if run.quick else LONG if run.long else Sizes()
    kind = "fp32" if run.model == TOY else "bf16" if run.dtype == "auto" else run.dtype
    model = run.load(kind if kind in ("fp32", "w8a8") else "bf16", kind)
    costs = TOY_COSTS
    if run.model != TOY:
        with tempfile.TemporaryDirectory() as folder:
            costs = Costs(cost_curve(model, VERIFY, Path(folder), run.say))
    bench = _Bench(model, costs)
    heard = [s for s in read_transcript(meeting_files()[0]) if len(s.text.split()) > 3]
    texts = [s.text.split() for s in utterances(heard, sizes.utterances, sizes.words)]
    found: dict[int, Result] = {}
    for growth in sizes.growth:
        measured = []
        for number, words in enumerate(texts, start=1):
            run.say(f"{growth} more words each time, utterance {number} of {len(texts)}")
            measured += bench.grow(words, growth)
        found[growth] = _figures(measured)
    return {
        "retranslation_speedup": found[GROWTH]["draft_speedup"],
        "committed_speedup": found[GROWTH]["committed_speedup"],
        "same_text": found[GROWTH]["same_text"],
        "weights": dict(model.dtypes),
        "by_growth": found,
        "cost_curve_ms": {n: round(seconds * 1000, 1) for n, seconds in costs.verify.points},
    }


class _Bench:
    """Measures one partial after the other. Every side learns by itself how far drafts hold."""

    def __init__(self, model: DecoderModel, costs: Costs) -> None:
        config = OperatorConfig(
            window=256, update_tokens=128, slots=2, branches=1, branch_tokens=1024
        )
        self._desk, self._costs = Desk(model, config), costs
        self._place = self._desk.place(self._desk.open("talk"))
        self._learned: dict[str, dict[str, DraftControl]] = {side: {} for side in SIDES}

    def grow(self, words: Sequence[str], growth: int) -> list[dict[str, Measured]]:
        """All partials of one utterance but the first, on all sides."""
        tokenizer = self._desk.model.tokenizer
        made: list[dict[str, Measured]] = []
        held, previous = NOTHING_HELD, ""
        for end in (*range(GROWTH, len(words), growth), len(words)):
            text = " ".join(words[:end])
            made.append({side: self._measure(side, text, previous, held) for side in SIDES})
            previous = tokenizer.decode(made[-1][DRAFT].tokens)
            tokens = (*held.opening, *made[-1][COMMITTED].tokens)
            said = Hypothesis(text, len(tokenizer.encode(text)), tokens)
            opening = committed(POLICY, held, said, tokenizer.decode)
            held = Held(opening=opening, before=(*held.before, tokens)[-2:])
        return made[1:]

    def _measure(self, side: str, text: str, previous: str, held: Held) -> Measured:
        desk = self._desk
        config = dataclasses.replace(desk.config, drafter="none" if side == FRESH else "auto")
        tasks, at = desk.tasks(config), desk.at(self._place, self._learned[side])
        if side == COMMITTED:
            asked = tasks.partial(at, text, held)
        else:
            asked = tasks.translate(at, text, previous if side == DRAFT else "")
        (answer,) = desk.run(desk.scheduler(config, self._costs), [(at, asked)])
        output = tuple(t for t in asked.output if t not in desk.model.tokenizer.eos_ids)
        return Measured(answer.prompt_s + answer.decode_s, len(answer.turns), output)


def _figures(measured: Sequence[dict[str, Measured]]) -> Result:
    def total(side: str) -> float:
        return sum(partial[side].seconds for partial in measured)

    tokens = sum(len(partial[FRESH].tokens) for partial in measured)
    same = sum(partial[FRESH].tokens == partial[DRAFT].tokens for partial in measured)
    return {
        "partials": len(measured),
        "tokens": tokens,
        "fresh_s": round(total(FRESH), 2),
        "draft_speedup": round(total(FRESH) / total(DRAFT), 3),
        "committed_speedup": round(total(FRESH) / total(COMMITTED), 3),
        "verifies": {s: sum(partial[s].verifies for partial in measured) for s in SIDES},
        "same_text": round(same / len(measured), 3),
    }
