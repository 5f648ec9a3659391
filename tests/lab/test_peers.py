"""The job beside its peers: all sides get the same work."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvCache, StreamSlot
from operators.decoding.acceptance import Costs
from operators.errors import ConfigError
from pipelines.lab.benchmarks import peers
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.meeting_job import Job, in_turn, make_job
from pipelines.lab.benchmarks.peer_llamacpp import LlamaCpp
from pipelines.lab.benchmarks.peer_openvino import OpenVino
from pipelines.lab.benchmarks.peer_served import served_sides
from pipelines.lab.benchmarks.peers import QUICK, _config, _ratios, run_ours
from pipelines.lab.benchmarks.toy import ByteTokenizer, toy_decoder
from tests.served import running, scripted

CONFIG = _config(QUICK, streams=2)


@pytest.fixture(scope="module")
def job() -> Job:
    made = make_job(ByteTokenizer(), CONFIG, streams=2, updates=2)
    return made.with_lengths([[1 + at % 3 for at in range(len(s.asks))] for s in made.streams])


def test_what_the_peers_are_given_is_what_the_engine_runs(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, instructions and places: the job is written down twice, and both must agree."""
    monkeypatch.setattr("operators.cache.kv_cache.PROMPT_TOKENS", 0)  # every prompt runs whole
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


@pytest.mark.slow
@pytest.mark.model
def test_our_tasks_on_transformers_with_an_assistant_are_a_side() -> None:
    made = make_job(ByteTokenizer(), config := _config(QUICK, streams=1), streams=1, updates=1)
    run = Run(model="smollm2-135m", say=print, backend="transformers", draft_model="smollm2-135m")
    ((name, side),) = served_sides(run, config).items()
    took = side(made)
    assert name == "our tasks on transformers"
    assert 1 <= took.answers <= took.generated


def test_only_the_sides_that_are_asked_for_run() -> None:
    with running(scripted(lambda body: "Bonjour.")) as script:
        run = Run(
            *("toy", lambda line: None),
            quick=True,
            backend="openai",
            server_url=script.url,
            sides=("our tasks",),
            streams=(1,),
        )
        found = peers.run(run)
    assert set(found["sides"]) == {"longstream x1", "our tasks on openai x1"}
    assert found["missing"] == {}
    with pytest.raises(ConfigError, match="no side's name begins so"):
        peers.run(Run("toy", print, sides=("TensorRT",)))
    with pytest.raises(ConfigError, match="none can run"):
        peers.run(Run("toy", print, quick=True, sides=("OpenVINO GenAI: prefix",), streams=(1,)))


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
        "transformers: one by one x1": row(40.0, 3, 100),
        "longstream x8": row(50.0, 30, 800),
        "transformers: batches of 8 x8": row(400.0, 30, 800),
        "llama.cpp: prefix cache x8": row(150.0, 30, 800),
        "llama.cpp: shifted cache x8": row(60.0, 30, 800),
    }
    assert _ratios(table, 1) == {
        "vs_hf_best_1": 4.0,
        "vs_llamacpp_1": None,
        "vs_openvino_1": None,
        "vs_vllm_1": None,
        "vs_best_peer_1": 4.0,
    }
    assert _ratios(table, 8) == {
        "vs_hf_best_8": 6.4,
        "vs_llamacpp_8": 1.2,
        "vs_openvino_8": None,
        "vs_vllm_8": None,
        "vs_best_peer_8": 1.2,
    }


@pytest.mark.parametrize("shift", [False, True])
def test_llamacpp_is_asked_for_the_same_answers(job: Job, shift: bool) -> None:
    """Each stream's window answers in their order on a slot of their own; the others anywhere else."""
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        counts = {"tokens_predicted": body["n_predict"], "timings": {"prompt_n": 5}}
        return httpx.Response(200, json=counts)

    with pytest.MonkeyPatch.context() as patch:
        client = httpx.Client
        through = httpx.MockTransport(answer)
        patch.setattr(httpx, "Client", lambda **set: client(**set, transport=through))
        peer = LlamaCpp(Path("none"), streams=2, window=8, prefix=2, threads=1, url="http://peer")
        took = peer.run(job, shift=shift)
    warm, asked = asked[:2], asked[2:]
    assert [body["id_slot"] for body in warm] == [0, 1]
    for slot, stream in enumerate(job.streams):
        windows = [job.prompt(ask) for ask in stream.asks if not ask.alone]
        assert [body["prompt"] for body in asked if body["id_slot"] == slot] == windows
    alone = Counter(tuple(body["prompt"]) for body in asked if body["id_slot"] >= 2)
    assert alone == Counter(tuple(job.prompt(ask)) for ask in job.asks if ask.alone)
    assert all((body["n_cache_reuse"] > 0) == shift for body in asked)
    assert took.generated == sum(ask.output for ask in job.asks)
    assert (took.answers, took.prefilled) == (len(job.asks), 5 * len(job.asks))


def test_openvino_is_asked_for_the_same_answers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its pipeline: prompts, lengths, and all at once."""
    asked: list[tuple[list[int], Any]] = []
    opened: list[Any] = []

    class Pipe:
        def __init__(self, *args: Any, **extra: Any) -> None:
            opened.append(self)

        def add_request(self, number: int, ids: Any, config: Any) -> Any:
            assert number == len(asked)
            asked.append((ids[0].tolist(), config))
            made = types.SimpleNamespace(generated_ids=[0] * config.max_new_tokens)
            return types.SimpleNamespace(read_all=lambda: [made])

        def has_non_finished_requests(self) -> bool:
            return False

    api: Any = types.ModuleType("openvino_genai")
    api.SchedulerConfig = api.GenerationConfig = types.SimpleNamespace
    api.ContinuousBatchingPipeline = Pipe
    core: Any = types.ModuleType("openvino")
    core.Tensor = lambda array: array
    monkeypatch.setitem(sys.modules, "openvino_genai", api)
    monkeypatch.setitem(sys.modules, "openvino", core)
    peer = OpenVino(Path("none"), threads=1, cache_gb=1, lookup=True)
    took = peer.run(job)
    given = [(prompt, config.max_new_tokens) for prompt, config in asked[len(job.streams) :]]
    assert given == [(job.prompt(ask), ask.output) for ask in job.asks]
    assert all(config.num_assistant_tokens for _, config in asked)
    assert took.generated == sum(ask.output for ask in job.asks)
    assert len(opened) == 1
    peer.run(job)
    assert len(opened) == 2, "the cache of the first round holds every prompt"
