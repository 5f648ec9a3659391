"""What fewer bits per weight cost in quality: perplexity of the same tokens, by type of weights.

The text is read as generation reads it (role ``generation``, in blocks), behind sinks and a window,
every token predicted from those before it. Each type is compared with bf16 token by token, so that
the interval is that of the difference and not of the text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.model.loader import DecoderModel
from pipelines import models
from pipelines.dev.demo.plan import meeting_files
from pipelines.device.calibration import runs
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.wire.codec import read_transcript

MODEL = "qwen2.5-coder-1.5b"
KINDS = ("bf16", "int8", "w8a8", "int4", "q4")
TOKENS, BLOCK, WINDOW = 2_048, 64, 512


def run(run: Run) -> Result:
    """``ppl_ratio`` of each type to bf16, with its 95 % interval, and ``weight_bytes``."""
    if run.model != TOY:
        models.ensure_four_bits(run.model, run.folder())
    model = run.load("bf16")
    text = _text(run, model)
    nll: dict[str, Tensor] = {}
    held: dict[str, int] = {}
    for kind in KINDS:
        if not runs(kind, model):
            continue
        run.say(f"making {kind} weights")
        model.use_for_decode(kind)
        held[kind] = model.weight_bytes
        nll[kind] = read(model, text, run)
    return {
        "tokens": len(text),
        "perplexity": {kind: round(math.exp(float(v.mean())), 3) for kind, v in nll.items()},
        "ppl_ratio": {kind: _ratio(v - nll["bf16"]) for kind, v in nll.items() if kind != "bf16"},
        "weight_bytes": held,
        "tied": model.tied,
    }


def _text(run: Run, model: DecoderModel) -> list[int]:
    """The book given with ``--text``, or else what is said in the first meeting."""
    want = 96 if run.quick else TOKENS
    if run.text is not None:
        text = run.text.read_text("utf-8")[: want * 8]
    else:
        text = "\n".join(segment.text for segment in read_transcript(meeting_files()[0]))
    return model.tokenizer.encode(text)[:want]


def read(model: DecoderModel, text: list[int], run: Run) -> Tensor:
    """Negative log likelihood of every token but the first, with the generation weights: fp64."""
    layout = KvLayout(sinks=4, window=WINDOW, slack=BLOCK, branch_tokens=1)
    cache = model.new_cache(layout, slots=1, branches=1)
    slot, found = cache.allocate(), []
    targets = torch.tensor([*text[1:], 0])
    for at in range(0, len(text), BLOCK):
        block = text[at : at + BLOCK]
        logits = model.forward("decode", cache, [Row(slot, block, num_logits=len(block))])
        found.append(
            torch.nn.functional.cross_entropy(
                logits.float(), targets[at : at + len(block)], reduction="none"
            ).double()
        )
        if at // BLOCK % 8 == 0:
            run.say(f"{model.dtypes['decode']}: token {at} of {len(text)}")
    return torch.cat(found)[:-1]


def _ratio(difference: Tensor) -> list[float]:
    """Ratio of two perplexities from differences per token, with its 95 % interval."""
    mean = float(difference.mean())
    half = 1.96 * float(difference.std()) / math.sqrt(len(difference))
    return [round(math.exp(x), 4) for x in (mean, mean - half, mean + half)]
