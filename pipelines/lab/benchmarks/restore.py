"""A stream's memory saved and restored, against reading the window's text again.

Both ways end when the stream has taken its next segment in. Re-prefilling is what a worker does
without a snapshot, and an approximation; restored from the snapshot the stream goes on as before, which
is checked by comparing all keys and values. Beside it llama.cpp's server (``xllamacpp``) saves and
restores a slot of as many tokens. OpenVINO GenAI has no way to save a cache.
"""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import httpx
import torch
from safetensors.torch import load

from operators.config import OperatorConfig
from operators.events import Segment
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.lab.benchmarks.harness import TOY, Result, Run, interleaved, medians
from pipelines.lab.benchmarks.talk import speech
from pipelines.lab.llamacpp_server import serve

MODEL = "smollm2-135m"
STREAM = "talk"
NEXT = 64
"""Tokens that llama.cpp is asked for after a restore."""
PATIENCE_S = 600.0


def run(run: Run) -> Result:
    """``ratio`` (re-prefill time over restore time), ``save_ms``, ``restore_ms``, ``prefill_ms``,
    ``snapshot_bytes``, ``identical`` over ``tokens_compared``; ``llamacpp``: the same of a slot of
    llama.cpp's, its ``identical`` being that of the next tokens; None where it cannot be had."""
    model = run.load("fp32" if run.quick else "bf16")
    config = _config(run)
    here = StreamOperator(model, config, clock=time.monotonic)
    talk = _fill(run, here, 3 * config.window)
    there = StreamOperator(model, config, clock=time.monotonic)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream.safetensors"
        file.write_bytes(here.snapshot(STREAM))
        state = here._sessions[STREAM].state()
        times = medians(
            interleaved(
                {
                    "save": lambda: file.write_bytes(here.snapshot(STREAM)),
                    "restore": lambda: _restore(there, file, talk),
                    "prefill": lambda: _prefill(there, state, talk),
                },
                run.rounds or (2 if run.quick else 7),
                run.say,
            )
        )
        size = file.stat().st_size
        there.open(STREAM, snapshot=file.read_bytes())
    run.say("comparing answers")
    tokens, identical = _compare(here, there)
    peer = None
    if run.model != TOY and find_spec("xllamacpp") is not None:
        run.say("llama.cpp")
        text = " ".join(segment.text for segment in islice(speech(STREAM), config.window))
        heard = model.tokenizer.encode(text)[: config.window]
        after = model.tokenizer.encode(" " + talk.text)
        peer = _llamacpp(run, heard, after)
    return {
        "llamacpp": peer,
        "ratio": round(times["prefill"] / times["restore"], 2),
        **{f"{name}_ms": round(seconds * 1000, 2) for name, seconds in times.items()},
        "snapshot_bytes": size,
        "window": config.window,
        "dtype": model.dtypes["prefill"],
        "identical": identical,
        "tokens_compared": tokens,
    }


def _llamacpp(run: Run, heard: list[int], after: list[int]) -> Result:
    """A slot that holds ``heard`` saved, and restored into another or read again, up to the first token
    behind ``after``; then the next tokens of both."""
    with tempfile.TemporaryDirectory() as folder:
        url = serve(
            models.gguf_file(run.model),
            parallel=2,
            context=len(heard) + len(after) + 2 * NEXT,
            threads=torch.get_num_threads(),
            save_to=Path(folder),
        )
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:

            def post(path: str, **fields: object) -> Result:
                reply = client.post(path, json=fields)
                reply.raise_for_status()
                found: Result = reply.json()
                return found

            def complete(
                slot: int, tokens: list[int], count: int, cached: bool = True
            ) -> list[int]:
                """The next tokens behind ``tokens``."""
                made = post(
                    "/completion",
                    prompt=tokens,
                    n_predict=count,
                    temperature=0,
                    ignore_eos=True,
                    cache_prompt=cached,
                    id_slot=slot,
                    return_tokens=True,
                )
                return [int(token) for token in made["tokens"]]

            def restore() -> None:
                post("/slots/1?action=restore", filename="slot.bin")
                complete(1, [*heard, *after], 1)

            complete(0, heard, 1)
            post("/slots/0?action=save", filename="slot.bin")
            size = (Path(folder) / "slot.bin").stat().st_size
            times = medians(
                interleaved(
                    {
                        "save": lambda: post("/slots/0?action=save", filename="slot.bin"),
                        "restore": restore,
                        "prefill": lambda: complete(1, [*heard, *after], 1, cached=False),
                    },
                    run.rounds or 3,
                    run.say,
                )
            )
            restore()
            there, here = (complete(slot, [*heard, *after], NEXT) for slot in (1, 0))
    return {
        "ratio": round(times["prefill"] / times["restore"], 2),
        **{f"{name}_ms": round(seconds * 1000, 2) for name, seconds in times.items()},
        "snapshot_bytes": size,
        "identical": here == there,
        "tokens_compared": len(here),
    }


def _fill(run: Run, operator: StreamOperator, tokens: int) -> Segment:
    """Feed until the window has been left by twice its size; the segment that comes next."""
    operator.open(STREAM)
    talk = speech(STREAM)
    for segment in talk:
        assert segment.seq is not None
        operator.feed(segment, segment.seq)
        _drain(operator)
        if operator._sessions[STREAM].tokens_total >= tokens:
            break
    run.say(f"{operator._sessions[STREAM].tokens_total} tokens are in")
    return next(s for s in talk if len(s.text) < 60)


def _drain(operator: StreamOperator) -> list[Emission]:
    emissions = []
    while operator.has_work():
        emissions += operator.step()
    return emissions


def _restore(operator: StreamOperator, file: Path, following: Segment) -> None:
    operator.open(STREAM, snapshot=file.read_bytes())
    _go_on(operator, following)


def _prefill(operator: StreamOperator, state: SessionState, following: Segment) -> None:
    operator.open(STREAM, state)
    _go_on(operator, following)


def _go_on(operator: StreamOperator, following: Segment) -> None:
    assert following.seq is not None
    operator.feed(following, following.seq)
    while not any(following.seq in emission.done for emission in operator.step()):
        pass


def _compare(here: StreamOperator, there: StreamOperator) -> tuple[int, bool]:
    """How many positions of KV were compared, and whether all are equal to the last bit."""
    ours, theirs = (load(operator.snapshot(STREAM))["kv"] for operator in (here, there))
    return ours.shape[3], torch.equal(ours, theirs)


def _config(run: Run) -> OperatorConfig:
    toy = run.model == TOY  # reads bytes: its instructions are long
    prompts = {"summary": "Up to {limit} notes:{answer}", "compact": "{ledger}{limit}{answer}"}
    return OperatorConfig(
        window=128 if run.quick else 1024,
        slack=256,
        prefill_budget=256,
        update_tokens=128 if run.quick else 1024,
        ledger_tokens=64 if toy else 320,
        summary_tokens=64,
        slots=1,
        branches=1,
        drafter="none",
        prompts=prompts if toy else {},
    )
