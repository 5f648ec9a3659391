"""Perplexity along a book that is far longer than the window, against computing every window anew.

*Ours* reads the book once, in blocks, with the first 0, 1 or 4 tokens of it pinned as sinks, or with
the operator's own prompt prefix. With 0 sinks it is the paper's *window attention*: what left the
window is gone, and rotary positions are relative, so nothing else differs. *Recompute* is the paper's
*sliding window with re-computation*, the yardstick: a forward of transformers over the last tokens
alone, as many as ours sees, for each of the sampled places (StreamingLLM, arXiv 2309.17453, table 1).

Compared are the very same tokens, place by place. With 4 sinks both sides see ``4 + W`` tokens and the
one they stand on: ours the text's first 4 and the last W, recompute the last ``4 + W``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.errors import ConfigError
from operators.model.loader import DecoderModel
from operators.tasks.prompts import Prompts
from pipelines.lab.benchmarks.harness import Result, Run
from pipelines.lab.benchmarks.stats import bootstrap_mean, slope, tenths

MODEL = "smollm2-135m"
BOOK = "war-and-peace.txt"
WINDOW, BLOCK = 256, 128
TOKENS, LONG_TOKENS = 100_000, 1_000_000
PLACES = 2_048
BATCH = 8
"""Windows of one length that are recomputed in one forward."""
SINKS = (0, 1, 4)
HEADLINE = "4"
"""The paper's recommended number; ``ppl_ratio_recompute`` is about it."""


def run(run: Run) -> Result:
    """``ppl_ratio_recompute`` with its interval, ``perplexity`` and ``tenths`` by sinks, ``drift``."""
    if run.long and run.text is None:
        raise ConfigError(
            f"--long reads up to {LONG_TOKENS:,} tokens: give a book with --text FILE"
        )
    window, block = (64, 32) if run.quick else (WINDOW, BLOCK)
    model = run.load("bf16")
    text = book(run, model)
    seen = window + int(HEADLINE)
    places = sample_places(len(text), seen, run.places or (16 if run.quick else PLACES))
    prefix = Prompts(model.tokenizer).prefix
    scored = {str(sinks): read(run, model, [], text, sinks, window, block) for sinks in SINKS} | {
        "prefix": read(run, model, prefix, text, 0, window, block)
    }
    anew = recompute(run, text, places, seen)
    start = max(SINKS)
    return {
        "tokens": len(text),
        "window": window,
        "dtype": "bf16",
        "samples": len(places),
        "tokens_seen": {str(sinks): sinks + window + 1 for sinks in SINKS}
        | {"prefix": len(prefix) + window + 1, "recompute": seen + 1},
        **compared(scored, anew, places),
        "perplexity": {k: _ppl(float(v[start:].mean())) for k, v in scored.items()},
        "tenths": {k: [_ppl(x) for x in tenths(v[start:].tolist())] for k, v in scored.items()},
    }


def book(run: Run, model: DecoderModel) -> list[int]:
    """Tokens of the text; the one that comes with the project unless another is given. Raises
    ConfigError when it has fewer than were asked for: it is not begun again."""
    asked = run.tokens or (LONG_TOKENS if run.long else None)
    want = asked or (2_000 if run.quick else TOKENS)
    if run.text is not None:
        text = run.text.read_text("utf-8")
    else:
        text = (resources.files("pipelines.dev") / "data" / "books" / BOOK).read_text("utf-8")
    tokens = model.tokenizer.encode(text[: want * 8])[:want]
    if len(tokens) < want and len(text) > want * 8:
        tokens = model.tokenizer.encode(text)[:want]
    if asked and len(tokens) < asked:
        name = run.text.name if run.text is not None else f"{BOOK}, which comes with the project,"
        raise ConfigError(
            f"{name} has {len(tokens):,} tokens, {asked:,} were asked for: give a longer text with "
            f"--text FILE, or fewer with --tokens N"
        )
    return tokens


def read(
    run: Run,
    model: DecoderModel,
    prefix: Sequence[int],
    text: Sequence[int],
    sinks: int,
    window: int,
    block: int,
) -> Tensor:
    """Negative log likelihood of every token of ``text``: fp64 ``[len(text)]``, 0 where nothing was
    before it. ``prefix`` is pinned, or else the text's own first ``sinks`` tokens."""
    tokens = [*prefix, *text]
    layout = KvLayout(len(prefix) or sinks, window, block, branch_tokens=1)
    cache = model.new_cache(layout, slots=1, branches=1)
    slot = cache.allocate()
    nll = torch.zeros(len(tokens), dtype=torch.float64)
    targets = torch.tensor(tokens)
    name = f"{len(prefix)} prefix tokens" if prefix else f"{sinks} sinks"
    while slot.length < len(tokens) - 1:
        at = slot.length
        chunk = tokens[at : min(at + block, len(tokens) - 1)]
        logits = model.forward("prefill", cache, [Row(slot, chunk, num_logits=len(chunk))])
        after = slice(at + 1, at + 1 + len(chunk))
        nll[after] = torch.nn.functional.cross_entropy(
            logits.float(), targets[after], reduction="none"
        ).double()
        if at // 10_000 != slot.length // 10_000:
            run.say(f"{name}: {slot.length:,} of {len(tokens):,} tokens")
    return nll[len(prefix) :]


def sample_places(length: int, seen: int, count: int) -> list[int]:
    """Evenly spaced tokens to predict, each once, each with ``seen + 1`` tokens before it. Raises
    ConfigError when the text is too short for so many."""
    first = seen + 1
    if length - first < count:
        raise ConfigError(
            f"{count:,} places do not fit a text of {length:,} tokens, of which the first {first:,} "
            f"fill the window: at most {max(0, length - first):,}"
        )
    return [first + (length - 1 - first) * i // (count - 1) for i in range(count)]


@torch.inference_mode()
def recompute(
    run: Run, text: Sequence[int], places: Sequence[int], seen: int, batch: int = BATCH
) -> Tensor:
    """Negative log likelihood at ``places`` from a forward over the ``seen + 1`` tokens before each:
    what ours sees with sinks and window full, and the token itself. fp64 ``[places]``."""
    network, tokens = run.stock("bf16"), torch.tensor(text)
    nll = torch.zeros(len(places), dtype=torch.float64)
    for at in range(0, len(places), batch):
        some = places[at : at + batch]
        windows = torch.stack([tokens[place - seen - 1 : place] for place in some])
        logits = network(windows, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        nll[at : at + len(some)] = torch.nn.functional.cross_entropy(
            logits, tokens[list(some)], reduction="none"
        ).double()
        if at % (32 * batch) == 0:
            run.say(f"recompute: {at:,} of {len(places):,} places")
    return nll


def compared(scored: dict[str, Tensor], anew: Tensor, places: Sequence[int]) -> Result:
    """Ours over recompute on the same tokens: ratios of perplexity, intervals, drift."""
    gaps = {k: (nll[list(places)] - anew).tolist() for k, nll in scored.items()}
    ratio = {k: _ratio(sum(gap) / len(gap)) for k, gap in gaps.items()}
    main = gaps[HEADLINE]
    half = len(places) // 2
    late, early = main[half:], main[:half]
    change = [b - a for a, b in zip(early, late, strict=False)]
    return {
        "ppl_ratio_recompute": ratio[HEADLINE],
        "ppl_ratio_interval": [_ratio(x) for x in bootstrap_mean(main)],
        "ratio_by_sinks": ratio,
        "interval_by_sinks": {k: [_ratio(x) for x in bootstrap_mean(g)] for k, g in gaps.items()},
        "sampled_perplexity": {k: _ppl(float(v[list(places)].mean())) for k, v in scored.items()}
        | {"recompute": _ppl(float(anew.mean()))},
        "sampled_tenths": {
            "ours": [_ppl(x) for x in tenths(scored[HEADLINE][list(places)].tolist())],
            "recompute": [_ppl(x) for x in tenths(anew.tolist())],
        },
        "ratio_tenths": [_ratio(x) for x in tenths(main)],
        "drift": _ratio(sum(change) / len(change)),
        "drift_interval": [_ratio(x) for x in bootstrap_mean(change)],
        "slope_per_100k": _ratio(100_000 * slope(places, main)),
    }


def _ratio(log_ratio: float) -> float:
    return round(math.exp(log_ratio), 4)


def _ppl(nll: float) -> float:
    return round(math.exp(nll), 3)
