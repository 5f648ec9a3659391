"""What a forward costs on this machine: measured once per model, kept in the cache folder.

The curve T(n) of a forward of n tokens decides how many tokens are drafted
(operators.decoding.acceptance); that changes the speed, never the text, so an old or a rough one does
no harm. The curves of several weight types decide which of them generates
(:func:`choose_weights`). That does change texts, in their last digits' way, so the choice is kept and
every later start takes the same.

A file lies in ``CACHE/calibration/``, named by what the numbers depend on: processor, threads, model,
number types, version of torch. To measure again, delete it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from operators import languages
from operators.cache.attention import Heads
from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.commit import ALIGNATT, policy
from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs
from operators.decoding.draft_model import FEW
from operators.errors import ConfigError
from operators.model.loader import DecoderModel, Role, load_model
from operators.model.quantization import runs_w8a8
from operators.tasks import alignment
from operators.tasks.prompts import Prompts

KERNELS = 2
"""Part of every file's key: raise it when the engine's forward changes what a forward costs."""
ROUNDS, LONG_ROUNDS, LONG = 5, 2, 64
"""How often a block is timed; those of LONG tokens and more, which take seconds, less often."""
LAYOUT = KvLayout(sinks=4, window=256, slack=128, branch_tokens=128)
"""A full window of this size lies behind the measured blocks."""
VERIFY: Mapping[int, Role] = dict.fromkeys((1, 2, 4, 8, 16, 32, 64), "decode")
"""Block sizes measured of the model itself, and the role they run in."""
DRAFT: Mapping[int, Role] = {
    **dict.fromkeys((1, 2, 4, FEW), "decode"),
    **dict.fromkeys((32, 128), "prefill"),
}
"""Of a draft model: decoding, and catching up."""
AUTOMATIC = ("bf16", "int8", "w8a8")
"""Weight types that may be chosen for generation when none is asked for: those whose perplexity
``longstream bench weights`` found within 2 % of bf16's on every model measured. int4 was not."""
ALIGNMENT = 1
"""Part of the key of alignment heads: raise it when they are found in another way."""
_BLANK = {"language": "", "text": "", "hint": ""}
BLOCK = 3
"""Tokens of a verify block when weight types are compared: an answer's own and two drafts."""


def cost_curve(
    model: DecoderModel,
    blocks: Mapping[int, Role],
    cache: Path,
    say: Callable[[str], None] = lambda message: None,
) -> CostCurve:
    """The curve for this machine: from the cache folder, else measured (seconds) and put there.

    Resets the model's rotary tables: call it before the operator makes its cache.
    """
    key = describe_machine(model, blocks)
    file = _file(cache, key)
    kept = _read(file, key)
    if kept is not None:
        return kept
    say(f"measuring what {model.name} costs on this machine (once)")
    curve = CostCurve.measured(measure(model, blocks).items())
    with contextlib.suppress(OSError):  # no room or no right to write: measure again next time
        _write(file, {"key": key, "points": curve.points})
    return curve


def load_calibrated(
    path: Path,
    config: OperatorConfig,
    cache: Path,
    *,
    name: str,
    device: str = "auto",
    say: Callable[[str], None] = lambda message: None,
) -> DecoderModel:
    """Load a model with the number types of ``config``; on a CPU, with ``dtype_decode`` auto,
    with those weights of generation that are fastest here. Raises ModelError."""
    model = load_model(
        path,
        name=name,
        device=device,
        dtype_prefill=config.dtype_prefill,
        dtype_decode=config.dtype_decode,
        compile=config.compile,
    )
    free = config.dtype_decode == "auto" and model.dtypes["prefill"] == "bf16"
    if free and model.device.type == "cpu":
        kinds = [kind for kind in AUTOMATIC if kind != "w8a8" or runs_w8a8(model.device)]
        choose_weights(model, kinds, config.branches, cache, say)
    return model


def choose_weights(
    model: DecoderModel,
    kinds: Sequence[str],
    rows: int,
    cache: Path,
    say: Callable[[str], None] = lambda message: None,
) -> str:
    """Give the model, which must not have generated anything yet, the weights of generation that are
    fastest for ``rows`` answers at once; returns their type.

    Judged by a step in which every answer decodes one token and one in which each verifies a block
    of :data:`BLOCK` tokens, with equal weight. Raises ModelError for a type that does not go with
    the model's.
    """
    key = {**describe_machine(model, VERIFY), "dtypes": list(kinds), "rows": rows}
    file = _file(cache, key)
    kept = _read_choice(file, key)
    if kept in kinds:
        model.use_for_decode(kept)
        return kept
    step: dict[str, float] = {}
    for kind in kinds:
        say(f"trying {kind} weights for generation")
        model.use_for_decode(kind)
        sizes = (min(rows, LAYOUT.slack), min(rows * BLOCK, LAYOUT.slack))
        step[kind] = sum(measure(model, dict.fromkeys(sizes, "decode")).values())
    best = min(kinds, key=step.__getitem__)
    if best != model.dtypes["decode"]:
        model.use_for_decode(best)
    with contextlib.suppress(OSError):
        _write(file, {"key": key, "choice": best, "seconds": step})
    return best


def measured_costs(
    model: DecoderModel,
    draft: DecoderModel | None,
    config: OperatorConfig,
    cache: Path,
    say: Callable[[str], None] = lambda message: None,
) -> Costs | None:
    """What forwards cost here, for the draft control; None where nothing is drafted. Measured on the
    first start with a model."""
    if config.drafter == "none" or config.max_draft == 0:
        return None
    verify = cost_curve(model, VERIFY, cache, say)
    drafting = cost_curve(draft, DRAFT, cache, say) if draft is not None else None
    return Costs(verify, drafting)


def alignment_heads(
    model: DecoderModel,
    config: OperatorConfig,
    cache: Path,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Heads]:
    """The alignment heads for every target, if the policy needs them: from the cache folder, else
    measured (seconds to a minute per language) and put there. A stream's own targets beyond
    the settings' use another language's. Resets the model's rotary tables like :func:`cost_curve`."""
    if policy(config.translation_policy).kind != ALIGNATT:
        return {}
    prompts = Prompts(model.tokenizer, config.prompts)
    found: dict[str, Heads] = {}
    for tag in map(languages.canonical, config.targets):
        key: dict[str, object] = {
            "alignment": ALIGNMENT,
            "model": model.fingerprint,
            "dtypes": dict(model.dtypes),
            "prompt": hashlib.sha256(
                repr(prompts.alone("translate", **_BLANK)).encode()
            ).hexdigest(),
            "target": tag,
        }
        file = _file(cache, key)
        heads = _read_heads(file, key)
        if heads is None:
            say(f"measuring the alignment heads of {model.name} for {tag} (once)")
            heads = alignment.measure(model, prompts, tag)
            with contextlib.suppress(OSError):
                _write(file, {"key": key, "heads": [[n, *h] for n, h in heads.items()]})
        found[tag] = heads
    return found


def _read_heads(file: Path, key: dict[str, object]) -> Heads | None:
    try:
        data = json.loads(file.read_text())
        if data["key"] != key:
            return None
        return {int(layer): tuple(int(h) for h in heads) for layer, *heads in data["heads"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(cache: Path, key: dict[str, object]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "calibration" / f"{name}.json"


def describe_machine(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[str, object]:
    """Everything the curve depends on."""
    return {
        "kernels": KERNELS,
        "processor": _processor(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": model.fingerprint,
        "dtypes": dict(model.dtypes),
        "blocks": {str(n): role for n, role in blocks.items()},
    }


def measure(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[int, float]:
    """Seconds of a forward by its number of tokens: the least of several interleaved rounds, which
    other programs on the machine disturb least."""
    cache = model.new_cache(LAYOUT, slots=1, branches=1)
    slot = cache.allocate()
    while slot.length < LAYOUT.slot_tokens:
        model.forward("prefill", cache, [Row(slot, [7] * LAYOUT.slack)])
    branch = cache.fork(slot)
    least = dict.fromkeys(blocks, float("inf"))
    for turn in range(ROUNDS + 1):
        for tokens, role in blocks.items():
            if tokens >= LONG and turn > LONG_ROUNDS:
                continue
            began = time.perf_counter()
            logits = model.forward(
                role, cache, [Row(slot, [7] * tokens, branch, num_logits=tokens)]
            )
            float(logits[-1, 0])  # waits for a device that works on its own
            took = time.perf_counter() - began
            branch.length -= tokens
            if turn:  # the first round warms up
                least[tokens] = min(least[tokens], took)
    return least


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x {os.cpu_count()}"
    return f"{platform.processor() or platform.machine()} x {os.cpu_count()}"


def _read(file: Path, key: dict[str, object]) -> CostCurve | None:
    try:
        data = json.loads(file.read_text())
        if data["key"] != key:
            return None
        return CostCurve(tuple((int(n), float(seconds)) for n, seconds in data["points"]))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def _read_choice(file: Path, key: dict[str, object]) -> str:
    try:
        data = json.loads(file.read_text())
        return str(data["choice"]) if data["key"] == key else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write(file: Path, data: dict[str, object]) -> None:
    """Appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{file.stem}-", dir=file.parent)
    try:
        with os.fdopen(handle, "w") as out:
            json.dump(data, out)
        Path(draft).replace(file)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise
