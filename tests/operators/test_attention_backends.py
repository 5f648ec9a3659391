"""Backends of attention against the reference: the Triton kernel in its interpreter, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from operators.cache.attention import TorchAttention
from operators.errors import ModelError
from tests.engine import SINKS, Driver, layout, toy_decoder


def test_the_kernel_attends_as_the_reference_does() -> None:
    """In a process of its own: Triton decides at its import whether kernels are interpreted."""
    pytest.importorskip("triton", reason="NOT TESTED HERE: Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_attention"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [float(line) for line in done.stdout.split()]
    assert len(found) == 4
    assert max(found) < 1e-5


def test_a_model_runs_on_the_backend_it_is_given() -> None:
    class Counting(TorchAttention):
        groups = 0

        def attend_group(self, *args: object, **kwargs: object) -> torch.Tensor:
            self.groups += 1
            return super().attend_group(*args, **kwargs)  # type: ignore[arg-type]

    driver = Driver(toy_decoder(), layout())
    driver.model.attention = counting = Counting()
    driver.stream(SINKS)
    assert counting.groups == driver.model.shape.layers


def test_a_backend_that_does_not_run_here_is_refused() -> None:
    model = toy_decoder()
    model.attend_with("torch")
    with pytest.raises(ModelError, match="needs a CUDA device"):
        model.attend_with("triton")
