"""``longstream doctor`` finds what is wrong and says which command mends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operators.config import OperatorConfig
from pipelines.cli import diagnosis
from pipelines.cli.diagnosis import Finding
from pipelines.cli.main import make_cli
from pipelines.config.cpu import CpuLimit
from pipelines.config.fields import Settings


def of(findings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(make_cli(), ["doctor", *arguments])
    return done.exit_code, done.output


def test_a_wrong_setting_ends_with_2_and_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_DEVICE", "gpu")
    code, text = run("--json")
    said = json.loads(text)
    assert (code, said["ok"], said["findings"]) == (2, False, [])
    assert "device" in said["settings"]


def test_a_machine_without_kafka_or_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGSTREAM_CACHE", str(tmp_path))
    code, text = run("--json", "--model", "smollm2-135m", "--bootstrap", "127.0.0.1:1")
    said = json.loads(text)
    found = {finding["check"]: finding for finding in said["findings"]}
    assert (code, said["ok"]) == (1, False)
    assert found["kafka"]["status"] == "error"
    assert "longstream kafka" in found["kafka"]["mend"]
    assert found["model"]["mend"] == "longstream model pull smollm2-135m"
    assert {found[name]["status"] for name in ("python", "torch", "device")} == {"ok"}
    assert all(f["mend"] for f in said["findings"] if f["status"] != "ok")


def test_only_warnings_end_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    warned = [Finding("clock", "warning", "not synchronised", "timedatectl set-ntp true")]
    monkeypatch.setattr("pipelines.cli.doctor.diagnose", lambda *a, **k: iter(warned))
    code, text = run()
    assert code == 0
    assert "WARNING clock: not synchronised\n        mend: timedatectl set-ntp true" in text


def test_a_device_that_is_not_there() -> None:
    found = of(diagnosis.torch_and_device(Settings(device="cuda:77")))
    assert found["device"].status == "error"
    assert "LONGSTREAM_DEVICE" in found["device"].mend


def test_more_threads_than_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "cpu_limit", lambda: CpuLimit(affinity=8, quota=1.5))
    assert of(diagnosis.threads(Settings(threads=1)))["cpu quota"].status == "ok"
    found = of(diagnosis.threads(Settings(threads=8)))["cpu quota"]
    assert (found.status, found.mend) == ("warning", "export LONGSTREAM_THREADS=1")


def test_what_was_installed_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operators.model.rows._compiled", object())
    assert of(diagnosis._compiled({"avx512_vnni"}))["compiled"].status == "ok"
    monkeypatch.setattr("operators.model.rows._compiled", None)
    found = of(diagnosis._compiled({"avx2", "avx512_vnni"}))["compiled"]
    assert found.status == "warning"
    assert "gcc" in found.mend
    assert not of(diagnosis._compiled({"avx2"})), "no worker has such weights there"


@pytest.mark.model
def test_more_slots_than_memory() -> None:
    settings = Settings(model="smollm2-135m", operator=OperatorConfig(slots=10**6))
    settings = settings.model_copy(update={"cache": Path("~/.cache/longstream").expanduser()})
    found = of(diagnosis.memory(settings))["memory"]
    assert found.status == "error"
    fit = int(found.mend.rpartition("=")[2])
    assert 1 <= fit < 10**6
    fits = settings.model_copy(update={"operator": OperatorConfig(slots=fit, host_streams=0)})
    assert of(diagnosis.memory(fits))["memory"].status != "error"


def test_a_model_without_a_digest_and_a_folder_without_room(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    found = of(diagnosis.model(Settings(model=str(tmp_path))))["model"]
    assert found.status == "error"
    assert "model sha256" in found.mend
    finding = diagnosis._room("disk", tmp_path / "new", 10**18, "LONGSTREAM_CACHE")
    assert finding.status == "error"
    assert "LONGSTREAM_CACHE" in finding.mend


TOPIC = {"error_code": 0, "partitions": [0, 1], "authorized_operations": ["READ", "DESCRIBE"]}


def test_missing_topics_and_unequal_ones() -> None:
    settings = Settings()
    found = of(diagnosis._topics(settings, {settings.topic_segments: dict(TOPIC)}))
    assert found["topics"].mend == "longstream topics create"
    named = {name: dict(TOPIC) for name in settings.topics}
    assert of(diagnosis._topics(settings, named))["topics"].status == "ok"
    named[settings.topic_dlq]["partitions"] = [0]
    assert "insights.dlq.v1 has 1" in of(diagnosis._topics(settings, named))["topics"].detail


def test_a_right_that_is_lacking() -> None:
    settings = Settings()
    named = {name: dict(TOPIC) for name in settings.topics}
    lacking = list(diagnosis._rights(settings, named))
    assert {finding.status for finding in lacking} == {"error"}
    assert len(lacking) == len(settings.topics) - 1  # the input is only read
    assert "--operation Write --topic insights.dlq.v1" in lacking[-1].mend
    for topic in named.values():
        topic["authorized_operations"] = ["READ", "WRITE", "DESCRIBE"]
    [fine] = diagnosis._rights(settings, named)
    assert fine.status == "ok"


def test_the_kernels_word_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnosis._kernel_clock() in (True, False, None)
    for word, status in ((True, "ok"), (None, "ok"), (False, "warning")):
        monkeypatch.setattr(diagnosis, "_kernel_clock", lambda word=word: word)
        assert of(diagnosis.clock())["clock"].status == status
