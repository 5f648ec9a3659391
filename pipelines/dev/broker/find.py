"""Which broker to use: an existing one, Docker, a JVM, and for the demo Tansu, in this order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pipelines.dev.broker.base import Broker, BrokerError, Log, listens
from pipelines.dev.broker.docker import start_docker
from pipelines.dev.broker.jvm import start_jvm
from pipelines.dev.broker.tansu import start_tansu

INSTALL = (
    "Set LONGSTREAM_BOOTSTRAP to the host:port of a Kafka that runs, or start Docker, or install"
    " Java 17 or newer and Maven (Debian: apt-get install openjdk-17-jre-headless maven)."
)


def start(
    kind: Literal["auto", "external", "docker", "jvm", "tansu"] = "auto",
    *,
    bootstrap: str | None = None,
    port: int | None = None,
    properties: Mapping[str, str] | None = None,
    allow_tansu: bool = False,
    cache: Path | None = None,
    log: Log | None = None,
) -> Broker:
    """Find or start a broker; use it as a context manager, which stops what was started.

    ``bootstrap``: an existing broker, taken before anything else when ``kind`` is "auto".
    ``port``: of the started broker; default a free one. ``properties``: further server properties
    (not for Tansu). ``allow_tansu``: with "auto", Tansu as the last resort. ``cache``: where jars
    and binaries are kept. ``log``: gets sentences about what is tried.

    Raises :class:`BrokerError`, which lists what was tried and says what to install.
    """
    log = log or logging.getLogger(__name__).info
    cache = cache or default_cache()
    if kind == "external" or (kind == "auto" and bootstrap):
        return _external(bootstrap)
    ways: dict[str, Callable[[], Broker]] = {
        "docker": lambda: start_docker(log, port=port, properties=properties),
        "jvm": lambda: start_jvm(cache, log, port=port, properties=properties),
        "tansu": lambda: start_tansu(cache, log, port=port),
    }
    chosen = [kind] if kind != "auto" else ["docker", "jvm"] + (["tansu"] if allow_tansu else [])
    failures = []
    for way in chosen:
        try:
            broker = ways[way]()
        except BrokerError as error:
            failures.append(f"  {way}: {error}")
            log(f"{way}: {str(error).splitlines()[0]}")
        else:
            log(f"Kafka: {broker.description}")
            return broker
    raise BrokerError("no Kafka could be started:\n" + "\n".join([*failures, INSTALL]))


def from_environment(*, allow_tansu: bool = False, log: Log | None = None) -> Broker:
    """:func:`start` with LONGSTREAM_BOOTSTRAP, for tests and tools that read no settings."""
    bootstrap = os.environ.get("LONGSTREAM_BOOTSTRAP") or None
    return start(bootstrap=bootstrap, allow_tansu=allow_tansu, log=log)


def default_cache() -> Path:
    """LONGSTREAM_CACHE, or ~/.cache/longstream."""
    return Path(os.environ.get("LONGSTREAM_CACHE") or "~/.cache/longstream").expanduser()


def _external(bootstrap: str | None) -> Broker:
    """The broker somebody else runs, if it listens."""
    if not bootstrap:
        raise BrokerError("no address of an existing Kafka was given; set LONGSTREAM_BOOTSTRAP")
    if not listens(bootstrap, timeout=5.0):
        raise BrokerError(
            f"nothing listens at {bootstrap} (LONGSTREAM_BOOTSTRAP); start that Kafka, correct the"
            " address, or unset it to have a broker started"
        )
    return Broker(bootstrap, f"existing Kafka at {bootstrap}")
