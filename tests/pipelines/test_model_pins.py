"""What a model is pinned to, and that other bytes are refused before anything is loaded."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operators.config import OperatorConfig
from operators.errors import ModelError
from operators.observer import Observer
from pipelines.cli import model as command
from pipelines.device import loader, protocol
from pipelines.local import load_operator
from pipelines.models import Pin, digest, resolve, source
from pipelines.worker.exit_codes import MODEL, code_of

BY_HAND = (
    r"find -L . -type f \( -name '*.safetensors' -o -name '*.json' -o -name '*.txt' -o -name '*.jinja'"
    r" -o -name '*.model' \) | cut -c3- | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"
)
WRONG = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, with names that sort differently by letters than by bytes, a folder below and
    files that are no part of a model."""
    path = tmp_path / "model"
    (path / "additional_chat_templates").mkdir(parents=True)
    for name in (
        "model-2.safetensors",
        "model-10.safetensors",
        "Zebra.txt",
        "über.json",
        "a b.txt",
    ):
        (path / name).write_text(name)
    for name in ("config.json", "tokenizer.model", "additional_chat_templates/tool.jinja"):
        (path / name).write_text(f"{name}\n")
    for name in ("README.md", "pytorch_model.bin", "code.py"):
        (path / name).write_text("not read")
    return path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for a hub that serves the folder as owner/model: none can be reached here. What was asked
    for."""
    asked: list[str] = []

    def fetch(repo: str) -> Path:
        asked.append(repo)
        return folder

    monkeypatch.setattr(source, "hub_snapshot", lambda repo: None)
    monkeypatch.setattr(source, "fetch_hub", fetch)
    return asked


# --- the number ----------------------------------------------------------------------------------


def test_of_a_file_it_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and more")
    assert digest(tmp_path / "model.gguf") == hashlib.sha256(b"GGUF and more").hexdigest()


def test_of_a_folder_anybody_can_compute_it(folder: Path) -> None:
    names = ["Zebra.txt", "a b.txt", "additional_chat_templates/tool.jinja", "config.json"]
    names += ["model-10.safetensors", "model-2.safetensors", "tokenizer.model", "über.json"]
    lines = "".join(f"{source.sha256_of(folder / name)}  {name}\n" for name in names)
    assert digest(folder) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_the_command_that_is_documented_gives_the_same(folder: Path) -> None:
    done = subprocess.run(BY_HAND, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.stdout.split() == [digest(folder), "-"], done.stderr


def test_where_files_lie_does_not_matter_and_links_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert digest(linked) == digest(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model-2.safetensors", "additional_chat_templates/tool.jinja"]
)
def test_any_change_of_what_is_read_changes_it(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).rename(folder / f"other-{Path(name).name}")
    renamed = digest(folder)
    (folder / f"other-{Path(name).name}").write_text("changed")
    assert len({before, renamed, digest(folder)}) == 3


def test_what_is_not_read_does_not_matter(folder: Path) -> None:
    before = digest(folder)
    (folder / "README.md").write_text("changed")
    assert digest(folder) == before


def test_a_name_that_spoils_a_line_is_refused(folder: Path) -> None:
    (folder / "a\nb.json").write_text("{}")
    with pytest.raises(ModelError, match="file name"):
        digest(folder)


def test_the_command_prints_it(folder: Path) -> None:
    def run(name: str) -> Any:
        return CliRunner().invoke(command.app, ["sha256", name])

    assert run(str(folder)).stdout == f"{digest(folder)}\n"
    assert run("smollm2-135m").stdout == f"{source.ALIASES['smollm2-135m'].sha256}\n"
    missing = run("owner/model-that-is-not-here")
    assert missing.exit_code == MODEL
    assert "longstream model pull owner/model-that-is-not-here" in missing.stderr
    assert run("./nowhere").exit_code == MODEL


# --- what is refused -----------------------------------------------------------------------------


def test_a_right_pin_passes_and_a_wrong_one_names_both(folder: Path) -> None:
    assert resolve(str(folder), pin=Pin(digest(folder), needed="always")) == folder
    with pytest.raises(ModelError, match=f"{digest(folder)}, but model_sha256 is {WRONG}"):
        resolve(str(folder), pin=Pin(WRONG))


def test_a_folder_of_one_s_own_needs_none_outside_a_worker(folder: Path) -> None:
    assert resolve(str(folder)) == folder
    with pytest.raises(ModelError, match=r"longstream model sha256 .*LONGSTREAM_MODEL_SHA256"):
        resolve(str(folder), pin=Pin(needed="always"))


def test_a_gguf_file_is_compared_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF, and nothing that could be converted")
    with pytest.raises(ModelError, match="nothing was loaded"):
        resolve(str(file), cache=tmp_path, pin=Pin(WRONG))
    with pytest.raises(ModelError, match="is not pinned"):
        resolve(str(file), cache=tmp_path, pin=Pin(needed="always"))
    with pytest.raises(ModelError, match="cannot be converted"):
        resolve(str(file), cache=tmp_path, pin=Pin(digest(file), needed="always"))


def test_a_hub_s_model_is_fetched_only_with_a_pin_or_by_pull(folder: Path, hub: list[str]) -> None:
    for pin in (Pin(needed="hub"), Pin(needed="always")):
        with pytest.raises(ModelError, match=r"longstream model pull owner/model.*model_sha256"):
            resolve("owner/model", pin=pin)
    assert hub == []
    assert resolve("owner/model", pin=Pin(needed="never")) == folder
    assert resolve("owner/model", pin=Pin(digest(folder))) == folder
    with pytest.raises(ModelError, match="nothing was loaded"):
        resolve("owner/model", pin=Pin(WRONG))


def test_a_pinned_model_of_a_hub_that_is_here_is_not_asked_for(
    folder: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "hub_snapshot", lambda repo: folder)
    assert resolve("owner/model", pin=Pin(digest(folder))) == folder
    assert hub == []


def test_an_alias_is_pinned_already(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"smollm2-135m is always .* leave model_sha256 empty"):
        resolve("smollm2-135m", cache=tmp_path, pin=Pin(WRONG))


def test_the_python_api_wants_a_pin_for_a_hub_s_model(hub: list[str]) -> None:
    with pytest.raises(ModelError, match="model_sha256"):
        load_operator("owner/model")
    assert hub == []


@pytest.mark.parametrize(
    ("model", "draft", "named"),
    [("", "", "model_sha256"), (WRONG, "", "model_sha256"), (None, "", "draft_model_sha256")],
    ids=["none", "wrong", "none of the draft model"],
)
def test_a_device_loads_nothing_that_is_not_pinned(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str | None,
    draft: str,
    named: str,
) -> None:
    def loaded(*args: Any, **options: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(loader, "load_calibrated", loaded)
    load = protocol.Load(
        model=str(folder),
        model_sha256=digest(folder) if model is None else model,
        draft_model_sha256=draft,
    )
    for config in (OperatorConfig(draft_model=str(folder)), OperatorConfig(draft_head=str(folder))):
        with pytest.raises(ModelError, match=rf"\b{named}") as refused:
            loader.load_operator(load, config, Observer(), lambda message: None)
        assert code_of(refused.value) == MODEL
