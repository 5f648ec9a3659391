"""The arithmetic of memory is that of the cache itself, and a worker that cannot fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.cache.kv_cache import KvShape
from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.model.loader import load_model
from operators.stream_operator import StreamOperator
from pipelines import models
from pipelines.device.loader import check_memory
from pipelines.device.memory import (
    PROCESS_BYTES,
    Footprint,
    Memory,
    Size,
    admit,
    cgroup_memory,
    footprint,
    size_of_folder,
    size_of_loaded,
)
from pipelines.lab.benchmarks.toy import toy_decoder

GB = 10**9


def test_the_formula_is_what_the_cache_takes() -> None:
    model, config = toy_decoder(), OperatorConfig(slots=3, branches=2)
    operator = StreamOperator(model, config)
    need = footprint(config, size_of_loaded(model, config))
    assert need.slot * need.slots + need.scratch == operator.cache.nbytes
    assert need.device == PROCESS_BYTES + model.weight_bytes + operator.cache.nbytes
    assert need.total == need.device + config.host_streams * need.slot


def test_a_draft_model_counts_twice_its_own_shape() -> None:
    small = Size(10, KvShape(1, 1, 8), torch.bfloat16, 4)
    alone, both = footprint(OperatorConfig(), small), footprint(OperatorConfig(), small, small)
    assert both.slot == 2 * alone.slot
    assert both.weights == 20


def test_what_can_never_fit_is_refused_with_the_number_that_does() -> None:
    need = Footprint(2 * GB, GB, GB, slots=10, host_streams=0, on_cpu=False)
    with pytest.raises(ConfigError, match="at most 5 slots fit"):
        admit(need, Memory(8 * GB, 8 * GB, "this machine"))
    assert admit(need, Memory(13 * GB, 13 * GB, "this machine")) is None


def test_what_will_not_fit_later_or_not_now_is_said() -> None:
    need = Footprint(2 * GB, GB, 0, slots=2, host_streams=10, on_cpu=True)
    there = Memory(8 * GB, 8 * GB, "the container's memory limit")
    assert "lower operator.host_streams to 3" in str(admit(need, there))
    assert "only 1.00 GB are free now" in str(admit(need, Memory(20 * GB, GB, "this machine")))


def test_a_worker_beyond_its_memory_ends_before_it_allocates() -> None:
    model = toy_decoder()
    with pytest.raises(ConfigError, match=r"lower operator\.window"):
        check_memory(model, None, OperatorConfig(slots=10**9), lambda text: None)
    said: list[str] = []
    check_memory(model, None, OperatorConfig(slots=1, host_streams=10**9), said.append)
    assert "offload_url" in said[0]


def test_limits_of_control_groups_of_both_versions(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_memory(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("600\n")
    assert cgroup_memory(tmp_path) == (1000, 600)
    old = tmp_path / "old"
    for name, text in {
        "memory/memory.limit_in_bytes": "2000",
        "memory/memory.usage_in_bytes": "5",
    }.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    assert cgroup_memory(old) == (2000, 5)


@pytest.mark.slow
@pytest.mark.model
def test_a_folders_size_is_the_loaded_models() -> None:
    smollm = models.resolve("smollm2-135m")
    model, config = load_model(smollm), OperatorConfig(dtype_decode="bf16")
    planned, real = size_of_folder(smollm, config), size_of_loaded(model, config)
    assert planned == real
    model.use_for_decode("int8")
    planned = size_of_folder(smollm, OperatorConfig(dtype_decode="int8"))
    assert planned.weights == pytest.approx(model.weight_bytes, rel=0.02)
