"""Folders fetched once and kept: the jars of Kafka, the Tansu binary."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached_folder(cache: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """``cache/name``, filled by ``fill(folder)`` if it does not exist.

    It appears complete or not at all, also when several processes fill it at the same time: each
    fills a folder of its own, the first rename wins. An exception of ``fill`` leaves nothing.
    """
    target = cache / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fill(draft)
        draft.chmod(0o755)
        try:
            os.rename(draft, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
