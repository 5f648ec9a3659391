"""A stream's memory saved and restored, against reading the window's text again.

Both ways end when the stream has taken its next segment in. Re-prefilling is what a worker does
without a snapshot, and an approximation; restored from the snapshot the stream goes on as before, which
is checked by questions to both until enough tokens are compared.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load

from operators.config import OperatorConfig
from operators.events import Segment
from operators.state import Emission, SessionState
from operators.stream_operator import StreamOperator
from pipelines.lab.benchmarks.harness import TOY, Result, Run, interleaved, medians
from pipelines.lab.benchmarks.talk import speech

MODEL = "smollm2-135m"
STREAM = "talk"


def run(run: Run) -> Result:
    """``ratio`` (re-prefill time over restore time), ``save_ms``, ``restore_ms``, ``prefill_ms``,
    ``snapshot_bytes``, ``identical`` over ``tokens_compared``."""
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
    return {
        "ratio": round(times["prefill"] / times["restore"], 2),
        **{f"{name}_ms": round(seconds * 1000, 2) for name, seconds in times.items()},
        "snapshot_bytes": size,
        "window": config.window,
        "dtype": model.dtypes["prefill"],
        "identical": identical,
        "tokens_compared": tokens,
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
