"""The sha256 a model is pinned to: of a file its own, of a folder one over all that is read of it.

Of a folder: every data file (:data:`~pipelines.models.source.HUB_FILES`) in it and below, one line
each as ``sha256sum`` writes it (digest, two spaces, path within the folder), sorted by path in bytes;
the sha256 of these lines. By hand, in the folder::

    find -L . -type f \\( -name '*.safetensors' -o -name '*.json' -o -name '*.txt' -o -name '*.jinja' \\
      -o -name '*.model' \\) | cut -c3- | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from operators.errors import ModelError
from pipelines.models.source import HUB_FILES, sha256_of


@dataclass(frozen=True)
class Pin:
    """What is demanded of a model that is no alias: ``sha256`` (empty: nothing was set under the name
    ``setting``), and for which models there must be one: those of a hub, or files on this machine as
    well."""

    sha256: str = ""
    setting: str = "model_sha256"
    needed: Literal["never", "hub", "always"] = "hub"

    def demand(self, name: str, *, of_hub: bool) -> None:
        """Raise ModelError where a digest is needed and not set; nothing is fetched for this."""
        if self.sha256 or self.needed == "never" or (self.needed == "hub" and not of_hub):
            return
        variable = f" (LONGSTREAM_{self.setting.upper()})" if "-" not in self.setting else ""
        first = f"`longstream model pull {name}`, then " if of_hub else ""
        raise ModelError(
            f"{name} is not pinned, so any bytes would be loaded under that name: {first}"
            f"`longstream model sha256 {name}` says its digest; compare it with what its maker says, "
            f"and set {self.setting}{variable} to it"
        )

    def check(self, name: str, path: Path) -> None:
        """Raise ModelError unless ``path``, a file or folder, has the digest, if one is set."""
        if self.sha256 and (found := digest(path)) != self.sha256:
            raise ModelError(
                f"{name} has sha256 {found}, but {self.setting} is {self.sha256}: nothing was loaded. "
                f"If the change is wanted, set {self.setting} anew"
            )

    def found(self, name: str) -> Path:
        """The file or folder ``name`` on this machine, demanded and checked."""
        path = Path(name).expanduser()
        self.demand(name, of_hub=False)
        self.check(name, path)
        return path


def digest(path: Path) -> str:
    """Hex sha256 of a file, or of a folder as the module says. Raises ModelError."""
    try:
        if path.is_file():
            return sha256_of(path)
        lines = [f"{sha256_of(path / name)}  {name}\n" for name in _data_files(path)]
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    if not lines:
        raise ModelError(f"{path}: no such file, and no folder of a model")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _data_files(folder: Path) -> list[str]:
    """Paths within the folder, in the order of their bytes."""
    found = []
    for base, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in HUB_FILES):
                found.append((Path(base) / name).relative_to(folder).as_posix())
    if odd := [name for name in found if not name.isprintable() or "\\" in name]:
        raise ModelError(f"{folder}: what kind of a file name is {odd[0]!r}?")
    return sorted(found, key=os.fsencode)
