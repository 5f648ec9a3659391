"""The cost curve of this machine: measured once, kept, measured again when it no longer fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from operators.config import OperatorConfig
from operators.decoding.acceptance import CostCurve
from operators.model.loader import DecoderModel, Role
from operators.model.quantization import Int8Linear
from operators.observer import Observer
from pipelines.device import calibration, loader, protocol
from pipelines.device.calibration import (
    DRAFT,
    VERIFY,
    choose_prefill,
    choose_weights,
    cost_curve,
    load_calibrated,
)
from tests.engine import ToyTokenizer, toy_decoder
from tests.toy import toy_model


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on the machine of the tests."""
    monkeypatch.setattr(calibration, "had_cores", lambda wall, cpu: True)


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "calibration").iterdir())


def test_a_curve_covers_the_blocks_and_is_read_back(tmp_path: Path) -> None:
    said: list[str] = []
    model = toy_decoder()
    first = cost_curve(model, VERIFY, tmp_path, said.append)
    assert [n for n, _ in first.points] == list(VERIFY)
    assert all(0 < seconds < 10 for _, seconds in first.points)
    assert cost_curve(toy_decoder(), VERIFY, tmp_path, said.append) == first
    assert len(said) == len(kept(tmp_path)) == 1


def test_another_model_threads_or_blocks_have_a_curve_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost_curve(toy_decoder(), VERIFY, tmp_path)
    cost_curve(toy_decoder(), DRAFT, tmp_path)
    cost_curve(toy_decoder(seed=1), VERIFY, tmp_path)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    cost_curve(toy_decoder(), VERIFY, tmp_path)
    assert len(kept(tmp_path)) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"points": [[2, 1], [1, 2]]}'])
def test_a_spoilt_file_is_measured_again(tmp_path: Path, text: str) -> None:
    model = toy_decoder()
    cost_curve(model, VERIFY, tmp_path)
    (file,) = kept(tmp_path)
    key = json.loads(file.read_text())["key"]
    if "points" in text:
        text = json.dumps({**json.loads(text), "key": key})
    file.write_text(text)
    assert isinstance(cost_curve(model, VERIFY, tmp_path), CostCurve)
    assert json.loads(file.read_text())["key"] == key


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file where a folder should be")
    assert cost_curve(toy_decoder(), VERIFY, tmp_path).points


def test_the_device_measures_both_models_and_drafts_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"big": toy_decoder(), "small": toy_decoder(seed=7, layers=1)}
    monkeypatch.setattr(loader.models, "resolve", lambda name, progress, **_: Path(name))
    monkeypatch.setattr(loader.models, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: models[path.name])
    config = OperatorConfig(draft_model="small", slots=2, branches=2, branch_tokens=1500)
    operator, ready = loader.load_operator(
        protocol.Load(model="big"), config, Observer(), lambda message: None
    )
    files = [json.loads(file.read_text()) for file in kept(tmp_path)]
    assert {f["key"]["model"] for f in files} == {m.fingerprint for m in models.values()}
    costs = operator._scheduler._costs
    assert costs.draft is not None
    assert sorted(len(f["points"]) for f in files) == sorted(
        [len(costs.draft.points), len(costs.verify.points)]
    )
    assert ready.bytes_per_stream == operator.bytes_per_stream
    assert "small" in ready.description


def in_bf16() -> DecoderModel:
    return DecoderModel(
        toy_model(), ToyTokenizer(), name="toy", dtype_prefill="bf16", dtype_decode="bf16"
    )


def slow(kind: str, from_tokens: int) -> Callable[..., dict[int, float]]:
    """A machine on which this type of weights costs ten times as much from so many tokens on."""

    def measure(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[int, float]:
        slower = model.dtypes["decode"] == kind
        return {n: 0.01 * n * (10 if slower and n >= from_tokens else 1) for n in blocks}

    return measure


def test_the_faster_weights_generate_and_a_restart_takes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", slow("bf16", 1))
    first = in_bf16()
    assert choose_weights(first, ("bf16", "int8"), 1, tmp_path) == "int8"
    assert isinstance(first._networks["decode"].head, Int8Linear)
    monkeypatch.setattr(calibration, "measure", slow("int8", 1))  # another load, another day
    again = in_bf16()
    assert choose_weights(again, ("bf16", "int8"), 1, tmp_path) == "int8"
    assert again.dtypes == {"prefill": "bf16", "decode": "int8"}


def test_verify_blocks_and_the_number_of_answers_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 wins for short forwards and loses for long ones: few answers take it, many do not."""

    def measure(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[int, float]:
        eight = model.dtypes["decode"] == "int8"
        return {n: 0.1 + 0.04 * n if eight else 0.2 + 0.01 * n for n in blocks}

    monkeypatch.setattr(calibration, "measure", measure)
    chosen = [choose_weights(in_bf16(), ("bf16", "int8"), rows, tmp_path) for rows in (1, 8)]
    assert chosen == ["int8", "bf16"]


def test_auto_never_takes_weights_that_were_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[int, float]:
        fast = {"bf16": 3.0, "int8": 2.0, "w8a8": 2.5, "int4": 1.0}[model.dtypes["decode"]]
        return {n: fast * n for n in blocks}

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: in_bf16())
    path, config = Path("toy"), OperatorConfig()
    assert load_calibrated(path, config, tmp_path, name="toy").dtypes["decode"] == "int8"
    assert choose_weights(in_bf16(), ("bf16", "int4"), 1, tmp_path) == "int4"


def test_without_speculation_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", None)
    monkeypatch.setattr(loader.models, "resolve", lambda name, progress, **_: Path(name))
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: toy_decoder())
    config = OperatorConfig(drafter="none", branch_tokens=1500)
    loader.load_operator(protocol.Load(model="big"), config, Observer(), lambda _: None)


def test_a_measurement_on_a_busy_machine_does_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", slow("int8", 1))  # in this loaded moment
    monkeypatch.setattr(calibration, "had_cores", lambda wall, cpu: False)
    said: list[str] = []
    model = in_bf16()
    assert choose_weights(model, ("bf16", "int8"), 1, tmp_path, said.append) == "int8"
    assert model.dtypes["decode"] == "int8"
    assert "too busy" in said[-1]
    assert not (tmp_path / "calibration").exists()


def test_a_worker_follows_the_weights_of_the_streams_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", slow("int8", 1))  # it would choose bf16
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: in_bf16())
    mine = in_bf16().fingerprint
    said: list[str] = []

    def loaded(*known: str) -> str:
        model = load_calibrated(
            Path("toy"), OperatorConfig(), tmp_path, name="toy", known=known, say=said.append
        )
        return model.dtypes["decode"]

    assert loaded(f"{mine} bf16+int8") == "int8"
    assert loaded("another bf16+int8", f"{mine} fp32+fp32", f"{mine} bf16+int8") == "int8"
    assert loaded(f"{mine} bf16+int2", "garbage") == "bf16"
    assert any("int2 weights, which do not run here" in line for line in said)
    assert loaded() == "bf16"


def test_what_to_pin_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: in_bf16())
    monkeypatch.setattr(calibration, "measure", slow("bf16", 1))
    found = calibration.report(Path("toy"), "toy", 1, 4, lambda line: None)
    assert found["pin"]["LONGSTREAM_OPERATOR__DTYPE_DECODE"] == "int8"
    text = calibration.in_words(found)
    assert "LONGSTREAM_OPERATOR__DTYPE_DECODE=int8" in text
    assert "LONGSTREAM_THREADS=1" in text
    assert next(line for line in text.splitlines() if " int4 " in line).count("loses quality") == 1


def reads(*, fast: str) -> Callable[..., dict[int, float]]:
    """A machine that reads with this type of weights."""

    def measure(model: DecoderModel, blocks: Mapping[int, Role]) -> dict[int, float]:
        return {n: 0.01 * n * (1 if model.dtypes["prefill"] == fast else 5) for n in blocks}

    return measure


@pytest.fixture
def eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """w8a8 can be chosen, and is then int8, which runs on every machine of the tests."""
    monkeypatch.setattr(calibration, "runs_w8a8", lambda device: True)
    monkeypatch.setattr(calibration.DecoderModel, "_made", lambda self, dtype: self._loaded)


@pytest.mark.usefixtures("eight_bits")
def test_the_faster_weights_read_and_a_restart_takes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", reads(fast="w8a8"))
    assert choose_prefill(in_bf16(), tmp_path) == "w8a8"
    monkeypatch.setattr(calibration, "measure", reads(fast="bf16"))
    again = in_bf16()
    assert choose_prefill(again, tmp_path) == "w8a8"
    assert again.dtypes["prefill"] == "w8a8"
    assert choose_prefill(in_bf16(), tmp_path / "other") == "bf16"


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize(("matrix_units", "expected"), [(True, "bf16"), (False, "w8a8")])
def test_on_a_busy_machine_the_processor_decides_how_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix_units: bool, expected: str
) -> None:
    monkeypatch.setattr(
        calibration, "measure", reads(fast="bf16" if expected == "w8a8" else "w8a8")
    )
    monkeypatch.setattr(calibration, "had_cores", lambda wall, cpu: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: matrix_units)
    said: list[str] = []
    assert choose_prefill(in_bf16(), tmp_path, said.append) == expected
    assert "too busy" in said[-1]
    assert not (tmp_path / "calibration").exists()


@pytest.mark.usefixtures("eight_bits")
def test_who_asks_for_bf16_answers_reads_with_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", reads(fast="w8a8"))
    monkeypatch.setattr(calibration, "load_model", lambda path, **_: in_bf16())

    def loaded(known: tuple[str, ...] = (), **settings: str) -> dict[str, str]:
        config = OperatorConfig(**settings)  # type: ignore[arg-type]
        return load_calibrated(Path("toy"), config, tmp_path, name="toy", known=known).dtypes

    assert loaded(dtype_decode="bf16") == {"prefill": "bf16", "decode": "bf16"}
    assert loaded(dtype_prefill="bf16")["prefill"] == "bf16"
    assert loaded()["prefill"] == "w8a8"
    mine = in_bf16().fingerprint
    assert loaded((f"{mine} bf16+int8",)) == {"prefill": "bf16", "decode": "int8"}
    assert loaded((f"{mine} w8a8+int8",), dtype_prefill="bf16")["prefill"] == "bf16"


def test_a_part_of_a_large_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_bf16()
    assert calibration.sample(model) == (model, 1.0)
    monkeypatch.setattr(calibration, "SAMPLE_BYTES", 1)
    monkeypatch.setattr(calibration, "SAMPLE_LAYERS", 1)
    part, share = calibration.sample(model)
    assert (part.shape.layers, share) == (1, 1 / model.shape.layers)
