"""The job beside its peers: all sides get the same work."""

from __future__ import annotations

import ctypes
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvCache, StreamSlot
from operators.decoding.acceptance import Costs
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.meeting_job import Job, in_turn, make_job
from pipelines.lab.benchmarks.peer_llamacpp import LlamaCpp
from pipelines.lab.benchmarks.peer_served import served_sides
from pipelines.lab.benchmarks.peers import QUICK, _config, _ratios, run_ours
from pipelines.lab.benchmarks.toy import ByteTokenizer, toy_decoder
from tests.served import running, scripted

CONFIG = _config(QUICK, streams=2)


@pytest.fixture(scope="module")
def job() -> Job:
    made = make_job(ByteTokenizer(), CONFIG, streams=2, updates=2)
    return made.with_lengths([[1 + at % 3 for at in range(len(s.asks))] for s in made.streams])


def test_what_the_peers_are_given_is_what_the_engine_runs(job: Job) -> None:
    """Windows, instructions and places: the job is written down twice, and both must agree."""
    model = toy_decoder()
    heard: dict[StreamSlot, list[int]] = defaultdict(list)
    asked: dict[Branch, list[int]] = defaultdict(list)
    ours: Counter[tuple[int, ...]] = Counter()
    forward = model.forward

    def recorded(role: Any, cache: KvCache, rows: Sequence[Row]) -> Any:
        for row in rows:
            if row.branch is None:
                heard[row.stream].extend(row.tokens)
            elif role == "prefill":
                asked[row.branch].extend(row.tokens)
                if row.num_logits:
                    fork = max(0, row.branch.fork - len(job.prefix))
                    window = heard[row.stream][max(0, fork - job.window) : fork]
                    ours[(*window, *asked[row.branch])] += 1
        return forward(role, cache, rows)

    model.forward = recorded  # type: ignore[method-assign]
    took, lengths = run_ours(model, CONFIG, Costs(), job, {})
    assert ours == Counter((*job.seen(ask), *ask.instruction) for ask in job.asks)
    assert [len(made) for made in lengths] == [len(stream.asks) for stream in job.streams]
    assert took.answers == len(job.asks)
    assert {ask.kind for ask in job.asks} == {"summary", "translation:fr"}


def test_our_tasks_on_a_server_are_a_side(job: Job) -> None:
    with running(scripted(lambda body: 'Bonjour."')) as script:
        run = Run(model="toy", say=print, backend="openai", server_url=script.url)
        ((name, side),) = served_sides(run, CONFIG).items()
        took = side(job)
    assert name == "our tasks on openai"
    assert took.answers >= sum(len(stream.segments) for stream in job.streams)
    assert took.prefilled == 7 * took.answers
    assert took.generated >= took.answers


def test_the_clock_starts_with_a_full_window(job: Job) -> None:
    longest = max(len(s.text.encode()) for stream in job.streams for s in stream.segments) + 40
    for stream in job.streams:
        assert job.window - longest < stream.warm <= job.window
        assert all(len(job.seen(ask)) in (0, job.window) for ask in stream.asks[2:])
        assert any(job.seen(ask) for ask in stream.asks[2:])


def test_streams_are_different_meetings_and_take_turns(job: Job) -> None:
    texts = [{s.text for s in stream.segments} for stream in job.streams]
    assert not texts[0] & texts[1]
    assert [ask.stream for ask in job.asks[:4]] == [0, 1, 0, 1]
    assert in_turn([[1, 4], [2], [3, 5, 6]]) == [1, 2, 3, 4, 5, 6]


def test_the_best_setting_of_a_peer_counts_and_one_by_one_is_scaled_by_the_work() -> None:
    def row(seconds: float, answers: int, generated: int) -> dict[str, float]:
        return {"seconds": seconds, "answers": answers, "generated": generated}

    table = {
        "longstream x1": row(10.0, 3, 100),
        "transformers, one by one x1": row(40.0, 3, 100),
        "longstream x8": row(50.0, 30, 800),
        "transformers, batches of 8 x8": row(400.0, 30, 800),
        "llama.cpp, prefix cache x8": row(150.0, 30, 800),
        "llama.cpp, shifted cache x8": row(60.0, 30, 800),
    }
    assert _ratios(table, 1) == {"vs_hf_best_1": 4.0, "vs_llamacpp_1": None}
    assert _ratios(table, 8) == {"vs_hf_best_8": 6.4, "vs_llamacpp_8": 1.2}


class Memory:
    """A stand-in for llama.cpp: which token every sequence holds at which position, and what was
    wanted of it. Its answer is always token 7."""

    def __init__(self) -> None:
        self.held: dict[int, dict[int, int]] = defaultdict(dict)
        self.asked: list[list[int]] = []
        self.decoded = 0

    def decode(self, batch: Any) -> int:
        for at in range(batch.n_tokens):
            cells = self.held[batch.seq_id[at][0]]
            assert batch.pos[at] == len(cells), "positions must follow each other without a gap"
            cells[batch.pos[at]] = batch.token[at]
            if batch.logits[at]:
                self.asked.append([cells[i] for i in range(len(cells))])
        self.decoded += batch.n_tokens
        return 0

    def remove(self, number: int, start: int, end: int) -> None:
        cells = self.held[number]
        kept = {p: t for p, t in cells.items() if p < start or (end != -1 and p >= end)}
        self.held[number] = kept

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        assert (start, end) == (-1, -1)
        self.held[target] = dict(self.held[source])

    def add(self, number: int, start: int, end: int, delta: int) -> None:
        assert end == -1
        cells = self.held[number]
        self.held[number] = {p + delta if p >= start else p: t for p, t in cells.items()}


def fake_llama(memory: Memory) -> types.ModuleType:
    api: Any = types.ModuleType("llama_cpp")
    nothing = lambda *args: types.SimpleNamespace()  # noqa: E731
    for name in ("log_callback", "batch_free", "free", "model_free"):
        setattr(api, f"llama_{name}", nothing)
    for name in ("backend_init", "log_set", "model_default_params", "context_default_params"):
        setattr(api, f"llama_{name}", nothing)
    for name in ("model_load_from_file", "init_from_model", "get_memory", "model_get_vocab"):
        setattr(api, f"llama_{name}", lambda *args: 1)
    logits = (ctypes.c_float * 9)(*[0.0] * 7, 1.0, 0.0)
    api.llama_vocab_n_tokens = lambda vocab: 9
    api.llama_batch_init = lambda tokens, embd, seqs: types.SimpleNamespace(
        n_tokens=0,
        token=[0] * tokens,
        pos=[0] * tokens,
        n_seq_id=[0] * tokens,
        seq_id=[[0] for _ in range(tokens)],
        logits=[False] * tokens,
    )
    api.llama_memory_clear = lambda mem, data: memory.held.clear()
    api.llama_memory_seq_rm = lambda mem, *args: memory.remove(*args)
    api.llama_memory_seq_cp = lambda mem, *args: memory.copy(*args)
    api.llama_memory_seq_add = lambda mem, *args: memory.add(*args)
    api.llama_decode = lambda context, batch: memory.decode(batch)
    api.llama_get_logits_ith = lambda context, at: ctypes.cast(
        logits, ctypes.POINTER(ctypes.c_float)
    )
    return api


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("parallel", [1, 4])
def test_llamacpp_answers_the_same_prompts_from_what_it_holds(
    job: Job, shift: bool, parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix and shifted cache: what lies in memory when an answer begins is exactly its prompt."""
    memory = Memory()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake_llama(memory))
    size = len(job.prefix)
    peer = LlamaCpp(
        Path("none"), streams=2, parallel=parallel, window=job.window, prefix=size, threads=1
    )
    took = peer.run(job, shift=shift)
    begun = Counter(tuple(held) for held in memory.asked)
    assert all(begun[tuple(job.prompt(ask))] >= 1 for ask in job.asks)
    assert took.generated == sum(ask.output for ask in job.asks) == len(memory.asked)
    whole = sum(len(job.prompt(ask)) for ask in job.asks)
    fresh = sum(len(s.transcript) - s.warm for s in job.streams)
    fresh += sum(len(ask.instruction) for ask in job.asks)
    if shift:
        assert took.prefilled <= fresh, "it must run no token of the window twice"
    else:
        assert fresh < took.prefilled <= whole - sum(not ask.alone for ask in job.asks) * size
