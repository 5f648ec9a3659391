"""Models are data: nothing that could run code is loaded, and what would be is refused in words."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path

import pytest

from operators.errors import ModelError
from operators.model.loader import load_model
from pipelines import models
from pipelines.models.source import HUB_FILES
from tests.toy import toy_model

ROOT = Path(__file__).parents[2]


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def folder(tmp_path: Path, weights: str, trap: Path) -> Path:
    """A model folder whose weights are a pickle that leaves a trace."""
    path = tmp_path / "model"
    toy_model().config.save_pretrained(path)
    (path / weights).write_bytes(pickle.dumps(Trap(trap)))
    return path


def test_the_trap_works(trap: Path) -> None:
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_folder_of_pickled_weights_is_refused_unopened(
    tmp_path: Path, trap: Path, weights: str
) -> None:
    path = folder(tmp_path, weights, trap)
    with pytest.raises(ModelError, match=r"holds config\.json and \*\.safetensors") as refused:
        models.resolve(str(path))
    assert "pickle" in str(refused.value)
    with pytest.raises(ModelError, match="cannot load a model"):
        load_model(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.gguf"])
def test_a_file_of_pickled_weights_is_refused_unopened(
    tmp_path: Path, trap: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(ModelError, match="is not a GGUF file"):
        models.resolve(str(file))
    assert not trap.exists()


def test_a_pickle_called_safetensors_is_refused_unopened(tmp_path: Path, trap: Path) -> None:
    path = folder(tmp_path, "model.safetensors", trap)
    with pytest.raises(ModelError):
        load_model(models.resolve(str(path)))
    assert not trap.exists()


def test_a_model_that_brings_its_own_code_is_refused_unrun(tmp_path: Path, trap: Path) -> None:
    path = folder(tmp_path, "unused.bin", trap)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(f"import os\nos.mkdir({str(trap)!r})\nclass Config: pass\n")
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError):
        load_model(models.resolve(str(path)))
    assert not trap.exists()


def test_only_data_is_fetched_from_a_hub() -> None:
    assert not any(name.endswith((".py", ".bin", ".pt", ".pth", ".pkl")) for name in HUB_FILES)
    assert "*" not in HUB_FILES


def calls(source: str) -> list[tuple[str, dict[str, str]]]:
    """Dotted name and keyword arguments of every call."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            found.append((ast.unparse(node.func), keywords))
    return found


@pytest.mark.parametrize("package", ["operators", "pipelines"])
def test_no_call_in_the_code_can_unpickle_or_trust_remote_code(package: str) -> None:
    loads = 0
    for path in (ROOT / package).rglob("*.py"):
        for name, keywords in calls(path.read_text()):
            place = f"{path.name}: {name}"
            assert "trust_remote_code" not in keywords, place
            assert name.split(".")[0] not in ("pickle", "dill", "joblib", "marshal"), place
            assert name not in ("torch.load", "torch.jit.load", "yaml.load", "numpy.load"), place
            if name == "AutoModelForCausalLM.from_pretrained":
                loads += 1
                assert keywords.get("use_safetensors") == "True", place
    assert loads > 0
