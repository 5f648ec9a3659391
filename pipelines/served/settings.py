"""Which server answers, and how patiently it is asked."""

from __future__ import annotations

import ipaddress
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators.errors import ConfigError

OPENINGS = ("auto", "continue", "ask")


@dataclass(frozen=True)
class ServerSettings:
    """See the settings ``server_…`` in :mod:`pipelines.config.fields`. Raises ConfigError."""

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    cafile: str = ""
    timeout_s: float = 120.0
    attempts: int = 6
    openings: str = "auto"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("server_url: expected http://host:port or https://host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError("server_url: no login and no query in it; the key is server_key_file")
        if self.key and parts.scheme == "http" and not _loopback(parts.hostname):
            raise ConfigError("server_url: a key goes over https only")
        if self.cafile and not Path(self.cafile).is_file():
            raise ConfigError(f"server_cafile: no such file: {self.cafile}")

    @property
    def base(self) -> str:
        """The address in front of ``/chat/completions``: with ``/v1``, unless a path was given."""
        parts = urllib.parse.urlsplit(self.url)
        return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
