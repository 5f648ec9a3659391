"""vLLM as a peer: what its process is asked, and what becomes of one that fails. The process is a
scripted one."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.lab.benchmarks import peers
from pipelines.lab.benchmarks.harness import Run
from pipelines.lab.benchmarks.meeting_job import Job, make_job
from pipelines.lab.benchmarks.peer_result import Took
from pipelines.lab.benchmarks.peer_vllm import ROUND, WARM, Vllm, eight_bits, version
from pipelines.lab.benchmarks.peers import QUICK, _config
from pipelines.lab.benchmarks.toy import ByteTokenizer
from pipelines.lab.benchmarks.vllm_worker import VllmError, Worker

STAND_IN = """
import json, os, sys
log = open(sys.argv[1], "a")
print(json.dumps({"options": json.loads(sys.argv[2]), "environment": dict(os.environ)}), file=log)
print(json.dumps({"threads": int(os.environ["OMP_NUM_THREADS"])}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(line, end="", file=log, flush=True)
    print(json.dumps({"prefilled": 7, "made": asked["lengths"]}), flush=True)
"""


@pytest.fixture(scope="module")
def job() -> Job:
    made = make_job(ByteTokenizer(), _config(QUICK, streams=2), streams=2, updates=1)
    return made.with_lengths([[1 + at % 3 for at in range(len(s.asks))] for s in made.streams])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {
        "layers.0.q_proj.weight": torch.tensor([[1.0, -2.0], [0.0, 0.0]]).bfloat16(),
        "embed_tokens.weight": torch.ones(3, 2).bfloat16(),
    }
    save_file(weights, folder / "model.safetensors")
    save_file({"no": torch.ones(1)}, folder / "four_bits.safetensors")
    for name in ("config.json", "longstream.json", "tokenizer.json"):
        (folder / name).write_text("{}", "utf-8")
    return folder


def _scripted(script: str, *arguments: str) -> partial[Worker]:
    return partial(Worker, command=(sys.executable, "-c", script, *arguments))


@pytest.mark.parametrize("ngrams", [False, True])
def test_it_is_asked_for_the_same_answers_at_once(
    job: Job, model: Path, tmp_path: Path, ngrams: bool
) -> None:
    log = tmp_path / "log"
    peer = Vllm(tmp_path, model, threads=3, worker=_scripted(STAND_IN, str(log)))
    took = peer.run(job, ngrams=ngrams)
    began, warm, asked = map(json.loads, log.read_text("utf-8").splitlines())
    assert warm["lengths"] == [WARM] * len(job.streams)
    assert asked["prompts"] == [job.prompt(ask) for ask in job.asks]
    assert asked["lengths"] == [ask.output for ask in job.asks]
    options, environment = began["options"], began["environment"]
    assert ("speculative_config" in options) == ngrams
    longest = max(map(len, [*asked["prompts"], *warm["prompts"]]))
    assert longest < options["max_model_len"] <= longest + WARM + ROUND
    assert environment["PYTHONPATH"].startswith(str(tmp_path))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["NUMBA_NUM_THREADS"] == "1"
    assert (took.answers, took.prefilled) == (len(job.asks), 7)
    assert took.generated == sum(ask.output for ask in job.asks)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('print(\'{"error": "ValueError: no such model"}\')', "ValueError: no such model"),
        ("raise SystemExit('out of memory')", "ended with 1: out of memory"),
        ("print('{\"threads\": 9}')", "9 threads instead of 1"),
        ("print('{\"threads\": 1}')", "ended with 0: no output"),
        (STAND_IN.replace('asked["lengths"]', "[1]").replace("sys.argv[1]", "os.devnull"), "1 tok"),
    ],
)
def test_a_process_that_fails_says_why(job: Job, model: Path, script: str, reason: str) -> None:
    peer = Vllm(model, model, threads=1, worker=_scripted(script, ""))
    with pytest.raises(VllmError, match=reason):
        peer.run(job, ngrams=False)


def test_it_gets_eight_bits_and_none_of_our_own_files(model: Path, tmp_path: Path) -> None:
    (made := tmp_path / "made").mkdir()
    eight_bits(model, made)
    assert {file.name for file in made.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    tensors = load_file(made / "model.safetensors")
    assert tensors["layers.0.q_proj.weight"].tolist() == [[64, -127], [0, 0]]
    assert tensors["layers.0.q_proj.weight_scale"][0].item() == pytest.approx(2 / 127)
    assert tensors["embed_tokens.weight"].dtype == torch.bfloat16
    config = json.loads((made / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_without_its_folder_it_is_missing_and_a_failure_ends_no_other_side(
    job: Job, tmp_path: Path
) -> None:
    missing: dict[str, str] = {}
    run = Run("toy", lambda line: None)
    assert peers._vllm(run, missing, {}) == {}
    assert missing == {"vLLM": peers.NO_VLLM}
    assert version(tmp_path) == ""

    def fails(job: Job) -> Took:
        raise VllmError("no such model")

    def works(job: Job) -> Took:
        return Took(1.0, 1, 1, 1)

    sides = {"vLLM: n-grams": fails, "llama.cpp: prefix cache": works}
    found = peers._in_turns(run, QUICK, job, works, sides, missing)
    assert {name: len(took) for name, took in found.items()} == {
        "longstream": 2,
        "llama.cpp: prefix cache": 1,
    }
    assert missing["vLLM: n-grams x2"] == "no such model"
