"""What a forward costs on this machine: measured once per model, kept in the cache folder.

The curve T(n) of a forward of n tokens decides how many tokens are drafted
(operators.decoding.acceptance); that changes the speed, never the text, so an old or a rough one does
no harm. The curves of several weight types decide which of them generates
(:func:`choose_weights`). That does change texts, in their last digits' way, and snapshots are refused by
workers with other weights. So the type is a property of the deployment: what the streams' states name
comes first, then what an earlier start chose and kept. Only the first start measures, and a measurement
on a busy machine counts for nothing: then :data:`UNMEASURED` is taken.

A file lies in ``CACHE/calibration/``, named by what the numbers depend on: processor, threads, model,
number types, version of torch. To measure again, delete it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from operators import languages
from operators.cache.attention import Heads
from operators.cache.batch import Row
from operators.cache.kv_cache import KvLayout
from operators.commit import ALIGNATT, policy
from operators.config import DTYPES, OperatorConfig
from operators.decoding.acceptance import CostCurve, Costs
from operators.decoding.draft_model import FEW
from operators.errors import ConfigError
from operators.model.loader import DecoderModel, Role, load_model
from operators.model.quantization import runs_w8a8
from operators.tasks import alignment
from operators.tasks.prompts import Prompts
from pipelines.config.cpu import cpu_limit

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
AUTOMATIC = ("bf16", "int8", "w8a8", "q4")
"""Weight types that may be chosen for generation when none is asked for: none that was seen to lose
more than 0.3 chrF in translation or 1 % in any other figure against bf16 (docs/benchmarks.md).
int4 loses 5 % of perplexity on the smallest model: only where asked for."""
PREFILL = ("bf16", "w8a8")
"""Weight types that may be chosen for reading. A Xeon without matrix units for bf16 read
four times faster with w8a8 (DECISIONS.md)."""
FLOATS = ("fp32", "fp16", "bf16")
"""Who asks for one of these for generation gets the same for reading."""
READ, FEW_LAYERS = 64, 2
"""Tokens of a block when weight types of reading are compared, and on how many layers: such a block
costs arithmetic, not memory."""
UNMEASURED = ("w8a8", "int8")
"""What is taken where a measurement was disturbed, the first that runs: no worse than bf16 in what was
measured, and faster for one token (docs/benchmarks.md)."""
QUIET = 0.5
"""Share of its threads' cores that a process must have had for its measurement to count."""
ALIGNMENT = 1
"""Part of the key of alignment heads: raise it when they are found in another way."""
_BLANK = {"language": "", "text": "", "hint": ""}
SAMPLE_BYTES, SAMPLE_LAYERS = 1_000_000_000, 8
"""Types are compared on the first layers of a model, as many as hold so many bytes (more than a
processor keeps in its own cache, in four bits too) and at least so many; the rest is like them."""
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
    known: Sequence[str] = (),
) -> DecoderModel:
    """Load a model with the number types of ``config``; on a CPU, what is ``auto`` becomes what the
    deployment uses (``known``: ``weights`` of streams' states, newest first), else what is fastest
    here. Raises ModelError."""
    model = load_model(
        path,
        name=name,
        device=device,
        dtype_prefill=config.dtype_prefill,
        dtype_decode=config.dtype_decode,
        compile=config.compile,
        prompt_pack=config.prompt_pack,
    )
    model.attend_with(config.attention)
    if model.device.type == "cpu" and "bf16" in model.dtypes.values():
        _choose(model, config, cache, known, say)
    model.release()
    return model


def _choose(
    model: DecoderModel,
    config: OperatorConfig,
    cache: Path,
    known: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Give a model that was loaded as bf16 the types that the settings leave open."""
    reading = config.dtype_prefill == "auto" and config.dtype_decode not in FLOATS
    writing = config.dtype_decode == "auto"
    if not reading and not writing:
        return
    follow = _followed(model, known, reading=reading, writing=writing, say=say)
    if follow is not None:
        if follow != (model.dtypes["prefill"], model.dtypes["decode"]):
            model.use_for_prefill(follow[0])
            model.use_for_decode(follow[1])
        return
    if reading:
        choose_prefill(model, cache, say)
    if writing:
        choose_weights(model, runnable(model), config.branches, cache, say)


def runnable(model: DecoderModel) -> list[str]:
    """The types that may be chosen for this model on this machine."""
    return [kind for kind in AUTOMATIC if runs(kind, model)]


def runs(kind: str, model: DecoderModel) -> bool:
    """Whether this model can generate with weights of this type on this machine."""
    if kind == "w8a8":
        return runs_w8a8(model.device)
    return model.has_four_bits if kind == "q4" else True


def _followed(
    model: DecoderModel,
    known: Sequence[str],
    *,
    reading: bool,
    writing: bool,
    say: Callable[[str], None],
) -> tuple[str, str] | None:
    """The newest known types, of prefill and decode, that are this model's, that the settings allow
    and that run here."""
    for weights in known:
        fingerprint, _, types = weights.partition(" ")
        prefill, _, decode = types.partition("+")
        given = (reading or prefill == model.dtypes["prefill"]) and (
            writing or decode == model.dtypes["decode"]
        )
        if fingerprint != model.fingerprint or not given:
            continue
        if prefill in PREFILL and decode in DTYPES and runs(prefill, model) and runs(decode, model):
            say(
                f"{prefill} weights for reading, {decode} for generation, as the streams' states say"
            )
            return prefill, decode
        say(
            f"the streams' states were made with {prefill} and {decode} weights, which do not run "
            "here: their texts may differ, and their snapshots are not used"
        )
    return None


def choose_prefill(
    model: DecoderModel, cache: Path, say: Callable[[str], None] = lambda message: None
) -> str:
    """Give the model, which must not have read anything yet, the weights of prefill that read a block
    of :data:`READ` tokens fastest; returns their type."""
    kinds = [kind for kind in PREFILL if runs(kind, model)]
    key = {**describe_machine(model, {READ: "prefill"}), "dtypes": kinds}
    file = _file(cache, key)
    best = _read_choice(file, key)
    if len(kinds) > 1 and best not in kinds:
        share = min(1.0, FEW_LAYERS / model.shape.layers)
        part = model.shallow(FEW_LAYERS) if share < 1 else model
        took, quiet = survey_prefill(part, kinds, say)
        best = best_prefill(took, quiet=quiet)
        if quiet:
            seconds = {kind: whole / share for kind, whole in took.items()}
            with contextlib.suppress(OSError):
                _write(file, {"key": key, "choice": best, "seconds": seconds})
        else:
            say(f"the machine is too busy to compare weights: {best} is taken, and nothing kept")
    if best in kinds and best != model.dtypes["prefill"]:
        model.use_for_prefill(best)
    return model.dtypes["prefill"]


def survey_prefill(
    model: DecoderModel, kinds: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, float], bool]:
    """Seconds of a block by type, and whether the machine was quiet enough for that to count. Leaves the
    model with the last type."""
    took, quiet = {}, True
    for kind in kinds:
        say(f"trying {kind} weights for reading")
        model.use_for_prefill(kind)
        watch = Stopwatch()  # making the weights may well leave cores idle
        took[kind] = measure(model, {READ: "prefill"})[READ]
        quiet &= watch.quiet()
    return took, quiet


def best_prefill(took: Mapping[str, float], *, quiet: bool) -> str:
    """The fastest type; where the measurement was disturbed, w8a8 on a processor without matrix units
    for bf16."""
    if quiet:
        return min(took, key=lambda kind: took[kind])
    return "w8a8" if "w8a8" in took and not torch.cpu._is_amx_tile_supported() else "bf16"


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
    part, share = sample(model)
    found = survey(part, kinds, rows, say)
    del part  # its weights of the last type
    best = min(kinds, key=lambda kind: found[kind].step)
    quiet = all(timing.quiet for timing in found.values())
    if not quiet:
        best = unmeasured(kinds)
        say(f"the machine is too busy to compare weights: {best} is taken, and nothing kept")
    if best != model.dtypes["decode"]:
        model.use_for_decode(best)
    if quiet:
        step = {kind: timing.step / share for kind, timing in found.items()}
        with contextlib.suppress(OSError):
            _write(file, {"key": key, "choice": best, "seconds": step})
    return best


def sample(model: DecoderModel) -> tuple[DecoderModel, float]:
    """What is measured in place of the model, and its share of the layers."""
    layers = model.shape.layers
    few = max(SAMPLE_LAYERS, math.ceil(layers * SAMPLE_BYTES / model.weight_bytes))
    if few >= layers:
        return model, 1.0
    return model.shallow(few), few / layers


def unmeasured(kinds: Sequence[str]) -> str:
    """What is taken of these types without a measurement."""
    return next((kind for kind in UNMEASURED if kind in kinds), kinds[0])


@dataclass(frozen=True)
class Timing:
    """Seconds of a step in which every answer decodes one token, and of one in which each verifies a
    block; bytes of all weights held; whether the machine was quiet enough for that to count."""

    one: float
    block: float
    weight_bytes: int
    quiet: bool

    @property
    def step(self) -> float:
        return self.one + self.block


def survey(
    model: DecoderModel,
    kinds: Sequence[str],
    rows: int,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Timing]:
    """Measure every type with ``rows`` answers at once. Leaves the model with the last one."""
    found = {}
    for kind in kinds:
        say(f"trying {kind} weights for generation")
        model.use_for_decode(kind)
        sizes = (min(rows, LAYOUT.slack), min(rows * BLOCK, LAYOUT.slack))
        watch = Stopwatch()
        took = measure(model, dict.fromkeys(sizes, "decode"))
        found[kind] = Timing(took[sizes[0]], took[sizes[1]], model.weight_bytes, watch.quiet())
    return found


class Stopwatch:
    """Tells whether what was done since it was made had the machine to itself."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def quiet(self) -> bool:
        return had_cores(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def had_cores(wall: float, cpu: float) -> bool:
    """Whether a measurement of so many seconds and so much CPU time was disturbed little enough."""
    return cpu >= QUIET * torch.get_num_threads() * wall


def report(
    path: Path, name: str, threads: int, rows: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every type of weights measured with ``rows`` answers at once; settings that pin the fastest
    of those that may be chosen (``pin``). Raises ModelError."""
    torch.set_num_threads(threads)
    model = load_model(path, name=name, device="cpu", dtype_prefill="bf16", dtype_decode="bf16")
    reads = [kind for kind in PREFILL if runs(kind, model)]
    took, calm = survey_prefill(model, reads, say)
    reading = best_prefill(took, quiet=calm)
    model.use_for_prefill(reading)
    kinds = [k for k in DTYPES if k not in ("auto", "fp32", "fp16") and runs(k, model)]
    found, may = survey(model, kinds, rows, say), runnable(model)
    quiet = calm and all(timing.quiet for timing in found.values())
    best = min(may, key=lambda kind: found[kind].step) if quiet else unmeasured(may)
    return {
        "model": name,
        "rows": rows,
        "threads": threads,
        "cpus": str(cpu_limit()),
        "quiet": quiet,
        "types": {
            kind: {
                "ms_one_token": round(timing.one * 1000, 1),
                f"ms_{BLOCK}_tokens": round(timing.block * 1000, 1),
                "gigabytes": round(timing.weight_bytes / 1e9, 2),
                "may_be_chosen": kind in may,
            }
            for kind, timing in found.items()
        },
        f"ms_to_read_{READ}_tokens": {kind: round(took[kind] * 1000, 1) for kind in reads},
        "pin": {
            "LONGSTREAM_OPERATOR__DTYPE_PREFILL": reading,
            "LONGSTREAM_OPERATOR__DTYPE_DECODE": best,
            "LONGSTREAM_THREADS": str(threads),
        },
    }


def in_words(report: dict[str, Any]) -> str:
    """The same as lines of text."""
    lines = [
        f"{report['model']}, {report['rows']} answers at once, {report['threads']} threads "
        f"({report['cpus']}), milliseconds a step:"
    ]
    for kind, row in report["types"].items():
        note = "" if row["may_be_chosen"] else "  loses quality: only where it is asked for"
        lines.append(
            f"  {kind:5}{row['ms_one_token']:9.1f} one token each{row[f'ms_{BLOCK}_tokens']:9.1f} "
            f"{BLOCK} tokens each  {row['gigabytes']:.2f} GB{note}"
        )
    read = report[f"ms_to_read_{READ}_tokens"]
    of_reading = ", ".join(f"{kind} {ms:.1f}" for kind, ms in read.items())
    lines.append(f"milliseconds to read a block of {READ} tokens: {of_reading}")
    if not report["quiet"]:
        lines.append(
            "The machine was too busy for these numbers to count; the choice is without them."
        )
    lines.append("Pin it for every worker of the deployment:")
    return "\n".join([*lines, *(f"  {name}={value}" for name, value in report["pin"].items())])


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
    slot, full = cache.allocate(), LAYOUT.slot_tokens
    shape = (2, model.shape.layers, model.shape.kv_heads, full, model.shape.head_dim)
    cache.restore(slot, torch.zeros(shape, dtype=model.dtype), full)  # what it holds costs nothing
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
